"""The norm of a crosscoder's atom, by hand: what penalties and BatchTopK see, and what `unit` keeps at 1."""

from __future__ import annotations

import pytest
import torch

from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics

SITE = SiteStatistics(mean=(0.0, 0.0), mean_squared_norm=1.0)
NORMS = [("sum", 7.0), ("concatenated", 5.0), ("mixed", 5.7)]
"""Of an atom with lengths 3 and 4 at two sites."""


def crosscoder(architecture: str, atoms: list[list[float]], target_l0: float = 1, **options: str) -> Dictionary:
    """Two sites of width 2; latent i is z_i = x_i, whatever its atom."""
    options = {
        "architecture": architecture,
        "width": len(atoms),
        "target_l0": target_l0,
        "normaliser": "none",
    } | options
    made = make_dictionary(dictionary_config(options), Sites.same(SITE, SITE))
    made.load_state_dict({**made.state_dict(), "W_dec": torch.tensor(atoms), "W_enc": torch.eye(len(atoms), 4)})
    return made


@pytest.mark.parametrize(("code_norm", "norm"), NORMS)
def test_the_norm_of_an_atom_of_lengths_3_and_4(code_norm, norm):
    atom = [3.0, 0.0, 0.0, 4.0]
    free = crosscoder("crosscoder", [atom], code_norm=code_norm).decoder()
    torch.testing.assert_close(free.norms_F, torch.tensor([norm]))
    torch.testing.assert_close(free.atoms_FO, torch.tensor([atom]))
    unit = crosscoder("crosscoder", [atom], code_norm=code_norm, decoder_norm="unit").decoder()
    assert unit.norms_F is None
    torch.testing.assert_close(unit.atoms_FO, torch.tensor([atom]) / norm)
    assert crosscoder("crosscoder", [atom], decoder_norm="ignored").decoder().norms_F is None


@pytest.mark.parametrize(("code_norm", "norm"), NORMS)
def test_the_penalty_is_the_code_times_the_norm(code_norm, norm):
    """A row whose only latent is 2: the term is 2 times the norm."""
    made = crosscoder("crosscoder", [[3.0, 0.0, 0.0, 4.0]], code_norm=code_norm)
    x_BD = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(made.loss(x_BD, 1).sums["sparsity"], torch.tensor(2 * norm))


@pytest.mark.parametrize(
    ("code_norm", "chosen"),
    [({"code_norm": "sum"}, 0), ({"code_norm": "concatenated"}, 1), ({"code_norm": "mixed"}, 1),
     ({"decoder_norm": "ignored"}, 2)],
)  # fmt: skip
def test_batch_topk_ranks_by_the_norm(code_norm, chosen):
    """Pre-activations 1, 1 and 1.1; lengths 1 and 1 (sum 2, together 1.41), 1.6 and 0, 0.5 and 0.5."""
    atoms = [[1.0, 0.0, 1.0, 0.0], [1.6, 0.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]]
    made = crosscoder("crosscoder_batch_topk", atoms, **code_norm)
    assert made.loss(torch.tensor([[1.0, 1.0, 1.1, 0.0]]), 1).fired_F.tolist() == [i == chosen for i in range(3)]


@pytest.mark.parametrize("code_norm", ["sum", "concatenated", "mixed"])
def test_atoms_start_with_norm_1_and_the_same_length_at_every_site(code_norm):
    options = {"architecture": "crosscoder", "width": 5, "target_l0": 1, "code_norm": code_norm}
    made = make_dictionary(dictionary_config(options), Sites.same(SITE, SITE, SITE))
    torch.testing.assert_close(made.decoder().norms_F, torch.ones(5))
    lengths_FS = made.W_dec.unflatten(1, (3, 2)).norm(dim=2)
    torch.testing.assert_close(lengths_FS, lengths_FS[:, :1].expand(5, 3))
