"""One optimizer step through DeepSpeed, and full tensors in and out.

Only this file and `adam_states` know DeepSpeed. It shards optimizer state, gradients and parameters (ZeRO 1, 2, 3) over
the data axis. It divides summed gradients by the number of ranks, so each rank's part of the global loss is multiplied
by it first. Everything that `full_*` returns is gathered: call them on every rank, in the same order.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lexray.training.mesh.device import ACCELERATOR, CPU

os.environ.setdefault(ACCELERATOR, CPU.type)  # unless a worker with a GPU said so before

import deepspeed
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from lexray.training.checkpoint.format import Checkpoint
from lexray.training.checkpoint.parts import MOMENTS, WEIGHTS
from lexray.training.config import OptimizerConfig, Precision
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.engines.adam_states import ADAM_MOMENTS, AdamStates
from lexray.training.engines.deepspeed_settings import LiveGroup, check_groups, deepspeed_config, parameter_groups
from lexray.training.engines.engine import Assignment
from lexray.training.engines.micro_batches import in_parts, parts_of
from lexray.training.mesh.mesh import ONE_RANK, Mesh
from lexray.training.mesh.settings import MeshConfig
from lexray.training.objectives.forward import LossOutput

# Asking DeepSpeed which of its ops could be compiled here runs compilers, and one of those ops would then be compiled
# at first use. None is needed: torch's Adam and gloo do the same.
deepspeed.ops.__compatible_ops__ = {}
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed and we call collectives under the names that every supported torch has.
warnings.filterwarnings("ignore", r".*(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated", FutureWarning)

ANY_LR = 1e-3
"""Learning rate until the first step, which sets its own."""


class _LossOf(nn.Module):
    """What DeepSpeed runs: it hooks `forward`, which of a dictionary is the reconstruction and not the loss."""

    def __init__(self, dictionary: Dictionary, precision: Precision) -> None:
        super().__init__()
        self.dictionary, self.precision = dictionary, precision
        self.terms: LossOutput | None = None

    def forward(self, x_BD: Tensor, total_rows: int, y_BO: Tensor) -> Tensor:
        # Without torch's cache of cast weights: one made where no gradient is wanted would be used where one is.
        with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            self.terms = self.dictionary.loss(x_BD, total_rows, y_BO)
        return self.terms.loss


class DeepSpeedEngine:
    """Trains a dictionary, of which every rank has its slice of latents, with the same start on all of a slice.

    Raises UserError when `config` names parameters that the dictionary does not have.
    """

    def __init__(
        self, dictionary: Dictionary, config: OptimizerConfig, workers: MeshConfig, mesh: Mesh = ONE_RANK
    ) -> None:
        self.dictionary, self.mesh = dictionary, mesh
        device = dictionary.input.mean_D.device
        _accelerate_on(device)
        self.zero_stage, self.micro_batches = workers.stage, workers.micro_batches
        self._clip_norm = config.clip_norm
        self._norm: Tensor | None = None
        self._split = _mark_split(dictionary)
        self._loss_of = _LossOf(dictionary, config.precision)
        groups = parameter_groups(dictionary, config.lr_scale)
        wanted = [(group["names"], group["lr_scale"]) for group in groups]
        self._adam = torch.optim.Adam(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
        self._engine, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=device.index or 0),  # else it takes the GPU whose number is LOCAL_RANK
            model=self._loss_of,
            optimizer=self._adam,
            config=deepspeed_config(
                config, workers, sum(p.numel() for p in dictionary.parameters()), on_gpu=device.type == "cuda"
            ),
            mpu=mesh if mesh.place.size > 1 else None,
            dist_init_required=False,
        )
        assert self.device == device, f"DeepSpeed took {self.device}, the dictionary lies on {device}"
        self._states = AdamStates(self._engine, self._adam, self.zero_stage, mesh.place)
        self._set_lr(ANY_LR)
        check_groups(self.live_groups(), [LiveGroup(names, ANY_LR * scale) for names, scale in wanted])
        if mesh.place.data == 1 and self.zero_stage == 0:
            self._engine.enable_backward_allreduce = False  # nothing to add up, and it costs a pass over the gradients

    def backward(self, rows: RawRows, total_rows: int) -> LossOutput:
        """Compute the loss of this rank's raw rows of a global batch, and its gradient. No parameter changes."""
        if self.micro_batches == 1:
            return self._accumulate(rows, total_rows)
        parts = parts_of(rows, self.micro_batches)
        return in_parts(
            self.dictionary,
            len(parts),
            look=lambda i: self._look(parts[i], total_rows),
            learn=lambda i: self._accumulate(parts[i], total_rows),
        )

    def step(self, lr: float) -> bool:
        """Change the parameters by the gradient of `backward`. Every rank calls it.

        Return False, with no parameter changed, when the gradient's norm is not finite; the engine is of no use then.
        """
        self._set_lr(lr)
        if self.zero_stage == 0:
            self._norm = self._clip()
            if not self._norm.isfinite():
                return False
        self._engine.step()
        if self.zero_stage:
            self._norm = torch.as_tensor(self._engine.get_global_grad_norm())
            if not self._norm.isfinite():  # DeepSpeed has left such a step out
                return False
        self.assign(self.dictionary.projections())
        return True

    def _accumulate(self, rows: RawRows, total_rows: int) -> LossOutput:
        """Add the gradient of these rows."""
        loss = self._engine(rows.x_BD, total_rows, rows.y_BO)
        self._engine.backward(loss * self.mesh.place.data, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, and changes nothing
        terms, self._loss_of.terms = self._loss_of.terms, None
        assert terms is not None
        return terms

    def _look(self, rows: RawRows, total_rows: int) -> None:
        """Compute the loss of these rows without gradient, and not through DeepSpeed, whose hooks want it to end."""
        with self.whole_parameters(), torch.no_grad():
            self._loss_of.forward(rows.x_BD, total_rows, rows.y_BO)

    def _set_lr(self, lr: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def live_groups(self) -> list[LiveGroup]:
        """The groups that DeepSpeed steps."""
        return [LiveGroup(group["names"], group["lr"]) for group in self._engine.optimizer.param_groups]

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def gradient_norm(self) -> Tensor | None:
        """Return the norm over the whole mesh of the last step's gradient, before clipping; None before the first."""
        return self._norm

    def _clip(self) -> Tensor:
        """Clip the gradients to `clip_norm`, and return their norm before that. Under ZeRO DeepSpeed does both."""
        named, counts_all = list(self.dictionary.named_parameters()), self.mesh.place.feature_index == 0
        counted = [p.grad for name, p in named if p.grad is not None and (counts_all or name in self._split)]
        squares = torch.stack([gradient.norm() for gradient in counted]).square().sum()
        norm = self.mesh.axes.latents.all_reduce(squares).sqrt()
        if self._clip_norm:
            nn.utils.clip_grads_with_norm_([p for _, p in named], self._clip_norm, norm)
        return norm

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Inside, the dictionary can be used directly; under ZeRO 3 its parameters are gathered for that."""
        if self.zero_stage == 3:
            with deepspeed.zero.GatheredParameters(list(self.dictionary.parameters())):
                yield
        else:
            yield

    def full_parameters(self) -> dict[str, Tensor]:
        """fp32 masters of this rank's latents by name, copied to the host."""
        return {name: _host_copy(self._states.master(p)) for name, p in self.dictionary.named_parameters()}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """fp32 masters, buffers and Adam's moments of this rank's latents, gathered one after another."""
        for name, parameter in self.dictionary.named_parameters():
            yield WEIGHTS + name, self._states.master(parameter)
        for name, buffer in self.dictionary.named_buffers():
            yield WEIGHTS + name, buffer
        self._states.find()
        for name, parameter in self.dictionary.named_parameters():
            for moment in ADAM_MOMENTS:
                yield f"{MOMENTS}{moment}.{name}", self._states.moment(parameter, moment)

    @torch.no_grad()
    def assign(self, changes: dict[str, Assignment], *, reset_moments: bool = False) -> None:
        """Change parameters from outside: fp32 masters and the copies that the next forward pass uses.

        `reset_moments` zeroes Adam's moments wherever a value changed. Under ZeRO 1 to 3 this gathers each named
        parameter, so it is for what happens seldom or is small.
        """
        for name, change in changes.items():
            parameter = self.dictionary.get_parameter(name)
            before = self._states.master(parameter)
            after = change(before).contiguous()
            if reset_moments:
                self._states.reset_moments(parameter, after != before)
            self._states.set_master(parameter, after)
            self._write_copy(parameter, after)

    def _write_copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.zero_stage < 3:
            parameter.data.copy_(value)
            return
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint whose weights were in the dictionary when the engine was made."""
        self._restore_moments(checkpoint.moments, checkpoint.step)
        for name, buffer in self.dictionary.named_buffers():
            buffer.copy_(checkpoint.weights[name])

    def _restore_moments(self, moments: dict[str, Tensor], step: int) -> None:
        if self.zero_stage:
            self._make_moments_exist()
        for name, parameter in self.dictionary.named_parameters():
            for moment in ADAM_MOMENTS:
                self._states.set_moment(parameter, moment, moments[f"{moment}.{name}"].to(self.device))
        self._states.set_step(step)

    def _make_moments_exist(self) -> None:
        # DeepSpeed creates its fragments of the moments in the first step; with zero gradients it changes nothing else.
        x_BD, y_BO = (n.mean_D[None] + n.scale_D for n in (self.dictionary.input, self.dictionary.output))
        for _ in range(self.micro_batches):
            self._engine.backward(self._engine(x_BD, self.mesh.place.data, y_BO) * 0.0)
            self._engine.step()
        self._states.find()


def _accelerate_on(device: torch.device) -> None:
    """Have DeepSpeed compute on devices of this type, whatever it found when it was imported.

    A process has engines on both only where a command times trials with GPUs and without.
    """
    if get_accelerator().device_name() != device.type:
        set_accelerator(CUDA_Accelerator() if device.type == "cuda" else CPU_Accelerator())


def _mark_split(dictionary: Dictionary) -> frozenset[str]:
    """Tell DeepSpeed which parameters are parts of a whole, and return their names: of the others, which all ranks of
    a feature axis have, the gradient's norm counts one copy."""
    split = dictionary.split_names() if dictionary.latents.size > 1 else frozenset()
    for name, parameter in dictionary.named_parameters():
        if name in split:
            parameter.model_parallel = parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    return split


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
