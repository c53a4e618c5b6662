"""The points of a sweep: widths by expansion, sites, drawn values, what is left out and what comes besides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_rows

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.tuning.expansion import expand
from lexray.tuning.file.axes import Range, width_of
from lexray.tuning.file.points import points_of
from lexray.tuning.file.schema import sweep_schema
from lexray.tuning.file.search import draws
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.trials import Trial

ROWS, EARLY, LATE = 1000, 12, 8
TRAINING_ROWS = 900


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    generator = torch.Generator().manual_seed(0)
    vectors = {
        "early": torch.randn(ROWS, EARLY, generator=generator),
        "middle": torch.randn(ROWS, EARLY, generator=generator),
        "late": torch.randn(ROWS, LATE, generator=generator),
    }
    written = write_rows(tmp_path_factory.mktemp("data"), ROWS, vectors=vectors, dtype="float32", chunk_rows=64)
    return written.store.url


@pytest.fixture
def trials(data, tmp_path):
    """The trials of a sweep file with these axes and blocks."""

    def make(axes: dict[str, Any], **blocks: Any) -> list[Trial]:
        content = {
            "name": "axes",
            "output": str(tmp_path / "out"),
            "data": {"url": data, "site": "early", "output_site": "late", "sites": ["early", "late"], "batch_rows": 64},
            "training": {"rows": 640},
            "axes": {"architecture": "topk", "target_l0": 4, **axes},
            **blocks,
        }
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(content))
        return expand(read_config_file(str(file), SweepFile), load_manifest(Store.at(data)), lambda _: TRAINING_ROWS)

    return make


def refusal(trials, axes: dict[str, Any], **blocks: Any) -> str:
    with pytest.raises(UserError) as refused:
        trials(axes, **blocks)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def widths(made: list[Trial]) -> list[int]:
    return [trial.config.dictionary.width for trial in made]


# Widths -----------------------------------------------------------------------------------------------------------


def test_expansion_is_times_the_width_of_the_site_that_is_read(trials):
    made = trials({"expansion": [1, 2.5], "site": ["early", "late"]})
    found = {(t.config.data.inputs[0], t.config.dictionary.width) for t in made}
    assert found == {("early", 12), ("early", 30), ("late", 8), ("late", 20)}


def test_a_dictionary_is_the_same_whether_its_width_or_its_expansion_was_given(trials):
    assert [t.id for t in trials({"expansion": [2, 4]})] == [t.id for t in trials({"width": [24, 48]})]


@given(st.integers(1, 4096), st.integers(1, 1 << 20))
@settings(max_examples=50, deadline=None)
def test_every_width_is_some_expansion_of_every_site(site_width: int, width: int) -> None:
    assert width_of(width / site_width, site_width) == width


def test_an_expansion_that_gives_no_whole_width_is_refused_with_the_nearest_that_does(trials):
    line = refusal(trials, {"expansion": [2.3]})
    assert "axes.expansion: 2.3 times the site's width 12 is 27.6, not a whole number of latents; use 2.33333" in line
    assert "axes.expansion: 0 is not a number above 0" in refusal(trials, {"expansion": 0})


def test_width_and_expansion_together_or_neither_are_refused(trials):
    assert "both `width` and `expansion` are given" in refusal(trials, {"width": 24, "expansion": 2})
    assert "the axis 'width' is missing" in refusal(trials, {})


# Sites ------------------------------------------------------------------------------------------------------------


def test_one_sweep_spans_sites_and_each_trial_says_its_own(trials):
    made = trials({"width": 24, "site": ["early", "middle"]})
    assert [(t.config.data.inputs, t.name) for t in made] == [
        (("early",), "topk-w24-l4-siteearly"),
        (("middle",), "topk-w24-l4-sitemiddle"),
    ]


def test_pairs_of_sites_are_for_transcoders_and_lists_of_them_for_crosscoders(trials):
    axes = {
        "architecture": ["transcoder", "crosscoder"],
        "width": 24,
        "site": [{"input": "early", "output": "late"}, {"input": "late", "output": "middle"}],
        "sites": [["early", "middle"], ["early", "late"]],
    }
    made = {(t.config.dictionary.architecture, t.config.data.inputs, t.config.data.outputs) for t in trials(axes)}
    assert made == {
        ("transcoder", ("early",), ("late",)),
        ("transcoder", ("late",), ("middle",)),
        ("crosscoder", ("early", "middle"), ()),
        ("crosscoder", ("early", "late"), ()),
    }


def test_an_axis_that_one_architecture_has_does_not_multiply_the_others(trials):
    axes = {
        "architecture": ["topk", "relu", "crosscoder"],
        "width": 24,
        "k_aux": [2, 3],
        "site": ["early", "late"],
        "sites": ["early", "late"],
    }
    made = [t.config.dictionary.architecture for t in trials(axes)]
    assert {name: made.count(name) for name in made} == {"topk": 4, "relu": 2, "crosscoder": 1}


def test_a_value_that_a_rule_sets_is_no_axis_for_its_trials(trials):
    axes = {"architecture": ["topk", "relu"], "width": 24, "lr": [0.1, 0.2]}
    made = trials(axes, rules=[{"when": {"architecture": "relu"}, "set": {"lr": 0.5}}])
    found = [(t.config.dictionary.architecture, t.config.optimizer.lr) for t in made]
    assert found == [("topk", 0.1), ("topk", 0.2), ("relu", 0.5)]


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        ({"site": ["early", "layr"]}, "axes.site: the dataset has no site 'layr'"),
        ({"sites": [["early", "late"]]}, "axes.sites: unknown; did you mean 'site'?"),
        ({"architecture": "transcoder", "site": [{"input": "early"}]}, "neither the name of a site nor {input:"),
        ({"architecture": "transcoder", "site": ["late"]}, "cannot reconstruct the site it reads, 'late'"),
        ({"site": ["early", "early"]}, "two trials are the same, topk-w24-l4-siteearly"),
        ({"width": [24, 24.0]}, "two trials are the same"),
    ],
)
def test_sites_and_values_that_cannot_be_are_refused(trials, axes, line):
    assert line in refusal(trials, {"width": 24, **axes})


# Included and excluded --------------------------------------------------------------------------------------------


def test_excluded_points_are_left_out_and_included_ones_come_besides(trials):
    made = trials(
        {"architecture": ["topk", "relu"], "width": [24, 48], "target_l0": [2, 4]},
        exclude=[{"architecture": "relu", "width": [24, 48], "target_l0": 2}, {"architecture": "topk", "width": 48}],
        include=[{"architecture": "topk", "width": 96, "target_l0": 8}, {"architecture": "relu", "width": 72}],
    )
    found = [(d.architecture, d.width, d.target_l0) for d in (trial.config.dictionary for trial in made)]
    grid = [("topk", 24, 2), ("topk", 24, 4), ("relu", 24, 4), ("relu", 48, 4)]
    assert found == [*grid, ("topk", 96, 8), ("relu", 72, 2), ("relu", 72, 4)]


def test_included_points_may_have_options_and_widths_that_are_no_axes(trials):
    made = trials({"expansion": 2}, include=[{"k_aux": [3, 5]}, {"width": 30}])
    assert [(t.config.dictionary.width, t.name) for t in made] == [
        (24, "topk-w24-l4"),
        (24, "topk-w24-l4-k_aux3"),
        (24, "topk-w24-l4-k_aux5"),
        (30, "topk-w30-l4"),
    ]


@pytest.mark.parametrize(
    ("blocks", "line"),
    [
        ({"exclude": [{"width": 25}]}, "exclude: condition 1 ({'width': 25}) matches no trial"),
        ({"exclude": [{"widht": 24}]}, "exclude.widht: unknown; did you mean 'width'?"),
        ({"exclude": [{"width": [24, 48]}]}, "exclude: removes all 2 points of the axes, so there is no trial"),
        ({"include": [{"width": 24}]}, "include: entry 1 ({'width': 24}) adds no trial"),
        ({"include": [{"k_auks": 3}]}, "include.k_auks: unknown; did you mean 'k_aux'?"),
        ({"include": [{"width": 2}]}, "target_l0: 4 must be at most the width 2"),
        ({"include": [{"architecture": "topkk"}]}, "did you mean 'topk'?"),
        ({"rules": [{"when": {"width": 96}, "set": {"lr": 1}}]}, "`when` of rule 1 ({'width': 96}) matches no trial"),
    ],
)
def test_conditions_that_play_no_part_are_refused(trials, blocks, line):
    assert line in refusal(trials, {"width": [24, 48]}, **blocks)


# Drawn at random --------------------------------------------------------------------------------------------------

LR = {"from": 1e-4, "to": 1e-2, "scale": "log"}
WIDTHS = {"from": 16, "to": 64, "whole": True}


def random_search(trials: int, seed: int = 0) -> dict[str, Any]:
    return {"search": {"kind": "random", "trials": trials, "seed": seed}}


def test_a_random_search_is_a_pure_function_of_the_file_and_grows_by_its_end(trials):
    axes = {"architecture": ["topk", "relu"], "width": WIDTHS, "lr": LR}
    few, many = trials(axes, **random_search(5)), trials(axes, **random_search(12))
    assert [t.id for t in few] == [t.id for t in trials(axes, **random_search(5))]
    assert [t.id for t in few] == [t.id for t in many][:5]
    assert len({t.id for t in many}) == 12
    assert {t.id for t in many}.isdisjoint(t.id for t in trials(axes, **random_search(12, seed=1)))


def test_drawn_values_lie_in_their_ranges(trials):
    made = trials({"width": WIDTHS, "lr": LR}, **random_search(40))
    assert all(16 <= width <= 64 for width in widths(made))
    assert len(set(widths(made))) > 10
    rates = [float(t.config.optimizer.lr) for t in made]
    assert all(1e-4 <= lr <= 1e-2 for lr in rates)
    assert 8 <= sum(lr < 1e-3 for lr in rates) <= 32, "as many in each decade, about"
    assert made[0].name == f"topk-w{widths(made)[0]}-l4-lr{rates[0]}"


@given(st.integers(0, 1 << 40), st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.sampled_from(["linear", "log"]))
@settings(max_examples=50, deadline=None)
def test_a_drawn_number_is_never_outside_of_its_range(seed: int, low: float, factor: float, scale: Any) -> None:
    values = Range(low=low, high=low * factor, scale=scale)
    drawn = [next(draws({"lr": values}, seed + n))["lr"] for n in range(5)]
    assert all(low <= number <= low * factor for number in (*drawn, values.at(0), values.at(1)))


def test_another_axis_does_not_change_what_is_drawn_for_the_others(trials):
    axes = {"width": WIDTHS, "lr": LR}
    assert widths(trials(axes, **random_search(8))) == widths(trials({**axes, "k_aux": [1, 2]}, **random_search(8)))


def test_excluded_points_are_not_drawn_and_rules_hold_for_drawn_ones(trials):
    axes = {"architecture": ["topk", "relu"], "width": [16, 24, 32], "target_l0": [2, 4]}
    rules = [{"when": {"architecture": "topk"}, "set": {"workers": 2}}]
    made = trials(axes, exclude=[{"architecture": "relu", "width": [16, 24]}], rules=rules, **random_search(8))
    found = {(t.config.dictionary.architecture, t.config.dictionary.width, t.footprint.workers) for t in made}
    assert found == {("topk", 16, 2), ("topk", 24, 2), ("topk", 32, 2), ("relu", 32, 1)}
    line = refusal(trials, axes, exclude=[{"architecture": "relu", "width": [16, 24]}], **random_search(9))
    assert "search.trials: 9, but only 8 different dictionaries were found in 1,800 draws" in line


@pytest.mark.parametrize(
    ("axes", "blocks", "line"),
    [
        ({"lr": LR}, {}, "axes.lr: a range is for `search: {kind: random}`"),
        ({"lr": {"from": 1, "too": 2}}, {}, "lr: too: unknown key; did you mean 'to'?"),
        ({"lr": {"from": 2, "to": 1}}, {}, "`from` (2) must be below `to` (1)"),
        ({"lr": {"from": 0, "to": 1, "scale": "log"}}, {}, "`from` (0) must be above 0 on a log scale"),
        ({"architecture": {"from": 0, "to": 1}}, {}, "architecture: has no range of numbers"),
        ({}, {"search": {"kind": "random"}}, "kind random needs `trials`"),
        ({}, {"search": {"trials": 3}}, "trials (3) is for kind random"),
        ({}, {"search": {"kind": "randon"}}, "search.kind: input should be 'grid', 'random' or 'optuna'"),
        ({"lr": LR}, {"include": [{"width": 48}], **random_search(1)}, "entry 1: give lr a value; a range has none"),
        ({"width": {"from": 4.5, "to": 8, "whole": True}}, random_search(2), "must be whole numbers"),
        ({}, {"search": {"kind": "optuna"}}, "kind optuna needs `trials`, the number of dictionaries to train"),
        (
            {},
            {"search": {"kind": "optuna", "trials": 2, "sampler": "tpee"}},
            "sampler: input should be 'tpe' or 'nsga2'",
        ),
        ({}, {"search": {"kind": "random", "trials": 2, "sampler": "tpe"}}, "sampler (tpe) is for kind optuna"),
        ({}, {"search": {"kind": "optuna", "trials": 2}}, "search.trials: 2, but only 1 different dictionaries"),
    ],
)
def test_searches_that_make_no_sense_are_refused(trials, axes, blocks, line):
    assert line in refusal(trials, {"width": 24, **axes}, **blocks)


# The page ---------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_sweep_files_and_so_says_the_schema() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    whole, search, by_optuna = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    )
    no_rules: dict[str, Any] = {"exclude": [], "include": [], "rules": []}
    for content in (whole, {**whole, **search, **no_rules}, {**whole, **by_optuna, **no_rules}):
        jsonschema.validate(content, sweep_schema())
    site = {"data": {**whole["data"], "site": "layer6"}}
    assert points_of(SweepFile.model_validate({**whole, **by_optuna, **no_rules, **site})) == []
    content = {
        **whole,
        **search,
        "exclude": [],
        "include": [],
        "rules": [],
        "data": {**whole["data"], "site": "layer6"},
    }
    assert len(points_of(SweepFile.model_validate(content))) == 40
    relu, others = 2 * 3 * 2 * 2, 2 * 3 * 3 * 2 * 2
    assert len(points_of(SweepFile.model_validate(whole))) == relu + others + 2 * 2
