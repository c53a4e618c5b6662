"""The plan of a sweep as plain values: resources of each trial, concurrency, time, bytes read and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lexray.storage.manifest import Manifest
from lexray.storage.selection import HELD_OUT_PARTS, Part
from lexray.storage.stream_memory import StreamShape, stream_memory
from lexray.storage.units import gib
from lexray.training.cost.operations import training_flop
from lexray.training.measures.held_out import MEASURED_ROWS
from lexray.tuning.file.resources import PricesBlock
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.estimate import (
    SWEEP_START_S,
    Reading,
    Speed,
    kind_of,
    most_at_once,
    store_bytes,
    timeline,
    trial_seconds,
)
from lexray.tuning.planning.row_counts import HeldOutPlan, RowCounts
from lexray.tuning.planning.streams import most_workers, shape_of
from lexray.tuning.planning.worker_memory import WorkerMemory, worker_memory
from lexray.tuning.trials import Trial

HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Resources that a sweep will run on."""

    nodes: list[Node]
    object_store_bytes: list[int]
    """Size of each node's object store."""
    trials_on_head: int | None = None
    """Trials whose driver processes fit the head; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Plan of one trial."""

    id: str
    name: str
    reused: bool
    """Whether an earlier run of this sweep finished it."""
    data: int
    """Parts of a batch's rows in its mesh."""
    feature: int
    """Parts of the latents."""
    zero_stage: int
    cpus: float
    gpus: float
    steps: int
    memory: WorkerMemory
    flop: int | None
    """Floating-point operations of all its steps; None where atoms are solved for."""
    seconds: float | None
    """Estimated wall time; None without a known speed."""
    is_bound: bool = False
    """Whether it is the upper bound of trials that the search has yet to propose."""

    @property
    def workers(self) -> int:
        return self.data * self.feature


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a sweep. Totals are over the unfinished trials."""

    trials: list[TrialPlan]
    nodes: list[Node]
    at_once: int
    """Maximum number of concurrent trials."""
    steps: int
    store_bytes: int
    """Bytes read from the dataset's store if trials that start together share their reads."""
    store_bytes_at_most: int
    """Bytes read without any sharing."""
    seconds: float | None
    """Estimated wall time of the sweep; None if a trial's speed is unknown."""
    cpu_hours: float | None
    gpu_hours: float | None
    cost: float | None
    """Cost by the sweep file's prices; None without prices or a time."""
    currency: str
    speeds: dict[str, Speed]
    """Speeds used for the times, by kind of trial."""
    warnings: list[str]
    held_out: HeldOutPlan | None = None
    """Held-out rows of the first trial, None without trials; those of others differ by their sites' filters alone."""
    chosen_later: int = 0
    """Trials that a search chooses while the sweep runs. Every number is then an upper bound, and `trials` has the
    largest that it could choose of each architecture."""

    @property
    def to_do(self) -> list[TrialPlan]:
        return [trial for trial in self.trials if not trial.reused]

    @property
    def num_to_do(self) -> int:
        """Unfinished trials, including those to be proposed later."""
        return sum(not trial.is_bound for trial in self.to_do) + self.chosen_later

    def to_dict(self) -> dict[str, Any]:
        """Return the document of `--json` and `plan.json`."""
        document = asdict(self)
        document["held_out"] = self.held_out._asdict() if self.held_out is not None else None
        for shown, trial in zip(document["trials"], self.trials, strict=True):
            shown["workers"] = trial.workers
            shown["memory"]["resident"] = trial.memory.resident
        return document


def make_plan(
    trials: Sequence[Trial],
    unfinished: Sequence[str],
    manifest: Manifest,
    counts: RowCounts,
    machines: Machines,
    *,
    speeds: Mapping[str, Speed],
    prices: PricesBlock | None = None,
    cache_bytes: int = 0,
) -> Plan:
    """Plan these trials, whose meshes are chosen; `unfinished` are the ids of those to train.

    `speeds` by `kind_of`; `cache_bytes` of the cache on each node's disk.
    """
    shapes = {trial.id: shape_of(trial, manifest, counts) for trial in trials}
    planned = [_trial_plan(t, manifest, counts, shapes[t.id], t.id not in unfinished, speeds) for t in trials]
    todo = [trial for trial in trials if trial.id in unfinished]
    done_in = [plan.seconds for plan in planned if not plan.reused]
    seconds = [s for s in done_in if s is not None]
    known = len(seconds) == len(todo)
    guessed = seconds if known else [float(t.config.num_steps * t.config.dictionary.width) for t in todo]
    starts = timeline([t.footprint for t in todo], guessed, machines.nodes, machines.trials_on_head)
    kept = _kept_bytes(todo, [shapes[t.id] for t in todo], machines)
    readings = [_reading(t, manifest, counts, shapes[t.id].all_bytes <= kept, cache_bytes) for t in todo]
    read = store_bytes(readings, starts, len(machines.nodes))
    ended_s = SWEEP_START_S + max(start.end_s for start in starts) if starts else 0.0
    wall_s = ended_s if known else None
    hours = _hours(todo, seconds) if known else (None, None)
    return Plan(
        trials=planned,
        nodes=machines.nodes,
        at_once=most_at_once(starts),
        steps=sum(t.config.num_steps for t in todo),
        store_bytes=read[0],
        store_bytes_at_most=read[1],
        seconds=wall_s,
        cpu_hours=hours[0],
        gpu_hours=hours[1],
        cost=_cost(prices, hours, wall_s, len(machines.nodes)),
        currency=prices.currency if prices is not None else "",
        speeds={kind: speed for t in trials if (kind := kind_of(t.config)) and (speed := speeds.get(kind))},
        held_out=counts.held_out_plan(trials[0].config.data) if trials else None,
        warnings=_crowded(todo, {plan.id: plan.memory for plan in planned}, machines.nodes),
    )


def _trial_plan(
    trial: Trial,
    manifest: Manifest,
    counts: RowCounts,
    shape: StreamShape,
    reused: bool,
    speeds: Mapping[str, Speed],
) -> TrialPlan:
    config, speed = trial.config, speeds.get(kind_of(trial.config))
    training, held_out = counts.training(config.data), counts.held_out(config.data)
    return TrialPlan(
        id=trial.id,
        name=trial.name,
        reused=reused,
        data=config.mesh.data,
        feature=config.mesh.feature,
        zero_stage=config.mesh.stage,
        cpus=trial.footprint.cpus,
        gpus=trial.footprint.gpus,
        steps=config.num_steps,
        memory=worker_memory(trial, manifest, shape, epochs=config.num_steps * config.data.batch_rows / training),
        flop=training_flop(config, config.data.sites_in(manifest)),
        seconds=trial_seconds(config, held_out, speed) if speed is not None else None,
    )


def _hours(todo: Sequence[Trial], seconds: Sequence[float]) -> tuple[float, float]:
    """Return the hours of CPUs and of GPUs."""
    timed = list(zip(todo, seconds, strict=True))
    return (
        sum(t.footprint.cpus * s for t, s in timed) / HOUR_S,
        sum(t.footprint.gpus * s for t, s in timed) / HOUR_S,
    )


def _cost(
    prices: PricesBlock | None, hours: tuple[float | None, float | None], wall_s: float | None, nodes: int
) -> float | None:
    cpu_hours, gpu_hours = hours
    if prices is None or cpu_hours is None or gpu_hours is None or wall_s is None:
        return None
    return prices.cpu_hour * cpu_hours + prices.gpu_hour * gpu_hours + prices.node_hour * nodes * wall_s / HOUR_S


def _reading(trial: Trial, manifest: Manifest, counts: RowCounts, keeps_windows: bool, cache_bytes: int) -> Reading:
    """Return the bytes a trial reads: a server keeps all windows or none, a disk cache the chunks of all epochs."""
    config, data = trial.config, trial.config.data
    training, held_out = counts.training(data), counts.held_out(data)
    epochs = config.num_steps * data.batch_rows / training
    per_epoch = _part_bytes(trial, manifest, counts, "train")
    of_held_out, most = 0.0, (config.every.eval_rows, max(config.every.eval_rows, MEASURED_ROWS))
    for part, rows, most_rows in zip(HELD_OUT_PARTS, held_out, most, strict=True):
        share = _whole_windows(min(1.0, most_rows / rows), rows, trial, manifest)
        of_held_out += share * _part_bytes(trial, manifest, counts, part)
    dataset_bytes = manifest.rows * sum(manifest.sites[site].row_bytes for site in data.sites)
    is_cached = dataset_bytes <= cache_bytes
    read_epochs = min(1.0, epochs) if is_cached else epochs
    of_training = _whole_windows(read_epochs, training, trial, manifest) * per_epoch
    return Reading(data.sites, of_training, of_held_out, is_cached or keeps_windows)


def _part_bytes(trial: Trial, manifest: Manifest, counts: RowCounts, part: Part) -> float:
    """Return the bytes of all chunks with rows of a part, plus those read twice at lane boundaries."""
    data = trial.config.data
    row_bytes = sum(manifest.sites[site].row_bytes for site in data.sites)
    return (counts.read_share(data, part) * manifest.rows + (data.lanes - 1) * manifest.chunk_rows) * row_bytes


def _whole_windows(epochs: float, rows: int, trial: Trial, manifest: Manifest) -> float:
    """Round a number of epochs of `rows` rows up to whole windows of each lane."""
    data = trial.config.data
    widest = max(site.row_bytes for site in manifest.sites.values())
    window_chunks = max(1, data.window_bytes // (manifest.chunk_rows * widest))
    window_rows = window_chunks * manifest.chunk_rows * rows / manifest.rows
    windows = max(1, math.ceil(rows / data.lanes / window_rows))
    return math.ceil(epochs * windows - 1e-9) / windows


def _kept_bytes(todo: Sequence[Trial], shapes: Sequence[StreamShape], machines: Machines) -> int:
    """Return the bytes of windows that every node keeps for later trials."""
    if not todo:
        return 0
    return min(
        stream_memory(shapes, consumers=most_workers(todo, node), object_store_bytes=size).kept
        for node, size in zip(machines.nodes, machines.object_store_bytes, strict=True)
    )


def _crowded(todo: Sequence[Trial], memory: Mapping[str, WorkerMemory], nodes: Sequence[Node]) -> list[str]:
    """Return a warning for each kind of node that could run more concurrent workers than its memory holds."""
    lines = []
    for node in dict.fromkeys(nodes):
        workers = most_workers(todo, node) if todo else 0
        each = max((memory[t.id].host for t in todo), default=0)
        if node.memory_bytes and workers * each > node.memory_bytes:
            fitting = max(1, int(node.memory_bytes / each))
            lines.append(
                f"{workers} worker(s) at once can need {gib(workers * each)} of memory, a node has "
                f"{gib(int(node.memory_bytes))}; resources.cpus_per_worker: {node.cpus / fitting:g} would leave "
                f"{fitting} worker(s) at once"
            )
    return lines
