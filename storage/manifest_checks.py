"""Check that the numbers of a manifest agree with each other, in time and memory proportional to the manifest itself.

A manifest is untrusted, and its id is a hash that anybody can compute. Quantities that later determine memory and reads
(rows, widths, chunks) must therefore be backed by content of that length: a mean has as many values as its site's
width, a tensor as many checksums as chunks, and a shard exactly the bytes of its tensors. `check_shards` compares
these with the stored files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexray.storage.manifest import Manifest, Shard, Site

NEEDED_LEVELS = ("0.01", "0.5", "0.99", "1")
"""Levels of the norm quantiles that must be present."""
MAX_HEADER_BYTES = 8 + 100_000_000
"""Maximum offset of the first tensor of a safetensors file, by that format's own limit."""
ROUNDING = 1e-3
"""Relative tolerance between two statistics: norms are stored as float32."""

Contradiction = tuple[str, str]
"""File (`manifest.json` or a shard) and the contradiction in the manifest about it."""


def contradictions(manifest: Manifest) -> Iterator[Contradiction]:
    """Yield all contradictions inside a manifest; none for one that was written by lexray."""
    for what in (*_of_counts(manifest), *_of_sites(manifest)):
        yield "manifest.json", what
    for shard in manifest.shards:
        for what in _of_shard(manifest, shard):
            yield shard.file, what


def _of_counts(manifest: Manifest) -> Iterator[str]:
    total = sum(shard.rows for shard in manifest.shards)
    if total != manifest.rows:
        yield f"{manifest.rows:,} rows, but its shards have {total:,}"
    if manifest.chunk_rows >= 2**31:
        yield f"chunk_rows {manifest.chunk_rows:,} is not below 2^31"
    if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
        yield "shards: two of them are the same file"
    if wrong := next((token for token in manifest.special_token_ids if not -(2**31) <= token < 2**31), None):
        yield f"special_token_ids: {wrong} does not fit 32 bits"


def _of_sites(manifest: Manifest) -> Iterator[str]:
    if not manifest.sites:
        yield "sites: there is none"
    if manifest.columns != manifest.columns_of_sites:
        yield f"columns: {', '.join(manifest.columns)}, not the {', '.join(manifest.columns_of_sites)} of its sites"
    for name, site in manifest.sites.items():
        if not name or name in manifest.columns_of_sites:
            yield f"sites: {name!r} cannot name a site"
        for what in _of_site(site):
            yield f"site {name} {what}"


def _of_site(site: Site) -> Iterator[str]:
    if site.width < 1 or len(site.mean) != site.width:
        yield f"has width {site.width}, but its mean has {len(site.mean)} values"
    squared = site.mean_squared_norm
    if not (math.isfinite(squared) and squared >= 0 and all(map(math.isfinite, site.mean))):
        yield "has a mean or mean_squared_norm that is no finite number, or below 0"
    elif not (length := sum(value * value for value in site.mean)) <= squared * (1 + ROUNDING):
        yield f"has a mean of squared norm {length:.6g}, above its mean_squared_norm {squared:.6g}"
    yield from _of_quantiles(site)


def _of_quantiles(site: Site) -> Iterator[str]:
    missing = [level for level in NEEDED_LEVELS if level not in site.norm_quantiles]
    if missing:
        yield f"has no norm_quantiles of level {', '.join(missing)}"
        return
    try:
        ordered = sorted((float(level), value) for level, value in site.norm_quantiles.items())
    except ValueError:
        ordered = [(-1.0, 0.0)]
    if not all(0 <= level <= 1 and math.isfinite(value) and value >= 0 for level, value in ordered):
        yield "has norm_quantiles that are no finite numbers from 0 by levels from 0 to 1"
    elif any(low[1] > high[1] for low, high in pairwise(ordered)):
        yield "has norm_quantiles that fall while their levels rise"
    elif math.sqrt(max(0.0, site.mean_squared_norm)) > ordered[-1][1] * (1 + ROUNDING):  # squares may overflow
        yield f"has mean_squared_norm {site.mean_squared_norm:.6g}, but no norm above {ordered[-1][1]:.6g}"


def _of_shard(manifest: Manifest, shard: Shard) -> Iterator[str]:
    tensors = {*manifest.sites, *manifest.columns}
    chunks = -(-shard.rows // manifest.chunk_rows)
    if shard.rows < 1:
        yield f"{shard.rows:,} rows"
        return
    if shard.offsets.keys() != tensors or shard.checksums.keys() != tensors:
        yield f"its offsets or checksums are not of the tensors {', '.join(sorted(tensors))}"
        return
    for name in sorted(tensors):
        if len(shard.checksums[name]) != chunks:
            yield f"{name} has {chunks:,} chunks, the manifest lists {len(shard.checksums[name]):,} checksums"
    spans = sorted(
        (begin, begin + shard.rows * manifest.row_bytes(name), name) for name, begin in shard.offsets.items()
    )
    if not 8 <= spans[0][0] <= MAX_HEADER_BYTES:
        yield f"{spans[0][2]} begins at byte {spans[0][0]:,}, where no tensor of a safetensors file can"
    for (_, end, before), (begin, _, name) in pairwise(spans):
        if begin < end:
            yield f"{name} begins at byte {begin:,}, {shard.rows:,} rows of {before} end at {end:,}"
    if spans[-1][1] != shard.bytes:
        yield f"{shard.rows:,} rows end at byte {spans[-1][1]:,}, but it is said to have {shard.bytes:,} bytes"
