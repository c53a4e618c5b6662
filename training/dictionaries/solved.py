"""Base of the classical baselines: atoms are computed from sums over batches, without gradient.

Shapes: B rows, D width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.folding import Folding
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.objectives.forward import LossOutput
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode


@dataclass(frozen=True, kw_only=True)
class SolvedConfig(DictionaryConfig):
    """Options of every baseline."""

    learns_by = "statistics"


@dataclass(frozen=True, kw_only=True)
class FromRowsConfig(SolvedConfig):
    """Options of baselines that initialise each atom from a row of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width > self.sample_rows:
            raise UserError(
                f"width: {self.width:,} latents start from a row each, but sample_rows is {self.sample_rows:,}"
            )

    def check_rows(self, training_rows: int) -> None:
        """Raise UserError when the data has fewer rows than the dictionary has latents."""
        if self.width > training_rows:
            raise UserError(
                f"width: {self.width:,} latents are more than the dataset's {training_rows:,} training rows"
            )


class Solved(Dictionary):
    """A dictionary whose atoms are computed from sums; atoms and sums are buffers."""

    config: SolvedConfig
    W_dec: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "learn" in vars(cls) and not {"step_numbers", "summed_numbers"} <= set(vars(cls)):
            raise TypeError(f"{cls.__name__} must define step_numbers and summed_numbers: what a step of it takes")

    def __init__(self, config: SolvedConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.register_buffer("W_dec", torch.zeros(config.width, sites.output_width))

    def atoms_FD(self) -> Tensor:
        """Return the atoms (F, D)."""
        return self.W_dec

    @classmethod
    def step_numbers(cls, config: Any, shapes: Shapes, rows: int) -> int:
        """Return the peak of a step on `rows` rows of this rank, in fp32 numbers."""
        raise NotImplementedError

    @classmethod
    def summed_numbers(cls, config: Any, shapes: Shapes) -> int:
        """Return the count of float64 numbers that are all-reduced in a step."""
        raise NotImplementedError

    def fold(self) -> Folding:
        raise UserError(
            f"{self.config.architecture}: its code is solved for, not encoded; no format has a place for that"
        )

    def code_of(self, x_BD: Tensor) -> SparseCode:
        """Return the code of normalised rows."""
        raise NotImplementedError

    def encode(self, x_BD: Tensor) -> SparseCode:
        x_BD, frame = self.normalised_with_frame(x_BD)
        return self.code_of(x_BD)._replace(frame=frame)

    def decode(self, code: SparseCode, x_BD: Tensor | None = None) -> Tensor:
        x_hat_BD = self.latents.all_reduce(sparse_decode(code.values, code.chosen, self.atoms_FD()))
        return self.output.denormalise(x_hat_BD, code.frame)

    def terms(self, x_BD: Tensor, code: SparseCode, total_rows: int) -> LossOutput:
        """Return the loss and the reported sums of a batch of normalised rows and their code."""
        error_BD = x_BD - self.latents.all_reduce(sparse_decode(code.values, code.chosen, self.atoms_FD()))
        fired_F = code.fired()
        loss = error_BD.square().sum() / total_rows
        return LossOutput(loss, {**self.batch_stats(x_BD, error_BD, fired_F), "reconstruction": loss}, fired_F, {})

    def tensors_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state without the sums, which only further training needs."""
        return {name: t for name, t in tensors.items() if not name.startswith("sum_")}

    def become_saved_form(self) -> None:
        for name in [name for name, _ in self.named_buffers() if name.startswith("sum_")]:
            delattr(self, name)
