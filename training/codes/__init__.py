"""Every code by its kind."""

from __future__ import annotations

from lexray.training.codes.abs_topk import AbsTopK
from lexray.training.codes.base import Code
from lexray.training.codes.batch_topk import BatchTopK
from lexray.training.codes.gated import Gated, GatedPAnneal
from lexray.training.codes.group_max import GroupMax
from lexray.training.codes.hierarchical_topk import HierarchicalTopK
from lexray.training.codes.jumprelu import JumpReLU
from lexray.training.codes.matching_pursuit import MatchingPursuit
from lexray.training.codes.matryoshka import MatryoshkaBatchTopK
from lexray.training.codes.orthogonal_pursuit import OrthogonalPursuit
from lexray.training.codes.p_anneal import PAnneal
from lexray.training.codes.relu import ReLU, ReLUTanh
from lexray.training.codes.topk import TopK

__all__ = [
    "CODES",
    "AbsTopK",
    "BatchTopK",
    "Code",
    "Gated",
    "GatedPAnneal",
    "GroupMax",
    "HierarchicalTopK",
    "JumpReLU",
    "MatchingPursuit",
    "MatryoshkaBatchTopK",
    "OrthogonalPursuit",
    "PAnneal",
    "ReLU",
    "ReLUTanh",
    "TopK",
]

_ALL: tuple[type[Code], ...] = (
    ReLU, ReLUTanh, PAnneal, Gated, GatedPAnneal, JumpReLU,
    TopK, BatchTopK, AbsTopK, GroupMax, MatryoshkaBatchTopK, HierarchicalTopK, MatchingPursuit, OrthogonalPursuit,
)  # fmt: skip

CODES: dict[str, type[Code]] = {code.kind: code for code in _ALL}
