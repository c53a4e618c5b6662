"""Claims of benchmarks/RESULTS.md about the study of known features, as data that `check_ground_truth` judges.

A claim says that one dictionary lies above or below others, or a number, by a metric in some worlds.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PLAIN = ("superposed", "correlated", "mixtures")
TREES = ("tree-0", "tree-0.3", "tree-0.5", "tree-0.7")
RA, OWN_ENCODER = "relaxed_archetypal", "topk, encoder of its own"


class Claim(NamedTuple):
    """`arm` lies `relation` each of `others`, in each of `worlds`."""

    statement: str
    """The claim in words."""
    metric: str
    arm: str
    relation: Literal["above", "below"]
    others: tuple[str | float, ...]
    """Other dictionaries, or a number."""
    worlds: tuple[str, ...]


class Topic(NamedTuple):
    """Claims under one heading."""

    heading: str
    claims: tuple[Claim, ...]


LINEAR = ("relu", "gated", "jumprelu", "topk, k 2", "batch_topk")

TOPICS = (
    Topic(
        "Does MP-SAE recover the hierarchy where others do not?",
        (
            Claim(
                "`mp` has less error across levels than the linear families",
                "across", "mp", "below", LINEAR, TREES,
            ),
            Claim(
                "`mp` matches the true features better than they do",
                "cosine", "mp", "above", LINEAR, TREES,
            ),
            Claim(
                "`mp` spells rows with more atoms than they have features (L0 above 1.5 where the truth is 1.36)",
                "l0", "mp", "above", (1.5,), TREES,
            ),
            Claim(
                "Atoms of free length (`mp`) match the true features better than atoms of unit length",
                "cosine", "mp", "above", ("mp, unit atoms",), TREES,
            ),
            Claim(
                "The adaptive threshold (`residual_threshold: auto`) matches true features with a cosine above 0.95",
                "cosine", "mp, residual_threshold auto", "above", (0.95,), TREES[:2],
            ),
            Claim(
                "With it MP-SAE has less error across levels than the linear families",
                "across", "mp, residual_threshold auto", "below", LINEAR, TREES,
            ),
            Claim(
                "Matryoshka has less error across levels than BatchTopK",
                "across", "matryoshka_batch_topk", "below", ("batch_topk",), TREES,
            ),
            Claim(
                "Matryoshka blurs siblings more than BatchTopK",
                "within", "matryoshka_batch_topk", "above", ("batch_topk",), TREES,
            ),
            Claim(
                "`mp` explains more variance than TopK where features have no hierarchy",
                "r2", "mp", "above", ("topk",), PLAIN,
            ),
            Claim(
                "`mp` matches these features better than TopK",
                "cosine", "mp", "above", ("topk",), PLAIN,
            ),
        ),
    ),
    Topic(
        "Is RA-SAE the most stable?",
        (
            Claim(
                "At the default relaxation the hull holds the direction of atoms (cosine above 0.9)",
                "hull", RA, "above", (0.9,), PLAIN,
            ),
            Claim(
                "At relaxation 0.2 it does so, too",
                "hull", f"{RA}, relaxation 0.2", "above", (0.9,), PLAIN,
            ),
            Claim(
                "At relaxation 1, the default of the paper's code, it does so, too",
                "hull", f"{RA}, relaxation 1", "above", (0.9,), PLAIN,
            ),
            Claim(
                "RA-SAE with the default relaxation is more stable than the others",
                "stability", RA, "above",
                ("topk", OWN_ENCODER, "batch_topk", "relu", "gated", "jumprelu", "mp"), PLAIN,
            ),
            Claim(
                "RA-SAE with candidates drawn anew for each seed is more stable than TopK",
                "stability", f"{RA}, own candidates", "above", ("topk", OWN_ENCODER), PLAIN,
            ),
            Claim(
                "With relaxation 1 RA-SAE is more stable than TopK",
                "stability", f"{RA}, relaxation 1", "above", ("topk", OWN_ENCODER), PLAIN,
            ),
            Claim(
                "A hull that binds costs explained variance: the default has less than relaxation 1",
                "r2", RA, "below", (f"{RA}, relaxation 1",), PLAIN,
            ),
            Claim(
                "It costs recovery: the default matches the true features worse than relaxation 1",
                "cosine", RA, "below", (f"{RA}, relaxation 1",), PLAIN,
            ),
            Claim(
                "RA-SAE identifies concepts better than TopK (balanced accuracy)",
                "identifiability_balanced", RA, "above", ("topk",), ("mixtures",),
            ),
        ),
    ),
    Topic(
        "Do thresholds over the batch and of each latent find what TopK finds?",
        (
            Claim(
                "BatchTopK matches the true features worse than TopK",
                "cosine", "batch_topk", "below", ("topk",), PLAIN,
            ),
            Claim(
                "BatchTopK explains more variance than TopK",
                "r2", "batch_topk", "above", ("topk",), PLAIN,
            ),
            Claim(
                "BatchTopK detects features better than TopK (F1)",
                "f1", "batch_topk", "above", ("topk",), PLAIN,
            ),
            Claim(
                "JumpReLU matches the true features worse than TopK",
                "cosine", "jumprelu", "below", ("topk",), PLAIN,
            ),
            Claim(
                "Matryoshka matches features without a hierarchy, its bad case, worse than BatchTopK",
                "cosine", "matryoshka_batch_topk", "below", ("batch_topk",), PLAIN,
            ),
        ),
    ),
)  # fmt: skip
