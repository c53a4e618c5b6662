"""Terms that every code with a linear encoder can have, by name and weight: a new one is a row of `SHARED_TERMS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError
from lexray.training.codes.base import CodeConfig
from lexray.training.codes.code_cost import StepShape
from lexray.training.objectives.auxk import AuxK
from lexray.training.objectives.forward import Term, Weighted
from lexray.training.ops.linear import Decoder
from lexray.training.ops.topk import Score

SHARED_TERMS: dict[str, Callable[[Callable[[Decoder], Score], Callable[[Tensor], Tensor]], Term]] = {
    "auxk": lambda score, value: AuxK(score=score, value=value, k_aux=None),
}
"""Makes a term, given how pre-activations are ranked (by the atoms) and how activations are made of them."""


@dataclass(frozen=True, kw_only=True)
class SharedTermsConfig(CodeConfig):
    """Options of codes with a linear encoder."""

    terms: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Further terms of the loss by weight, as in `{auxk: 0.03}`: dead latents model what the living ones leave over."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        for name, weight in self.terms.items():
            if name not in SHARED_TERMS:
                raise UserError(f"terms.{name}: unknown{nearest(name, list(SHARED_TERMS))}")
            if not weight > 0:
                raise UserError(f"terms.{name}: {weight:g} must be above 0; leave the term out instead")

    def shared_terms(self, score: Callable[[Decoder], Score], value: Callable[[Tensor], Tensor]) -> list[Weighted]:
        """Return the terms that are asked for."""
        return [Weighted(name, SHARED_TERMS[name](score, value), weight) for name, weight in self.terms.items()]

    def shared_pairs(self, shape: StepShape) -> int:
        """Return the number of pairs per row that these terms see at most."""
        return min(max(1, shape.output_width // 2), shape.latents) if "auxk" in self.terms else 0
