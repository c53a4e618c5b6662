"""Archetypal dictionaries: atoms in the convex hull of data, or near it.

Shapes: B rows, D width, F latents, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Because, Count, Positive
from lexray.training.codes.code_cost import CodeCost
from lexray.training.dictionaries.base import Sample
from lexray.training.dictionaries.learned import LearnedConfig, LearnedDictionary
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.ops.kmeans import kmeans
from lexray.training.ops.linear import Decoder


@dataclass(frozen=True, kw_only=True)
class ArchetypalConfig(LearnedConfig):
    """Options of archetypal dictionaries."""

    candidates: Count | None = None
    """Number of data points whose hull holds the atoms: centroids of k-means over the sample; None is the width. The
    mixture has width x candidates entries, so wide dictionaries need fewer."""
    candidates_seed: Literal["shared", "trial"] = "shared"
    """Whether trials of different seeds share candidates or draw their own."""
    mixture_init: Literal["identity", "shuffled", "random"] = "identity"
    """Atom i starts at candidate i (as published), at one drawn by the trial's seed, or at a random mixture."""
    learn_scale: bool = True
    """Learn one factor for all atoms: the hull becomes a cone of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resample_every_rows:
            raise UserError("resample_every_rows: archetypal atoms are mixtures of data, no row can restart them")
        if self.num_candidates > self.sample_rows:
            raise UserError(
                f"candidates: {self.num_candidates:,} are more than the {self.sample_rows:,} rows that they are "
                "computed from (sample_rows)"
            )

    @property
    def num_candidates(self) -> int:
        return self.candidates or self.width

    def check_rows(self, training_rows: int) -> None:
        """Raise UserError when the data has fewer rows than candidates."""
        if self.num_candidates > training_rows:
            raise UserError(
                f"candidates: {self.num_candidates:,} are more than the dataset's {training_rows:,} training rows"
            )


class Archetypal(LearnedDictionary):
    """Archetypal sparse autoencoder (A-SAE).

        atoms = exp(m) * W C
        C: candidates (C x D), fixed: centroids of the normalised data
        W: width x C, every row >= 0 and summing to 1 (projected after each step);  m: learned factor, 0 at first
        code and loss as in the chosen architecture (topk, batch_topk, jumprelu)

    The projection is that of the paper's code: negative entries to zero, then division by the sum, without gradient.
    Atoms keep their length in the hull, and selection does not weight codes by it.
    """

    Config = ArchetypalConfig
    paper = "Fel et al., Archetypal SAE: adaptive and stable dictionary learning (2025), arXiv:2502.12892"
    per_latent: ClassVar[tuple[str, ...]] = ("mixture_FC", "relaxation_FD")
    skews_code = True
    config: ArchetypalConfig
    candidates_CD: Tensor

    def __init__(self, config: ArchetypalConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        num_latents = len(self.W_dec)
        del self.W_dec  # atoms are computed from the candidates
        self.register_buffer("candidates_CD", torch.zeros(config.num_candidates, sites.output_width))
        self.mixture_FC = nn.Parameter(torch.zeros(num_latents, config.num_candidates))
        if config.learn_scale:
            self.log_scale = nn.Parameter(torch.zeros(1))  # DeepSpeed broadcasts no scalar

    # Starting values -------------------------------------------------------------------------------------------

    @property
    def needs_sample(self) -> bool:
        return True

    @torch.no_grad()
    def prepare_atoms(self, sample: Sample) -> None:
        """Compute the candidates and initialise the atoms and the encoder from them."""
        seed = 0 if self.config.candidates_seed == "shared" else self.seed
        rows, length = self.normalised_sample(sample), self.output.typical_length
        found_CD = kmeans(rows, self.config.num_candidates, self.rows, seed, typical_length=length)
        self.candidates_CD.copy_(found_CD)
        owned = self.latents.slice_of(self.config.width)
        self.mixture_FC.copy_(initial_mixture(self.config, self.seed)[owned])
        atoms_FO = self.decoder().atoms_FO
        self.W_enc.copy_(atoms_FO / atoms_FO.square().sum(1, keepdim=True).clamp_min(1e-6 * length**2))

    # The contract ----------------------------------------------------------------------------------------------

    def decoder(self) -> Decoder:
        if hasattr(self, "W_dec"):  # loaded from disk with plain atoms
            return Decoder(self.W_dec, None)
        # By attribute: that is how ZeRO 3 learns which parameters to gather.
        made_of = {name: getattr(self, name) for name in MADE_OF if hasattr(self, name)}
        if "log_scale" in made_of:
            made_of["log_scale"] = self.latents.copy_to_axis(made_of["log_scale"])
        return Decoder(atoms_of(made_of), None)

    def projections(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {**super().projections(), "mixture_FC": onto_simplex}

    def tensors_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with atoms in place of the far larger tensors that they are computed from."""
        if "mixture_FC" not in tensors:  # loaded from disk with plain atoms
            return tensors
        kept = {name: tensor for name, tensor in tensors.items() if name not in MADE_OF}
        return {**kept, "W_dec": atoms_of(tensors)}

    def become_saved_form(self) -> None:
        """Replace mixture and candidates by plain atoms."""
        like = self.mixture_FC
        for name in MADE_OF:
            if hasattr(self, name):
                delattr(self, name)
        self.W_dec = nn.Parameter(like.new_empty(self.config.width, self.sites.output_width))

    # Cost ------------------------------------------------------------------------------------------------------

    @classmethod
    def atom_copies(cls, config: Any, cost: CodeCost) -> int:
        return 4 if config.learn_scale else 3

    @classmethod
    def backward_numbers(cls, config: Any, shapes: Shapes, atom_copies: int) -> int:
        """Return the peak: most buffers are freed before the mixture's gradient; its projection copies it again."""
        encoder = shapes.latents * shapes.input_width
        return max(encoder + atom_copies * shapes.atoms, shapes.parameters + shapes.atoms, 4 * shapes.largest)


MADE_OF = ("mixture_FC", "candidates_CD", "relaxation_FD", "log_scale")
"""Tensors that the atoms are computed from; the last two are optional."""


def atoms_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return exp(m) * (W C + L) from the tensors of `MADE_OF` that are present (F, O)."""
    atoms_FO = (tensors["mixture_FC"] @ tensors["candidates_CD"]).to(tensors["mixture_FC"].dtype)
    if "relaxation_FD" in tensors:
        atoms_FO = atoms_FO + tensors["relaxation_FD"]
    return atoms_FO * tensors["log_scale"].exp() if "log_scale" in tensors else atoms_FO


def onto_simplex(mixture_FC: Tensor) -> Tensor:
    """Clip rows to be non-negative and scale them to sum 1; a row without a positive entry becomes uniform."""
    positive_FC = mixture_FC.clamp_min(0)
    sums_F1 = positive_FC.sum(1, keepdim=True)
    return torch.where(sums_F1 > 0, positive_FC / sums_F1.clamp_min(1e-30), 1 / mixture_FC.shape[1])


def initial_mixture(config: ArchetypalConfig, seed: int) -> Tensor:
    """Return the initial mixture (width, C).

    Atoms beyond the number of candidates start halfway between two candidates (as published they are zero).
    """
    generator = torch.Generator().manual_seed(seed)
    width, count = config.width, config.num_candidates
    if config.mixture_init == "random":
        weights = torch.rand(width, count, generator=generator).pow(8)
        return weights / weights.sum(1, keepdim=True)
    order = torch.arange(count) if config.mixture_init == "identity" else torch.randperm(count, generator=generator)
    mixture = torch.zeros(width, count)
    atom = torch.arange(width)
    mixture[atom, order[atom % count]] = 1.0
    beyond = atom[count:]
    if len(beyond):
        mixture[beyond] *= 0.5
        mixture[beyond, torch.randint(count, (len(beyond),), generator=generator)] += 0.5
    return mixture


@dataclass(frozen=True, kw_only=True)
class RelaxedArchetypalConfig(ArchetypalConfig):
    """Options of relaxed archetypal dictionaries."""

    relaxation: Annotated[Positive, Because("without it the name is archetypal")] = 0.05
    """delta: maximum distance of an atom from the hull, as a share of the length of normalised rows (root of the mean
    squared distance from their mean; 1 unless the normaliser is `none` or `centre`)."""


class RelaxedArchetypal(Archetypal):
    """Relaxed archetypal sparse autoencoder (RA-SAE).

        atoms = exp(m) * (W C + L)
        W, C and m as in A-SAE;  L: width x D, zero at first, every row no longer than delta (projected after each step)

    The hull holds an atom's direction only where delta is short beside W C: the metric `hull` is the cosine of the
    two. With delta 1, the default of the paper's code, W C is the shorter part (`lexray bench ground-truth`).
    """

    Config = RelaxedArchetypalConfig
    paper = "Fel et al., Archetypal SAE: adaptive and stable dictionary learning (2025), arXiv:2502.12892"
    config: RelaxedArchetypalConfig

    def __init__(self, config: RelaxedArchetypalConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.relaxation_FD = nn.Parameter(torch.zeros(len(self.mixture_FC), sites.output_width))

    def projections(self) -> dict[str, Callable[[Tensor], Tensor]]:
        radius = self.config.relaxation * self.output.typical_length

        def into_ball(relaxation_FD: Tensor) -> Tensor:
            norms_F1 = relaxation_FD.norm(dim=1, keepdim=True)
            return relaxation_FD * (radius / norms_F1.clamp_min(1e-12 * radius)).clamp_max(1.0)

        return {**super().projections(), "relaxation_FD": into_ball}

    @torch.no_grad()
    def own_metrics(self) -> dict[str, float]:
        """Return the mean cosine of an atom W C + L and its hull part W C; nothing once atoms are plain."""
        if not hasattr(self, "mixture_FC"):
            return super().own_metrics()
        hull_FD = self.mixture_FC @ self.candidates_CD
        cosines_F = cosine_similarity(hull_FD + self.relaxation_FD, hull_FD, dim=1, eps=0.0)
        total = self.latents.all_reduce(cosines_F.nan_to_num().double().sum())
        return {**super().own_metrics(), "hull": float(total) / self.config.width}
