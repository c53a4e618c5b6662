"""The share of a training's time in which it waits for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import torch

from benchmarks.stream_readers import BATCH_ROWS, Place, local_stream
from lexray.storage.stream import BatchStream
from lexray.training.config import DataConfig, TrainingConfig
from lexray.training.dictionaries import dictionary_config
from lexray.training.loop.build import build_dictionary, ensure_process_group, make_engine
from lexray.training.loop.loop import training_steps
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.mesh import ONE_RANK


def wait_of_a_gpu(place: Place, step_s: float, steps: int) -> float:
    """A trainer that computes elsewhere for `step_s` a step, so that this machine's cores are the stream's."""
    return _wait(place, steps, lambda: time.sleep(step_s))


def wait_of_a_trainer(place: Place, width: int, steps: int) -> tuple[float, float]:
    """lexray's own loop, TopK on one core of this machine: its wait, and its rows/s."""
    torch.set_num_threads(1)
    ensure_process_group()
    stream = local_stream(place).stream
    site = next(iter(stream.manifest.sites))
    config = TrainingConfig(
        dictionary=dictionary_config({"architecture": "topk", "width": width, "target_l0": 32}),
        data=DataConfig(url=place.url, dataset_id=stream.manifest.id, inputs=(site,), batch_rows=BATCH_ROWS),
        rows=(steps + WARM_STEPS) * BATCH_ROWS,
    )
    engine = make_engine(build_dictionary(config, stream.manifest), config, ONE_RANK)
    began = waited = 0.0
    for record in training_steps(config, stream, engine, LOCAL_DATA, start=0):
        if record.step == WARM_STEPS:
            began, waited = time.perf_counter(), stream.stats.wait_s
    elapsed = time.perf_counter() - began
    return (stream.stats.wait_s - waited) / elapsed, steps * BATCH_ROWS / elapsed


WARM_STEPS = 40
"""Steps that do not count: the first waits for windows of every lane, and all of the first 32 touch new memory."""


def _wait(place: Place, steps: int, compute: Callable[[], None]) -> float:
    stream: BatchStream = local_stream(place).stream
    began = waited = 0.0
    with closing(stream.batches(range(steps + WARM_STEPS), lambda batch: batch)) as batches:
        for number, _ in enumerate(batches):
            if number == WARM_STEPS:
                began, waited = time.perf_counter(), stream.stats.wait_s
            compute()
    return (stream.stats.wait_s - waited) / (time.perf_counter() - began)
