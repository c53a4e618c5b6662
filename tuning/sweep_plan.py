"""Plans a sweep: checks it against its dataset and folder, and chooses meshes; nothing is started."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice

import torch

from lexray.storage.errors import UserError
from lexray.storage.manifest import MANIFEST, Manifest, load_manifest
from lexray.storage.store import Store, reachable
from lexray.storage.stream import local_stream
from lexray.storage.stream_memory import StreamShape
from lexray.training.mesh.device import usable_gpus
from lexray.tuning.endings.budget import BudgetMonitor, budget_monitor, check_budget, check_gpu_hours
from lexray.tuning.endings.early_stopper import check_rungs
from lexray.tuning.expansion import expand, trial_at
from lexray.tuning.file.defaults import with_defaults
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.nodes import Node, refuse_what_never_fits
from lexray.tuning.planning.estimate import Speed
from lexray.tuning.planning.memory_check import refuse_what_has_no_room
from lexray.tuning.planning.mesh_choice import WorkerCapacity, capacities_of, gpu_lines, with_gpus, with_mesh
from lexray.tuning.planning.plan import Machines, Plan, make_plan
from lexray.tuning.planning.row_counts import RowCounts
from lexray.tuning.planning.streams import refuse_streams, shape_of
from lexray.tuning.search.asking import Search, search_of
from lexray.tuning.search.bounds import upper_bound
from lexray.tuning.sweep_folder import SweepFolder
from lexray.tuning.trials import Footprint, Trial

log = logging.getLogger("lexray")


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A validated sweep: its trials, dataset and folder."""

    sweep: SweepFile
    text: str
    """The sweep file as written."""
    manifest: Manifest
    folder: SweepFolder
    trials: list[Trial]
    unfinished: list[Trial]
    """Trials that no earlier run of this sweep finished."""
    counts: RowCounts
    """Row counts of each choice of sites."""
    budget: BudgetMonitor
    """Deadline and caps, counted from the time of planning."""
    search: Search | None = None
    """Search that proposes trials while the sweep runs."""

    @property
    def to_ask(self) -> int:
        """Number of trials yet to be proposed."""
        return self.search.num_left if self.search is not None else 0

    @property
    def num_trials(self) -> int:
        """Number of trials, including those yet to be proposed."""
        return len(self.trials) + self.to_ask

    @property
    def expected(self) -> list[Trial]:
        """Unfinished trials, plus placeholder corner points for trials the search has yet to propose; used to bound
        resources.
        """
        if self.search is None or not self.to_ask:
            return self.unfinished
        bounds = self.search.bounds
        return [*self.unfinished, *islice(cycle(bounds), max(self.to_ask, len(bounds)))]

    def with_asked(self) -> SweepPlan:
        """Return the plan with all proposed trials, after the search ended."""
        asked = self.search.asked if self.search is not None else []
        known = {trial.id for trial in self.trials}
        new = [trial for trial in asked if trial.id not in known]
        return replace(self, trials=[*self.trials, *new], unfinished=[*self.unfinished, *new], search=None)

    def make(self, machines: Machines, speeds: Mapping[str, Speed]) -> Plan:
        """Estimate the resources on these machines, with meshes chosen; `speeds` by kind of trial."""
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
        """Stream shapes of the expected trials, which determine their memory."""
        return [shape_of(trial, self.manifest, self.counts) for trial in self.expected]


def plan_sweep(sweep: SweepFile, text: str) -> SweepPlan:
    """Check a sweep against its dataset and its output, without Ray. Raises UserError in one line."""
    settings = sweep.storage
    data = Store.at(sweep.data.url, settings)
    manifest = load_manifest(data)
    manifest.check_shards(data)
    folder = SweepFolder(Store.at(sweep.output, settings))
    with reachable("output", folder.store.url):
        sweep, text = with_defaults(sweep, text, folder.store)
    counts = RowCounts()
    trials = expand(sweep, manifest, counts.training)
    with reachable("output", folder.store.url):
        holds_dataset = folder.store.exists(MANIFEST)
    if holds_dataset:
        raise UserError(f"output: {folder.store.url} holds a dataset; choose another folder for the sweep")
    folder.store.check_writable("output")
    rules = sweep.stop
    stop_rules = rules.model_dump() if rules is not None else None
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
    budget = budget_monitor(sweep, folder, now_s)
    if unfinished or (search is not None and search.num_left):
        check_budget(sweep, budget, possible, now_s)
    return SweepPlan(
        sweep=sweep,
        text=text,
        manifest=manifest,
        folder=folder,
        trials=trials,
        unfinished=unfinished,
        counts=counts,
        budget=budget,
        search=search,
    )


def _check_nonnegative(trials: list[Trial]) -> None:
    """Refuse negative activations for architectures that need nonnegative ones, judged by the first batch."""
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


def with_meshes(plan: SweepPlan, nodes: Sequence[Node]) -> SweepPlan:
    """Return the plan with open GPUs and meshes chosen. Raises UserError where none fits."""
    gpu_bytes = gpu_bytes_of(plan.sweep)

    def capacities(footprint: Footprint) -> list[WorkerCapacity]:
        return capacities_of(nodes, footprint, gpu_bytes)

    def decide(trial: Trial) -> Trial:
        return with_mesh(with_gpus(trial, nodes), plan.manifest, capacities)

    def fit(trial: Trial) -> Trial:
        fitted = decide(trial)
        refuse_what_never_fits([fitted], nodes)
        refuse_what_has_no_room([fitted], plan.manifest, nodes, gpu_bytes)
        return fitted

    decided = [decide(trial) for trial in plan.unfinished]
    for line in gpu_lines(plan.unfinished, decided, nodes):
        log.info("%s", line)
    for trial in (now for before, now in zip(plan.unfinished, decided, strict=True) if before.auto_mesh):
        mesh = trial.config.mesh
        log.info(
            "%s: a mesh of %d x %d workers (data x feature), ZeRO %d", trial.name, mesh.data, mesh.feature, mesh.stage
        )
    search = plan.search.fitted(fit) if plan.search is not None and plan.to_ask else plan.search
    plan = replace(plan, unfinished=decided, search=search)
    if plan.expected:
        check_gpu_hours(plan.sweep, plan.expected)
    return plan


def check_room(plan: SweepPlan, machines: Machines) -> SweepPlan:
    """Return the plan with its GPUs and meshes chosen for these machines. Nothing is started or written.

    Raises UserError for workers that fit no node's CPUs, GPUs or memory, and for windows that fit no object store.
    """
    plan = with_meshes(plan, machines.nodes)
    refuse_what_never_fits(plan.unfinished, machines.nodes)
    refuse_what_has_no_room(plan.unfinished, plan.manifest, machines.nodes, gpu_bytes_of(plan.sweep))
    refuse_streams(plan.expected, plan.shapes, machines.nodes, machines.object_store_bytes)
    return plan


def gpu_bytes_of(sweep: SweepFile) -> int | None:
    """Return a GPU's memory from the sweep file, or else of the first one here; Ray does not report others."""
    if sweep.resources.gpu_memory_gib is not None:
        return round(sweep.resources.gpu_memory_gib * 2**30)
    asked = [sweep.resources.gpus_per_worker, *(rule.set.get("gpus_per_worker", 0) for rule in sweep.rules)]
    # A driver that no trial asks for a GPU starts none: it may be broken, and its start takes memory there.
    return torch.cuda.get_device_properties(0).total_memory if any(asked) and usable_gpus() else None
