"""Full fp32 masters and Adam moments by parameter, whichever partition of them DeepSpeed keeps on this rank.

Under ZeRO 1 to 3, reading gathers over the data axis (collective, in the same order on every rank); writing does not.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from lexray.training.mesh.mesh import MeshCoord

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamStates:
    """Masters and moments of the parameters that `adam` steps, wrapped by `engine`."""

    def __init__(self, engine: Any, adam: torch.optim.Adam, zero_stage: int, place: MeshCoord) -> None:
        self._engine, self._adam, self._stage, self._place = engine, adam, zero_stage, place

    def master(self, parameter: nn.Parameter) -> Tensor:
        value: Tensor = parameter.data if self._stage == 0 else safe_get_full_fp32_param(parameter)
        return value

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write the fp32 master; a separate copy for the forward pass is not updated."""
        if self._stage == 3:
            safe_set_local_fp32_param(parameter, self._part(parameter, value))
        elif self._stage:
            safe_set_full_fp32_param(parameter, value)
        else:
            parameter.data.copy_(value)

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Return a moment; call `find` before the first one."""
        if self._stage:
            return safe_get_full_optimizer_state(parameter, name)
        state = self._adam.state[parameter]
        return state[name] if name in state else torch.zeros_like(parameter)

    def set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Write a moment, which must exist: under ZeRO DeepSpeed creates moments in its first step."""
        if self._stage == 3:
            safe_set_local_optimizer_state(parameter, self._part(parameter, value), name)
        elif self._stage:
            safe_set_full_optimizer_state(parameter, value, name)
        else:
            self._adam.state[parameter][name] = value.clone()

    def reset_moments(self, parameter: nn.Parameter, where: Tensor) -> None:
        """Zero the moments where `where` is true."""
        self.find()
        for name in ADAM_MOMENTS:
            value = self.moment(parameter, name).masked_fill(where, 0.0)
            if self._stage or name in self._adam.state[parameter]:
                self.set_moment(parameter, name, value)

    def set_step(self, step: int) -> None:
        """Set the number of steps that Adam has taken, for its bias correction."""
        if self._stage == 0:
            for state in self._adam.state.values():
                state["step"] = torch.zeros((), dtype=torch.float32, device=self._engine.device)
        for state in self._adam.state.values():
            state["step"].fill_(step)

    def find(self) -> None:
        """Link the moments of all groups: DeepSpeed links them only once, after stepping the first group."""
        if self._stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return this rank's partition of a full tensor under ZeRO 3: all have one length, so the last may be padded.

        DeepSpeed's own function refuses tensors that do not divide evenly.
        """
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        begin = self._place.data_index * length
        part = value.new_zeros(length)
        given = value.flatten()[begin : begin + length]
        part[: len(given)] = given
        return part
