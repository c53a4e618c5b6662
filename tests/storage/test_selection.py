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
from lexray.storage.selection import (
    HELD_OUT_PARTS,
    HeldOutDocuments,
    HeldOutUnit,
    Selection,
    deal_documents,
    held_out_documents,
    select_rows,
)
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


SIZES = st.lists(st.integers(1, 5000), min_size=3, max_size=60)


@settings(deadline=None, max_examples=200)
@given(SIZES, st.floats(0.001, 0.999))
def test_the_held_out_rows_are_as_near_to_the_share_as_whole_documents_go(sizes: list[int], share: float) -> None:
    rows = np.array(sizes)
    validation, test = deal_documents(rows, share)
    assert validation
    assert test
    assert set(validation).isdisjoint(test)
    others = [index for index in range(len(rows)) if index not in {*validation, *test}]
    assert others, "training keeps a document"
    missing = share * rows.sum() - rows[validation].sum() - rows[test].sum()
    if len(validation) > 1 and len(others) > 1:
        assert all(abs(missing) <= abs(missing - rows[other]) for other in others), "one more would be farther"


def test_documents_are_dealt_to_the_part_with_fewer_rows() -> None:
    """Of 120 rows, 40 are asked for: 4 and 3 are short, 10 and 20 fit; 70 is too long, and so are 7 and 6 after 37."""
    assert deal_documents(np.array([10, 70, 4, 3, 20, 7, 6]), 1 / 3) == ([2, 4], [3, 0])


def test_a_long_document_is_held_out_where_others_do_not_suffice() -> None:
    """Of 400 rows, 80 are asked for: documents of 10 suffice, and 60 is longer than an eighth of 80."""
    rows = np.array([60, *[10] * 34])
    parts = deal_documents(rows, 0.2)
    assert 0 not in parts[0] + parts[1]
    assert [rows[part].sum() for part in parts] == [40, 40]
    assert deal_documents(np.array([60, 60, 60, 60]), 0.5) == ([0], [1])


@pytest.mark.parametrize(
    ("rows", "parts"),
    [([30, 40, 30], ([0], [2])), ([1, 1, 1000], ([0], [1])), ([7, 3], ([1], []))],
    ids=["documents longer than the share", "one much longer than the others", "two documents"],
)
def test_a_part_without_a_document_gets_the_shortest(rows: list[int], parts: tuple[list[int], list[int]]) -> None:
    assert deal_documents(np.array(rows), 0.01) == parts


def held(count: int, share: float, seed: int, of: HeldOutUnit = "documents") -> HeldOutDocuments:
    """Held-out documents of `count` documents of 10 rows."""
    choice = Selection(held_out=share, held_out_of=of, seed=seed)
    return held_out_documents(np.arange(count), np.full(count, 10), choice)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 300), st.floats(0.001, 0.999), st.integers(0, 2**63))
def test_a_share_of_documents_is_met(count: int, share: float, seed: int) -> None:
    validation, test = held(count, share, seed)
    drawn = {*validation.tolist(), *test.tolist()}
    assert len(drawn) == len(validation) + len(test) == min(count - 1, max(1, round(share * count)))
    assert 0 <= len(validation) - len(test) <= 1


@pytest.mark.parametrize("of", ["rows", "documents"])
def test_a_larger_share_only_adds_documents_to_each_part(of: HeldOutUnit) -> None:
    small, large = held(100, 0.1, 1, of), held(100, 0.23, 1, of)
    for few, more in zip(small, large, strict=True):
        assert set(few.tolist()) < set(more.tolist())
    assert set(small.test.tolist()) != set(held(100, 0.1, 2, of).test.tolist())


def test_the_held_out_documents_of_a_seed_never_change() -> None:
    """Metrics of older runs compare with newer ones only while these stay; of equal documents both units are one."""
    for of in ("rows", "documents"):
        validation, test = held(100, 0.05, 0, of)
        assert (validation.tolist(), test.tolist()) == ([40, 96, 52], [6, 86])


def test_a_share_of_rows_counts_rows_where_documents_differ(tmp_path: Path) -> None:
    """A few long documents hold most rows: a tenth of the documents is another share of the rows."""
    sizes = np.where(np.arange(200) % 20 == 0, 400, 10)
    written = write_rows(tmp_path, int(sizes.sum()), document=np.repeat(np.arange(200), sizes))
    for seed in range(5):
        parts = [
            len(rows_of(written, part=part, held_out=0.1, seed=seed, drop_special=False)) for part in HELD_OUT_PARTS
        ]
        assert sum(parts) / sizes.sum() == pytest.approx(0.1, abs=0.001)
        assert max(parts) - min(parts) <= 400


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    written = write_rows(tmp_path / "two", 20, rows_per_document=10)
    for part in HELD_OUT_PARTS:
        with pytest.raises(UserError) as caught:
            rows_of(written, part=part, held_out=0.5)
        assert str(caught.value) == (
            "data.held_out: the dataset has 2 documents; training, validation and test need one each, so 3 or more"
        )
    written = write_rows(tmp_path / "forty", 400, rows_per_document=10)
    with pytest.raises(UserError) as caught:
        rows_of(written, part="test", held_out=0.01, held_out_of="documents")
    assert str(caught.value) == (
        "data.held_out: 0.01 of 40 documents is 1; validation and test need one each, so 0.05 or more"
    )


def test_the_least_share_that_is_named_is_enough(tmp_path: Path) -> None:
    for documents in (3, 7, 30, 70, 150):
        written = write_rows(tmp_path / str(documents), documents, rows_per_document=1)
        assert rows_of(written, part="test", held_out=float(f"{2 / documents:.2g}"), held_out_of="documents")


def test_a_dataset_of_one_document_cannot_hold_any_out(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 50, rows_per_document=50)
    for part in ("train", "validation", "test"):
        with pytest.raises(UserError) as caught:
            rows_of(written, part=part, held_out=0.05)
        assert str(caught.value) == "data.held_out: the dataset has 1 document, which cannot be split; use 2 or more"
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
