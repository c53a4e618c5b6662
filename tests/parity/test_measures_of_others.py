"""Measures of a dictionary that other libraries define alike, on the same reconstructions and atoms.

Only where theirs are right: dictionary_learning's explained variance forgives a constant error, and overcomplete's R2
takes one mean for all dimensions.
"""

import torch
from cases import F, dictionary, rows
from dictionary_learning.evaluation import evaluate as evaluate_like_dictionary_learning
from overcomplete.metrics import cosine_hungarian_loss, dictionary_collinearity
from sae_lens.evals import ExplainedVarianceCalculator

from lexray.training.dictionaries.base import RawRows
from lexray.training.measures.coherence import coherence
from lexray.training.measures.matching import pair_stability
from lexray.training.measures.measure import measure

X_BD = rows()


class Theirs:
    """A dictionary as dictionary_learning calls it."""

    def __init__(self, made):
        self.made, self.dict_size = made, F

    def __call__(self, x_BD, output_features):
        code = self.made.encode(x_BD)
        return self.made.decode(code), code.dense()


@torch.no_grad()
def test_measures_on_rows_are_theirs(against):
    made = dictionary("topk")
    found = measure(made, lambda: [RawRows(part, part) for part in X_BD.split(17)]).document
    theirs = evaluate_like_dictionary_learning(Theirs(made), iter([X_BD]))
    held = against("dictionary_learning", "measures")
    pairs = [
        ("cosine", found["likeness"]["cosine"], theirs["cossim"]),
        ("norm", found["likeness"]["relative_norm"], theirs["l2_ratio"]),
        ("bias", found["likeness"]["relative_reconstruction_bias"], theirs["relative_reconstruction_bias"]),
        ("l0", found["firing"]["l0"], theirs["l0"]),
        ("alive", 1 - found["firing"]["dead_fraction"], theirs["frac_alive"]),
    ]
    for name, ours, other in pairs:
        held(name, torch.tensor(ours), torch.tensor(other))
    calculator = ExplainedVarianceCalculator()
    calculator.add_batch(sae_output=made(X_BD), hidden_acts=X_BD)
    r2 = found["curve"]["points"][0]["r2"]
    against("sae_lens", "measures")("R2", torch.tensor(r2), torch.tensor(calculator.compute()))


def test_measures_of_atoms_are_theirs(against):
    atoms_FD, other_FD = (torch.rand(F, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    held = against("overcomplete", "measures")
    theirs = 1 - cosine_hungarian_loss(atoms_FD, other_FD) / F
    held("hungarian", torch.tensor(pair_stability(atoms_FD, other_FD).cosine), torch.tensor(theirs))
    largest, _ = dictionary_collinearity(atoms_FD)
    held("collinearity", torch.tensor(coherence(atoms_FD, 3)["max_cosine"]), torch.as_tensor(float(largest)))
