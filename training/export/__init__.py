"""Export trained dictionaries to the formats of other libraries, computing the same from the same raw activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lexray.storage.errors import UserError
from lexray.storage.store import StorageSettings, Store
from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
from lexray.training.export import dictionary_learning, sae_lens, sparsify
from lexray.training.export.folded import Folded, are_equal, fold
from lexray.training.export.origin import Origin, origin_of

Writer = Callable[[Folded, Origin, Store], tuple[str, list[str]]]

FORMATS: dict[str, Writer] = {
    "sae-lens": sae_lens.write,
    "dictionary-learning": dictionary_learning.write,
    "sparsify": sparsify.write,
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported folder."""

    url: str
    format: str
    architecture: str
    """Its name in that format."""
    files: tuple[str, ...]
    notes: tuple[str, ...]
    """Caveats for users of the folder."""


def export_dictionary(
    url: str, to: str, path: str, *, unit_atoms: bool = False, settings: StorageSettings | None = None
) -> Exported:
    """Write the saved dictionary at `url` into the empty folder `path` as a folder of the format `to`.

    `unit_atoms` scales every atom to length 1 and its code by that length. Raises UserError with the reason when the
    format cannot represent the dictionary.
    """
    if to not in FORMATS:
        raise UserError(f"--to: {to!r} is no format; known: {', '.join(FORMATS)}")
    origin = origin_of(read_dictionary_config(Store.at(url, settings)))
    folded = fold(load_dictionary(url, settings))
    if unit_atoms:
        folded = folded.with_unit_atoms()
    store = Store.at(path, settings)
    check_empty(store)
    name, files = FORMATS[to](folded, origin, store)
    return Exported(url=store.url, format=to, architecture=name, files=tuple(files), notes=_notes(folded, to))


def check_empty(store: Store) -> None:
    """Raise UserError when the folder to write is not empty."""
    if store.exists("") and (store.local_path is None or not _is_empty_folder(store)):
        raise UserError(f"{store.url}: there is something there already; choose a new folder")


def _is_empty_folder(store: Store) -> bool:
    return bool(store.filesystem.isdir(store.local_path)) and not store.filesystem.ls(store.local_path)


def _notes(folded: Folded, to: str) -> tuple[str, ...]:
    notes = []
    if not bool((folded.code_scale_F - 1).abs().max() <= 1e-6):
        low, high = float(folded.code_scale_F.min()), float(folded.code_scale_F.max())
        by = f"{low:.4g}" if are_equal(folded.code_scale_F) else f"{low:.4g} to {high:.4g}, latent by latent"
        notes.append(f"codes are lexray's times {by}; reconstructions are the same")
    if folded.pursuit is not None and folded.pursuit.residual_norm > 0:
        short = folded.pursuit.residual_norm
        notes.append(f"rows that begin closer than {short:.4g} to b_dec have one active latent there and none here")
    if to == "dictionary-learning":
        notes.append(f"{dictionary_learning.TENSORS} is written by torch.save, since that library reads nothing else")
    return tuple(notes)
