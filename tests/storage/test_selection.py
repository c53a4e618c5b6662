"""Held-out and training rows: disjoint by document, together all rows, drawn by the seed and the share alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Written, write_rows

from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.reader import DatasetReader
from lexray.storage.selection import Selection, held_out_documents, part_of, select_rows
from lexray.storage.stream import local_stream
from lexray.storage.windows import StreamSpec


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Two shards, 40 documents of 10 rows, of which every seventh row and all of document 3 are special."""
    row = np.arange(400)
    return write_rows(tmp_path, [230, 170], special=(row % 7 == 0) | (row // 10 == 3))


def rows_of(written: Written, **choice: Any) -> set[int]:
    """Numbers of the rows that a selection keeps."""
    selected = select_rows(DatasetReader(written.store, written.manifest), Selection(**choice), ["x"])
    assert selected.counts.sum() == sum(mask.sum() for mask in selected.masks)
    return set(np.flatnonzero(np.concatenate(selected.masks)).tolist())


def documents_of(written: Written, rows: set[int]) -> set[int]:
    return set(written.columns["document"][sorted(rows)].tolist())


@pytest.mark.parametrize("drop_special", [True, False])
@pytest.mark.parametrize("held_out", [0.05, 0.3, 0.99])
def test_the_three_parts_are_all_rows_and_share_no_document(
    written: Written, held_out: float, drop_special: bool
) -> None:
    choice = {"held_out": held_out, "drop_special": drop_special}
    parts = [rows_of(written, part=part, **choice) for part in ("train", "validation", "test")]
    documents = [documents_of(written, rows) for rows in parts]
    assert all(documents)
    assert sum(map(len, documents)) == len(set.union(*documents))
    assert set.union(*parts) == rows_of(written, part="all", **choice)
    if not drop_special:
        assert 0 <= len(documents[1]) - len(documents[2]) <= 1, "half and half"


def test_special_rows_are_dropped_or_kept(written: Written) -> None:
    special = set(np.flatnonzero(written.columns["token_id"] == 0).tolist())
    assert rows_of(written, part="all", drop_special=False) == set(range(400))
    assert rows_of(written, part="all", drop_special=True) == set(range(400)) - special


def loud(tmp_path: Path, special: np.ndarray | None = None) -> Written:
    """Rows of norm 1 at two sites; three of `x` and one of `y` are far longer."""
    ones = torch.zeros(100, 2)
    ones[:, 0] = 1
    vectors = {"x": ones.clone(), "y": ones.clone()}
    vectors["x"][[5, 41, 77]] *= torch.tensor([11.0, 9.5, 300.0])[:, None]
    vectors["y"][60] *= 50
    return write_rows(tmp_path, [64, 36], vectors=vectors, special=special)


@pytest.mark.parametrize(
    ("sites", "ratio", "dropped"),
    [
        (["x"], 10.0, {5, 77}),
        (["y"], 10.0, {60}),
        (["x", "y"], 10.0, {5, 60, 77}),
        (["x", "y"], 9.0, {5, 41, 60, 77}),
        (["x"], 1000.0, set()),
        (["x", "y"], None, set()),
    ],
)
def test_rows_of_outlying_norm_at_a_site_that_is_read_are_left_out(
    sites: list[str], ratio: float | None, dropped: set[int], tmp_path: Path
) -> None:
    written = loud(tmp_path)
    choice = Selection(part="all", max_norm_ratio=ratio)
    selected = select_rows(DatasetReader(written.store, written.manifest), choice, sites)
    assert set(np.flatnonzero(~np.concatenate(selected.masks)).tolist()) == dropped
    assert (selected.special, selected.outlying) == (0, len(dropped))


def test_a_row_that_is_left_out_twice_is_counted_once(tmp_path: Path) -> None:
    written = loud(tmp_path, special=np.isin(np.arange(100), [0, 5]))
    selected = select_rows(DatasetReader(written.store, written.manifest), Selection(part="all"), ["x"])
    assert (selected.special, selected.outlying, int(selected.counts.sum())) == (2, 1, 97)


def test_held_out_documents_are_the_same_with_and_without_special_rows(written: Written) -> None:
    for part in ("validation", "test"):
        with_special = rows_of(written, part=part, held_out=0.3, drop_special=False)
        without = rows_of(written, part=part, held_out=0.3, drop_special=True)
        assert without == with_special & rows_of(written, part="all", drop_special=True)


def test_nothing_is_held_out_at_a_share_of_zero(written: Written) -> None:
    assert rows_of(written, part="validation", held_out=0) == rows_of(written, part="test", held_out=0) == set()
    assert rows_of(written, part="train", held_out=0) == rows_of(written, part="all")


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 300), st.floats(0.001, 0.999), st.integers(0, 2**63))
def test_the_share_is_met_and_both_parts_get_a_document(count: int, share: float, seed: int) -> None:
    documents = np.arange(count) * 3
    held = held_out_documents(documents, share, seed)
    assert len(set(held.tolist())) == len(held) == min(count - 1, max(1, round(share * count)))
    assert set(held.tolist()) <= set(documents.tolist())


def test_a_larger_share_holds_out_more_of_the_same_documents() -> None:
    documents = np.arange(100)
    small, large = (set(held_out_documents(documents, share, seed=1).tolist()) for share in (0.1, 0.2))
    assert small < large
    assert small != set(held_out_documents(documents, 0.1, seed=2).tolist())


def test_the_held_out_documents_of_a_seed_never_change() -> None:
    """Metrics of older runs compare with newer ones only while these stay."""
    assert held_out_documents(np.arange(100), 0.05, seed=0).tolist() == [40, 6, 96, 86, 52]


def test_a_larger_share_moves_no_document_from_validation_to_test_or_back() -> None:
    held = [held_out_documents(np.arange(100), share, seed=1) for share in (0.1, 0.23)]
    for part in ("validation", "test"):
        small, large = (set(part_of(documents, part).tolist()) for documents in held)
        assert small < large


def test_training_rows_are_those_of_before_there_were_two_held_out_parts(written: Written) -> None:
    held = held_out_documents(np.arange(40), 0.1, seed=0)
    train = rows_of(written, part="train", held_out=0.1, drop_special=False)
    assert documents_of(written, train) == set(range(40)) - set(held.tolist())


@pytest.mark.parametrize(
    ("documents", "share", "line"),
    [
        (40, 0.01, "data.held_out: 0.01 of 40 documents is 1; validation and test need one each, so 0.05 or more"),
        (
            2,
            0.5,
            "data.held_out: the dataset has 2 documents; training, validation and test need one each, so 3 or more",
        ),
    ],
)
def test_a_part_that_would_be_empty_is_refused(tmp_path: Path, documents: int, share: float, line: str) -> None:
    written = write_rows(tmp_path, 10 * documents, rows_per_document=10)
    for part in ("validation", "test"):
        with pytest.raises(UserError) as caught:
            rows_of(written, part=part, held_out=share)
        assert str(caught.value) == line


def test_the_least_share_that_is_named_is_enough(tmp_path: Path) -> None:
    for documents in (3, 7, 30, 70, 150):
        written = write_rows(tmp_path / str(documents), documents, rows_per_document=1)
        assert rows_of(written, part="test", held_out=float(f"{2 / documents:.2g}"))


def test_a_dataset_of_one_document_cannot_hold_any_out(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 50, rows_per_document=50)
    for part in ("train", "validation", "test"):
        with pytest.raises(UserError) as caught:
            rows_of(written, part=part, held_out=0.05)
        assert str(caught.value) == "data.held_out: 0.05 of documents, but the dataset has 1; it needs 2 or more"
    assert len(rows_of(written, part="train", held_out=0)) == 50
    assert len(rows_of(written, part="all", held_out=0.05)) == 50


def test_streams_serve_their_part(written: Written) -> None:
    def served(part: str) -> set[int]:
        selection = Selection(part=part, held_out=0.3)  # type: ignore[arg-type]
        spec = StreamSpec(store=written.store, sites=("x",), selection=selection, lanes=1)
        return {int(row) for batch in local_stream(spec, batch_rows=7).every_row() for row in batch.row_ids}

    for part in ("train", "validation", "test", "all"):
        assert served(part) == rows_of(written, part=part, held_out=0.3)


def test_a_flipped_byte_in_a_column_is_found_before_the_first_step(written: Written) -> None:
    shard = written.manifest.shards[1]
    for column, part in (("document", "train"), ("token_id", "all")):
        whole = written.store.read(shard.file)
        data = bytearray(whole)
        data[shard.offsets[column] + 4 * 8 * 3] ^= 128  # in chunk 3
        written.store.write(shard.file, bytes(data))
        with pytest.raises(CorruptDataError, match=f"shard shards/000001.safetensors, {column}, chunk 3: checksum "):
            rows_of(written, part=part)
        written.store.write(shard.file, whole)
