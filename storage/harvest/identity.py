"""Whether a harvest is the one that was made, or begun, before: the same settings, models and corpus."""

from __future__ import annotations

from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.image_corpus import open_images
from lexray.storage.harvest.journal import close_journal
from lexray.storage.harvest.text_corpus import measure
from lexray.storage.manifest import MANIFEST, Manifest, load_manifest
from lexray.storage.store import Store, reachable


def find_existing(store: Store, config: HarvestFile, source: dict[str, Any]) -> Manifest | None:
    """The harvest that lies in the store if it has the same source. Raises UserError when another dataset is there."""
    with reachable("output", store.url):
        if not store.exists(MANIFEST):
            return None
    manifest = load_manifest(store)
    written = manifest.provenance
    if not isinstance(written.get("settings"), dict) or "run" not in written:
        raise UserError(
            f"output: {config.output} holds a dataset that was not harvested by lexray; choose another output"
        )
    was = f"the dataset in {config.output} was harvested with"
    check_same(config, source, written, was)
    check_same(config, source | _corpus_facts(config, manifest), written, was)
    manifest.check_shards(store)
    close_journal(store)  # in case the harvest was ended in between
    return manifest


def check_same(config: HarvestFile, wanted: dict[str, Any], written: dict[str, Any] | None, was: str) -> None:
    """Raise UserError naming the first field in which the parts of `wanted` differ from those of `written`."""
    if written is None:
        return
    new = _flatten(wanted)
    old = _flatten({part: written.get(part, {}) for part in wanted})
    for name in [*new, *sorted(old.keys() - new.keys())]:
        if new.get(name) != old.get(name):
            field = name.removeprefix("settings.")
            raise UserError(
                f"{field}: {_show(new.get(name))}, but {was} {_show(old.get(name))}; "
                "choose another output or remove that one"
            )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


def _corpus_facts(config: HarvestFile, manifest: Manifest) -> dict[str, Any]:
    """Of the whole corpus now, or of as many documents of a text as the manifest's harvest read before `max_rows`."""
    if config.images is not None:
        return open_images(config.images, config.storage).facts
    was_cut = config.max_rows is not None and manifest.rows == config.max_rows
    return {"text": measure(config, manifest.provenance["text"]["documents"] if was_cut else None).as_dict()}
