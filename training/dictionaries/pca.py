"""PCA, the linear baseline.

Shapes: B rows, D width, F components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.dictionaries.solved import Solved, SolvedConfig
from lexray.training.mesh.axes import Chosen
from lexray.training.objectives.forward import LossOutput
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import topk


@dataclass(frozen=True, kw_only=True)
class PCAConfig(SolvedConfig):
    """Options of PCA; the width is the number of components, the target L0 how many of them a row uses."""

    select: Literal["leading", "largest"] = "leading"
    """Which components a row uses: the first ones, the same for all rows, or those with its own largest scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 != int(self.target_l0):
            raise UserError(f"target_l0: {self.target_l0:g} is not a whole number of components")
        if self.normaliser in ("none", "unit_norm"):
            raise UserError(f"normaliser: {self.normaliser} keeps the mean, which PCA does not model; use standard")


class PCA(Solved):
    """Principal components of the stream.

        covariance = mean over rows of x^T x  (x is the normalised, centred input)
        atoms = its eigenvectors with the `width` largest eigenvalues
        f = atoms x for the k leading (or largest) components, signed;  x_hat = f atoms

    The covariance is summed up over the whole training and decomposed after 1, 2, 4... steps and the last.
    """

    Config = PCAConfig
    paper = "Pearson, On lines and planes of closest fit to systems of points in space (1901)"
    signed_codes = True
    config: PCAConfig
    sum_DD: Tensor
    sum_rows: Tensor

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        super().check_sites(config, sites)
        if config.width > sites.input_width:
            raise UserError(f"width: {config.width:,}, but PCA of this site has {sites.input_width} components at most")

    def __init__(self, config: PCAConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.register_buffer("sum_DD", torch.zeros(sites.input_width, sites.input_width, dtype=torch.float64))
        self.register_buffer("sum_rows", torch.zeros((), dtype=torch.float64))
        self.W_dec.copy_(torch.eye(config.width, sites.input_width))

    @torch.no_grad()
    def learn(self, x_BD: Tensor, total_rows: int) -> LossOutput:
        x_BD = self.input.normalise(x_BD)
        self.sum_DD += self.rows.all_reduce(x_BD.double().T @ x_BD.double())
        self.sum_rows += total_rows
        done = self.step + 1
        if done & (done - 1) == 0 or done == self.num_steps:
            _, vectors_DD = torch.linalg.eigh(self.sum_DD / self.sum_rows)
            components_FD = vectors_DD.flip(1).T[: self.config.width]
            # A component's sign is free: its largest entry is made positive, the same on every machine.
            largest_F1 = components_FD.gather(1, components_FD.abs().argmax(1, keepdim=True))
            self.W_dec.copy_(components_FD * largest_F1.sign())
        return self.terms(x_BD, self.code_of(x_BD), total_rows)

    @classmethod
    def step_numbers(cls, config: Any, shapes: Shapes, rows: int) -> int:
        """Rows in float64 twice; then the covariance and its decomposition, in float64."""
        rows_BD, square = rows * shapes.input_width, shapes.input_width**2
        return max(5 * rows_BD + 2 * square, rows_BD + 8 * square)

    @classmethod
    def summed_numbers(cls, config: Any, shapes: Shapes) -> int:
        return int(shapes.input_width**2)

    def code_of(self, x_BD: Tensor) -> SparseCode:
        scores_BF, k = x_BD @ self.W_dec.T, int(self.config.target_l0)
        if self.config.select == "largest":
            chosen = topk(scores_BF, k, self.latents, lambda z, among: z.abs())
        else:
            leading = torch.arange(k, device=x_BD.device).repeat(len(x_BD))
            chosen = Chosen(leading, torch.arange(0, len(leading) + 1, k, device=x_BD.device))
        return SparseCode(scores_BF[chosen.rows, chosen.latents], chosen, self.config.width)
