"""Standard errors of FVU over documents: hand-computed sums, the delta method, and pairs of dictionaries."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_rows

from lexray.storage.reader import DatasetReader
from lexray.training.measures.documents import (
    RowSquares,
    difference_error,
    document_section,
    fvu_resamples,
    hash_of,
)

DOCUMENTS = np.array([7, 7, 3, 3, 3, 9])


def squares(errors: list[float], distances: list[float]) -> RowSquares:
    return RowSquares(np.array([errors]), np.array([distances]))


def test_squares_are_summed_by_document() -> None:
    distinct, sums = squares([1, 2, 3, 4, 5, 6], [2, 2, 4, 4, 4, 8]).by_document(DOCUMENTS)
    assert distinct.tolist() == [3, 7, 9]
    assert sums.errors_SN.tolist() == [[12, 3, 6]]
    assert sums.distances_SN.tolist() == [[12, 4, 8]]


def test_a_resample_is_the_ratio_of_the_sums_of_the_documents_that_it_draws() -> None:
    """Of two documents with FVUs 0.25 and 0.75 and equal variance it is one of three values."""
    values = fvu_resamples(squares([1, 3], [4, 4]))
    assert set(values.tolist()) == {0.25, 0.5, 0.75}
    share = [float((values == value).mean()) for value in (0.25, 0.5, 0.75)]
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=0.08)


def test_several_sites_count_alike() -> None:
    errors, distances = np.array([[1.0, 1.0], [3.0, 3.0]]), np.array([[10.0, 10.0], [4.0, 4.0]])
    assert fvu_resamples(RowSquares(errors, distances)).tolist() == pytest.approx([(0.1 + 0.75) / 2] * 200)


def test_the_error_is_that_of_the_delta_method() -> None:
    """The variance of a ratio of sums over n documents is n/(n-1) sum (e - FVU v)^2 / (sum v)^2, for many documents."""
    generator = np.random.default_rng(3)
    distances = generator.gamma(2.0, size=400)
    errors = distances * generator.uniform(0.1, 0.4, size=400)
    fvu = errors.sum() / distances.sum()
    expected = math.sqrt(400 / 399 * np.square(errors - fvu * distances).sum()) / distances.sum()
    section = document_section(RowSquares(errors[None], distances[None]), np.arange(400))
    assert section["count"] == 400
    assert section["fvu_error"] == pytest.approx(expected, rel=0.15)
    assert np.mean(section["fvu_resamples"]) == pytest.approx(fvu, rel=0.01)


def test_rows_of_one_document_are_no_independent_draws() -> None:
    """Ten equal rows in each document leave the error as it is; as documents of their own they would lower it."""
    generator = np.random.default_rng(3)
    errors, distances = generator.uniform(0.1, 0.4, size=100), np.ones(100)
    repeated = RowSquares(errors.repeat(10)[None], distances.repeat(10)[None])
    by_document = document_section(repeated, np.arange(100).repeat(10))["fvu_error"]
    assert by_document == pytest.approx(
        document_section(RowSquares(errors[None], distances[None]), np.arange(100))["fvu_error"]
    )
    assert document_section(repeated, np.arange(1000))["fvu_error"] == pytest.approx(
        by_document / math.sqrt(10), rel=0.2
    )


def test_a_single_document_has_no_standard_error() -> None:
    assert document_section(squares([1, 2], [4, 4]), np.array([5, 5])) == {
        "count": 1,
        "hash": hash_of(np.array([5, 5])),
    }


def test_a_difference_on_the_same_documents_is_paired() -> None:
    """What makes a document hard for both dictionaries cancels."""
    generator = np.random.default_rng(3)
    distances = np.ones((1, 300))
    errors = generator.uniform(0.1, 0.5, size=(1, 300))
    first = document_section(RowSquares(errors, distances), np.arange(300))
    second = document_section(RowSquares(errors + 0.01, distances), np.arange(300))
    assert difference_error(first, second) == pytest.approx(0, abs=1e-6)
    other = document_section(RowSquares(errors + 0.01, distances), np.arange(300) + 1)
    assert difference_error(first, other) == pytest.approx(first["fvu_error"] * math.sqrt(2))
    assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize("section", [None, {}, {"count": 1}, {"fvu_error": None}])
def test_without_a_standard_error_there_is_none_of_the_difference(section: dict[str, None] | None) -> None:
    known = document_section(squares([1, 3], [4, 4]), np.arange(2))
    assert math.isnan(difference_error(known, section))
    assert math.isnan(difference_error(section, known))


def test_a_column_is_read_at_rows_in_their_order(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [53, 47])
    reader = DatasetReader(written.store, written.manifest)
    rows = np.array([99, 0, 52, 53, 8, 7, 99])
    assert reader.column_at("document", rows).tolist() == written.columns["document"][rows].tolist()
    assert reader.column_at("document", rows[:0]).tolist() == []
