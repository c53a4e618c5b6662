"""Dictionaries and their options for each synthetic dataset (world).

Every family has the learning rate and the AuxK that a grid gave it. The grid is the same for all families. Its rows,
features and seed are not those of the study (`settings.py`, `tuning.py`). Arms that change one option of a family keep
that family's setting. What no grid chose is written here: JumpReLU's thresholds, and on trees the options of the
MP-SAE paper's toy. Other options are lexray's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lexray.training.config import OptimizerConfig
from lexray.tuning.ground_truth.settings import Setting, Tuned, read_tuned, setting_of

BATCH_ROWS, STEPS = 256, 500
"""Rows of a batch and steps of every training, of the study and of the grid."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A dictionary on a synthetic dataset, trained with several seeds."""

    name: str
    options: dict[str, Any]
    """Options of the dictionary, including `architecture`; the width defaults to the dataset's number of features."""
    setting: Setting
    family: str
    """Arm whose tuned setting it has: its own name, unless it is a variant of another arm."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer, except for the learning rate."""
    quick: bool = False
    """Whether `--quick` includes it."""

    @property
    def is_family(self) -> bool:
        """Whether it is tuned itself."""
        return self.family == self.name


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
    """Arms that share options, an optimizer, and the world on which they were tuned."""

    tuned: Tuned
    world: str
    shared: dict[str, Any]
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    arms: list[Arm] = field(default_factory=list)

    def add(self, name: str, *, architecture: str, quick: bool = False, family: str = "", **own: Any) -> None:
        family = family or name
        self.arms.append(
            Arm(
                name=name,
                options={**self.shared, "architecture": architecture, **own},
                setting=setting_of(self.tuned, self.world, family),
                family=family,
                optimizer=self.optimizer,
                quick=quick,
            )
        )


JUMPRELU: dict[str, Any] = {"architecture": "jumprelu", "threshold_rate": 1.0, "bandwidth": 0.1}
"""Few rows and large steps: thresholds that run ahead of the encoder, or see little, freeze it where it starts."""

# The tree ----------------------------------------------------------------------------------------------------------

TREE_L0 = 1.36
TREE_OPTIMIZER = OptimizerConfig(beta1=0.5, beta2=0.9375)
"""That of the MP-SAE paper's toy code, which trains on raw rows."""
PURSUIT: dict[str, Any] = {"architecture": "mp", "target_l0": TREE_L0, "stop_at_repeat": True}
PAPERS_STOP: dict[str, Any] = {"rounds": 8, "residual_threshold": 0.05}
"""The toy code leaves residuals below 0.05."""


def tree_arms(tuned: Tuned) -> tuple[Arm, ...]:
    """Return the tree's arms: atoms of free length, as in the paper's toy, at the true mean L0 where k may be it."""
    made = _Arms(tuned=tuned, world="tree-0", shared={"normaliser": "none"}, optimizer=TREE_OPTIMIZER)
    free: dict[str, Any] = {"target_l0": TREE_L0, "decoder_norm": "free"}
    made.add("relu", architecture="relu", quick=True, **free)
    made.add("gated", architecture="gated", **free)
    made.add("jumprelu", **JUMPRELU, **free)
    made.add("topk, k 2", architecture="topk", target_l0=2, decoder_norm="free", quick=True)
    made.add("batch_topk", architecture="batch_topk", quick=True, **free)
    made.add("matryoshka_batch_topk", architecture="matryoshka_batch_topk", **free)
    made.add("mp", decoder_norm="ignored", quick=True, **PURSUIT, **PAPERS_STOP)
    made.add("mp, unit atoms", decoder_norm="unit", **PURSUIT, **PAPERS_STOP)
    made.add("mp, residual_threshold auto", decoder_norm="ignored", residual_threshold="auto", **PURSUIT)
    return tuple(made.arms)


# Everything else ---------------------------------------------------------------------------------------------------

RELAXATIONS = (0.2, 1.0)
"""Values beside the default."""


def plain_arms(tuned: Tuned, world: str, k: int) -> _Arms:
    """Return one arm of every family at target L0 `k`."""
    made = _Arms(tuned=tuned, world=world, shared={"target_l0": k})
    made.add("relu", architecture="relu")
    made.add("gated", architecture="gated")
    made.add("jumprelu", **JUMPRELU)
    made.add("topk", architecture="topk", quick=True)
    made.add("batch_topk", architecture="batch_topk")
    made.add("matryoshka_batch_topk", architecture="matryoshka_batch_topk")
    made.add("mp", architecture="mp", decoder_norm="unit", quick=True)
    return made


def with_archetypal(tuned: Tuned, world: str, k: int, candidates: int, **settings: bool) -> StudyPlan:
    """Return the plan of plain arms and archetypal ones: as published, with other relaxations, and with candidates
    drawn anew for each seed.
    """
    made = plain_arms(tuned, world, k)
    made.add("topk, encoder of its own", architecture="topk", family="topk", encoder_init="random")
    relaxed: dict[str, Any] = {"architecture": "relaxed_archetypal", "candidates": candidates}
    family = "relaxed_archetypal"
    made.add(family, quick=True, **relaxed)
    for relaxation in RELAXATIONS:
        made.add(f"{family}, relaxation {relaxation:g}", family=family, relaxation=relaxation, **relaxed)
    made.add(f"{family}, own candidates", family=family, candidates_seed="trial", quick=True, **relaxed)
    return StudyPlan(arms=tuple(made.arms), batch_rows=BATCH_ROWS, steps=STEPS, **settings)


def plans(tuned: Tuned | None = None) -> dict[str, StudyPlan]:
    """Return the plans by the dataset's name, with settings from `tuned`, by default those of `tuned.json`."""
    tuned = read_tuned() if tuned is None else tuned
    trees = StudyPlan(arms=tree_arms(tuned), batch_rows=BATCH_ROWS, steps=STEPS)
    return {
        "superposed": with_archetypal(tuned, "superposed", 4, candidates=192, quick=True),
        "correlated": with_archetypal(tuned, "correlated", 4, candidates=96),
        "tree-0": trees,
        "tree-0.3": replace(trees, quick=True),
        "tree-0.5": trees,
        "tree-0.7": trees,
        "mixtures": with_archetypal(tuned, "mixtures", 3, candidates=64, identifiable=True),
    }
