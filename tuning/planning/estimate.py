"""Estimates a sweep's duration, concurrent trials and bytes read, by simulating its trials."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lexray.training.config import TrainingConfig
from lexray.training.measures.held_out import MEASURED_ROWS
from lexray.training.measures.rate import SHARES
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.row_counts import HeldOutRows
from lexray.tuning.sweep_folder import FINISHED, TrialRecord
from lexray.tuning.trials import Footprint

START_S = 10.0
"""Overhead of a trial in seconds: its processes start, import torch, save and end."""
SWEEP_START_S = 12.0
"""Overhead of a sweep in seconds: Ray and its first processes start, results are written."""
MEASURED_PASSES = 1 + len(SHARES)
"""Evaluations of each test row by the measures of a finished dictionary."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of trials of one kind."""

    rows_per_s: float
    """Rows per second of all workers of the trial, in training steps."""
    evaluated_rows_per_s: float | None = None
    """Rows per second of all workers, in evaluations; None if not measured."""
    overhead_s: float | None = None
    """Seconds of a trial outside its steps; None if not measured."""
    source: Literal["measured", "finished trials"]


def kind_of(config: TrainingConfig) -> str:
    """Return the key that trials of the same speed share."""
    dictionary, data, mesh = config.dictionary, config.data, config.mesh
    return (
        f"{dictionary.architecture} w{dictionary.width} l{dictionary.target_l0:g} b{data.batch_rows} "
        f"{'+'.join(data.inputs)}>{'+'.join(data.reconstructed)} {mesh.data}x{mesh.feature} "
        f"{config.optimizer.precision}"
    )


_TIMES = {"rows_per_s", "total_s", "train_s"}


def finished_speeds(records: Sequence[TrialRecord | None]) -> dict[str, Speed]:
    """Return the speeds by kind, averaged over records of finished trials."""
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        if record is None or record.status not in FINISHED or not record.timing.keys() >= _TIMES:
            continue
        timing = record.timing
        if timing["rows_per_s"] > 0:
            outside_s = max(0.0, timing["total_s"] - timing["train_s"])
            by_kind[kind_of(TrainingConfig.from_dict(record.config))].append((timing["rows_per_s"], outside_s))
    return {
        kind: Speed(
            rows_per_s=sum(speed for speed, _ in found) / len(found),
            overhead_s=sum(outside_s for _, outside_s in found) / len(found),
            source="finished trials",
        )
        for kind, found in by_kind.items()
    }


def trial_seconds(config: TrainingConfig, held_out: HeldOutRows, speed: Speed) -> float:
    """Return the wall time of one trial in seconds, from the start of its processes to their end."""
    trained_s = config.num_steps * config.data.batch_rows / speed.rows_per_s
    if speed.overhead_s is not None:
        return trained_s + speed.overhead_s
    evaluated_rows_per_s = speed.evaluated_rows_per_s or speed.rows_per_s
    evaluations = -(-config.num_steps // config.every.evaluate)
    rows = evaluations * min(config.every.eval_rows, held_out.validation) + min(config.every.eval_rows, held_out.test)
    evaluated = rows / evaluated_rows_per_s
    workers = config.mesh.data * config.mesh.feature
    # One worker alone measures the finished dictionary.
    measured = MEASURED_PASSES * min(MEASURED_ROWS, held_out.test) * workers / evaluated_rows_per_s
    return START_S + trained_s + evaluated + measured


class Start(NamedTuple):
    """Estimated start and end of a trial."""

    trial: int
    """Index of the trial."""
    at_s: float
    end_s: float


def timeline(
    footprints: Sequence[Footprint], seconds: Sequence[float], nodes: Sequence[Node], most: int | None = None
) -> list[Start]:
    """Return start and end of each trial: in order, each as soon as it fits, as `TrialQueue` starts them.

    Every footprint must fit the empty nodes. At most `most` trials run at once; None means no limit.
    """
    free_cpus, free_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    running: list[tuple[float, int]] = []
    starts: list[Start] = []
    now_s = 0.0
    for number, footprint in enumerate(footprints):
        while running and (
            footprint.cpus > free_cpus + 1e-6 or footprint.gpus > free_gpus + 1e-6 or len(running) == most
        ):
            now_s, ended = heapq.heappop(running)
            free_cpus += footprints[ended].cpus
            free_gpus += footprints[ended].gpus
        free_cpus -= footprint.cpus
        free_gpus -= footprint.gpus
        heapq.heappush(running, (now_s + seconds[number], number))
        starts.append(Start(number, now_s, now_s + seconds[number]))
    return starts


def most_at_once(starts: Sequence[Start]) -> int:
    """Return the maximum number of concurrent trials."""
    changes = sorted([(start.at_s, 1) for start in starts] + [(start.end_s, -1) for start in starts])
    most = running = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


class Reading(NamedTuple):
    """Bytes of the object store that one trial would read by itself."""

    sites: tuple[str, ...]
    training: float
    held_out: float
    kept: bool
    """Whether a node keeps all of it, in memory or on disk, for later trials."""


def store_bytes(readings: Sequence[Reading], starts: Sequence[Start], num_nodes: int) -> tuple[int, int]:
    """Return the bytes that a sweep reads, and an upper bound without any sharing between trials.

    Trials that start together read once a node; those that start later read again, unless nodes
    keep everything.
    """
    groups: Mapping[tuple[tuple[str, ...], float], list[Reading]] = defaultdict(list)
    for start in starts:
        reading = readings[start.trial]
        groups[reading.sites, -1.0 if reading.kept else start.at_s].append(reading)
    expected = 0.0
    for group in groups.values():
        copies = min(num_nodes, len(group))
        expected += copies * (max(r.training for r in group) + max(r.held_out for r in group))
    return int(expected), int(sum(r.training + r.held_out for r in readings))
