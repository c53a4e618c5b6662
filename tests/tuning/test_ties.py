"""Which trials are tied, by the paired difference of FVUs: in the table, in recommendations and in the picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lexray.tuning.results.bands import seed_bands
from lexray.tuning.results.columns import L0_FVU
from lexray.tuning.results.frontier import frontier_rich_table, frontier_table
from lexray.tuning.results.plot import frontier_svg
from lexray.tuning.results.recommend import CRITERIA, recommend
from lexray.tuning.results.ties import FvuErrors
from lexray.tuning.sweep_folder import DONE, TrialRecord

DRAWS = np.random.default_rng(0).normal(0, 0.01, size=200)
"""What the choice of documents adds to every dictionary's FVU."""
OWN = np.random.default_rng(1).normal(0, 0.001, size=200)


def record(name: str, fvu: float, *, l0: float = 8.0, width: int = 64, seed: int = 0, target: float = 8) -> TrialRecord:
    dictionary = {"architecture": name.split("-")[0], "width": width, "target_l0": target}
    config = {"dictionary": dictionary, "data": {"inputs": ["x"]}, "seed": seed}
    result = {"l0": l0, "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": 0.0}
    return TrialRecord(trial=name, name=name, config=config, status=DONE, result=result)


def measured(fvu: float, own: float = 0.0) -> dict[str, Any]:
    """`measures.json` of a dictionary whose FVU varies with the documents, and by `own` times a noise of its own."""
    draws = fvu + DRAWS + own * OWN
    section = {"count": 50, "hash": "same", "fvu_error": float(draws.std(ddof=1)), "fvu_resamples": draws.tolist()}
    return {"documents": section}


FVUS = {"topk-a": (0.300, 0.0), "relu-b": (0.3015, 1.0), "gated-c": (0.303, 1.0)}
"""Differences of 1.5 and 3 standard errors of the paired difference (0.001), all within one of the values (0.01)."""
MEASURES = {name: measured(*values) for name, values in FVUS.items()}


def records() -> list[TrialRecord]:
    return [record(name, fvu) for name, (fvu, _) in FVUS.items()]


def test_the_difference_on_the_same_documents_decides_not_the_values_own_errors() -> None:
    table = frontier_table(records(), MEASURES).set_index("trial")
    assert table["on_frontier"].to_dict() == {"topk-a": True, "relu-b": False, "gated-c": False}
    assert table["tied"].to_dict() == {"topk-a": False, "relu-b": True, "gated-c": False}
    assert table.loc["topk-a", "fvu_error"] == pytest.approx(0.01, rel=0.15)


def test_a_trial_is_tied_with_all_that_beat_it_or_not_at_all() -> None:
    best = [*records(), record("matryoshka-d", 0.29)]
    table = frontier_table(best, MEASURES | {"matryoshka-d": measured(0.29)}).set_index("trial")
    assert not table["tied"].any()


def test_without_measures_nothing_is_tied() -> None:
    table = frontier_table(records())
    assert not table["tied"].any()
    assert math.isnan(FvuErrors().between(*table.to_dict("records")[:2]))


def test_the_terminal_shows_errors_and_ties_where_there_are_any() -> None:
    names = [column.header for column in frontier_rich_table(frontier_table(records(), MEASURES), 120).columns]
    assert names[4:6] == ["FVU", "±"]
    assert names[-1] == "tied"
    names = [column.header for column in frontier_rich_table(frontier_table(records()), 120).columns]
    assert {"±", "tied"}.isdisjoint(names)


def test_a_recommendation_needs_a_difference() -> None:
    table = frontier_table(records(), MEASURES)
    (found,) = recommend(table, errors=FvuErrors(MEASURES.get))
    assert found.name == "topk-a"
    assert found.reasons[0].startswith("one of 2 with the least FVU of 3 at L0 8: 0.3000 ± 0.0")
    assert found.reasons[1] == "tied with relu-b: within two standard errors"
    clear = frontier_table([record("topk-a", 0.3), record("relu-b", 0.31)], MEASURES)
    (found,) = recommend(clear, errors=FvuErrors(MEASURES.get))
    assert found.reasons[1] == "the best relu has 3.3% more FVU"


def test_of_tied_ones_the_narrowest_is_recommended() -> None:
    table = frontier_table([record("topk-a", 0.3, width=128), record("relu-b", 0.3015)], MEASURES)
    found = recommend(table, errors=FvuErrors(MEASURES.get))
    assert [one.name for one in found] == ["relu-b"]
    assert found[0].reasons[0].startswith("narrowest of 2 with the least FVU of 2 at L0 8: 0.3015 ± ")


def test_other_criteria_have_no_ties() -> None:
    assert recommend(frontier_table(records(), MEASURES), CRITERIA["bits"], FvuErrors(MEASURES.get)) == []


# Seeds -------------------------------------------------------------------------------------------------------------

SEEDS = [
    record(f"topk-l{target}-s{seed}", fvu + 0.01 * seed, l0=target, seed=seed, target=target)
    for target, fvu in ((8, 0.4), (16, 0.3))
    for seed in range(3)
]


def test_trials_that_differ_in_their_seed_alone_are_one_configuration() -> None:
    table = frontier_table([*SEEDS, record("topk-other", 0.4, width=128)])
    assert table.groupby("target_l0")["configuration"].nunique().to_dict() == {8: 2, 16: 1}
    assert frontier_table([TrialRecord(trial="a", name="a", config={})])["configuration"].tolist() == [""]


def test_a_band_is_the_mean_over_seeds_and_its_standard_error() -> None:
    bands = seed_bands(frontier_table(SEEDS), L0_FVU)
    assert bands["x"].tolist() == [8, 16]
    assert bands["y"].tolist() == pytest.approx([0.41, 0.31])
    assert bands["error"].tolist() == pytest.approx([0.01 / math.sqrt(3)] * 2)
    assert bands["seeds"].tolist() == [3, 3]


def test_the_picture_has_bands_where_there_are_seeds() -> None:
    assert "band: seeds" in frontier_svg(frontier_table(SEEDS))
    assert "band: seeds" not in frontier_svg(frontier_table(SEEDS[::3]))
