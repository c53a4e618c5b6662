"""Rows are spread over shards and inside them, each row once; statistics do not depend on how rows are parted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvest_cases import harvest_file, read_column, read_site, write_text
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.plan import batches, cut_rows, deal_pieces, row_places
from lexray.storage.manifest import Manifest

DOCUMENTS = [" ".join(f"w{(i * (n + 3) + n) % 40}" for i in range(30 + n % 11)) for n in range(120)]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> tuple[HarvestFile, Manifest]:
    return harvested(tmp_path_factory.mktemp("spread"), spread=True)


def harvested(folder: Path, **changes: Any) -> tuple[HarvestFile, Manifest]:
    text = {"files": write_text(folder / "documents", DOCUMENTS)}
    settings: dict[str, Any] = {"text": text, "chunk_rows": 64, "shard_rows": 512, "batch_tokens": 512}
    config = harvest_file(folder, **settings | changes)
    return config, harvest(config)[0]


def by_place(config: HarvestFile, manifest: Manifest) -> np.ndarray:
    """Order of the rows by document and token, then by the bytes of their vectors; to compare sets of rows."""
    columns = [read_column(config, manifest, name) for name in ("position", "token_id", "document")]
    values = read_site(config, manifest, "layer2").float().numpy()
    return np.lexsort([*values.T[::-1], *columns])


def test_document_order_is_not_storage_order(spread: tuple[HarvestFile, Manifest]) -> None:
    documents = read_column(*spread, "document")
    assert len(documents) == sum(len(d.split()) for d in DOCUMENTS)
    assert abs(spearmanr(np.arange(len(documents)), documents).statistic) < 0.05


def test_rows_of_a_document_lie_in_nearly_all_shards_and_chunks(tmp_path: Path) -> None:
    # A document of 100 pieces among many short ones.
    long = " ".join(f"w{i * 3 % 40}" for i in range(600))
    config, manifest = harvested(tmp_path, spread=True, text={"files": write_text(tmp_path / "x", [long, *DOCUMENTS])})
    documents = read_column(config, manifest, "document")
    ends = np.cumsum([shard.rows for shard in manifest.shards])
    assert all((part == 0).any() for part in np.split(documents, ends[:-1]))
    chunks = [c for s in np.split(documents, ends[:-1]) for c in np.split(s, range(64, len(s), 64)) if len(c) == 64]
    assert np.mean([(chunk == 0).any() for chunk in chunks]) > 0.9


def test_rows_do_not_depend_on_spreading(spread: tuple[HarvestFile, Manifest], tmp_path: Path) -> None:
    plain = harvested(tmp_path, spread=False)
    assert (np.diff(read_column(*plain, "document")) >= 0).all()
    orders = [by_place(*one) for one in (spread, plain)]
    for column in ("document", "position", "token_id"):
        assert np.array_equal(read_column(*spread, column)[orders[0]], read_column(*plain, column)[orders[1]])
    found, expected = (read_site(*one, "layer2")[order] for one, order in zip((spread, plain), orders, strict=True))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)


def test_statistics_do_not_depend_on_the_size_of_shards(tmp_path: Path) -> None:
    # Pieces of one length are all padded alike, so the rows themselves are the same ones.
    text = {"files": write_text(tmp_path / "equal", [" ".join(d.split()[:30]) for d in DOCUMENTS])}
    found = []
    for number, shard_rows in enumerate((192, 512, 8192)):
        output = str(tmp_path / f"out{number}")
        found.append(harvested(tmp_path, spread=True, text=text, shard_rows=shard_rows, output=output, batch_tokens=8))
    first = found[0][1].sites["layer2"]
    for _, manifest in found[1:]:
        site = manifest.sites["layer2"]
        np.testing.assert_allclose(site.mean, first.mean, rtol=0, atol=1e-12)
        assert site.mean_squared_norm == pytest.approx(first.mean_squared_norm, rel=1e-12)
        assert site.norm_quantiles == first.norm_quantiles
    assert len({len(manifest.shards) for _, manifest in found}) == 3


@given(
    rows=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    shard_rows=st.integers(1, 50),
    max_rows=st.none() | st.integers(1, 600),
    spread=st.booleans(),
)
def test_every_row_gets_one_place(rows: list[int], shard_rows: int, max_rows: int | None, spread: bool) -> None:
    kept = cut_rows(np.array(rows), max_rows)
    assert kept.sum() == min(sum(rows), max_rows or sum(rows))
    filled = np.flatnonzero(kept)
    assert kept[filled[:-1]].tolist() == [rows[n] for n in filled[:-1]], "only the last piece is cut"
    shards = deal_pieces(kept, shard_rows, spread=spread)
    dealt = np.concatenate(shards)
    assert sorted(dealt) == filled.tolist()
    assert spread or dealt.tolist() == filled.tolist()
    for number, pieces in enumerate(shards):
        count = int(kept[pieces].sum())
        assert count < shard_rows + max(rows)
        assert sorted(row_places(count, number, spread=spread)) == list(range(count))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=50), batch_tokens=st.integers(1, 100))
def test_batches_hold_every_piece_once_within_their_bound(lengths: list[int], batch_tokens: int) -> None:
    found = batches(np.array(lengths), batch_tokens)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    for numbers in found:
        assert len(numbers) == 1 or len(numbers) * max(lengths[n] for n in numbers) <= batch_tokens
