"""Orthogonal matching pursuit as an encoder: the coefficients of all picked atoms are refitted after each pick.

Shapes: B rows, D width, F latents, T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.code_cost import FLOAT_BYTES, INDEX_BYTES, PAIR_BYTES, CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.pursuit import PursuitCode, PursuitConfig
from lexray.training.objectives.forward import Batch, Forward, Weighted, reconstruction_error
from lexray.training.ops.pursuit import StopRule, orthogonal_pursuit, orthogonal_rows, to_code
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode


@dataclass(frozen=True, kw_only=True)
class OrthogonalPursuitConfig(PursuitConfig):
    """Options of orthogonal pursuit; the target L0 is the number of rounds unless `rounds` is set."""

    kind: str = "omp"

    def check_decoder(self, decoder_norm: str) -> None:
        if decoder_norm not in ("unit", "constrained"):
            raise UserError(
                f"decoder_norm: {decoder_norm} has no place in orthogonal pursuit: refitted coefficients take up any "
                "length of the atoms, so that nothing keeps it near 1; use unit or constrained"
            )


class OrthogonalPursuit(PursuitCode):
    """Matching pursuit whose coefficients are refitted after each pick, by non-negative least squares.

        r_0 = x - b_dec;  for t = 0, 1, ...:  j = arg max <r_t, atom_j>,  S = S and j
                                              f = arg min over f >= 0 on S of ||x - b_dec - f atoms||^2
                                              r_{t+1} = x - b_dec - f atoms
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2

    The picks carry no gradient. Nor need the coefficients: at the minimum the error does not change with f, so the
    gradient with f held fixed is the whole one (envelope theorem). A row stops as in `mp`; no atom is picked twice, and
    one whose coefficient becomes zero is not active. Rounds and residual threshold can be changed at inference.
    """

    kind = "omp"
    Config = OrthogonalPursuitConfig
    paper = (
        "Pati, Rezaiifar and Krishnaprasad, Orthogonal matching pursuit (1993); of an autoencoder Costa et al. (2025), "
        "arXiv:2506.03093"
    )

    def encode(self, x_BD: Tensor, k: int | None = None, residual_threshold: float | None = None) -> SparseCode:
        """Return the code of normalised rows; arguments override the configured rounds and threshold."""
        return self._code(x_BD - self.host.b_dec, self.host.decoder().atoms_FO, self.rule_with(k, residual_threshold))

    def _code(self, centred_BD: Tensor, atoms_FD: Tensor, rule: StopRule) -> SparseCode:
        latents = self.host.axes.latents
        return to_code(*orthogonal_pursuit(centred_BD, atoms_FD, rule, latents), len(atoms_FD), latents)

    def forward(self, batch: Batch) -> Forward:
        atoms_FD = batch.decoder.atoms_FO
        code = self._code(batch.target_BO, atoms_FD, self.rule)
        decoded_BD = self.host.axes.latents.all_reduce(sparse_decode(code.values, code.chosen, atoms_FD))
        return self.forward_of(batch, code, batch.target_BO - decoded_BD)

    def terms(self) -> list[Weighted]:
        return [Weighted("reconstruction", reconstruction_error)]

    def fold(self) -> Folding:
        raise UserError("omp: no format has orthogonal pursuit")

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """Return the cost: each round scores all atoms, all-reduces the picked ones and solves a system of T x T."""
        rounds, width = config.most_rounds(shape.target_l0), shape.output_width
        picks, few_rows = rounds * shape.rows, orthogonal_rows(shape.rows, rounds, width)
        refitting = picks * rounds * width + picks * rounds**3 // 12
        return CodeCost(
            multiply_adds=rounds * shape.entries * shape.input_width + refitting + 3 * picks * width,
            matrices=few_rows / shape.rows,
            pair_bytes=PAIR_BYTES * shape.rows * shape.target_l0
            + FLOAT_BYTES * few_rows * rounds * (width + 4 * rounds),
            outputs=7,
            all_reduce=(rounds + 1) * shape.output_bytes + INDEX_BYTES * picks,
            all_gather=FLOAT_BYTES * picks,
        )
