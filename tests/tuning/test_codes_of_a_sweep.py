"""Codes of an architecture in a sweep: an option of one code is no axis for the others, and cannot be given to them."""

from __future__ import annotations

import pytest
from test_axes_of_a_sweep import data, refusal, trials  # noqa: F401  # fixtures

TRANSCODERS = {"architecture": "transcoder", "width": 24}


@pytest.fixture
def kinds(trials):  # noqa: F811
    """The code of each trial, with one of its options."""

    def make(option: str, axes, **blocks):
        found = trials(TRANSCODERS | axes, **blocks)
        assert len({trial.id for trial in found}) == len(found)
        return [(t.config.dictionary.code.kind, getattr(t.config.dictionary.code, option, None)) for t in found]

    return make


def test_an_option_of_one_code_multiplies_its_trials_alone(kinds):
    axes = {"code": ["topk", "jumprelu"], "bandwidth": [0.01, 0.03]}
    assert kinds("bandwidth", axes) == [("topk", None), ("jumprelu", 0.01), ("jumprelu", 0.03)]


def test_an_axis_that_no_code_of_the_sweep_has_is_refused(trials):  # noqa: F811
    for code in ({}, {"code": ["topk"]}, {"code": ["topk", "relu"]}):
        said = refusal(trials, TRANSCODERS | code | {"bandwidth": [0.01, 0.03]})
        assert "axes.bandwidth" in said
        assert "jumprelu" in said


def test_an_option_of_another_code_is_refused(trials):  # noqa: F811
    said = refusal(trials, TRANSCODERS, options={"transcoder": {"code": "topk", "bandwidth": 0.03}})
    assert "options.transcoder.bandwidth" in said
    assert "jumprelu" in said


def test_an_option_of_one_of_several_codes_goes_to_it(kinds):
    options = {"transcoder": {"bandwidth": 0.05, "k_aux": 3}}
    axes = {"code": ["topk", "jumprelu", "relu"]}
    assert kinds("bandwidth", axes, options=options) == [("topk", None), ("jumprelu", 0.05), ("relu", None)]
    assert kinds("k_aux", axes, options=options) == [("topk", 3), ("jumprelu", None), ("relu", None)]


def test_a_rule_chooses_a_code_and_its_options(kinds):
    rules = [{"when": {"seed": 1}, "set": {"code": "jumprelu", "bandwidth": 0.2}}]
    assert kinds("bandwidth", {"seed": [0, 1]}, rules=rules) == [("topk", None), ("jumprelu", 0.2)]


def test_a_code_that_an_architecture_does_not_have_is_refused(trials):  # noqa: F811
    assert "transcoder has no code 'gated'" in refusal(trials, TRANSCODERS | {"code": ["topk", "gated"]})
