"""MP-SAE: the encoder is matching pursuit on the decoder's own atoms.

Shapes: B rows, D width, F latents, T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.code_cost import FLOAT_BYTES, INDEX_BYTES, PAIR_BYTES, CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.pursuit import PursuitCode, PursuitConfig
from lexray.training.objectives.forward import Batch, Forward, Weighted, reconstruction_error
from lexray.training.ops.pursuit import StopRule, orthogonal_pursuit, pursue, to_code
from lexray.training.ops.sparse_code import SparseCode


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitConfig(PursuitConfig):
    """Options of MP-SAE; the target L0 is the number of rounds unless `rounds` is set."""

    kind: str = "mp"
    stop_at_repeat: bool = False
    """A row stops when it picks an atom again, as in the paper's code; else the atom's coefficient grows."""
    inference: Literal["mp", "omp"] = "mp"
    """Encoding after training: `omp` refits all coefficients after each pick, none of them negative."""

    def check_decoder(self, decoder_norm: str) -> None:
        if decoder_norm == "free":
            raise UserError(
                "decoder_norm: matching pursuit needs unit atoms; with `ignored` their lengths start at 1 and learn to "
                "stay near it"
            )


class MatchingPursuit(PursuitCode):
    """MP-SAE: matching pursuit, unrolled and trained through.

        r_0 = x - b_dec;  for t = 0, 1, ...:  j = arg max <r_t, atom_j>,  c = <r_t, atom_j>
                                              f_j += c,  r_{t+1} = r_t - c atom_j
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2

    A row stops after `rounds` picks, when its residual is short, or when no atom has a positive score (the paper's
    code rectifies the score too). With `residual_threshold: auto` the mean L0 is the target and rows differ in how many
    atoms they take: the adaptive sparsity of the paper. By default, as in the paper's code, atoms only start at length
    1 and the loss keeps them near it, which reconstructs better and recovers hierarchical features more exactly. With
    `decoder_norm: unit` a residual is orthogonal to the atom picked last; without, nearly so. An atom picked again adds
    to its coefficient, so L0 may be below the number of rounds. Rounds and residual threshold can be changed at
    inference.
    """

    kind = "mp"
    Config = MatchingPursuitConfig
    paper = "Costa et al., From flat to hierarchical: matching pursuit SAEs (2025), arXiv:2506.03093"

    @property
    def rule(self) -> StopRule:
        """Rule by which a row stops."""
        return super().rule._replace(at_repeat=self.config.stop_at_repeat)

    def encode(
        self,
        x_BD: Tensor,
        k: int | None = None,
        residual_threshold: float | None = None,
        inference: Literal["mp", "omp"] | None = None,
    ) -> SparseCode:
        """Return the code of normalised rows; arguments override the configured rounds, threshold and method."""
        rule, latents = self.rule_with(k, residual_threshold), self.host.axes.latents
        atoms_FD, centred_BD = self.host.decoder().atoms_FO, x_BD - self.host.b_dec
        orthogonal = (inference or self.config.inference) == "omp"
        found = (orthogonal_pursuit if orthogonal else pursue)(centred_BD, atoms_FD, rule, latents)
        return to_code(found.picks_BT, found.values_BT, len(atoms_FD), latents)

    def forward(self, batch: Batch) -> Forward:
        atoms_FD, latents = batch.decoder.atoms_FO, self.host.axes.latents
        found = pursue(batch.target_BO, atoms_FD, self.rule, latents)
        code = to_code(found.picks_BT, found.values_BT.detach(), len(atoms_FD), latents)
        return self.forward_of(batch, code, found.residual_BD)

    def terms(self) -> list[Weighted]:
        return [Weighted("reconstruction", reconstruction_error)]

    def fold(self) -> Folding:
        if self.config.inference == "omp":
            raise UserError(
                "inference: no format has orthogonal pursuit; set it to mp in the saved config to export that"
            )
        return Folding(activation="pursuit", pursuit=self.rule)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """Return the cost: each round scores all atoms and all-reduces the picked ones, forward and backward."""
        rounds = config.most_rounds(shape.target_l0)
        picks = rounds * shape.rows
        return CodeCost(
            multiply_adds=rounds * shape.entries * shape.input_width + 6 * picks * shape.output_width,
            matrices=1.0,
            pair_bytes=PAIR_BYTES * shape.rows * shape.target_l0,
            outputs=10,
            all_reduce=2 * rounds * shape.output_bytes + INDEX_BYTES * picks,
            all_gather=FLOAT_BYTES * picks,
        )
