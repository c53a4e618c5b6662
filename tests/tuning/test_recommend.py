"""What a sweep recommends follows from its table, with reasons and caveats."""

from __future__ import annotations

from typing import Any

import pytest

from lexray.tuning.results.frontier import frontier_table
from lexray.tuning.results.recommend import Recommendation, recommend
from lexray.tuning.sweep_folder import DONE, FAILED, STOPPED, TARGET_MISSED, TrialRecord


def record(architecture: str, width: int, target: float, fvu: float, **changes: Any) -> TrialRecord:
    result = {"l0": changes.pop("l0", target), "fvu": fvu, "explained_variance": 1 - fvu}
    result["dead_fraction"] = changes.pop("dead", 0.0)
    name = f"{architecture}-w{width}-l{target:g}"
    config = {
        "dictionary": {"architecture": architecture, "width": width, "target_l0": target},
        "data": {"inputs": [changes.pop("site", "layer3")]},
    }
    return TrialRecord(trial=name, name=name, config=config, **{"status": DONE, "result": result, **changes})


def of(*records: TrialRecord) -> list[Recommendation]:
    return recommend(frontier_table(list(records)))


def test_each_sparsity_has_its_own_and_none_is_best_of_all() -> None:
    found = of(record("topk", 64, 8, 0.4), record("relu", 64, 8, 0.5), record("topk", 64, 16, 0.3))
    assert [(r.name, r.target_l0) for r in found] == [("topk-w64-l8", 8), ("topk-w64-l16", 16)]
    assert found[0].reasons == ["least FVU of 2 at L0 8: 0.4000", "the best relu has 25.0% more FVU"]
    assert found[0].caveats == []


def test_a_narrower_one_is_named_where_it_explains_nearly_as_much() -> None:
    found = of(record("topk", 64, 8, 0.41), record("topk", 32, 8, 0.5), record("topk", 256, 8, 0.4))
    assert [r.name for r in found] == ["topk-w256-l8", "topk-w64-l8"]
    assert found[1].reasons == ["25% of the latents of topk-w256-l8 for 2.5% more FVU"]


def test_what_is_less_sparse_than_asked_for_does_not_win() -> None:
    (found,) = of(record("topk", 64, 8, 0.4), record("relu", 64, 8, 0.1, l0=20.0, status=TARGET_MISSED))
    assert found.name == "topk-w64-l8"


def test_sites_are_questions_of_their_own() -> None:
    found = of(record("topk", 64, 8, 0.4), record("topk", 32, 8, 0.1, site="layer6"))
    assert [r.sites for r in found] == ["layer3", "layer6"]


@pytest.mark.parametrize("status", [FAILED, STOPPED])
def test_what_has_no_result_of_its_own_is_not_recommended(status: str) -> None:
    assert of(record("topk", 64, 8, 0.1, status=status)) == []
    assert of() == []


def test_what_to_look_at_first_is_said() -> None:
    (found,) = of(
        record("topk", 64, 8, 0.400, dead=0.3, l0=8.7, status=TARGET_MISSED), record("batch_topk", 64, 8, 0.402)
    )
    assert found.caveats == [
        "its L0 is 8.7, not 8",
        "30% of its latents are dead",
        "batch_topk-w64-l8 is within 1%: one seed of each does not tell them apart",
    ]
