"""Run a sweep: check everything, train what is unfinished by Ray Tune, write the results."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pandas as pd
import ray
import torch
from ray import tune

from storage.chunk_cache import CacheSettings
from storage.errors import UserError
from storage.manifest import MANIFEST, Manifest, load_manifest
from storage.store import Store, reachable
from storage.stream import local_stream
from storage.stream_memory import StreamShape
from tuning.driver import Driver, unclaimed
from tuning.endings.ends import Ends, check_ends, ends_of
from tuning.endings.verdicts import Judge, check_rungs, judge_of_all, judges
from tuning.file.sweep_file import SweepFile
from tuning.placement.nodes import Node, refuse_what_never_fits
from tuning.placement.placer import ON_HEAD
from tuning.placement.rooms import Rooms, placing
from tuning.placement.wishes import wishes_of
from tuning.planning.forecast import Speed
from tuning.planning.mesh_choice import Room, rooms_of, with_mesh
from tuning.planning.plan import Machines, Plan, make_plan
from tuning.planning.plan_record import known_speeds, write_plan
from tuning.planning.room import refuse_what_has_no_room
from tuning.planning.row_counts import RowCounts
from tuning.results.report import build_results
from tuning.search.asking import Search, search_of
from tuning.search.bounds import upper_bound
from tuning.sweep_folder import FAILED, PENDING, RUNNING, SweepFolder
from tuning.trial import TrialRun, new_record, run_trial
from tuning.trial_queue import TrialQueue
from tuning.trials import Footprint, Trial, expand, trial_at
from tuning.views.follow import Follower, FollowThread
from tuning.window_servers import WindowServers, shape_of

log = logging.getLogger("lexray")

DRIVER_BYTES = 256 * 2**20
"""Memory of the process that waits for a trial's workers."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A checked sweep: what will be trained, on what, into which folder."""

    sweep: SweepFile
    text: str
    """The sweep file as written."""
    manifest: Manifest
    folder: SweepFolder
    trials: list[Trial]
    unfinished: list[Trial]
    """Those that no earlier run of this sweep finished."""
    counts: RowCounts
    """Rows that each choice of sites has."""
    ends: Ends
    """Deadline and caps, counted from the plan on."""
    search: Search | None = None
    """Of the trials that are chosen while the sweep runs."""

    @property
    def to_ask(self) -> int:
        """Trials that are not chosen yet."""
        return self.search.num_left if self.search is not None else 0

    @property
    def num_trials(self) -> int:
        """With those that are not chosen yet."""
        return len(self.trials) + self.to_ask

    @property
    def expected(self) -> list[Trial]:
        """Unfinished trials, and for those that are not chosen yet as many between which they will lie, or more."""
        if self.search is None or not self.to_ask:
            return self.unfinished
        bounds = self.search.bounds
        return [*self.unfinished, *islice(cycle(bounds), max(self.to_ask, len(bounds)))]

    def with_asked(self) -> SweepPlan:
        """The same once all trials were chosen."""
        asked = self.search.asked if self.search is not None else []
        known = {trial.id for trial in self.trials}
        new = [trial for trial in asked if trial.id not in known]
        return replace(self, trials=[*self.trials, *new], unfinished=[*self.unfinished, *new], search=None)

    def make(self, machines: Machines, speeds: Mapping[str, Speed]) -> Plan:
        """What it takes on these machines, once its meshes are chosen; `speeds` by kind of trial."""
        decided = {trial.id: trial for trial in self.unfinished}

        def plan_of(besides: Sequence[Trial]) -> Plan:
            return make_plan(
                [*(decided.get(trial.id, trial) for trial in self.trials), *besides],
                [*decided, *(trial.id for trial in besides)],
                self.manifest,
                self.counts,
                machines,
                speeds=speeds,
                prices=self.sweep.prices,
                cache_bytes=self.sweep.cache.bytes if self.sweep.cache is not None else 0,
            )

        if self.search is None or not self.to_ask:
            return plan_of([])
        return upper_bound(plan_of, self.search.bounds, self.to_ask)

    @property
    def shapes(self) -> list[StreamShape]:
        """What decides the memory of the streams of each expected trial."""
        return [shape_of(trial, self.manifest, self.counts) for trial in self.expected]


def plan_sweep(sweep: SweepFile, text: str) -> SweepPlan:
    """Check a sweep against its dataset and its output, without Ray. Raises UserError in one line."""
    settings = sweep.storage.settings
    data = Store.at(sweep.data.url, settings)
    manifest = load_manifest(data)
    manifest.check_shards(data)
    counts = RowCounts()
    trials = expand(sweep, manifest, counts.training)
    folder = SweepFolder(Store.at(sweep.output, settings))
    with reachable("output", folder.store.url):
        holds_dataset = folder.store.exists(MANIFEST)
    if holds_dataset:
        raise UserError(f"output: {folder.store.url} holds a dataset; choose another folder for the sweep")
    folder.store.check_writable("output")
    rules = sweep.stop.rules if sweep.stop is not None else None
    stop_rules = asdict(rules) if rules is not None else None
    search = None
    if sweep.search.kind == "optuna":
        search = search_of(sweep, folder, partial(trial_at, sweep, manifest, counts.training), trials, stop_rules)
        trials = [*trials, *search.asked]
    possible = [*trials, *(search.bounds if search is not None else [])]
    for trial in possible:
        counts.held_out(trial.config.data)
    _check_nonnegative(possible)
    if rules is not None:
        check_rungs(rules, possible)
    unfinished = [trial for trial in trials if not folder.is_finished(trial.id, stop_rules)]
    if search is not None:
        to_do = {trial.id for trial in unfinished}
        search.told(*(trial for trial in trials if trial.id not in to_do))
    now_s = time.time()
    ends = ends_of(sweep, folder, now_s)
    if unfinished or (search is not None and search.num_left):
        check_ends(sweep, ends, possible, now_s)
    return SweepPlan(
        sweep=sweep,
        text=text,
        manifest=manifest,
        folder=folder,
        trials=trials,
        unfinished=unfinished,
        counts=counts,
        ends=ends,
        search=search,
    )


def _check_nonnegative(trials: list[Trial]) -> None:
    """Refuse negative activations where an architecture does, as far as the first batch shows them."""
    configs = {t.config.data.sites: t.config.data for t in trials if t.config.dictionary.needs_nonnegative}
    for data in configs.values():
        first = local_stream(data.stream_spec("train"), batch_rows=data.batch_rows).batch(0)
        for site in data.inputs:
            lowest = float(first.vectors[site].min())
            if lowest < 0:
                raise UserError(
                    f"architecture: nmf needs activations that are not negative, site {site!r} has {lowest:.3g}; "
                    "use snmf, or options.nmf.signed_input: split"
                )


def run_sweep(plan: SweepPlan, followers: Sequence[Follower], driver: Driver | None = None) -> pd.DataFrame:
    """Train what is unfinished on the connected Ray cluster; write and return the frontier table.

    `driver` claims the sweep's folder once nothing is refused any more; None: nobody is told of this run.
    """
    nodes = cluster_nodes() if plan.expected else {}
    plan = with_meshes(plan, list(nodes.values()))
    refuse_what_never_fits(plan.unfinished, list(nodes.values()))
    machines = connected_machines() if plan.expected else None
    if machines is not None:
        refuse_what_has_no_room(plan.unfinished, plan.manifest, machines.nodes, gpu_bytes_of(plan.sweep))
    with driver if driver is not None else unclaimed(plan.folder.store):
        if machines is not None:
            speeds = known_speeds(plan.folder, [trial.id for trial in plan.trials])
            write_plan(plan.folder.store, plan.make(machines, speeds))
        plan.folder.store.write("sweep.yaml", plan.text.encode())
        if plan.expected:
            _train(plan, nodes, followers, driver)
        if plan.search is not None:
            plan = plan.with_asked()
            if machines is not None:
                write_plan(plan.folder.store, plan.make(machines, speeds))
        return build_results(plan.folder, [trial.id for trial in plan.trials])


def _train(plan: SweepPlan, nodes: dict[str, Node], followers: Sequence[Follower], driver: Driver | None) -> None:
    cache = plan.sweep.cache.settings if plan.sweep.cache is not None else None
    servers = WindowServers(trials=plan.expected, shapes=plan.shapes, cache=cache)
    servers.check(nodes)
    with (
        placing(servers) as rooms,
        FollowThread(folder=plan.folder, followers=followers) as follow,
        plan.ends as ends,
    ):
        if driver is not None:
            driver.waiting = rooms.waiting
        _tune(plan, _runs(plan, rooms, list(nodes.values()), cache), rooms, follow, ends)
        _close_unfinished(plan.with_asked())


def with_meshes(plan: SweepPlan, nodes: Sequence[Node]) -> SweepPlan:
    """The plan with the meshes chosen that the sweep file leaves open. Raises UserError where none fits."""
    gpu_bytes = gpu_bytes_of(plan.sweep)

    def rooms(footprint: Footprint) -> list[Room]:
        return rooms_of(nodes, footprint, gpu_bytes)

    def fit(trial: Trial) -> Trial:
        fitted = with_mesh(trial, plan.manifest, rooms)
        refuse_what_never_fits([fitted], nodes)
        refuse_what_has_no_room([fitted], plan.manifest, nodes, gpu_bytes)
        return fitted

    decided = [with_mesh(trial, plan.manifest, rooms) for trial in plan.unfinished]
    for trial in (now for before, now in zip(plan.unfinished, decided, strict=True) if before.auto_mesh):
        mesh = trial.config.mesh
        log.info(
            "%s: a mesh of %d x %d workers (data x feature), ZeRO %d", trial.name, mesh.data, mesh.feature, mesh.stage
        )
    search = plan.search.fitted(fit) if plan.search is not None and plan.to_ask else plan.search
    return replace(plan, unfinished=decided, search=search)


def gpu_bytes_of(sweep: SweepFile) -> int | None:
    """Memory of a GPU as the file says, else of the first one here; Ray does not know that of others."""
    if sweep.resources.gpu_memory_gib is not None:
        return round(sweep.resources.gpu_memory_gib * 2**30)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _runs(plan: SweepPlan, rooms: Rooms, nodes: list[Node], cache: CacheSettings | None) -> Callable[[Trial], TrialRun]:
    """What runs a trial of the sweep."""
    judge_of = _judge_of(plan)
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
            rooms=rooms,
            wishes=wishes_of(trial, plan.sweep.resources.elastic, has_room),
            cache=cache,
            retries=plan.sweep.retries,
            judge=judge_of(trial),
            deadline_s=plan.ends.deadline_s,
            ray_storage_path=_ray_storage_path(plan.folder.store),
        )

    return run_of


def _judge_of(plan: SweepPlan) -> Callable[[Trial], Judge | None]:
    stop = plan.sweep.stop
    if stop is None:
        return lambda trial: None
    if plan.search is not None:
        return lambda trial: judge_of_all(plan.folder, trial, stop.rules)
    known = judges(plan.folder, plan.trials, stop.rules)
    return lambda trial: known[trial.id]


@dataclass(frozen=True)
class _Asked:
    """Runs of the trials that a search chooses, see `tuning.trial_queue.Source`."""

    search: Search
    run_of: Callable[[Trial], TrialRun]

    @property
    def smallest(self) -> Footprint:
        return min((trial.footprint for trial in self.search.bounds), key=lambda f: (f.gpus, f.cpus))

    def ask(self) -> list[TrialRun]:
        trial = self.search.ask()
        return [] if trial is None else [self.run_of(trial)]


def _tune(plan: SweepPlan, run_of: Callable[[Trial], TrialRun], rooms: Rooms, follow: FollowThread, ends: Ends) -> None:
    def changed(run: TrialRun, started: bool) -> None:
        ends.changed(run.trial, started)
        if plan.search is not None and not started:
            plan.search.told(run.trial)
        follow.changed(run, started)

    runs = [run_of(trial) for trial in plan.unfinished]
    source = _Asked(plan.search, run_of) if plan.search is not None else None

    # A trial's function only waits for its workers, whose CPUs the placer counts: all it takes itself is memory, of the
    # node that stays as long as the cluster.
    trainable = tune.with_resources(run_trial, tune.PlacementGroupFactory([{"memory": DRIVER_BYTES, **ON_HEAD}]))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=TrialQueue(runs, rooms, changed, lambda: bool(ends.reached()), source),
            num_samples=len(runs) + plan.to_ask,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=_ray_storage_path(plan.folder.store),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=plan.sweep.retries),
        ),
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Tune prints even when told not to
        tuner.fit()


def _close_unfinished(plan: SweepPlan) -> None:
    """A trial whose process died without a word is written down as failed, and those that never started as pending."""
    reached = plan.ends.reached()
    for trial in plan.unfinished:
        record = plan.folder.read_trial(trial.id)
        status = record.status if record is not None else PENDING
        if status == PENDING and reached:
            reason = f"not started ({reached}); run the sweep again to train it"
            plan.folder.write_trial(replace(new_record(trial, status=PENDING), reason=reason))
        elif status in (PENDING, RUNNING):
            reason = "its process ended without a word; run the sweep again to continue it"
            plan.folder.write_trial(replace(new_record(trial, status=FAILED), reason=reason))


def cluster_nodes() -> dict[str, Node]:
    """The living nodes of the connected cluster, by node id."""
    return {
        node["NodeID"]: Node(*(node["Resources"].get(resource, 0.0) for resource in ("CPU", "GPU", "memory")))
        for node in ray.nodes()
        if node["Alive"]
    }


def connected_machines() -> Machines:
    """What the connected cluster is made of."""
    stores = {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in ray.nodes()}
    nodes = cluster_nodes()
    return Machines(nodes=list(nodes.values()), object_store_bytes=[stores[node_id] for node_id in nodes])


def _ray_storage_path(store: Store) -> str:
    """Where Ray may keep files of its own: beside a local sweep, else on this machine. It is a cache."""
    if store.local_path is not None:
        return str(Path(store.local_path) / ".ray")
    return os.path.expanduser("~/.cache/lexray/ray")


logging.getLogger("ray.tune").setLevel(logging.ERROR)
logging.getLogger("ray.train").setLevel(logging.ERROR)
