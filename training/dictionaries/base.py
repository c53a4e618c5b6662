"""What every dictionary is: parameters, the way in and out of its site, and the contract with the training loop.

Shapes: B rows on this rank, D site width, F latents on this rank.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UserError
from training.axes import ALL_LATENTS, ALL_ROWS, Latents, Rows
from training.code import Code
from training.sparse_ops import sparse_decode


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """What all architectures have in common. Architectures add their own fields."""

    width: int
    """Number of latents."""
    target_l0: float
    """Wanted mean number of active latents per row."""
    dead_after_rows: int = 10_000_000
    """A latent is dead when it was active in none of this many rows of the global stream."""

    architecture: ClassVar[str]

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width: {self.width}, but a dictionary needs at least one latent")
        if not 0 < self.target_l0 <= self.width:
            raise UserError(f"target_l0: {self.target_l0:g} must be above 0 and at most the width {self.width}")
        if self.dead_after_rows < 1:
            raise UserError(f"dead_after_rows: {self.dead_after_rows} must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the architecture's name."""
        return {"architecture": self.architecture, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class SiteStatistics:
    """What a dictionary must know of its site: exact over the dataset."""

    mean: tuple[float, ...]
    """Mean vector (D)."""
    mean_squared_norm: float
    """Mean over rows of the squared norm, before centring."""

    @property
    def scale(self) -> float:
        """Root of the mean squared distance from the mean: dividing by it makes the total variance 1."""
        return max(self.mean_squared_norm - sum(m * m for m in self.mean), 1e-12) ** 0.5


class Terms(NamedTuple):
    """A training loss and what the loop needs to know beside it."""

    loss: Tensor
    """This rank's part of the global loss, with gradient: the parts of all ranks add up to the loss."""
    sums: dict[str, Tensor]
    """This rank's parts of sums over the batch, without gradient: `error`, `variance`, `active`, terms of the loss."""
    fired_F: Tensor
    """Rows of this rank in which each latent is active."""
    observed: dict[str, Tensor]
    """Quantities that are the same on every rank already (a threshold, a coefficient)."""


class BatchSums(NamedTuple):
    """The same for the global batch, equal on every rank; what a dictionary updates its state from."""

    rows: int
    sums: dict[str, float]
    fired_F: Tensor
    observed: dict[str, Tensor]


class Dictionary(nn.Module):
    """A single-site sparse autoencoder's parameters and contract; subclasses define the code and the loss.

    Normalised input: x_n = (x - mean) / scale, with the dataset's mean and root mean squared distance from it, so that
    a reconstruction by the mean costs exactly 1. Encoder: z = W_enc (x_n - b_dec) + b_enc. Atoms: the rows of W_dec
    divided by their norm, in the forward pass, so that unit norm holds exactly under any sharding and the gradient
    has no part along the atom. Reconstruction: x = mean + scale * (sum of code * atoms + b_dec).
    """

    Config: ClassVar[type[DictionaryConfig]]
    rows_since_fired_F: Tensor
    mean_D: Tensor
    scale: Tensor

    def __init__(
        self,
        config: DictionaryConfig,
        site: SiteStatistics,
        *,
        seed: int = 0,
        latents: Latents = ALL_LATENTS,
        rows: Rows = ALL_ROWS,
    ) -> None:
        super().__init__()
        self.config, self.latents, self.rows = config, latents, rows
        generator = torch.Generator().manual_seed(seed)
        atoms = F.normalize(torch.randn(config.width, len(site.mean), generator=generator), dim=1)
        mine = atoms[latents.slice_of(config.width)]
        self.W_enc = nn.Parameter(mine.clone())
        self.b_enc = nn.Parameter(torch.zeros(len(mine)))
        self.W_dec = nn.Parameter(mine.clone())
        self.b_dec = nn.Parameter(torch.zeros(len(site.mean)))
        self.register_buffer("mean_D", torch.tensor(site.mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(site.scale, dtype=torch.float32))
        self.register_buffer("rows_since_fired_F", torch.zeros(len(mine), dtype=torch.int64))

    # The contract ----------------------------------------------------------------------------------------------

    def encode(self, x_BD: Tensor) -> Code:
        """The code of raw activations, as at inference."""
        raise NotImplementedError

    def decode(self, code: Code) -> Tensor:
        """Raw activations (B, D) from a code."""
        x_BD = sparse_decode(code.values, code.chosen, self.atoms_FD())
        return self.denormalise(self.latents.sum(x_BD) + self.b_dec)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Reconstruction of raw activations (B, D)."""
        return self.decode(self.encode(x_BD))

    def loss(self, x_BD: Tensor, total_rows: int) -> Terms:
        """Training loss on this rank's raw rows of a global batch of `total_rows`."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        """Update what is not learned by gradient: the dead-latent counters, and in subclasses thresholds and such."""
        self.rows_since_fired_F += batch.rows
        self.rows_since_fired_F[batch.fired_F > 0] = 0

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Hear the held-out metrics, equal on every rank."""

    # Shared pieces ---------------------------------------------------------------------------------------------

    def normalise(self, x_BD: Tensor) -> Tensor:
        return (x_BD.to(self.mean_D.dtype) - self.mean_D) / self.scale

    def denormalise(self, x_BD: Tensor) -> Tensor:
        return x_BD * self.scale + self.mean_D

    def atoms_FD(self) -> Tensor:
        """Unit-norm atoms (F, D)."""
        return F.normalize(self.W_dec, dim=1)

    def encoder_bias_F(self) -> Tensor:
        """b_enc - W_enc b_dec: subtracting b_dec from every row costs one product with a vector instead."""
        return self.b_enc - self.W_enc @ self.b_dec

    def preactivations(self, x_BD: Tensor) -> Tensor:
        """z of normalised rows (B, F)."""
        return F.linear(x_BD, self.W_enc, self.encoder_bias_F())

    @property
    def dead_F(self) -> Tensor:
        """Which latents are dead (F), bool."""
        return self.rows_since_fired_F >= self.config.dead_after_rows


def shares(x_BD: Tensor, error_BD: Tensor, active: Tensor) -> dict[str, Tensor]:
    """The sums that every architecture reports: squared error, squared distance from the mean, active latents."""
    with torch.no_grad():
        return {"error": error_BD.square().sum(), "variance": x_BD.square().sum(), "active": active.sum().float()}
