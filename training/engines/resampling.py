"""Restart dead latents from rows that are reconstructed badly.

Bricken et al., Towards monosemanticity (2023), appendix: at intervals, rows are drawn with probability proportional
to the square of their loss; a dead latent's atom becomes such a row's direction, its encoder the same direction at 0.2
of the living encoders' mean length, its bias zero, and their Adam moments are reset. Here the atom is the direction of
the row's residual, the rows are those of the current batch, and they are drawn without replacement. The paper covers
ReLU codes alone; other parameters that may have silenced a latent are reset by `Code.restart_values`.

Shapes: B rows on this rank, D input width, O output width, F latents, U dead latents that are restarted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.engines.engine import Assignment, Engine
from lexray.training.mesh.axes import DataAxis
from lexray.training.ops.sampling import largest_keys, row_hashes

ENCODER_LENGTH = 0.2
"""Length of a restarted encoder row, as a share of the living ones' mean."""
TINY = torch.finfo(torch.float32).tiny
"""Least divisor of lengths: handles zero vectors without affecting short ones."""


def resample_dead(engine: Engine, raw: RawRows, total_rows: int, rows: DataAxis) -> int:
    """Restart dead latents if due by step and counters (equal on all ranks); return the number restarted."""
    dictionary = engine.dictionary
    if not is_due(dictionary, total_rows):
        return 0
    assert isinstance(dictionary, LearnedDictionary)
    dead_U, latents = dictionary.dead_F.nonzero().squeeze(1), dictionary.latents
    num_dead, first = latents.count(len(dead_U)), latents.exclusive_sum(len(dead_U))
    if not num_dead:
        return 0
    with engine.whole_parameters(), torch.no_grad():
        starts = worst_rows(dictionary, raw, num_dead, rows)
        dead_U = dead_U[: max(0, len(starts) - first)]
        changes = restarts(dictionary, dead_U, starts[first : first + len(dead_U)])
    engine.assign(changes, reset_moments=True)
    dictionary.rows_since_fired_F[dead_U] = 0
    return len(starts)


def is_due(dictionary: Dictionary, batch_rows: int) -> bool:
    """Return whether this step crossed a multiple of `resample_every_rows`; never in the last tenth of a training."""
    every = dictionary.config.resamples_every_rows
    if not every or dictionary.progress > 0.9:
        return False
    return (dictionary.step + 1) * batch_rows // every > dictionary.step * batch_rows // every


def worst_rows(dictionary: LearnedDictionary, raw: RawRows, count: int, rows: DataAxis) -> Tensor:
    """Return normalised inputs and residuals of up to `count` rows of the batch, sampled by squared loss (n, D + O).

    The sample takes the largest u^(1 / weight) with u a hash of the row, so it does not depend on the sharding.
    """
    x_BD, y_BO = dictionary.normalised(raw.x_BD, raw.y_BO)
    # Not by calling the module: under ZeRO 3 DeepSpeed's hooks would release the gathered parameters.
    y_hat_BO = dictionary.decode(dictionary.encode(raw.x_BD), raw.x_BD)
    error_BO = y_BO - dictionary.output.normalise(y_hat_BO, dictionary.output.frame(raw.y_BO))
    weight_B = error_BO.double().square().sum(1).square().clamp_min(torch.finfo(torch.float64).tiny)
    uniform_B = row_hashes(x_BD, dictionary.step).clamp(1e-9, 1 - 1e-9)
    key_B = uniform_B.log() / weight_B  # log of u^(1 / weight), up to its sign's order
    count = min(count, int(rows.all_reduce(torch.tensor(len(x_BD), device=x_BD.device))))
    mine = torch.cat([key_B[:, None], x_BD.double(), error_BO.double()], 1)
    return largest_keys(mine, count, rows)[:, 1:].to(x_BD.dtype)


def restarts(dictionary: LearnedDictionary, dead_U: Tensor, starts: Tensor) -> dict[str, Assignment]:
    """Return the assignments that restart `dead_U`, by name of each parameter with a row for each latent."""
    inputs_UD, residuals_UO = starts.split([dictionary.sites.input_width, dictionary.sites.output_width], dim=1)
    encoder = getattr(dictionary, "W_enc", None)
    length = 1.0 if encoder is None else dictionary.living_mean(encoder.norm(dim=1), default=1.0)
    direction_UD = residuals_UO if dictionary.sites.reconstructs_its_input else inputs_UD
    new = {
        "W_enc": F.normalize(direction_UD, dim=1, eps=TINY) * ENCODER_LENGTH * length,
        "W_dec": residuals_UO / dictionary.code_norms(residuals_UO).clamp_min(TINY)[:, None],
    }

    def put(values: Tensor) -> Assignment:
        return lambda whole: whole.index_copy(0, dead_U.to(whole.device), values.to(whole))

    names = dict(dictionary.named_parameters())
    same = {
        name: torch.full((len(dead_U),), value)
        for name, value in dictionary.code.restart_values(ENCODER_LENGTH).items()
    }
    return {name: put(values) for name, values in {**new, **same}.items() if name in names}
