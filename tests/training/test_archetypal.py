"""Relaxed archetypal atoms: how far they may leave the hull, and how far they do."""

import pytest
import torch

from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.archetypal import RelaxedArchetypal
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics


def relaxed(**options) -> RelaxedArchetypal:
    """Two atoms and two candidates in two dimensions; rows have variance 9 about their mean."""
    config = dictionary_config({"architecture": "relaxed_archetypal", "width": 2, "target_l0": 1, **options})
    made = make_dictionary(config, Sites.same(SiteStatistics(mean=(4.0, 0.0), mean_squared_norm=25.0)))
    assert isinstance(made, RelaxedArchetypal)
    return made


@pytest.mark.parametrize(
    ("normaliser", "length"), [("standard", 1.0), ("unit_norm", 1.0), ("none", 3.0), ("centre", 3.0)]
)
def test_the_relaxation_is_a_share_of_the_length_of_normalised_rows(normaliser, length):
    project = relaxed(normaliser=normaliser, relaxation=0.2).projections()["relaxation_FD"]
    short_2 = torch.tensor([0.06, 0.08]) * length
    found = project(torch.stack([short_2, 50 * short_2]))
    torch.testing.assert_close(found, torch.stack([short_2, 2 * short_2]))


def test_hull_is_the_mean_cosine_of_atoms_and_their_hull_parts():
    """Hull parts (2, 0) and (0, 1); atoms (2, 2) at 45 degrees, (0, 3) at none: (1 / sqrt 2 + 1) / 2."""
    made = relaxed()
    with torch.no_grad():
        made.candidates_CD.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        made.mixture_FC.copy_(torch.eye(2))
        made.relaxation_FD.copy_(torch.tensor([[0.0, 2.0], [0.0, 2.0]]))
        made.log_scale.fill_(1.0)
    assert made.own_metrics() == {"hull": pytest.approx((0.5**0.5 + 1) / 2)}


def test_an_atom_without_a_hull_part_has_cosine_0_and_plain_atoms_have_no_such_metric():
    made = relaxed()
    assert made.own_metrics() == {"hull": 0.0}
    made.become_saved_form()
    assert made.own_metrics() == {}
