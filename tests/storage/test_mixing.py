"""The mixing quality that the documentation states is that of the order."""

from dataclasses import replace

import pytest

from benchmarks.mixing import Layout, expected, fully_shuffled, measured

SPREAD = Layout(
    rows=2**18, document_rows=64, shard_rows=2**14, chunk_rows=256, chunks_per_window=8, batch_rows=2048, lanes=8
)


@pytest.mark.parametrize(
    "layout",
    [
        SPREAD,
        replace(SPREAD, chunks_per_window=2),
        replace(SPREAD, spread=False),
        replace(SPREAD, lanes=32),
        replace(SPREAD, document_rows=2),
    ],
)
def test_the_expected_number_of_rows_of_one_document_in_a_batch_is_that_of_the_order(layout: Layout) -> None:
    assert measured(layout) == pytest.approx(expected(layout), rel=0.15)


def test_spreading_at_harvest_brings_batches_near_a_full_shuffle() -> None:
    assert expected(SPREAD) < 1.5 * fully_shuffled(SPREAD) < 0.2 * expected(replace(SPREAD, spread=False))
