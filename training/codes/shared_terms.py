"""Terms that every code with a linear encoder can have, each with its options: a new one goes here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.base import CodeConfig
from lexray.training.codes.code_cost import StepShape
from lexray.training.objectives.auxk import AuxK
from lexray.training.objectives.forward import Weighted
from lexray.training.ops.linear import Decoder
from lexray.training.ops.topk import Score


@dataclass(frozen=True, kw_only=True)
class SharedTermsConfig(CodeConfig):
    """Options of the shared terms."""

    aux_weight: float = 0.0
    """Weight of the AuxK term; 0 switches it off."""
    k_aux: int | None = None
    """Dead latents per row that model the residual; None is half the site's width."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if self.aux_weight < 0:
            raise UserError(f"aux_weight: {self.aux_weight:g} is below 0")
        if self.k_aux is not None and self.k_aux < 1:
            raise UserError(f"k_aux: {self.k_aux} must be at least 1; aux_weight 0 switches AuxK off")

    def shared_terms(self, score: Callable[[Decoder], Score], value: Callable[[Tensor], Tensor]) -> list[Weighted]:
        """Return the terms that have a weight; `score` ranks pre-activations, `value` makes activations of them."""
        found = []
        if self.aux_weight:
            found.append(Weighted("aux", AuxK(score=score, value=value, k_aux=self.k_aux), self.aux_weight))
        return found

    def auxk_pairs(self, shape: StepShape) -> int:
        """Return the number of dead latents per row that the term sees at most."""
        return min(self.k_aux or shape.output_width // 2, shape.latents) if self.aux_weight else 0
