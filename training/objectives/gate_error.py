"""The auxiliary reconstruction of gated codes, which trains their gate."""

from __future__ import annotations

from torch import Tensor

from lexray.training.mesh.axes import Axes
from lexray.training.objectives.forward import Forward


def gate_error(forward: Forward, axes: Axes) -> Tensor:
    """Mean over rows of ||y - relu(gate) atoms' - b_dec'||^2, primes marking what gets no gradient.

    Rajamanoharan et al., Improving dictionary learning with gated SAEs (2024), equation 8.
    """
    assert forward.gate is not None, "only a gated code has a gate"
    batch = forward.batch
    by_gate_BO = axes.latents.all_reduce(forward.pairs.decode(forward.gate, batch.decoder.atoms_FO.detach()))
    return (batch.y_BO - by_gate_BO - batch.offset_BO.detach()).square().sum() / batch.total_rows
