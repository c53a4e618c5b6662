"""Runs one trial on Ray: a Tune function that fits a Ray Train `TorchTrainer`, and its worker function."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from lexray.storage.errors import UserError
from lexray.storage.server import ServedWindows
from lexray.storage.windows import LocalWindows, WindowReader, local_chunks
from lexray.training.checkpoint.writer import delete_temporary
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.non_finite import NonFiniteStepError
from lexray.training.loop.setup import OpenStream
from lexray.training.loop.trainer import Trainer
from lexray.training.measures.held_out import measure_trial
from lexray.training.mesh.device import use_device
from lexray.tuning.endings.budget import StopSignal, UsageMeter, read_usage
from lexray.tuning.endings.cached_poll import CachedPoll
from lexray.tuning.endings.early_stopper import stopped_by
from lexray.tuning.fence import DisplacedError, Fence
from lexray.tuning.planning.worker_memory import peak_resident_bytes
from lexray.tuning.ray_backend.attempts import Attempts, sweep_is_over
from lexray.tuning.ray_backend.in_process_trainer import ReportToTune, TrainHere
from lexray.tuning.ray_backend.metrics import TrainingMetrics
from lexray.tuning.ray_backend.placer import Placement
from lexray.tuning.ray_backend.process_groups import WorkersConfig
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.ray_backend.worker_device import device_of_worker
from lexray.tuning.records import ended_record, new_record, reason_of
from lexray.tuning.sweep_folder import FAILED, MOVING, PAUSED, RUNNING, TrialRecord

log = logging.getLogger("lexray")

REPORTS = 20
"""Maximum number of evaluations reported to Tune."""


def run_trial(config: dict[str, Any]) -> None:
    """The Tune trainable: train `config["run"]` to its end.

    The first worker writes the result to `trial.json`. A failed trial does not fail the sweep: its reason goes there.
    A trial that another process has taken over is left to it.
    """
    run: TrialRun = config["run"]
    began = time.time()
    record = new_record(run.trial, status=RUNNING)
    run.folder.write_trial(record)
    try:
        _run_attempts(run, began)
    except DisplacedError as error:
        log.warning("%s: %s", run.trial.name, error)
        return
    except Exception as error:
        timing = {"total_s": time.time() - began}
        run.folder.write_trial(replace(record, status=FAILED, reason=reason_of(error), timing=timing))
        return
    finally:
        if run.allocator is not None:
            run.allocator.release(run.trial.id)
    ended = run.folder.read_trial(run.trial.id)
    if ended is None or ended.status not in PAUSED:
        # Checkpoints only served to resume; the dictionary has the weights.
        delete_temporary(run.store.at_path("checkpoints"), run.trial.config.every.keep)


def _run_attempts(run: TrialRun, began: float) -> None:
    """Run attempts at the trial until its training ends, or the sweep does."""
    if run.allocator is None:
        _attempt(run, began)
        return

    def attempt(placement: Placement) -> str:
        return _attempt(run.placed(placement), began)

    attempts = Attempts(
        trial=run.trial,
        mesh_options=run.meshes,
        allocator=run.allocator,
        retries=run.retries,
        is_over=lambda: bool(sweep_is_over(run.folder, run.deadline_s)),
    )
    if not attempts.run(attempt):
        status = sweep_is_over(run.folder, run.deadline_s)
        reason = "waited for nodes; run the sweep again to go on"
        run.folder.write_trial(replace(new_record(run.trial, status=status), reason=reason))


def _attempt(run: TrialRun, began: float) -> str:
    """Run the trial's workers to their end and count their hours; return the status that they leave.

    Raises DisplacedError if another process has taken over the trial.
    """
    run = replace(run, attempt=uuid.uuid4().hex)
    run.fence.take()
    run.folder.write_trial(new_record(run.trial, status=RUNNING))
    meter = UsageMeter(
        store=run.store, footprint=run.trial.footprint, before=read_usage(run.store), began_s=time.time()
    )
    try:
        torch_trainer(run, meter, TrainHere, callbacks=[ReportToTune()], began_s=began).fit()
    finally:
        run.fence.confirm()
        meter.note(time.time())
    ended = run.folder.read_trial(run.trial.id)
    return ended.status if ended is not None else RUNNING


def torch_trainer(
    run: TrialRun,
    meter: UsageMeter,
    kind: type[TorchTrainer] = TorchTrainer,
    *,
    callbacks: Sequence[Any] = (),
    began_s: float | None = None,
) -> TorchTrainer:
    """Return the Ray Train job of a trial; `meter` counts its hours; its first attempt began at `began_s` (Unix time).

    Ray Train itself restarts nothing if `Attempts` do: with other nodes, and another mesh if need be.
    """
    footprint = run.trial.footprint
    began_s = meter.began_s if began_s is None else began_s
    again = run.retries if run.allocator is None else 0
    return kind(
        train_worker,
        train_loop_config={"run": run, "meter": meter, "began_s": began_s},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=footprint.workers,
            use_gpu=footprint.on_gpu,
            resources_per_worker={"CPU": footprint.cpus_per_worker, "GPU": footprint.gpus_per_worker},
            label_selector=[{"ray.io/node-id": node_id} for node_id in run.nodes] or None,
        ),
        torch_config=WorkersConfig(on_gpu=footprint.on_gpu, timeout_s=round(footprint.timeout_s)),
        run_config=RunConfig(
            name=run.trial.id,
            storage_path=run.ray_storage_path,
            callbacks=list(callbacks),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=again, controller_failure_limit=again, max_preemption_failures=again
            ),
        ),
    )


@dataclass
class BoundedReports:
    """Reports evaluations to Tune: at most `REPORTS` a training, chosen by the step alone.

    Every rank must report equally often, and a report waits until Ray Train has fetched the one before, which it does
    a few times a second at best: frequent ones would slow the training.
    """

    num_steps: int
    reported: int = 0

    def __call__(self, record: dict[str, float]) -> None:
        due = int(record["step"]) * REPORTS // self.num_steps
        if due > self.reported:
            self.reported = due
            ray.train.report(record)


def train_worker(config: dict[str, Any]) -> None:
    """Run one Ray Train worker. The first writes the trial's record, while this attempt owns the folder."""
    run: TrialRun = config["run"]
    device = device_of_worker(on_gpu=run.trial.footprint.on_gpu)
    use_device(device)
    ensure_process_group(device)
    fence = run.fence
    is_first = ray.train.get_context().get_world_rank() == 0
    with fence.watching() if is_first else nullcontext():
        record = _trained(run, config["meter"], config["began_s"], fence, device)
    if is_first:
        fence.confirm()
        run.folder.write_trial(replace(record, memory={"peak_bytes": peak_resident_bytes()}))


def _trained(run: TrialRun, meter: UsageMeter, began_s: float, fence: Fence, device: torch.device) -> TrialRecord:
    """Train this worker's share; return the trial's record at its end."""
    rank, store = ray.train.get_context().get_world_rank(), fence.fenced_store
    metrics = TrainingMetrics(run)
    trainer = Trainer(
        config=run.trial.config,
        store=store,
        trial=run.trial.id,
        timeout_s=run.trial.footprint.timeout_s,
        device=device,
        open_stream=_nearest_stream(run, f"{run.trial.id}/{rank}"),
        on_evaluation=BoundedReports(run.trial.config.num_steps),
        on_log=metrics.add,
        should_stop=run.early_stopper,
        should_pause=_should_pause(run, meter, fence),
        rank=rank,
        num_ranks=ray.train.get_context().get_world_size(),
    )
    record = new_record(run.trial, status=RUNNING)
    try:
        with metrics if rank == 0 else nullcontext():
            result = trainer.run()
        if rank == 0 and result.ended == "done":  # by one worker alone: the others did their part
            measure_trial(store, trainer.open_stream, run.trial.config.data, device)
        stopper = run.early_stopper if result.ended == "stopped" else None
        stopped = stopped_by(run.store, stopper.rules) if stopper is not None else {}
        return ended_record(record, result, time.time() - began_s, stopped=stopped)
    except (UserError, NonFiniteStepError) as error:  # raised on every rank; another attempt would end the same way
        return replace(record, status=FAILED, reason=str(error))


def _should_pause(run: TrialRun, meter: UsageMeter, fence: Fence) -> Callable[[], str]:
    """Return the function that says why training should save its state and end; called on the first worker."""
    pause, allocator = StopSignal(folder=run.folder, meter=meter, deadline_s=run.deadline_s), run.allocator

    def moving() -> str:
        return MOVING if allocator is not None and allocator.should_move(run.trial.id, run.meshes) else ""

    move = CachedPoll(find=moving, what="whether the trial should move")

    def why() -> str:
        fence.check()
        return pause() or move()

    return why


def _nearest_stream(run: TrialRun, consumer: str) -> OpenStream:
    """Open windows from this node's server, or from the store on a node without one."""
    server = run.servers.get(ray.get_runtime_context().get_node_id())
    if server is not None:
        return lambda spec: ServedWindows(spec, server, consumer)
    chunks = local_chunks(run.cache)
    return lambda spec: LocalWindows(WindowReader(spec, chunks))
