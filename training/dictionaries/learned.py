"""Dictionaries that learn a decoder, and mostly a linear encoder, by gradient; their code decides what is active.

Shapes: B rows on this rank, D width of the input sites side by side, O that of the output sites (D again for all but
transcoders), F latents on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Positive
from lexray.training.codes import CODES
from lexray.training.codes.base import Code, CodeConfig
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig, Sample
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.objectives.forward import Batch, BatchSums, LossOutput, weighted_sum
from lexray.training.ops.linear import NO_ENCODER, Decoder, Encoder, LinearEncoder
from lexray.training.ops.sampling import geometric_median
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode

DecoderNorm = Literal["unit", "constrained", "free", "ignored"]


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(DictionaryConfig):
    """Options of the dictionaries that learn by gradient; those of the code are in `code`."""

    code: CodeConfig
    """Code: the rule that selects active latents and computes their values."""
    decoder_norm: DecoderNorm = "unit"
    """`unit`: atoms are rows of W_dec over their norm; `constrained`: so too, and after each step the rows are put back
    to length 1 (under ZeRO 1 to 3 that gathers W_dec); `free`: as they are, penalties and selection see code * norm;
    `ignored`: as they are and nothing sees their norms, as in imported dictionaries (a penalty then has no minimum)."""
    decoder_init_norm: Positive = 1.0
    """Length of atoms at the first step, where their norm is free."""
    encoder_init: Literal["tied", "random"] = "tied"
    """The encoder starts as the transposed decoder, or as unit directions of its own."""
    bias_init: Literal["zero", "mean", "geometric_median"] = "zero"
    """Initial value of b_dec, in normalised units; the mean is zero where the normaliser centres."""
    resample_every_rows: Annotated[int, Field(ge=0)] = 0
    """Restart dead latents from badly reconstructed rows every so many rows; 0 never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit_atoms and self.decoder_init_norm != 1:
            raise UserError(f"decoder_init_norm: {self.decoder_init_norm:g}, but atoms have length 1; use free norms")
        self.code.check(self.width, self.target_l0)
        self.code.check_decoder(self.decoder_norm)

    @property
    def unit_atoms(self) -> bool:
        """Whether atoms are rows of W_dec over their norm."""
        return self.decoder_norm in ("unit", "constrained")

    @property
    def resamples_every_rows(self) -> int:
        return self.resample_every_rows

    def check_slices(self, slices: int) -> None:
        self.code.check_slices(slices, self.target_l0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a sweep file spells them: `code` is its kind, and its options follow."""
        return {**super().to_dict(), "code": self.code.kind, **self.code.options()}


class LearnedDictionary(Dictionary):
    """An encoder and a decoder, learned by gradient, and a code between them.

    With x the normalised input and y the normalised target:

        z = W_enc (x - b_dec) + b_enc
        y_hat = sum of code * atoms + b_dec

    Atoms are the rows of W_dec divided by their norm, in the forward pass, so that unit norm holds exactly under any
    sharding and the gradient has no part along the atom; with `decoder_norm: free` they are the rows as they are. Steps
    across a row lengthen it, by a third or so in some hundred steps, so that atoms turn ever more slowly; `constrained`
    puts the master copy back to length 1 after each step, as Bricken et al. (2023) do, which keeps their rate.
    """

    per_latent: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec")
    centres_input: ClassVar[bool] = True
    """Whether b_dec, which belongs to the output, is subtracted from the input."""
    skews_code: ClassVar[bool] = False
    """Whether initial atoms, and thus pre-activations, are skewed to one side."""
    config: LearnedConfig
    code: Code

    def __init__(self, config: LearnedConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        generator = torch.Generator().manual_seed(self.seed)
        owned = self.latents.slice_of(config.width)
        made = CODES[config.code.kind]
        atoms_FO = self.initial_atoms(generator) * config.decoder_init_norm
        if "W_enc" in made.encoder_tensors:
            self.W_enc = nn.Parameter(self.initial_encoder(atoms_FO, generator)[owned].clone())
        if "b_enc" in made.encoder_tensors:
            self.b_enc = nn.Parameter(torch.zeros(owned.stop - owned.start))
        self.W_dec = nn.Parameter(atoms_FO[owned].clone())
        self.b_dec = nn.Parameter(torch.zeros(sites.output_width))
        self.code = made(config.code, self)
        self.signed_codes = made.signed

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.atoms_from_data = cls.prepare_atoms is not LearnedDictionary.prepare_atoms

    # Starting values -------------------------------------------------------------------------------------------

    def initial_atoms(self, generator: torch.Generator) -> Tensor:
        """Return random directions of length 1 (width, O)."""
        atoms_FO = torch.randn(self.config.width, self.sites.output_width, generator=generator)
        return atoms_FO / self.code_norms(atoms_FO)[:, None]

    def initial_encoder(self, atoms_FO: Tensor, generator: torch.Generator) -> Tensor:
        """Return the atoms themselves, or directions of their own (width, D)."""
        if self.config.encoder_init == "tied" and self.sites.reconstructs_its_input:
            return atoms_FO
        return F.normalize(torch.randn(len(atoms_FO), self.sites.input_width, generator=generator), dim=1)

    @property
    def needs_sample(self) -> bool:
        return super().needs_sample or self.config.bias_init != "zero" or self.code.needs_sample

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        super().prepare(sample)
        if self.config.bias_init == "mean":
            self.b_dec.copy_(self.output.normalised_mean_D)
        elif self.config.bias_init == "geometric_median":
            normalised, length = self.normalised_sample(sample), self.output.typical_length
            self.b_dec.copy_(geometric_median(normalised, self.rows, self.b_dec, length))
        self.prepare_atoms(sample)
        if self.code.needs_sample:
            self.code.prepare(lambda: (self.input.normalise(rows.x_BD) for rows in sample()))

    def prepare_atoms(self, sample: Sample) -> None:
        """Set data-dependent atoms; normaliser and biases are already set."""

    # The contract ----------------------------------------------------------------------------------------------

    def encode(self, x_BD: Tensor, **choice: Any) -> SparseCode:
        """Return the code of raw activations, as at inference; `choice` is passed to the code (`k=` and such)."""
        if choice.get("k") is not None and not self.takes_k:
            raise ValueError(f"k: {self.config.architecture} has as many active latents as its threshold gives")
        x_BD, frame = self.normalised_with_frame(x_BD)
        return self.code.encode(x_BD, **choice)._replace(frame=frame)

    def decode(self, code: SparseCode, x_BD: Tensor | None = None) -> Tensor:
        y_BO = self.latents.all_reduce(sparse_decode(code.values, code.chosen, self.atoms_FD()))
        return self.output.denormalise(y_BO + self._offset_of_raw(x_BD), code.frame)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        x_BD, y_BO = self.normalised(x_BD, y_BO)
        encoder, decoder = self.encoder(), self.decoder()
        batch = Batch(x_BD, y_BO, self.offset(x_BD), total_rows, encoder, decoder, self.dead_F)
        forward = self.code.forward(batch)
        loss, terms = weighted_sum(self.code.terms(), forward, self.axes)
        stats = self.batch_stats(y_BO, forward.reconstruction.error_BO, forward.fired_F)
        return LossOutput(loss, {**stats, **terms}, forward.fired_F, forward.observed)

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        self.code.after_step(batch)

    @torch.no_grad()
    def calibrate(self, sample: Sample) -> None:
        self.code.calibrate(lambda: (self.input.normalise(rows.x_BD) for rows in sample()))

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        self.code.after_evaluation(metrics)

    def eval_ks(self) -> list[int]:
        return self.code.eval_ks()

    @property
    def takes_k(self) -> bool:
        return self.code.takes_k

    def split_names(self) -> frozenset[str]:
        return super().split_names() | self.code.split_names()

    def fold(self) -> Folding:
        return self.code.fold()

    # The linear maps -------------------------------------------------------------------------------------------

    def code_norms(self, W_dec_FO: Tensor) -> Tensor:
        """Return the factor of each atom (F): its Euclidean norm; crosscoders add up those of their sites."""
        return W_dec_FO.norm(dim=1)

    def decoder(self) -> Decoder:
        """Return the atoms, and their norms where these are free."""
        norms_F = self.code_norms(self.W_dec)
        if self.config.unit_atoms:
            return Decoder(self.W_dec / norms_F.clamp_min(1e-12)[:, None], None)
        return Decoder(self.W_dec, norms_F if self.config.decoder_norm == "free" else None)

    def atoms_FD(self) -> Tensor:
        """Return the atoms as reconstructions use them (F, O)."""
        return self.decoder().atoms_FO

    def encoder(self) -> Encoder:
        """Return W_enc and b_enc - W_enc b_dec: subtracting b_dec from every row costs a product with a vector."""
        tensors = self.code.encoder_tensors
        if not tensors:
            return NO_ENCODER
        weight = self.W_enc
        if not (self.centres_input and self.code.centres_input):
            return LinearEncoder(weight, self.b_enc)
        centre_F = weight @ self.latents.copy_to_axis(self.b_dec)
        return LinearEncoder(weight, self.b_enc - centre_F if "b_enc" in tensors else -centre_F)

    def preactivations(self, x_BD: Tensor) -> Tensor:
        """Return z of normalised rows (B, F)."""
        return self.encoder().all(x_BD)

    def offset(self, x_BD: Tensor) -> Tensor:
        """Return what is added to the sum of atoms, for normalised rows: b_dec (O), and a skip connection."""
        return self.b_dec

    def _offset_of_raw(self, x_BD: Tensor | None) -> Tensor:
        """Return `offset`, given raw rows, or nothing where it does not depend on them."""
        return self.b_dec

    # Shared pieces ---------------------------------------------------------------------------------------------

    def living_mean(self, value_F: Tensor, default: float) -> float:
        """Return the mean of a number over the living latents of all slices; `default` where there are none."""
        living = value_F[~self.dead_F]
        total, number = self.latents.all_reduce(living.double().sum()), self.latents.count(len(living))
        return float(total) / number if number else default

    def with_unit_rows(self, W_dec_FO: Tensor) -> Tensor:
        """Return the rows scaled to length 1 by `code_norms`."""
        return W_dec_FO / self.code_norms(W_dec_FO).clamp_min(1e-12)[:, None]

    def projections(self) -> dict[str, Callable[[Tensor], Tensor]]:
        if self.config.decoder_norm != "constrained" or not hasattr(self, "W_dec"):
            return super().projections()
        return {**super().projections(), "W_dec": self.with_unit_rows}

    def tensors_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**tensors, "W_dec": self.with_unit_rows(tensors["W_dec"])} if self.config.unit_atoms else tensors

    # Cost ------------------------------------------------------------------------------------------------------

    @classmethod
    def step_cost(cls, config: LearnedConfig, shape: StepShape) -> CodeCost:
        """Return the cost of a training step."""
        return CODES[config.code.kind].cost(config.code, shape._replace(skewed=cls.skews_code))

    @classmethod
    def atom_copies(cls, config: LearnedConfig, cost: CodeCost) -> int:
        """Return the number of buffers of the atoms' size (F x O) that the backward pass holds, without gradients."""
        return 4 if config.unit_atoms else cost.atom_copies

    @classmethod
    def backward_numbers(cls, config: LearnedConfig, shapes: Shapes, atom_copies: int) -> int:
        """Return the peak of gradients, atoms and gradients of the atoms, in numbers."""
        return shapes.parameters + atom_copies * shapes.atoms

    @classmethod
    def starting_numbers(cls, config: LearnedConfig, sites: Sites) -> int:
        encoder = 2 * sites.input_width if config.encoder_init == "random" else 0
        return config.width * (sites.output_width + max(sites.output_width, encoder))
