"""MP-SAE: the encoder is matching pursuit on the decoder's own atoms.

Shapes: B rows, D width, F latents, T rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, NonNegative
from lexray.training.codes.base import Code, CodeConfig, Host, powers_of_two_to
from lexray.training.codes.code_cost import FLOAT_BYTES, INDEX_BYTES, PAIR_BYTES, CodeCost, StepShape
from lexray.training.codes.controller import L0Controller
from lexray.training.codes.folding import Folding
from lexray.training.objectives.forward import Batch, BatchSums, Forward, Weighted, reconstruction_error
from lexray.training.objectives.reconstruction import squared_error
from lexray.training.ops.preactivations import SparseEntries
from lexray.training.ops.pursuit import StopRule, orthogonal_pursuit, pursue, to_code
from lexray.training.ops.sparse_code import SparseCode

STARTING_RESIDUAL = 0.5
"""Residual threshold at the first step where it is moved."""


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitConfig(CodeConfig):
    """Options of MP-SAE; the target L0 is the number of rounds unless `rounds` is set."""

    kind: str = "mp"
    rounds: Count | None = None
    """Maximum number of atoms that a row picks; None is the target L0, twice that with `residual_threshold: auto`."""
    residual_threshold: NonNegative | Literal["auto"] = 0.0
    """A row stops when its residual is shorter than this, in units of the normalised input (mean squared norm 1).
    `auto`: a controller moves it until the mean L0 is the target, so that each row has the atoms that it needs."""
    stop_at_repeat: bool = False
    """A row stops when it picks an atom again, as in the paper's code; else the atom's coefficient grows."""
    inference: Literal["mp", "omp"] = "mp"
    """Encoding after training: `omp` refits all coefficients after each pick."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if self.rounds is None and not self.is_adaptive and target_l0 != int(target_l0):
            raise UserError(f"target_l0: {target_l0:g} is not a whole number of rounds; give `rounds`")

    def check_decoder(self, decoder_norm: str) -> None:
        if decoder_norm == "free":
            raise UserError(
                "decoder_norm: matching pursuit needs unit atoms; with `ignored` their lengths start at 1 and learn to "
                "stay near it"
            )

    @property
    def is_adaptive(self) -> bool:
        """Whether the residual threshold is moved to the target L0."""
        return self.residual_threshold == "auto"

    def most_rounds(self, target_l0: float) -> int:
        """Return the maximum number of atoms that a row picks."""
        return self.rounds or math.ceil(2 * target_l0 if self.is_adaptive else target_l0)


class MatchingPursuit(Code):
    """MP-SAE: matching pursuit, unrolled and trained through.

        r_0 = x - b_dec;  for t = 0, 1, ...:  j = arg max <r_t, atom_j>,  c = <r_t, atom_j>
                                              f_j += c,  r_{t+1} = r_t - c atom_j
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2

    A row stops after `rounds` picks, when its residual is short, or when no atom has a positive score (the paper's
    code rectifies the score too). With `residual_threshold: auto` the mean L0 is the target and rows differ in how many
    atoms they take: the adaptive sparsity of the paper. Atoms keep unit norm, which the step-wise orthogonality needs.
    With `decoder_norm: ignored`, as in the paper's code, they only start at it and the loss keeps them near it, which
    recovers hierarchical features more exactly (`lexray bench ground-truth`). An atom picked again adds to its
    coefficient, so L0 may be below the number of rounds. Rounds and residual threshold can be changed at inference.
    """

    kind = "mp"
    Config = MatchingPursuitConfig
    takes_k = True
    paper = "Costa et al., From flat to hierarchical: matching pursuit SAEs (2025), arXiv:2506.03093"
    encoder_tensors = ()  # the decoder encodes

    def __init__(self, config: MatchingPursuitConfig, host: Host) -> None:
        super().__init__(config, host)
        if config.is_adaptive:
            host.add_module("controller", L0Controller(self.target_l0, STARTING_RESIDUAL))

    @property
    def rule(self) -> StopRule:
        """Rule by which a row stops."""
        is_adaptive = self.config.is_adaptive
        threshold = float(self.host.controller.coefficient) if is_adaptive else self.config.residual_threshold
        return StopRule(self.config.most_rounds(self.target_l0), threshold, self.config.stop_at_repeat)

    def encode(
        self,
        x_BD: Tensor,
        k: int | None = None,
        residual_threshold: float | None = None,
        inference: Literal["mp", "omp"] | None = None,
    ) -> SparseCode:
        """Return the code of normalised rows; arguments override the configured rounds, threshold and method."""
        rule, latents = self.rule, self.host.axes.latents
        rule = rule._replace(
            rounds=k or rule.rounds,
            residual_norm=rule.residual_norm if residual_threshold is None else residual_threshold,
        )
        atoms_FD, centred_BD = self.host.decoder().atoms_FO, x_BD - self.host.b_dec
        if (inference or self.config.inference) == "omp":
            return orthogonal_pursuit(centred_BD, atoms_FD, rule, latents)
        found = pursue(centred_BD, atoms_FD, rule, latents)
        return to_code(found.picks_BT, found.values_BT, len(atoms_FD), latents)

    def forward(self, batch: Batch) -> Forward:
        atoms_FD, latents = batch.decoder.atoms_FO, self.host.axes.latents
        found = pursue(batch.target_BO, atoms_FD, self.rule, latents)
        code = to_code(found.picks_BT, found.values_BT.detach(), len(atoms_FD), latents)
        return Forward(
            batch=batch,
            pairs=SparseEntries(code.values, code.chosen, code.width),
            values=code.values,
            reconstruction=squared_error(found.residual_BD),
            fired_F=code.fired(),
            observed={"residual_threshold": self.host.controller.coefficient} if self.config.is_adaptive else {},
        )

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        if self.config.is_adaptive:
            self.host.controller.after_step(batch.sums["active"] / batch.rows)

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        if self.config.is_adaptive:
            self.host.controller.after_evaluation(metrics["l0"])

    def terms(self) -> list[Weighted]:
        return [Weighted("reconstruction", reconstruction_error)]

    def eval_ks(self) -> list[int]:
        """Return 1, 2, 4... and the trained number of rounds."""
        return powers_of_two_to(self.rule.rounds)

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
