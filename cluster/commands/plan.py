"""`lexray plan`: what a sweep would take, before anything starts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lexray.cluster.consoles import TextConsole, say
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.config_file import read_config_file, read_text
from lexray.storage.errors import UserError
from lexray.storage.units import size
from lexray.tuning.placement.memory_split import STORE_SHARE

if TYPE_CHECKING:
    from lexray.tuning.planning.estimate import Speed
    from lexray.tuning.planning.plan import Machines, Plan, TrialPlan
    from lexray.tuning.sweep_plan import SweepPlan
    from lexray.tuning.trials import Trial

plan_app = typer.Typer()

MEASURE_S = 1.0
"""Seconds in which the steps of a kind of trial are timed, in each round."""
ROUNDS = 2
"""Timing rounds; the fastest counts, so that other load on the machine is ignored."""
OBJECT_STORE_MAX_BYTES, SHM_SHARE = 200 * 10**9, 0.95
"""Ray's object store takes its share of a machine's free memory, at most so many bytes, and no more than this share of
/dev/shm."""
UNKNOWN = "unknown: run with --measure"


@plan_app.command("plan")
def plan_command(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to plan for; without it this machine.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time some steps of each kind of trial here.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a sweep would train, need of memory, read, take and cost, before anything starts.

    Refuses what a sweep would, and a cap that is too low. With --measure the speeds are kept in the sweep's folder.

    Example: lexray plan examples/quickstart/sweep.yaml --measure
    """
    from lexray.tuning.file.sweep_file import SweepFile
    from lexray.tuning.planning.plan_file import known_speeds, write_plan
    from lexray.tuning.sweep_plan import check_room, plan_sweep

    sweep = read_config_file(str(file), SweepFile)
    plan = plan_sweep(sweep, read_text(str(file)))
    machines = this_machine() if address is None else _cluster(address, messages)
    plan = check_room(plan, machines)
    speeds = known_speeds(plan.folder, [trial.id for trial in plan.trials])
    if measure:
        speeds |= measured_speeds(plan, speeds, messages)
    made = plan.make(machines, speeds)
    _refuse_over_cap(plan, made)
    if measure:
        write_plan(plan.folder.store, made)
        say(messages, f"kept {plan.folder.store.url}/plan.json")
    if as_json:
        print_json(made.to_dict())
        return
    print_plan(made)


def this_machine() -> Machines:
    """Return the resources that Ray would detect on this machine, without starting it."""
    import psutil

    from lexray.storage.stream_memory import node_memory
    from lexray.training.mesh.device import usable_gpus
    from lexray.tuning.placement.nodes import HEAD, Node, trials_on_head
    from lexray.tuning.planning.plan import Machines

    memory = node_memory()
    free = min(memory.machine, psutil.virtual_memory().available)
    store = min(int(STORE_SHARE * free), OBJECT_STORE_MAX_BYTES)
    if memory.shared is not None:
        store = min(store, int(SHM_SHARE * memory.shared))
    node = Node(_cpus(), float(usable_gpus()), float(free - store))
    most = trials_on_head([{HEAD: 1.0, "memory": node.memory_bytes}])
    return Machines(nodes=[node], object_store_bytes=[store], trials_on_head=most)


def _cpus() -> float:
    """Return the CPUs of the machine, or the container's quota if that is lower."""
    cpus = float(os.cpu_count() or 1)
    with suppress(OSError, ValueError):  # absent, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, float(max(1, int(quota) // int(period))))
    return cpus


def _cluster(address: str, messages: Console) -> Machines:
    from lexray.cluster.ray_backend.connect import connected
    from lexray.tuning.ray_backend.cluster_view import cluster_machines

    with messages.status(f"joining {address}"), connected(address):
        return cluster_machines()


# Speeds --------------------------------------------------------------------------------------------------------------


def measured_speeds(plan: SweepPlan, known: Mapping[str, Speed], messages: Console) -> dict[str, Speed]:
    """Time real steps of each kind of unfinished trial that no finished trial has timed, under a realistic load.

    Meshes are assumed to scale linearly.
    """
    from lexray.cluster.commands.background_load import background_load
    from lexray.training.mesh.device import usable_gpus
    from lexray.tuning.planning.estimate import kind_of
    from lexray.tuning.search.bounds import largest

    bounds = largest(plan.search.bounds) if plan.search is not None and plan.to_ask else []
    kinds = {kind_of(trial.config): trial for trial in (*plan.unfinished, *bounds)}
    wanted = {kind: t for kind, t in kinds.items() if kind not in known or known[kind].source == "measured"}
    found: dict[str, Speed] = {}
    if not usable_gpus() and (elsewhere := [kind for kind, trial in wanted.items() if trial.footprint.on_gpu]):
        messages.print(f"not timed: {len(elsewhere)} kind(s) of trial train on GPUs, and this machine has none")
        wanted = {kind: trial for kind, trial in wanted.items() if kind not in elsewhere}
    if not wanted:
        return found
    threads = max(1, int(min(trial.footprint.cpus_per_worker for trial in wanted.values())))
    together = min(sum(t.footprint.workers for t in plan.expected), int(_cpus() // threads))
    others = 0 if any(trial.footprint.on_gpu for trial in wanted.values()) else max(0, together - 1)
    wanted = dict(sorted(wanted.items(), key=lambda item: not item[1].footprint.on_gpu))  # a group for NCCL serves both
    width = max(site.width for site in plan.manifest.sites.values())
    with messages.status("timing steps"), background_load(others, threads=threads, site_width=width):
        for _ in range(ROUNDS):
            for kind, trial in wanted.items():
                once = _measured(plan, trial)
                found[kind] = max(found.get(kind, once), once, key=lambda speed: speed.rows_per_s)
    return found


def _measured(plan: SweepPlan, trial: Trial) -> Speed:
    """Time one worker with its share of cores, and scale its speed to the trial's whole mesh."""
    import torch

    from lexray.cluster.commands.step_timer import StepTimer
    from lexray.training.mesh.device import CPU, device_of_command
    from lexray.tuning.planning.estimate import Speed

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(trial.footprint.cpus_per_worker)))  # as Ray lets a worker have them
    try:
        device = device_of_command() if trial.footprint.on_gpu else CPU
        timer = StepTimer(trial.config.data, trial.config.dictionary, plan.manifest, trial.config.optimizer, device)
        trained, evaluated = timer.trained_rows_per_s(MEASURE_S), timer.evaluated_rows_per_s(MEASURE_S / 4)
    finally:
        torch.set_num_threads(threads)
    workers = trial.footprint.workers
    return Speed(rows_per_s=workers * trained, evaluated_rows_per_s=workers * evaluated, source="measured")


def _refuse_over_cap(plan: SweepPlan, made: Plan) -> None:
    """Refuse a sweep whose estimate exceeds its cap; with early stopping or a search the sweep itself enforces it."""
    if plan.sweep.stop is not None or made.chosen_later:
        return
    for field, cap, hours in (
        ("gpu_hours", plan.sweep.gpu_hours, made.gpu_hours),
        ("cpu_hours", plan.sweep.cpu_hours, made.cpu_hours),
    ):
        if cap is not None and hours is not None and hours > cap:
            raise UserError(
                f"{field}: {cap:g} at most, but {len(made.to_do)} trial(s) are estimated to take {hours:.3g}; "
                f"raise it, or train fewer or smaller dictionaries"
            )


# What is printed -----------------------------------------------------------------------------------------------------


def print_plan(plan: Plan) -> None:
    """Print a table of the trials and, below it, the totals."""
    out = TextConsole()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("trial", overflow="ellipsis", max_width=34)
    for column in ("", "mesh", "steps", "memory/worker", "GPU", "time"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for trial in plan.trials:
        table.add_row(*(Text(cell) for cell in _cells(trial)))
    out.print(table)
    if plan.chosen_later:
        out.print(
            f"{plan.chosen_later} trials are chosen while the sweep runs: the numbers are upper bounds, as if each was "
            "the largest that the axes allow",
            soft_wrap=True,
        )
    for name, value in _sums(plan):
        out.print(f"{name:<14}{value}", soft_wrap=True)
    for line in plan.warnings:
        out.print(f"warning: {line}", soft_wrap=True)


def _cells(trial: TrialPlan) -> tuple[str, ...]:
    if trial.reused:
        return (trial.name, "reused", "", "", "", "", "")
    memory = trial.memory
    mesh = f"{trial.data} x {trial.feature} Z{trial.zero_stage}"
    gpu = size(memory.device) if memory.device else ""
    what = "at most" if trial.is_bound else "to do"
    return (trial.name, what, mesh, f"{trial.steps:,}", size(memory.resident), gpu, _time(trial.seconds))


def _sums(plan: Plan) -> list[tuple[str, str]]:
    todo = plan.to_do
    nodes = f"{sum(n.cpus for n in plan.nodes):g} CPU, {sum(n.gpus for n in plan.nodes):g} GPU"
    memory = size(sum(n.memory_bytes for n in plan.nodes))
    lines = [
        ("trials", f"{plan.num_to_do} to do, {len(plan.trials) - len(todo)} reused"),
        ("nodes", f"{len(plan.nodes)} with {nodes}, {memory} for processes"),
    ]
    if plan.held_out is not None:
        held = plan.held_out
        lines += [(
            "held out",
            f"{held.share:.1%} of the rows: {held.validation_rows:,} for validation, {held.test_rows:,} of "
            f"{held.test_documents:,} documents for test, so an FVU has a standard error of about {held.fvu_error:.1%}",
        )]  # fmt: skip
    if not todo:
        return lines
    read = f"{size(plan.store_bytes)}, at most {size(plan.store_bytes_at_most)}"
    if plan.store_bytes_at_most <= plan.store_bytes:
        read = size(plan.store_bytes)
    lines += [
        ("at once", f"{plan.at_once} trials"),
        ("devices", _devices(todo)),
        ("memory", _made_of(max(todo, key=lambda trial: trial.memory.resident))),
        ("store", f"{read} read"),
        ("steps", f"{plan.steps:,}"),
        ("time", UNKNOWN if plan.seconds is None else _time(plan.seconds)),
    ]
    if plan.cpu_hours is not None and plan.gpu_hours is not None:
        lines += [("hours", f"{plan.cpu_hours:.3g} of CPUs, {plan.gpu_hours:.3g} of GPUs")]
    if plan.currency:
        lines += [("cost", UNKNOWN if plan.cost is None else f"{plan.cost:,.2f} {plan.currency}")]
    return lines


def _devices(trials: Sequence[TrialPlan]) -> str:
    """Return the devices of the workers and the number of trials on each."""
    counts = Counter(trial.gpus / trial.workers for trial in trials)
    kinds = (("CPUs" if not gpus else f"{gpus:g} GPU a worker", count) for gpus, count in sorted(counts.items()))
    return ", ".join(f"{kind} ({count} trial(s))" for kind, count in kinds)


def _made_of(trial: TrialPlan) -> str:
    """Return the largest worker's memory with its components."""
    parts = ("process", "weights", "masters", "moments", "gradients", "step", "buffers", "batches", "windows")
    sizes = {name: getattr(trial.memory, name) for name in parts}
    listed = ", ".join(f"{name} {size(value)}" for name, value in sizes.items() if value >= 2**20)
    return f"{size(trial.memory.resident)} at most ({listed})"


def _time(seconds: float | None) -> str:
    from lexray.tuning.results.report import duration

    return "unknown" if seconds is None else duration(seconds)
