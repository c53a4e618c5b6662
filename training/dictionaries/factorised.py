"""Base of the matrix factorisations: non-negative codes, factors from sums over batches that are forgotten.

Shapes: B rows, D width, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, Decay
from lexray.training.dictionaries.base import Sample
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.dictionaries.solved import FromRowsConfig, Solved
from lexray.training.objectives.forward import LossOutput
from lexray.training.ops import nmf
from lexray.training.ops.kmeans import random_rows
from lexray.training.ops.nmf import sparse_codes
from lexray.training.ops.sparse_code import SparseCode


@dataclass(frozen=True, kw_only=True)
class FactorisedConfig(FromRowsConfig):
    """Options of every factorisation; the target L0 is the number of active latents of a row."""

    code_rounds: Count = 3
    """Multiplicative updates of all codes of a batch, which rank them; each costs 4 products B x width x width."""
    forgetting: Decay = 0.95
    """Share of the sums over earlier batches that a step keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 != int(self.target_l0):
            raise UserError(f"target_l0: {self.target_l0:g} is not a whole number of latents")


class Factorised(Solved):
    """Rows are non-negative codes times factors; factors are computed from sums of codes and rows over batches."""

    atoms_from_data = True
    config: FactorisedConfig
    solving_squares: ClassVar[int] = 6
    """Matrices of F x F, in fp32 numbers, that solving for the atoms takes."""
    sum_zz_FF: Tensor
    sum_zx_FD: Tensor

    def __init__(self, config: FactorisedConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        factor_width = sites.input_width * self.factor_copies(config)
        # In float64: a rounding that depends on how rows are split would tip near ties of codes, and they feed on it.
        self.register_buffer("factors", torch.zeros(config.width, factor_width, dtype=torch.float64))
        self.register_buffer("sum_zz_FF", torch.zeros(config.width, config.width, dtype=torch.float64))
        self.register_buffer("sum_zx_FD", torch.zeros(config.width, factor_width, dtype=torch.float64))

    # What a factorisation changes --------------------------------------------------------------------------------

    @classmethod
    def factor_copies(cls, config: Any) -> int:
        """Return the width of the rows that are factorised over that of the site."""
        return 1

    def to_factor(self, x_BD: Tensor) -> Tensor:
        """Map normalised rows to the rows that are factorised."""
        return x_BD

    def from_factor(self, factors_FD: Tensor) -> Tensor:
        """Map factors to atoms of normalised rows."""
        return factors_FD

    def new_factors(self, factors_FD: Tensor) -> Tensor:
        """Return updated factors from the sums over batches."""
        raise NotImplementedError

    def starting_factors(self, sample: Sample) -> Tensor:
        """Return the factors before the first step, of any length (collective): rows of the data, drawn at random."""
        return random_rows(self.rows_to_factor(sample), self.config.width, self.rows, self.seed)

    def rows_to_factor(self, sample: Sample) -> Callable[[], Iterable[Tensor]]:
        """Return a function that yields the sample's rows to factorise from the start at each call."""
        normalised = self.normalised_sample(sample)
        return lambda: map(self.to_factor, normalised())

    # The contract ----------------------------------------------------------------------------------------------

    @property
    def needs_sample(self) -> bool:
        return True

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        """Initialise the factors from rows of the data."""
        super().prepare(sample)
        self._set_factors(F.normalize(self.starting_factors(sample), dim=1, eps=torch.finfo(torch.float32).tiny))

    @torch.no_grad()
    def learn(self, x_BD: Tensor, total_rows: int) -> LossOutput:
        x_BD = self.input.normalise(x_BD)
        code = self.code_of(x_BD)
        terms = self.terms(x_BD, code, total_rows)
        z_BF, factor_BD = code.dense().double(), self.to_factor(x_BD).double()
        for summed, batch in ((self.sum_zz_FF, z_BF.T @ z_BF), (self.sum_zx_FD, z_BF.T @ factor_BD)):
            summed.mul_(self.config.forgetting).add_(self.rows.all_reduce(batch))
        factors_FD = self.new_factors(self.get_buffer("factors"))
        lengths_F = factors_FD.norm(dim=1)
        lengths_F = torch.where(lengths_F > 0, lengths_F, 1.0)
        # Unit factors: codes, and the sums over them, take the lengths.
        self.sum_zz_FF.mul_(lengths_F[:, None] * lengths_F)
        self.sum_zx_FD.mul_(lengths_F[:, None])
        self._set_factors(factors_FD / lengths_F[:, None])
        return terms

    @classmethod
    def step_numbers(cls, config: Any, shapes: Shapes, rows: int) -> int:
        """Return the peak of three phases: ranking latents, fitting active ones in chunks, solving in float64."""
        square, entries, k = shapes.latents**2, rows * shapes.latents, config.target_l0
        width = shapes.input_width * cls.factor_copies(config)
        few = min(rows, max(1, int(nmf.CHUNK_NUMBERS / (k * width))))
        ranking = 3 * square + 8 * entries
        fitting = 3 * square + 4 * entries + int(few * (k * width + 3 * k * k))
        solving = 3 * entries + cls.solving_squares * square
        return int(max(ranking, fitting, solving) + 2 * rows * width)

    @classmethod
    def summed_numbers(cls, config: Any, shapes: Shapes) -> int:
        return int(shapes.latents**2)

    def code_of(self, x_BD: Tensor) -> SparseCode:
        factors_FD, k = self.get_buffer("factors").to(x_BD.dtype), int(self.config.target_l0)
        return sparse_codes(self.to_factor(x_BD), factors_FD, k, self.config.code_rounds, self.latents)

    def _set_factors(self, factors_FD: Tensor) -> None:
        self.get_buffer("factors").copy_(factors_FD)
        self.W_dec.copy_(self.from_factor(factors_FD))
