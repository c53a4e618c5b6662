"""MP-SAE: the encoder is matching pursuit on the decoder's own atoms.

Shapes: B rows, D width, F latents, T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import LossOutput, powers_of_two_to
from lexray.training.dictionaries.learned import LearnedConfig, LearnedDictionary
from lexray.training.ops.pursuit import StopRule, orthogonal_pursuit, pursue, to_code
from lexray.training.ops.sparse_code import SparseCode


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitConfig(LearnedConfig):
    """Options of MP-SAE; the target L0 is the number of rounds, unless `rounds` says otherwise."""

    architecture = "mp"

    rounds: int | None = None
    """Most atoms that a row picks; None is the target L0."""
    residual_threshold: float = 0.0
    """A row is done when its residual is shorter than this, in units of the normalised input (mean squared norm 1)."""
    stop_at_repeat: bool = False
    """A row is done when it picks an atom again, as in the paper's code; else the atom's coefficient grows."""
    inference: Literal["mp", "omp"] = "mp"
    """How codes are made after training: `omp` fits all coefficients anew after each pick."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is None and self.target_l0 != int(self.target_l0):
            raise UserError(f"target_l0: {self.target_l0:g} is not a whole number of rounds; give `rounds`")
        if self.rounds is not None and self.rounds < 1:
            raise UserError(f"rounds: {self.rounds} must be at least 1")
        if self.residual_threshold < 0:
            raise UserError(f"residual_threshold: {self.residual_threshold:g} is below 0")
        if self.decoder_norm == "free":
            raise UserError(
                "decoder_norm: matching pursuit needs unit atoms; with `ignored` their lengths start at 1 and learn to "
                "stay near it"
            )

    @property
    def rule(self) -> StopRule:
        return StopRule(self.rounds or int(self.target_l0), self.residual_threshold, self.stop_at_repeat)


class MatchingPursuit(LearnedDictionary):
    """MP-SAE: matching pursuit, unrolled and trained through.

        r_0 = x - b_dec;  for t = 0, 1, ...:  j = arg max <r_t, atom_j>,  c = <r_t, atom_j>
                                              f_j += c,  r_{t+1} = r_t - c atom_j
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2

    A row is done after `rounds` picks, when its residual is short, or when no atom has a positive score (the paper's
    code rectifies the score too). Atoms keep unit norm, which the step-wise orthogonality needs. With `decoder_norm:
    ignored`, as in the paper's code, they only start at it, and the loss keeps them near: that finds trees of features
    more exactly (`lexray bench ground-truth`). An atom picked again adds to its coefficient, so L0 may be below the
    number of rounds. Both numbers may be others at inference.
    """

    Config = MatchingPursuitConfig
    paper = "Costa et al., From flat to hierarchical: matching pursuit SAEs (2025), arXiv:2506.03093"
    config: MatchingPursuitConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.W_enc, self.b_enc  # the decoder encodes

    def encode(
        self,
        x_BD: Tensor,
        k: int | None = None,
        residual_threshold: float | None = None,
        inference: Literal["mp", "omp"] | None = None,
    ) -> SparseCode:
        """The code of raw activations; arguments stand in for the configured rounds, threshold and method."""
        rule = self.config.rule
        rule = rule._replace(
            rounds=k or rule.rounds,
            residual_norm=rule.residual_norm if residual_threshold is None else residual_threshold,
        )
        x_BD, frame = self.normalised_with_frame(x_BD)
        atoms_FD, centred_BD = self.atoms_FD(), x_BD - self.b_dec
        if (inference or self.config.inference) == "omp":
            return orthogonal_pursuit(centred_BD, atoms_FD, rule, self.latents)._replace(frame=frame)
        found = pursue(centred_BD, atoms_FD, rule, self.latents)
        return to_code(found.picks_BT, found.values_BT, len(atoms_FD), self.latents)._replace(frame=frame)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        x_BD, _ = self.normalised(x_BD)
        atoms_FD = self.atoms_FD()
        found = pursue(x_BD - self.b_dec, atoms_FD, self.config.rule, self.latents)
        loss = found.residual_BD.square().sum() / total_rows
        fired_F = to_code(found.picks_BT, found.values_BT.detach(), len(atoms_FD), self.latents).fired()
        sums = {**self.batch_stats(x_BD, found.residual_BD, fired_F), "reconstruction": loss.detach()}
        return LossOutput(loss, sums, fired_F, {})

    def eval_ks(self) -> list[int]:
        """1, 2, 4... and the trained number of rounds."""
        return powers_of_two_to(self.config.rule.rounds)
