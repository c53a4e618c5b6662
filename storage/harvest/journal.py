"""Journal of a harvest in progress, and recognition of one that is complete: both are read from its output.

A dataset or journal is used again only for the same settings, models and corpus.

`harvest/plan.json` holds the plan; `harvest/NNNNNN.json` records that shard NNNNNN is written, with its sums. An entry
is written after its shard and names its plan, so that entries of another plan are ignored. The journal is removed last,
when the dataset is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lexray.storage.documents import read_document
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.image_corpus import open_images
from lexray.storage.harvest.text_corpus import measure
from lexray.storage.manifest import MANIFEST, Frozen, Manifest, load_manifest
from lexray.storage.polling import read_many
from lexray.storage.store import Store, reachable
from lexray.storage.writer import WrittenShard, shard_file

FOLDER = "harvest"
PLAN = f"{FOLDER}/plan.json"
SHARDS = shard_file(0).split("/")[0]
# Shards of another plan; partial files of killed processes: of a shard, the manifest, a write test of the store.
_LEFTOVERS = [
    re.compile(r"shards/\d{6,}\.safetensors(\..*\.partial)?"),
    re.compile(r"manifest\.json\..*\.partial"),
    re.compile(r"\.lexray-write-check-\d+(\..*\.partial)?"),
]


_PLAN = TypeAdapter(dict[str, Any])


class _Entry(Frozen):
    plan: str
    written: WrittenShard


@dataclass(frozen=True, kw_only=True)
class Journal:
    """Journal of one harvest."""

    store: Store
    plan: dict[str, Any]
    """Plan of the harvest as plain JSON values, the dataset's provenance."""

    @property
    def plan_id(self) -> str:
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:16]

    def begin(self) -> None:
        """Write the plan. OSError propagates."""
        self.store.write(PLAN, json.dumps(self.plan, indent=1).encode())

    def add(self, number: int, written: WrittenShard) -> None:
        """Record that a shard is in the store. OSError propagates."""
        entry = _Entry(plan=self.plan_id, written=written)
        self.store.write(_entry_file(number), entry.model_dump_json().encode())

    def written(self, numbers: Iterable[int]) -> dict[int, WrittenShard]:
        """Return those of these shards that this plan has written and that still exist, in order."""
        pairs = zip(numbers, read_many(self._read, numbers), strict=True)
        return {number: written for number, written in pairs if written is not None}

    def _read(self, number: int) -> WrittenShard | None:
        try:
            entry = _Entry.model_validate_json(self.store.read(_entry_file(number)))
        except (FileNotFoundError, ValidationError):
            return None
        shard = entry.written.shard
        is_ours = entry.plan == self.plan_id and shard.file == shard_file(number)
        found = is_ours and self.store.size(shard.file) == shard.bytes
        return entry.written if found else None

    def close(self) -> None:
        """Remove the files that a complete dataset does not need."""
        close_journal(self.store)

    def clean_up(self, num_shards: int) -> None:
        """Remove leftovers of other writers. Raises UserError when another harvest has started here in the meantime."""
        if read_plan(self.store) != self.plan:
            raise UserError(f"output: another harvest writes into {self.store.url}; end it, and run this one again")
        remove_leftovers(self.store, num_shards)


def read_plan(store: Store) -> dict[str, Any] | None:
    """Return the plan of a harvest that has finished a shard; None when there is none.

    A plan without shards may be replaced: nothing is lost.
    """
    try:
        if not set(store.list_files(FOLDER)) - {PLAN.rsplit("/", 1)[-1]}:
            return None
        return read_document(store, PLAN, _PLAN)
    except (FileNotFoundError, NotADirectoryError, CorruptDataError):
        return None


def close_journal(store: Store) -> None:
    """Remove the files that a complete dataset does not need."""
    store.delete(FOLDER)


def remove_leftovers(store: Store, num_shards: int) -> None:
    """Remove files that killed writers and abandoned harvests left beside the dataset's `num_shards` shards."""
    wanted = {shard_file(number) for number in range(num_shards)}
    paths = [*store.list_files(), *(f"{SHARDS}/{name}" for name in store.list_files(SHARDS))]
    for path in paths:
        if path not in wanted and any(pattern.fullmatch(path) for pattern in _LEFTOVERS):
            store.delete(path)


def remove_beginnings(store: Store) -> None:
    """Remove the files of a harvest that finished no shard."""
    close_journal(store)
    remove_leftovers(store, 0)
    if SHARDS in store.list_folders() and not store.list_files(SHARDS):
        store.delete(SHARDS)


def _entry_file(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


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
    return {"text": measure(config, manifest.provenance["text"]["documents"] if was_cut else None)}
