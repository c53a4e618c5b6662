"""Dictionaries that learn a linear encoder and a decoder by gradient: what all of those have.

Shapes: B rows on this rank, D width of the input sites side by side, O that of the output sites (D again for all but
transcoders), F latents on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig, Sample
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.ops.sampling import geometric_median
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode

DecoderNorm = Literal["unit", "constrained", "free", "ignored"]


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(DictionaryConfig):
    """Options of the dictionaries that learn an encoder and a decoder by gradient."""

    decoder_norm: DecoderNorm = "unit"
    """`unit`: atoms are rows of W_dec over their norm; `constrained`: so too, and after each step the rows are put back
    to length 1 (under ZeRO 1 to 3 that gathers W_dec); `free`: as they are, penalties and selection see code * norm;
    `ignored`: as they are and nothing sees their norms, as in imported dictionaries (a penalty then has no minimum)."""
    decoder_init_norm: float = 1.0
    """Length of atoms at the first step, where their norm is free."""
    encoder_init: Literal["tied", "random"] = "tied"
    """The encoder starts as the transposed decoder, or as unit directions of its own."""
    bias_init: Literal["zero", "mean", "geometric_median"] = "zero"
    """Where b_dec starts, in normalised units; the mean is zero where the normaliser centres."""
    resample_every_rows: int = 0
    """Restart dead latents from badly reconstructed rows each time this many rows were seen; 0 never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decoder_init_norm > 0:
            raise UserError(f"decoder_init_norm: {self.decoder_init_norm:g} must be above 0")
        if self.unit_atoms and self.decoder_init_norm != 1:
            raise UserError(f"decoder_init_norm: {self.decoder_init_norm:g}, but atoms have length 1; use free norms")
        if self.resample_every_rows < 0:
            raise UserError(f"resample_every_rows: {self.resample_every_rows} is below 0")

    @property
    def unit_atoms(self) -> bool:
        """Whether atoms are rows of W_dec over their norm."""
        return self.decoder_norm in ("unit", "constrained")


class Decoder(NamedTuple):
    """The atoms as a reconstruction uses them."""

    atoms_FO: Tensor
    norms_F: Tensor | None
    """How long each atom counts in penalties and selection; None where all are 1."""


class LearnedDictionary(Dictionary):
    """A linear encoder and a decoder, learned by gradient; subclasses define the code and the loss.

    With x the normalised input and y the normalised target:

        z = W_enc (x - b_dec) + b_enc
        y_hat = sum of code * atoms + b_dec

    Atoms are the rows of W_dec divided by their norm, in the forward pass, so that unit norm holds exactly under any
    sharding and the gradient has no part along the atom; with `decoder_norm: free` they are the rows as they are. Steps
    across a row lengthen it, by a third or so in some hundred steps, so that atoms turn ever more slowly; `constrained`
    puts the master copy back to length 1 after each step, as Bricken et al. (2023) do, which keeps their rate.
    """

    per_latent: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec")
    config: LearnedConfig

    def __init__(self, config: LearnedConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        generator = torch.Generator().manual_seed(self.seed)
        owned = self.latents.slice_of(config.width)
        atoms_FO = self.initial_atoms(generator) * config.decoder_init_norm
        encoder_FD = self.initial_encoder(atoms_FO, generator)[owned]
        self.W_enc = nn.Parameter(encoder_FD.clone())
        self.b_enc = nn.Parameter(torch.zeros(len(encoder_FD)))
        self.W_dec = nn.Parameter(atoms_FO[owned].clone())
        self.b_dec = nn.Parameter(torch.zeros(sites.output_width))

    # Starting values -------------------------------------------------------------------------------------------

    def initial_atoms(self, generator: torch.Generator) -> Tensor:
        """Random directions of length 1 (width, O)."""
        atoms_FO = torch.randn(self.config.width, self.sites.output_width, generator=generator)
        return atoms_FO / self.code_norms(atoms_FO)[:, None]

    def initial_encoder(self, atoms_FO: Tensor, generator: torch.Generator) -> Tensor:
        """The atoms themselves, or directions of their own (width, D)."""
        if self.config.encoder_init == "tied" and self.sites.reconstructs_its_input:
            return atoms_FO
        return F.normalize(torch.randn(len(atoms_FO), self.sites.input_width, generator=generator), dim=1)

    @property
    def needs_sample(self) -> bool:
        return super().needs_sample or self.config.bias_init != "zero"

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        super().prepare(sample)
        if self.config.bias_init == "mean":
            self.b_dec.copy_(self.output.normalised_mean_D)
        elif self.config.bias_init == "geometric_median":
            normalised, length = self.normalised_sample(sample), self.output.typical_length
            self.b_dec.copy_(geometric_median(normalised, self.rows, self.b_dec, length))
        self.prepare_atoms(sample)

    def prepare_atoms(self, sample: Sample) -> None:
        """Set atoms that depend on data; normaliser and biases are ready."""

    # Shared pieces ---------------------------------------------------------------------------------------------

    def code_norms(self, W_dec_FO: Tensor) -> Tensor:
        """How long each atom counts (F): its Euclidean norm; crosscoders add up those of their sites."""
        return W_dec_FO.norm(dim=1)

    def decoder(self) -> Decoder:
        """The atoms, and their norms where these are free."""
        norms_F = self.code_norms(self.W_dec)
        if self.config.unit_atoms:
            return Decoder(self.W_dec / norms_F.clamp_min(1e-12)[:, None], None)
        return Decoder(self.W_dec, norms_F if self.config.decoder_norm == "free" else None)

    def atoms_FD(self) -> Tensor:
        """The atoms as reconstructions use them (F, O)."""
        return self.decoder().atoms_FO

    def encoder_bias_F(self) -> Tensor:
        """b_enc - W_enc b_dec: subtracting b_dec from every row costs one product with a vector instead."""
        return self.b_enc - self.W_enc @ self.latents.copy_to_axis(self.b_dec)

    def preactivations(self, x_BD: Tensor) -> Tensor:
        """z of normalised rows (B, F)."""
        return F.linear(x_BD, self.W_enc, self.encoder_bias_F())

    def offset(self, x_BD: Tensor) -> Tensor:
        """What is added to the sum of atoms, for normalised rows: b_dec (O), and in subclasses a skip connection."""
        return self.b_dec

    def decode(self, code: SparseCode, x_BD: Tensor | None = None) -> Tensor:
        y_BO = self.latents.all_reduce(sparse_decode(code.values, code.chosen, self.atoms_FD()))
        return self.output.denormalise(y_BO + self._offset_of_raw(x_BD), code.frame)

    def _offset_of_raw(self, x_BD: Tensor | None) -> Tensor:
        """`offset`, given raw rows, or nothing where it does not depend on them."""
        return self.b_dec

    def restart_values(self, share: float) -> dict[str, float]:
        """What is one number a latent, by name of parameter, for dead latents that `engines.resampling` restarts.

        Their encoders become this share of the living ones' mean length.
        """
        return {"b_enc": 0.0}

    def living_mean(self, value_F: Tensor, default: float) -> float:
        """Mean of a number over the living latents of all slices; `default` where there are none."""
        living = value_F[~self.dead_F]
        total, number = self.latents.all_reduce(living.double().sum()), self.latents.count(len(living))
        return float(total) / number if number else default

    def with_unit_rows(self, W_dec_FO: Tensor) -> Tensor:
        """The same directions, each of length 1 in `code_norms`."""
        return W_dec_FO / self.code_norms(W_dec_FO).clamp_min(1e-12)[:, None]

    def projections(self) -> dict[str, Callable[[Tensor], Tensor]]:
        if self.config.decoder_norm != "constrained" or not hasattr(self, "W_dec"):
            return super().projections()
        return {**super().projections(), "W_dec": self.with_unit_rows}

    def tensors_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**tensors, "W_dec": self.with_unit_rows(tensors["W_dec"])} if self.config.unit_atoms else tensors
