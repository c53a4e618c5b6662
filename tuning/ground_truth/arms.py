"""Dictionaries and their options for each synthetic dataset (world).

On the tree all families share the optimizer of the MP-SAE paper's toy, the best of three that were tried, and matching
pursuit's stop rule and free lengths were chosen from some twenty trials there: other families had fewer. Elsewhere
all share one learning rate, not tuned by family. Other options are lexray's defaults unless an arm overrides them.
Where a finding depends on a choice (the encoder's start, the candidates, the length of atoms), both sides are arms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lexray.training.config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A dictionary on a synthetic dataset, trained with several seeds."""

    name: str
    options: dict[str, Any]
    """Options of the dictionary, including `architecture`; the width defaults to the dataset's number of features."""
    optimizer: OptimizerConfig
    quick: bool = False
    """Whether `--quick` includes it."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Trainings on one synthetic dataset."""

    arms: tuple[Arm, ...]
    batch_rows: int
    steps: int
    identifiable: bool = False
    """Whether identifiability is measured."""
    quick: bool = False
    """Whether `--quick` includes it."""


@dataclass(frozen=True, kw_only=True)
class _Arms:
    """Arms that share options and an optimizer."""

    shared: dict[str, Any]
    optimizer: OptimizerConfig
    arms: list[Arm] = field(default_factory=list)

    def add(
        self, name: str, *, architecture: str, quick: bool = False, optimizer: OptimizerConfig | None = None, **own: Any
    ) -> None:
        options = {**self.shared, "architecture": architecture, **own}
        self.arms.append(Arm(name=name, options=options, optimizer=optimizer or self.optimizer, quick=quick))


# The tree ----------------------------------------------------------------------------------------------------------

# The MP-SAE paper's toy code: Adam(0.5, 0.9375) at 3e-2, raw rows, residuals below 0.05 are left.
TREE_OPTIMIZER = OptimizerConfig(lr=3e-2, beta1=0.5, beta2=0.9375)
PURSUIT: dict[str, Any] = {"target_l0": 1.36, "rounds": 8, "residual_threshold": 0.05, "stop_at_repeat": True}


def tree_arms() -> tuple[Arm, ...]:
    """Return the tree's arms. The true mean L0 is 1.36: families with an integer k use 1 and 2."""
    made = _Arms(shared={"normaliser": "none"}, optimizer=TREE_OPTIMIZER)
    made.add("relu", architecture="relu", target_l0=1.36, decoder_norm="free", quick=True)
    made.add("gated", architecture="gated", target_l0=1.36)
    made.add("topk, k 2", architecture="topk", target_l0=2, decoder_norm="free", quick=True)
    made.add("batch_topk, k 1", architecture="batch_topk", target_l0=1, decoder_norm="free")
    made.add("batch_topk, k 2", architecture="batch_topk", target_l0=2, decoder_norm="free", quick=True)
    made.add("matryoshka_batch_topk, k 2", architecture="matryoshka_batch_topk", target_l0=2, decoder_norm="free")
    made.add("relaxed_archetypal, k 2", architecture="relaxed_archetypal", target_l0=2)
    made.add("mp, unit atoms", architecture="mp", **PURSUIT)
    made.add("mp", architecture="mp", decoder_norm="ignored", quick=True, **PURSUIT)
    return tuple(made.arms)


# Everything else ---------------------------------------------------------------------------------------------------


def plain_arms(k: int) -> _Arms:
    """Return one arm of every family at target L0 `k`."""
    made = _Arms(shared={"target_l0": k}, optimizer=OptimizerConfig(lr=1e-2))
    made.add("relu", architecture="relu")
    made.add("gated", architecture="gated")
    # Few rows and large steps: thresholds that run ahead of the encoder, or see little, freeze it where it starts.
    made.add("jumprelu", architecture="jumprelu", threshold_rate=1.0, bandwidth=0.1)
    made.add("topk", architecture="topk", quick=True)
    made.add("batch_topk", architecture="batch_topk")
    made.add("matryoshka_batch_topk", architecture="matryoshka_batch_topk")
    made.add("mp", architecture="mp", quick=True)
    return made


def with_archetypal(k: int, candidates: int, **settings: bool) -> StudyPlan:
    """Return the plan of plain arms and archetypal ones: as published, and with candidates or mixtures drawn anew for
    each seed.
    """
    made = plain_arms(k)
    shared: dict[str, Any] = {"architecture": "relaxed_archetypal", "candidates": candidates}
    made.add("topk, encoder of its own", architecture="topk", encoder_init="random")
    made.add("archetypal", architecture="archetypal", candidates=candidates)
    made.add("relaxed_archetypal", quick=True, **shared)
    made.add("relaxed_archetypal, own candidates", candidates_seed="trial", quick=True, **shared)
    made.add("relaxed_archetypal, shuffled", mixture_init="shuffled", **shared)
    made.add("relaxed_archetypal, random mixture", mixture_init="random", **shared)
    made.add("relaxed_archetypal, both own", candidates_seed="trial", mixture_init="random", **shared)
    return StudyPlan(arms=tuple(made.arms), batch_rows=512, steps=2000, **settings)


def plans() -> dict[str, StudyPlan]:
    """Return the plans by the dataset's name."""
    trees = StudyPlan(arms=tree_arms(), batch_rows=256, steps=4000)
    return {
        "superposed": with_archetypal(4, candidates=192, quick=True),
        "correlated": with_archetypal(4, candidates=96),
        "tree-0": replace(trees, quick=True),
        "tree-0.3": trees,
        "tree-0.5": trees,
        "tree-0.7": trees,
        "mixtures": with_archetypal(3, candidates=64, identifiable=True),
    }
