"""Matrix factorisation with non-negative codes: semi-NMF and NMF, streamed in mini-batches.

Shapes: B rows, D width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, PositiveShare
from lexray.training.dictionaries.base import DictionaryConfig, Sample
from lexray.training.dictionaries.factorised import Factorised, FactorisedConfig
from lexray.training.dictionaries.kmeans import STARTING_ROUNDS
from lexray.training.dictionaries.normalisers import NormaliserName, Sites
from lexray.training.ops.kmeans import kmeans
from lexray.training.ops.nmf import largest_entries, least_squares_atoms, multiplicative_atoms, singular_directions


@dataclass(frozen=True, kw_only=True)
class SNMFConfig(FactorisedConfig):
    """Options of semi-NMF; the target L0 is the number of active latents of a row."""

    atom_share: PositiveShare = 1.0
    """Share of the dimensions of the site that an atom keeps after each step: its largest entries, the others become
    zero (winner takes all). The paper keeps 0.01 of the neurons of an MLP."""
    atom_init: Literal["random", "svd", "kmeans"] = "random"
    """Atoms at the start, from a sample: rows drawn at random, leading singular vectors, or centroids of k-means."""


class SNMF(Factorised):
    """Semi-NMF: codes are non-negative, atoms have any sign.

        f = k non-negative entries that fit x best (multiplicative updates, then the k largest fitted alone)
        atoms = least squares: (sum f^T f)^-1 sum f^T x, of each the largest entries alone, of unit length
        x_hat = f atoms

    The paper's is `atom_share: 0.01` with `target_l0` equal to the width: it sparsifies atoms and no codes. By default
    atoms are whole and codes sparse, since sparsity in a sweep is L0. The paper holds all data in memory; here the sums
    over batches are forgotten at a constant rate, so that old codes, made with old atoms, fade. Its recursion, a
    factorisation of the codes, has no option: train a second dictionary on `encode(x).dense()`, saved as a .npy file
    and read by `lexray data import`. The joint fine-tuning of all levels is not offered.
    """

    Config = SNMFConfig
    paper = "Shafran, Geiger and Geva, Decomposing MLP activations via semi-NMF (2025), arXiv:2506.10920"
    config: SNMFConfig

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        super().check_sites(config, sites)
        assert isinstance(config, SNMFConfig)
        if config.atom_init == "svd" and config.width > sites.input_width:
            raise UserError(
                f"atom_init: svd has {sites.input_width} singular vectors at this site, fewer than the width "
                f"{config.width:,}; use kmeans or random"
            )

    def starting_factors(self, sample: Sample) -> Tensor:
        rows, config = self.rows_to_factor(sample), self.config
        if config.atom_init == "svd":
            return singular_directions(rows, config.width, self.rows)
        if config.atom_init == "kmeans":
            return kmeans(rows, config.width, self.rows, self.seed, STARTING_ROUNDS, self.output.typical_length)
        return super().starting_factors(sample)

    def new_factors(self, factors_FD: Tensor) -> Tensor:
        found_FD = least_squares_atoms(self.sum_zz_FF, self.sum_zx_FD, factors_FD)
        kept = max(1, round(self.config.atom_share * found_FD.shape[1]))
        return largest_entries(found_FD, kept) if kept < found_FD.shape[1] else found_FD


@dataclass(frozen=True, kw_only=True)
class NMFConfig(FactorisedConfig):
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


class NMF(Factorised):
    """Non-negative matrix factorisation: codes, atoms and activations are non-negative.

        f as in semi-NMF
        atoms <- atoms * (sum f^T x) / (sum f^T f atoms), of unit length
        x_hat = f atoms

    With `signed_input: split` x is [max(x, 0), max(-x, 0)], and an atom is the difference of its two halves.
    """

    Config = NMFConfig
    paper = "Lee and Seung, Algorithms for non-negative matrix factorization (2001)"
    config: NMFConfig
    solving_squares: ClassVar[int] = 2

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
