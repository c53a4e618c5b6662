"""`lexray bench synthsaebench`: judge dictionaries by the known features of generated rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lexray.cluster.consoles import plain_table, wide_console
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.errors import UserError
from lexray.storage.store import Store, reachable

if TYPE_CHECKING:
    from lexray.tuning.ground_truth.large import Recovery

ROWS = 32_768
MIN_TABLE_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""
SHOWN = {
    "l0": "L0",
    "r2": "R2",
    "mcc": "MCC",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "unique": "unique",
    "recovered": "recovered",
    "dead": "dead",
}
LEGEND = (
    "MCC: mean |cosine| of atoms and features matched one to one. F1, precision, recall: of each latent as detector of "
    "the feature nearest its atom. unique: such features per latent. recovered: share of all features whose matched "
    "atom has |cosine| 0.7 or more. dead: latents that no fresh row activates."
)


def synthsaebench(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY|SWEEP", help="Folder of a dictionary, or of a sweep.")],
    rows: Annotated[int, typer.Option(min=1, help="Fresh rows to judge on, up to a multiple of 1,024.")] = ROWS,
    as_json: Json = False,
) -> None:
    """Say what dictionaries trained on synthetic:// rows found of their features: MCC, F1, recovery by frequency.

    Example: lexray bench synthsaebench runs/synthsaebench/sweep
    """
    found = {}
    with messages.status("looking for dictionaries") as status:
        for name, place in _dictionaries(Store.at(url)).items():
            status.update(f"judging {name} on {rows:,} rows")
            found[name] = _judged(name, place, rows)
    if as_json:
        print_json({"url": Store.at(url).url, "dictionaries": {name: one.to_dict() for name, one in found.items()}})
        return
    out = wide_console(MIN_TABLE_WIDTH)
    first = next(iter(found.values()))
    out.print(f"{first.rows:,} fresh rows, true L0 {first.true_l0:.2f}")
    out.print(_table(found))
    out.print(LEGEND)
    out.print("\nrecovered by band of frequency, from the most frequent tenth of the features to the rarest")
    out.print(_bands_table(found))


def _dictionaries(store: Store) -> dict[str, str]:
    """Return the urls of the finished dictionaries of a sweep by trial name, or that of the one dictionary itself."""
    from lexray.training.checkpoint.saved import CONFIG
    from lexray.tuning.sweep_folder import FINISHED, SweepFolder

    with reachable("dictionary", store.url):
        if store.exists(CONFIG):
            return {store.url.rsplit("/", 1)[-1]: store.url}
    folder = SweepFolder.existing(store.url)
    trials = [folder.read_trial(trial) for trial in folder.store.list_folders("trials")]
    found = {
        one.name: folder.trial_store(one.trial).at_path("dictionary").url
        for one in sorted((one for one in trials if one is not None), key=lambda one: one.name)
        if one.status in FINISHED
    }
    if not found:
        raise UserError(f"sweep {store.url}: no trial has finished yet, so there is no dictionary to judge")
    return found


def _judged(name: str, url: str, rows: int) -> Recovery:
    from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
    from lexray.training.config import TrainingConfig
    from lexray.training.dictionaries.learned import LearnedDictionary
    from lexray.training.mesh.device import device_of_command
    from lexray.tuning.ground_truth.large import dataset_of, measure_recovery

    content = read_dictionary_config(Store.at(url))
    if "training" not in content:
        raise UserError(f"dictionary {url}: it does not say what it was trained on, so its features are unknown")
    data = TrainingConfig.from_dict(content["training"]).data
    dictionary = load_dictionary(url)
    if not isinstance(dictionary, LearnedDictionary):
        raise UserError(f"dictionary {url}: {dictionary.config.architecture} has no atoms to compare with features")
    return measure_recovery(dictionary, dataset_of(data.url, name), max_rows=rows, device=device_of_command())


def _table(found: dict[str, Recovery]) -> Table:
    cells: list[tuple[Any, ...]] = [
        (name, f"{one.latents:,}", *(f"{getattr(one, key):.3f}" for key in SHOWN)) for name, one in found.items()
    ]
    return plain_table(("dictionary", "latents", *SHOWN.values()), cells)


def _bands_table(found: dict[str, Recovery]) -> Table:
    first = next(iter(found.values()))
    headings = ("dictionary", *(f"{band.frequency:.2%}" for band in first.bands))
    cells = [(name, *(f"{band.recovered:.2f}" for band in one.bands)) for name, one in found.items()]
    return plain_table(headings, cells)
