"""Verify a dataset row by row: one pass over every chunk of every shard, with a bounded number of reads in flight.

Damage is what training must not read: a shard that is missing or of another size, a header or checksum that differs
from the manifest's, rows with NaN or Inf, statistics that differ from the rows'. Equal rows and rows of unusual norm
are counted and listed, but are not damage. Memory: 17 bytes per row of a site (hash, norm, flag), and the chunks in
flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from lexray.storage.documents import parse_document
from lexray.storage.errors import CorruptDataError
from lexray.storage.manifest import MANIFEST, Manifest, Shard, norm_column, read_manifest
from lexray.storage.manifest_checks import MAX_HEADER_BYTES, contradictions
from lexray.storage.polling import in_order
from lexray.storage.reader import PARALLEL_READS, DatasetReader
from lexray.storage.site_statistics import ChunkFacts, SiteFacts, SiteFindings, chunk_facts
from lexray.storage.store import Store, reachable

STATISTICS_TOLERANCE = 1e-6
"""Tolerance on the manifest's statistics, relative to the root mean squared norm (or its square)."""
MAX_CLAIM_RATIO, MAX_CLAIM_BYTES = 16, 2**30
"""Limit on claimed bytes, as a multiple of the actual bytes plus a constant; beyond it a dataset is not read."""
_HEADER = TypeAdapter(dict[str, Any])
_HEADER_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int32": "I32"}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged place and its description; `chunk` is an index in the shard."""

    file: str
    tensor: str | None = None
    chunk: int | None = None
    what: str

    def __str__(self) -> str:
        chunk = None if self.chunk is None else f"chunk {self.chunk}"
        return ", ".join(part for part in (self.file, self.tensor, chunk) if part) + f": {self.what}"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Result of `verify`."""

    url: str
    manifest: Manifest
    damage: list[Damage]
    sites: dict[str, SiteFindings]

    @property
    def sound(self) -> bool:
        return not self.damage


def verify(store: Store, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Findings:
    """Read the whole dataset and report its damage.

    `on_progress` is called with the rows checked so far and their total. Raises UserError when there is no dataset to
    check.
    """
    manifest = read_manifest(store)
    damage = [Damage(file=file, what=what) for file, what in contradictions(manifest)]
    if damage:  # locations of chunks would be arbitrary
        return Findings(url=store.url, manifest=manifest, damage=damage, sites={})
    with reachable("dataset", store.url):
        sizes = {shard.file: store.size(shard.file) for shard in manifest.shards}
        damage = [one for shard in manifest.shards for one in shard_damage(store, manifest, shard, sizes[shard.file])]
        there = sum(size or 0 for size in sizes.values())
        if manifest.bytes > MAX_CLAIM_RATIO * there + MAX_CLAIM_BYTES:  # would allocate for rows that do not exist
            return Findings(url=store.url, manifest=manifest, damage=damage, sites={})
        missing = {file for file, size in sizes.items() if size is None}
        check = _Pass(DatasetReader(store, manifest), missing, on_progress)
        damage += check.run()
    sites = {name: sums.findings() for name, sums in check.sums.items()}
    damage += [one for name, site in sites.items() for one in statistics_damage(name, site)]
    return Findings(url=store.url, manifest=manifest, damage=damage, sites=sites)


def shard_damage(store: Store, manifest: Manifest, shard: Shard, size: int | None) -> list[Damage]:
    """Return the damage of a shard as a file: its size, and the tensors of its safetensors header."""
    if size is None:
        return [Damage(file=shard.file, what="is missing")]
    damage = []
    if size != shard.bytes:
        damage.append(Damage(file=shard.file, what=f"{size:,} bytes, the manifest says {shard.bytes:,}"))
    header = _read_header(store, shard, size)
    if header is None:
        return [*damage, Damage(file=shard.file, what="its safetensors header cannot be read")]
    for name in (*manifest.sites, *manifest.columns):
        is_site = name in manifest.sites
        dtype = manifest.sites[name].dtype if is_site else manifest.columns[name]
        shape = [shard.rows, manifest.sites[name].width] if is_site else [shard.rows]
        expected = (_HEADER_DTYPES[dtype], shape, shard.offsets[name])
        found = header.get(name)
        if found != expected:
            what = f"the header says {_tensor_words(found)}, the manifest {_tensor_words(expected)}"
            damage.append(Damage(file=shard.file, tensor=name, what=what))
    return damage


def statistics_damage(name: str, site: SiteFindings) -> list[Damage]:
    """Return differences between the manifest's statistics and the rows', where every row could be read."""
    errors = {
        "mean": site.mean_error,
        "mean squared norm": site.mean_squared_norm_error,
        "norm quantiles": site.quantiles_error,
    }
    return [
        Damage(
            file=MANIFEST,
            tensor=name,
            what=f"its {what} is off by {error:.2g} relative to the rows, at most {STATISTICS_TOLERANCE:g} is rounding",
        )
        for what, error in errors.items()
        if error is not None and not error <= STATISTICS_TOLERANCE
    ]


def _read_header(store: Store, shard: Shard, size: int) -> dict[str, tuple[str, list[int], int]] | None:
    """Return dtype, shape and absolute byte offset of each tensor; None without a valid safetensors header."""
    try:
        length = int.from_bytes(store.read_range(shard.file, 0, 8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            return None
        entries = parse_document(store.read_range(shard.file, 8, length), _HEADER, shard.file)
        entries.pop("__metadata__", None)
        return {
            name: (entry["dtype"], entry["shape"], 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
    except (CorruptDataError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _tensor_words(entry: tuple[str, list[int], int] | None) -> str:
    return "nothing" if entry is None else f"{entry[0]} {entry[1]} from byte {entry[2]}"


Checked = tuple[list[Damage], dict[str, ChunkFacts]]
"""Damage of a chunk, and the statistics of each of its sites."""


@dataclass
class _Pass:
    """One pass over the chunks: read in parallel, collected in order."""

    reader: DatasetReader
    missing: set[str]
    on_progress: Callable[[int, int], None]
    sums: dict[str, SiteFacts] = field(init=False)

    def __post_init__(self) -> None:
        manifest = self.reader.manifest
        self.sums = {name: SiteFacts(site, manifest.rows) for name, site in manifest.sites.items()}

    def run(self) -> list[Damage]:
        damage: list[Damage] = []
        done, manifest = 0, self.reader.manifest
        self.on_progress(done, manifest.rows)
        checks = (partial(self._check_chunk, chunk) for chunk in range(len(self.reader.chunks)))
        checked = in_order(checks, threads=PARALLEL_READS, ahead=2 * PARALLEL_READS, name="verify")
        for place, (found, facts) in zip(self.reader.chunks, checked, strict=True):
            damage += found
            for name, of_site in facts.items():
                self.sums[name].add(place.first_row, of_site)
            done += place.rows
            self.on_progress(done, manifest.rows)
        return damage

    def _check_chunk(self, chunk: int) -> Checked:
        place, manifest = self.reader.chunks[chunk], self.reader.manifest
        file = manifest.shards[place.shard].file
        damage: list[Damage] = []
        arrays: dict[str, np.ndarray] = {}
        for tensor in () if file in self.missing else (*manifest.sites, *manifest.columns):
            try:
                arrays[tensor] = self.reader.read_chunk(chunk, tensor)
            except (CorruptDataError, OSError) as error:
                what = str(error).split(": ", 1)[-1]
                damage.append(Damage(file=file, tensor=tensor, chunk=place.index, what=what))
        facts = {name: chunk_facts(arrays[name], site.dtype) for name, site in manifest.sites.items() if name in arrays}
        for name, of_site in facts.items():
            for tensor, bad, what in wrong_rows(name, of_site, arrays.get(norm_column(name))):
                rows = f"{len(bad)} of {place.rows} rows {what}, the first is row {place.first_row + bad[0]}"
                damage.append(Damage(file=file, tensor=tensor, chunk=place.index, what=rows))
        return damage, facts


def wrong_rows(site: str, facts: ChunkFacts, norms: np.ndarray | None) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield tensor, damaged rows of a chunk (indices in it) and their defect."""
    finite = np.isfinite(facts.norms)
    if not finite.all():
        yield site, np.flatnonzero(~finite), "hold NaN or Inf"
    if norms is not None:
        differing = finite & ~np.isclose(norms, facts.norms, rtol=STATISTICS_TOLERANCE, atol=0)
        if differing.any():
            yield norm_column(site), np.flatnonzero(differing), "have another norm than is stored"
