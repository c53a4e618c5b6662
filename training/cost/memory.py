"""Memory model of a training on each rank: formulas of shapes alone, before anything is allocated.

Training is in fp32 with Adam. A rank with N parameters (its slice of the latents) on a data axis of D holds:

    ZeRO stage   weights   masters   moments   gradients                sum between steps
    0            4 N       -         8 N       4 N in a step            12 N
    1, 2         4 N       4 N / D   8 N / D   4 N in a step            4 N + 12 N / D
    3            4 N / D   4 N / D   8 N / D   4 N / D; 4 N in a step   20 N / D; in a step 4 N of gathered weights

Memory of a step beyond that: `cost.step_memory`. Neither includes memory that a GPU's libraries reserve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from lexray.training.codes.code_cost import FLOAT_BYTES
from lexray.training.config import TrainingConfig
from lexray.training.cost.step_memory import Rows, backward_bytes, forward_bytes, solver_bytes
from lexray.training.dictionaries import architecture, make_dictionary
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.engines.deepspeed_settings import deepspeed_config
from lexray.training.mesh.axes import LOCAL_DATA, LOCAL_WORLD, ONE_PROCESS, Axes
from lexray.training.mesh.communicator import ProcessGroup
from lexray.training.mesh.split_axes import SplitFeatureAxis

PROCESS_BYTES = 700 * 2**20
"""Bytes of a worker process without a dictionary: Python, torch, DeepSpeed, Ray."""

FILE_COPIES = 3
"""Copies in memory while tensors are serialised: the tensors, and the file twice."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank."""

    weights: int
    masters: int = 0
    moments: int = 0
    gradient_parts: int = 0
    """Gradients held between steps."""
    bucket: int = 0
    """DeepSpeed's reduce bucket."""
    buffers: int = 0
    """Counters, thresholds, sums."""
    gathered: int = 0
    """Full weights of the slice, gathered during a step."""
    step: int
    """Activations of the forward pass or gradients and buffers of the backward pass, whichever is larger."""
    offloaded: bool = False
    """Whether masters, moments and held gradients are in host memory."""

    @property
    def held(self) -> int:
        """Bytes held between steps, on host or device."""
        return self.weights + self._optimizer + self.bucket + self.buffers

    @property
    def on_host(self) -> int:
        """Bytes held between steps in host memory."""
        return self._optimizer if self.offloaded else 0

    @property
    def on_device(self) -> int:
        """Peak bytes on the device that computes."""
        return self.held - self.on_host + self.gathered + self.step

    @property
    def _optimizer(self) -> int:
        return self.masters + self.moments + self.gradient_parts


class Needs(NamedTuple):
    """Peak bytes that a worker needs."""

    device: int
    """Bytes of GPU memory; 0 where the worker computes on the host."""
    host: int


def shapes_of(config: DictionaryConfig, sites: Sites, feature: int = 1) -> Shapes:
    """Return the shapes of a dictionary, or of one of `feature` slices of its latents. Nothing is allocated."""
    widths = tuple(tuple(site.width for site in group) for group in (sites.inputs, sites.outputs))
    return _shapes(config, *widths, sites.reconstructs_its_input, feature)


@lru_cache(maxsize=1024)  # a mesh is chosen among many, and trials of a sweep differ in little
def _shapes(
    config: DictionaryConfig, inputs: tuple[int, ...], outputs: tuple[int, ...], own_input: bool, feature: int
) -> Shapes:
    sites = Sites.of_widths({"inputs": list(inputs), "outputs": list(outputs)}, reconstructs_its_input=own_input)
    axes = ONE_PROCESS
    if feature > 1:
        axes = Axes(LOCAL_DATA, SplitFeatureAxis(ProcessGroup(0, feature)), LOCAL_WORLD)
    with torch.device("meta"):
        made = make_dictionary(config, sites, axes=axes)
    return Shapes(
        parameters=sum(p.numel() for p in made.parameters()),
        largest=max((p.numel() for p in made.parameters()), default=0),
        buffer_bytes=sum(b.numel() * b.element_size() for b in made.buffers()),
        latents=len(made.rows_since_fired_F),
        input_width=sites.input_width,
        output_width=sites.output_width,
    )


def rank_memory(config: TrainingConfig, sites: Sites) -> RankMemory:
    """Return the memory of a training on the rank of its mesh that has the most."""
    mesh, dictionary = config.mesh, config.dictionary
    rows = Rows(rows_at_once(config), config.data.batch_rows)
    if dictionary.learns_by == "statistics":
        shapes = shapes_of(dictionary, sites)
        step = solver_bytes(dictionary, shapes, rows, mesh.row_parts(dictionary))
        return RankMemory(weights=0, buffers=shapes.buffer_bytes, step=step)
    shapes = shapes_of(dictionary, sites, mesh.feature)
    return RankMemory(
        **_states(shapes, config),
        buffers=shapes.buffer_bytes,
        step=_step(config, shapes, rows),
        offloaded=mesh.offload_optimizer,
    )


def rows_at_once(config: TrainingConfig) -> int:
    """Return the rows that a rank computes at once: those of its lanes, divided into micro-batches."""
    lanes, mesh = config.data.lanes, config.mesh
    rows = -(-lanes // mesh.row_parts(config.dictionary)) * config.data.batch_rows / lanes
    return math.ceil(rows / mesh.micro_batches)


def _states(shapes: Shapes, config: TrainingConfig) -> dict[str, int]:
    """Return the bytes of parameter states, by field of `RankMemory`."""
    mesh, whole = config.mesh, FLOAT_BYTES * shapes.parameters
    if mesh.stage == 0:
        return {"weights": whole, "moments": 2 * whole}
    part = math.ceil(whole / mesh.data)
    states = {"weights": whole, "masters": part, "moments": 2 * part}
    if mesh.stage < 3:
        # DeepSpeed's buffers in host memory: gradients as summed and as stepped, and updated weights in transfer.
        return states | ({"gradient_parts": 3 * part + FLOAT_BYTES * shapes.largest} if mesh.offload_optimizer else {})
    bucket = deepspeed_config(config.optimizer, mesh, shapes.parameters)["zero_optimization"]["reduce_bucket_size"]
    return states | {
        "weights": part,
        "gradient_parts": 2 * part if mesh.offload_optimizer else part,
        "bucket": FLOAT_BYTES * bucket,
        "gathered": whole if mesh.data > 1 else 0,
    }


def _step(config: TrainingConfig, shapes: Shapes, rows: Rows) -> int:
    """Return the peak of the larger of the two passes, plus memory that both need."""
    gradients = FLOAT_BYTES * shapes.parameters
    both = gradients if config.mesh.micro_batches > 1 else 0  # accumulated over micro-batches
    both += gradients // 2 if config.optimizer.precision == "bf16" else 0  # bf16 copies of the weights
    forward = forward_bytes(config.dictionary, shapes, rows, config.mesh.feature)
    return both + max(forward, backward_bytes(config.dictionary, shapes))


# Around the steps ----------------------------------------------------------------------------------------------------


def needs(config: TrainingConfig, sites: Sites, *, on_gpu: bool) -> Needs:
    """Return the peak over start (every rank draws the full initial values), training with an upload, and end.

    Rank 0 gathers and writes the finished dictionary, so it needs the most.
    """
    memory = rank_memory(config, sites)
    mine = shapes_of(config.dictionary, sites, config.mesh.feature).parameters * FLOAT_BYTES
    all_latents = shapes_of(config.dictionary, sites).parameters * FLOAT_BYTES
    upload = FILE_COPIES * (3 * mine // config.mesh.data + memory.buffers)
    ending = mine + FILE_COPIES * all_latents
    held, training = (memory.on_host, memory.on_host) if on_gpu else (memory.held, memory.held + _in_step(memory))
    host = max(_starting(config, sites), training + upload, held + ending)
    return Needs(memory.on_device if on_gpu else 0, PROCESS_BYTES + host)


def _in_step(memory: RankMemory) -> int:
    return memory.gathered + memory.step


def _starting(config: TrainingConfig, sites: Sites) -> int:
    """Return the bytes of initialisation: directions of all latents, normalised, and the slice that is kept."""
    made = architecture(config.dictionary.architecture)
    if made.Config.learns_by == "statistics":
        return 0
    mine = shapes_of(config.dictionary, sites, config.mesh.feature).parameters
    return FLOAT_BYTES * (made.dictionary.starting_numbers(config.dictionary, sites) + mine)
