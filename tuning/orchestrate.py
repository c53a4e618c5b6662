"""Run a sweep: check everything, train what is unfinished by Ray Tune, write the results."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from tuning.endings.verdicts import check_rungs, judges
from tuning.file.sweep_file import SweepFile
from tuning.placement.nodes import Node, refuse_what_never_fits
from tuning.planning.forecast import Speed
from tuning.planning.mesh_choice import Room, rooms_of, with_mesh
from tuning.planning.plan import Machines, Plan, make_plan
from tuning.planning.plan_record import known_speeds, write_plan
from tuning.planning.room import refuse_what_has_no_room
from tuning.planning.row_counts import RowCounts
from tuning.results.report import build_results
from tuning.sweep_folder import FAILED, PENDING, RUNNING, SweepFolder
from tuning.trial import TrialRun, new_record, run_trial
from tuning.trial_queue import TrialQueue
from tuning.trials import Footprint, Trial, expand
from tuning.views.follow import Follower, FollowThread
from tuning.window_servers import shape_of, window_servers

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

    def make(self, machines: Machines, speeds: Mapping[str, Speed]) -> Plan:
        """What it takes on these machines, once its meshes are chosen; `speeds` by kind of trial."""
        decided = {trial.id: trial for trial in self.unfinished}
        return make_plan(
            [decided.get(trial.id, trial) for trial in self.trials],
            list(decided),
            self.manifest,
            self.counts,
            machines,
            speeds=speeds,
            prices=self.sweep.prices,
            cache_bytes=self.sweep.cache.bytes if self.sweep.cache is not None else 0,
        )

    @property
    def shapes(self) -> list[StreamShape]:
        """What decides the memory of the streams of each unfinished trial."""
        return [shape_of(trial, self.manifest, self.counts) for trial in self.unfinished]


def plan_sweep(sweep: SweepFile, text: str) -> SweepPlan:
    """Check a sweep against its dataset and its output, without Ray. Raises UserError in one line."""
    settings = sweep.storage.settings
    data = Store.at(sweep.data.url, settings)
    manifest = load_manifest(data)
    manifest.check_shards(data)
    counts = RowCounts()
    trials = expand(sweep, manifest, counts.training)
    for trial in trials:
        counts.held_out(trial.config.data)
    _check_nonnegative(trials)
    folder = SweepFolder(Store.at(sweep.output, settings))
    with reachable("output", folder.store.url):
        holds_dataset = folder.store.exists(MANIFEST)
    if holds_dataset:
        raise UserError(f"output: {folder.store.url} holds a dataset; choose another folder for the sweep")
    folder.store.check_writable("output")
    rules = sweep.stop.rules if sweep.stop is not None else None
    if rules is not None:
        check_rungs(rules, trials)
    stop_rules = asdict(rules) if rules is not None else None
    unfinished = [trial for trial in trials if not folder.is_finished(trial.id, stop_rules)]
    now_s = time.time()
    ends = ends_of(sweep, folder, now_s)
    if unfinished:
        check_ends(sweep, ends, trials, now_s)
    return SweepPlan(
        sweep=sweep,
        text=text,
        manifest=manifest,
        folder=folder,
        trials=trials,
        unfinished=unfinished,
        counts=counts,
        ends=ends,
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
    nodes = cluster_nodes() if plan.unfinished else {}
    plan = with_meshes(plan, list(nodes.values()))
    refuse_what_never_fits(plan.unfinished, list(nodes.values()))
    machines = connected_machines() if plan.unfinished else None
    if machines is not None:
        refuse_what_has_no_room(plan.unfinished, plan.manifest, machines.nodes, gpu_bytes_of(plan.sweep))
    with driver if driver is not None else unclaimed(plan.folder.store):
        if machines is not None:
            speeds = known_speeds(plan.folder, [trial.id for trial in plan.trials])
            write_plan(plan.folder.store, plan.make(machines, speeds))
        plan.folder.store.write("sweep.yaml", plan.text.encode())
        if plan.unfinished:
            _train(plan, nodes, followers)
        return build_results(plan.folder, [trial.id for trial in plan.trials])


def _train(plan: SweepPlan, nodes: dict[str, Node], followers: Sequence[Follower]) -> None:
    cache = plan.sweep.cache.settings if plan.sweep.cache is not None else None
    with (
        window_servers(plan.unfinished, plan.shapes, nodes, cache) as servers,
        FollowThread(folder=plan.folder, followers=followers) as follow,
        plan.ends as ends,
    ):
        _tune(_runs(plan, servers, cache), list(nodes.values()), follow, ends)
        _close_unfinished(plan)


def with_meshes(plan: SweepPlan, nodes: Sequence[Node]) -> SweepPlan:
    """The plan with the meshes chosen that the sweep file leaves open. Raises UserError where none fits."""
    gpu_bytes = gpu_bytes_of(plan.sweep)

    def rooms(footprint: Footprint) -> list[Room]:
        return rooms_of(nodes, footprint, gpu_bytes)

    decided = [with_mesh(trial, plan.manifest, rooms) for trial in plan.unfinished]
    for trial in (now for before, now in zip(plan.unfinished, decided, strict=True) if before.auto_mesh):
        mesh = trial.config.mesh
        log.info(
            "%s: a mesh of %d x %d workers (data x feature), ZeRO %d", trial.name, mesh.data, mesh.feature, mesh.stage
        )
    return replace(plan, unfinished=decided)


def gpu_bytes_of(sweep: SweepFile) -> int | None:
    """Memory of a GPU as the file says, else of the first one here; Ray does not know that of others."""
    if sweep.resources.gpu_memory_gib is not None:
        return round(sweep.resources.gpu_memory_gib * 2**30)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _runs(plan: SweepPlan, servers: dict[str, Any], cache: CacheSettings | None) -> list[TrialRun]:
    stop = plan.sweep.stop
    judge_of = judges(plan.folder, plan.trials, stop.rules) if stop is not None else {}
    return [
        TrialRun(
            trial=trial,
            folder=plan.folder,
            servers=servers,
            cache=cache,
            retries=plan.sweep.retries,
            judge=judge_of.get(trial.id),
            deadline_s=plan.ends.deadline_s,
            ray_storage_path=_ray_storage_path(plan.folder.store),
        )
        for trial in plan.unfinished
    ]


def _tune(runs: list[TrialRun], nodes: list[Node], follow: FollowThread, ends: Ends) -> None:
    def changed(run: TrialRun, started: bool) -> None:
        ends.changed(run.trial, started)
        follow.changed(run, started)

    # A trial's function only waits for its workers, whose CPUs the queue counts: all it takes itself is memory.
    trainable = tune.with_resources(run_trial, tune.PlacementGroupFactory([{"memory": DRIVER_BYTES}]))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=TrialQueue(runs, nodes, changed, lambda: bool(ends.reached())),
            num_samples=len(runs),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=runs[0].ray_storage_path, verbose=0),
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Tune prints even when told not to
        tuner.fit()


def _close_unfinished(plan: SweepPlan) -> None:
    """A trial whose process died without a word is written down as failed, and those that never started as pending."""
    reached = plan.ends.reached()
    for trial in plan.unfinished:
        record = plan.folder.read_trial(trial.id)
        if record is None and reached:
            reason = f"not started ({reached}); run the sweep again to train it"
            plan.folder.write_trial(replace(new_record(trial, status=PENDING), reason=reason))
        elif record is None or record.status == RUNNING:
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
