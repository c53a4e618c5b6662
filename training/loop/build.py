"""From a configuration to the parts of a training: the rank's place in the mesh, the dictionary, its optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from lexray.storage.manifest import Manifest
from lexray.storage.stream import BatchStream
from lexray.training.config import TrainingConfig
from lexray.training.dictionaries import make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows, Sample
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.engine import Engine
from lexray.training.engines.statistics_engine import StatisticsEngine
from lexray.training.mesh.axes import ONE_PROCESS, Axes
from lexray.training.mesh.device import ACCELERATOR, CPU, backend_of
from lexray.training.mesh.mesh import Mesh, MeshCoord

KEPT_SAMPLE_BYTES = 16 * 2**20
"""A sample of at most so many bytes stays in memory while starting values are computed."""


def ensure_process_group(device: torch.device = CPU) -> None:
    """Make a group of one, for tensors on `device` and on the host, where there is none: DeepSpeed always wants one."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed refuses to start without it
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device == CPU else f"cpu:gloo,{device.type}:{backend_of(device)}",
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )


def place_in(config: TrainingConfig, rank: int) -> MeshCoord:
    """Return a rank's coordinates in a trial's mesh. Dictionaries that learn by statistics split the rows alone."""
    mesh, data = config.mesh, config.mesh.row_parts(config.dictionary)
    return MeshCoord(rank=rank, data=data, feature=mesh.data * mesh.feature // data)


def build_dictionary(config: TrainingConfig, manifest: Manifest, axes: Axes = ONE_PROCESS) -> Dictionary:
    """The untrained dictionary, or this rank's slice of it."""
    made = make_dictionary(config.dictionary, config.data.sites_in(manifest), seed=config.seed, axes=axes)
    made.rows_to_train = config.num_steps * config.data.batch_rows
    return made


def sample_rows(config: TrainingConfig, stream: BatchStream, device: torch.device) -> Iterator[RawRows]:
    """This rank's part of the first training rows, from which starting values are computed."""
    wanted = -(-config.dictionary.sample_rows // config.data.batch_rows)
    for step in range(min(wanted, stream.steps_per_epoch)):
        yield raw_rows(stream.batch(step), config.data, device)


def sample_of(config: TrainingConfig, stream: BatchStream, dictionary: Dictionary, device: torch.device) -> Sample:
    """Return what yields `sample_rows` at each call. A small sample is read once: k-means passes over it 16 times."""
    width = dictionary.sites.input_width + dictionary.sites.output_width
    if 4 * width * config.dictionary.sample_rows > KEPT_SAMPLE_BYTES:
        return lambda: sample_rows(config, stream, device)
    kept: list[RawRows] = []

    def sample() -> list[RawRows]:
        kept.extend([] if kept else sample_rows(config, stream, device))
        return kept

    return sample


def make_engine(dictionary: Dictionary, config: TrainingConfig, mesh: Mesh) -> Engine:
    """Return what changes the dictionary as it asks for, on the device where the dictionary lies."""
    if dictionary.config.learns_by == "statistics":
        return StatisticsEngine(dictionary)
    os.environ.setdefault(ACCELERATOR, dictionary.input.mean_D.device.type)
    from lexray.training.engines.deepspeed_engine import (
        DeepSpeedEngine,  # DeepSpeed takes an accelerator for good when it is imported
    )

    return DeepSpeedEngine(dictionary, config.optimizer, config.mesh, mesh)
