"""Run a sweep: check everything, train what is unfinished by Ray Tune, write the results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.errors import UserError
from lexray.tuning.driver import Driver, unclaimed
from lexray.tuning.endings.early_stopper import EarlyStopper, early_stopper_of, early_stoppers
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.memory_check import refuse_what_has_no_room
from lexray.tuning.planning.mesh_choice import mesh_options_of
from lexray.tuning.planning.plan_file import known_speeds, write_plan
from lexray.tuning.ray_backend.allocator_client import AllocatorClient, placing
from lexray.tuning.ray_backend.cluster_view import cluster_machines, living_nodes
from lexray.tuning.ray_backend.metrics import StatusMetrics
from lexray.tuning.ray_backend.publisher import publish_server
from lexray.tuning.ray_backend.trial import run_trial
from lexray.tuning.ray_backend.trial_queue import TrialQueue
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.ray_backend.tuner import Work, ray_storage_path, tune_trials
from lexray.tuning.ray_backend.window_servers import WindowServers
from lexray.tuning.records import new_record
from lexray.tuning.results.provenance import write_dataset
from lexray.tuning.results.report import build_results
from lexray.tuning.search.asking import Search
from lexray.tuning.sweep_folder import FAILED, MOVING, PENDING, RUNNING
from lexray.tuning.sweep_plan import SweepPlan, check_room, gpu_bytes_of
from lexray.tuning.trials import Footprint, Trial
from lexray.tuning.views.follow import FollowThread, Listener

log = logging.getLogger("lexray")


def run_sweep(
    plan: SweepPlan, listeners: Sequence[Listener], driver: Driver | None = None, *, work: Work = run_trial
) -> pd.DataFrame:
    """Train what is unfinished on the connected Ray cluster; write and return the frontier table.

    `driver` claims the sweep's folder once nothing is refused any more; None: nobody is told of this run. `work` is
    what is done for each trial.
    """
    machines = cluster_machines() if plan.expected else None
    if machines is not None:
        plan = check_room(plan, machines)
        servers = _window_servers(plan)
        costs = servers.check(living_nodes())
    with driver if driver is not None else unclaimed(plan.folder.store):
        if machines is not None:
            speeds = known_speeds(plan.folder, [trial.id for trial in plan.trials])
            write_plan(plan.folder.store, plan.make(machines, speeds))
        plan.folder.store.write("sweep.yaml", plan.text.encode())
        write_dataset(plan.folder.store, plan.sweep.data.url, plan.manifest)
        if machines is not None:
            for line in costs:
                log.info("%s", line)
            _run_trials(plan, machines.nodes, servers, listeners, driver, work)
        if plan.search is not None:
            plan = plan.with_asked()
            if machines is not None:
                write_plan(plan.folder.store, plan.make(machines, speeds))
        return build_results(plan.folder, [trial.id for trial in plan.trials])


def _window_servers(plan: SweepPlan) -> WindowServers:
    cache = plan.sweep.cache
    publish = partial(publish_server, plan.sweep.name)
    return WindowServers(trials=plan.expected, shapes=plan.shapes, cache=cache, publish=publish)


def _run_trials(
    plan: SweepPlan,
    nodes: list[Node],
    servers: WindowServers,
    listeners: Sequence[Listener],
    driver: Driver | None,
    work: Work,
) -> None:
    num_finished = len(plan.trials) - len(plan.unfinished)
    statuses = StatusMetrics(sweep=plan.sweep.name, num_trials=plan.num_trials, num_finished=num_finished)
    with (
        placing(servers, plan.sweep.resources.wait_at_most_s) as allocator,
        FollowThread(folder=plan.folder, listeners=[*listeners, statuses]) as follow,
        plan.budget as budget,
    ):
        if driver is not None:
            driver.waiting, driver.launch_failures = allocator.waiting, allocator.launch_failures

        def changed(run: TrialRun, started: bool) -> None:
            budget.changed(run.trial, started)
            if plan.search is not None and not started:
                plan.search.told(run.trial)
            follow.changed(run, started)

        storage_path = ray_storage_path(plan.folder.store)
        run_of = _runs(plan, allocator, nodes, servers.cache, storage_path)
        runs = [run_of(trial) for trial in plan.unfinished]
        source = _Asked(plan.search, run_of) if plan.search is not None else None
        queue = TrialQueue(runs, allocator, changed, lambda: bool(budget.reached()), source)
        tune_trials(
            work,
            queue,
            num_trials=len(runs) + plan.to_ask,
            retries=plan.sweep.retries,
            storage_path=storage_path,
        )
        _close_unfinished(plan.with_asked())


def _runs(
    plan: SweepPlan, allocator: AllocatorClient, nodes: list[Node], cache: CacheSettings | None, storage_path: str
) -> Callable[[Trial], TrialRun]:
    """Return the function that prepares a trial of the sweep for Ray."""
    stopper_of = _early_stopper_of(plan)
    gpu_bytes = gpu_bytes_of(plan.sweep)

    def has_room(trial: Trial) -> bool:
        try:
            refuse_what_has_no_room([trial], plan.manifest, nodes, gpu_bytes)
        except UserError:
            return False
        return True

    def run_of(trial: Trial) -> TrialRun:
        return TrialRun(
            trial=trial,
            folder=plan.folder,
            sweep=plan.sweep.name,
            allocator=allocator,
            mesh_options=mesh_options_of(trial, plan.sweep.resources.elastic, has_room),
            cache=cache,
            retries=plan.sweep.retries,
            early_stopper=stopper_of(trial),
            deadline_s=plan.budget.deadline_s,
            ray_storage_path=storage_path,
        )

    return run_of


def _early_stopper_of(plan: SweepPlan) -> Callable[[Trial], EarlyStopper | None]:
    stop = plan.sweep.stop
    if stop is None:
        return lambda trial: None
    if plan.search is not None:
        return lambda trial: early_stopper_of(plan.folder, trial, stop)
    known = early_stoppers(plan.folder, plan.trials, stop)
    return lambda trial: known[trial.id]


@dataclass(frozen=True)
class _Asked:
    """Runs of the trials that a search chooses, see `lexray.tuning.ray_backend.trial_queue.Source`."""

    search: Search
    run_of: Callable[[Trial], TrialRun]

    @property
    def smallest(self) -> Footprint:
        return min((trial.footprint for trial in self.search.bounds), key=lambda f: (f.gpus, f.cpus))

    def ask(self) -> list[TrialRun]:
        trial = self.search.ask()
        return [] if trial is None else [self.run_of(trial)]


def _close_unfinished(plan: SweepPlan) -> None:
    """A trial whose process died without a word is written down as failed, and those that never started as pending."""
    reached = plan.budget.reached()
    for trial in plan.unfinished:
        record = plan.folder.read_trial(trial.id)
        status = record.status if record is not None else PENDING
        if status == PENDING and reached:
            reason = f"not started ({reached}); run the sweep again to train it"
            plan.folder.write_trial(replace(new_record(trial, status=PENDING), reason=reason))
        elif status in (PENDING, RUNNING, MOVING):
            reason = "its process ended without a word; run the sweep again to continue it"
            plan.folder.write_trial(replace(new_record(trial, status=FAILED), reason=reason))
