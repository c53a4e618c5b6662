"""Matrix factorisation with non-negative codes: semi-NMF and NMF, streamed in mini-batches.

Shapes: B rows, D width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, Decay
from lexray.training.dictionaries.base import DictionaryConfig, Sample
from lexray.training.dictionaries.normalisers import NormaliserName, Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.dictionaries.solved import FromRowsConfig, Solved
from lexray.training.objectives.forward import LossOutput
from lexray.training.ops import nmf
from lexray.training.ops.kmeans import random_rows
from lexray.training.ops.nmf import least_squares_atoms, multiplicative_atoms, sparse_codes
from lexray.training.ops.sparse_code import SparseCode


@dataclass(frozen=True, kw_only=True)
class SNMFConfig(FromRowsConfig):
    """Options of semi-NMF; the target L0 is the number of active latents of a row."""

    code_rounds: Count = 3
    """Multiplicative updates of all codes of a batch, which rank them; each costs 4 products B x width x width."""
    forgetting: Decay = 0.95
    """Share of the sums over earlier batches that a step keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 != int(self.target_l0):
            raise UserError(f"target_l0: {self.target_l0:g} is not a whole number of latents")


class SNMF(Solved):
    """Semi-NMF: codes are non-negative, atoms have any sign.

        f = k non-negative entries that fit x best (multiplicative updates, then the k largest fitted alone)
        atoms = least squares: (sum f^T f)^-1 sum f^T x, of unit length
        x_hat = f atoms

    The sums over batches are forgotten at a constant rate, so that old codes, made with old atoms, fade. The paper
    holds all data in memory and sparsifies the atoms (winner takes all) where this sparsifies codes, since sparsity
    in a sweep is L0.
    """

    Config = SNMFConfig
    paper = "Shafran, Geiger and Geva, Decomposing MLP activations via semi-NMF (2025), arXiv:2506.10920"
    atoms_from_data = True
    config: SNMFConfig
    solving_squares: ClassVar[int] = 6
    """Matrices of F x F, in fp32 numbers, that solving for the atoms takes."""
    sum_zz_FF: Tensor
    sum_zx_FD: Tensor

    def __init__(self, config: SNMFConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        factor_width = sites.input_width * self.factor_copies(config)
        # In float64: a rounding that depends on how rows are split would tip near ties of codes, and they feed on it.
        self.register_buffer("factors", torch.zeros(config.width, factor_width, dtype=torch.float64))
        self.register_buffer("sum_zz_FF", torch.zeros(config.width, config.width, dtype=torch.float64))
        self.register_buffer("sum_zx_FD", torch.zeros(config.width, factor_width, dtype=torch.float64))

    # What NMF changes ------------------------------------------------------------------------------------------

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
        return least_squares_atoms(self.sum_zz_FF, self.sum_zx_FD, factors_FD)

    # The contract ----------------------------------------------------------------------------------------------

    @property
    def needs_sample(self) -> bool:
        return True

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        """Initialise the factors from rows of the data."""
        super().prepare(sample)
        normalised = self.normalised_sample(sample)
        rows_FD = random_rows(lambda: map(self.to_factor, normalised()), self.config.width, self.rows, self.seed)
        self._set_factors(F.normalize(rows_FD, dim=1, eps=torch.finfo(torch.float32).tiny))

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


@dataclass(frozen=True, kw_only=True)
class NMFConfig(SNMFConfig):
    """Options of NMF; the target L0 is the number of active latents of a row."""

    normaliser: NormaliserName = "unit_norm"
    """Normalisation of raw activations; centring would make them negative."""
    signed_input: Literal["refuse", "split"] = "refuse"
    """`split` factorises [max(x, 0), max(-x, 0)] side by side, so that negative activations can be represented."""
    atom_rounds: Count = 3
    """Multiplicative updates of the atoms after each batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normaliser not in ("none", "unit_norm") and self.signed_input == "refuse":
            raise UserError(f"normaliser: {self.normaliser} makes activations negative for NMF; use unit_norm")

    @property
    def needs_nonnegative(self) -> bool:
        """Whether negative activations are refused."""
        return self.signed_input == "refuse"


class NMF(SNMF):
    """Non-negative matrix factorisation: codes, atoms and activations are non-negative.

        f as in semi-NMF
        atoms <- atoms * (sum f^T x) / (sum f^T f atoms), of unit length
        x_hat = f atoms

    With `signed_input: split` x is [max(x, 0), max(-x, 0)], and an atom is the difference of its two halves.
    """

    Config = NMFConfig
    paper = "Lee and Seung, Algorithms for non-negative matrix factorization (2001)"
    config: NMFConfig
    solving_squares = 2

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        super().check_sites(config, sites)
        assert isinstance(config, NMFConfig)
        if config.needs_nonnegative:
            lowest = min(m for site in sites.inputs for m in site.mean)
            if lowest < 0:
                raise UserError(f"nmf: {NEGATIVE.format(lowest=f'a mean of {lowest:.3g} in one dimension')}")

    @classmethod
    def factor_copies(cls, config: Any) -> int:
        return 1 if config.needs_nonnegative else 2

    def to_factor(self, x_BD: Tensor) -> Tensor:
        if not self.config.needs_nonnegative:
            return torch.cat([x_BD.clamp_min(0), (-x_BD).clamp_min(0)], 1)
        if (x_BD < 0).any():
            raise UserError(f"nmf: {NEGATIVE.format(lowest=f'{float(x_BD.min()):.3g} among its normalised values')}")
        return x_BD

    def from_factor(self, factors_FD: Tensor) -> Tensor:
        if self.config.needs_nonnegative:
            return factors_FD
        positive, negative = factors_FD.chunk(2, dim=1)
        return positive - negative

    def new_factors(self, factors_FD: Tensor) -> Tensor:
        return multiplicative_atoms(self.sum_zz_FF, self.sum_zx_FD, factors_FD, self.config.atom_rounds)


NEGATIVE = "activations must not be negative, the site has {lowest}; use snmf, or signed_input: split"
