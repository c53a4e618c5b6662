"""`lexray sweep`: train the dictionaries of a sweep file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexray.cluster.consoles import TextConsole, say
from lexray.cluster.options import Json, messages
from lexray.cluster.output import FAILED, OK, print_frontier
from lexray.cluster.provisioned.pools import pools_of
from lexray.storage.config_file import read_config_file, read_text

if TYPE_CHECKING:
    from lexray.tuning.driver import Driver
    from lexray.tuning.sweep_plan import SweepPlan

sweep_app = typer.Typer()

LOG_WIDTH = 200
"""Characters of a line in the driver's log before it is broken."""


@sweep_app.command("sweep")
def sweep_command(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; without it one is started here.")] = None,
    job: Annotated[str, typer.Option(hidden=True, help="Id of the job that this command is.")] = "",
    cluster_name: Annotated[str, typer.Option(hidden=True, help="What people call the cluster.")] = "",
    pools: Annotated[str, typer.Option(hidden=True, help="What its autoscaler may start, as JSON.")] = "",
    as_json: Json = False,
) -> None:
    """Train the dictionaries of a sweep file and draw their frontier. Run it again to continue.

    Example: lexray sweep examples/quickstart/sweep.yaml
    """
    from lexray.tuning.file.sweep_file import SweepFile
    from lexray.tuning.orchestrate import run_sweep
    from lexray.tuning.sweep_plan import plan_sweep

    nodes_to_come = pools_of(pools)
    plan = plan_sweep(read_config_file(str(file), SweepFile), read_text(str(file)))
    say(messages, _todo(plan))
    with ExitStack() as stack:
        mirrors: list[Any] = []
        driver, listeners = None, []
        if plan.expected:
            from lexray.cluster.ray_backend.connect import connected

            driver = _driver(plan, cluster_name or address or "", job, mirrors)
            driver.check()
            mirrors += _wandb(plan)
            stack.enter_context(_terminable(driver))
            with messages.status("starting Ray" if address is None else f"joining {address}"):
                stack.enter_context(connected(address, is_job=bool(job), pools=nodes_to_come))
            for mirror in mirrors:
                stack.callback(mirror.finish, plan.folder.store.url)
            listeners = [*_views(plan, driver), *mirrors]
        table = run_sweep(plan, listeners, driver)
        for mirror in mirrors:
            mirror.show_results(plan.folder, table)
    print_frontier(table, plan.folder.store, messages, as_json)
    raise typer.Exit(FAILED if (table["status"] == "failed").any() else OK)


def _todo(plan: SweepPlan) -> str:
    reused = len(plan.trials) - len(plan.unfinished)
    steps = sum(t.config.num_steps for t in plan.unfinished)
    return (
        f"sweep {plan.sweep.name}: {plan.num_trials} trials"
        + (f", {reused} finished before" if reused else "")
        + (f", {plan.to_ask} to be chosen as it runs" if plan.to_ask else "")
        + (f", {steps:,} steps to do" if steps or not plan.to_ask else "")
    )


def _driver(plan: SweepPlan, cluster: str, job: str, mirrors: list[Any]) -> Driver:
    from lexray.tuning.driver import Driver
    from lexray.tuning.driver_record import this_place

    def links() -> dict[str, str]:
        return {trial: page for mirror in mirrors for trial, page in mirror.links.items()}

    driver = Driver(store=plan.folder.store, place=this_place(cluster, job), links=links)
    driver.log.write(f"{_todo(plan)}\n")
    return driver


def _views(plan: SweepPlan, driver: Driver) -> list[Any]:
    """On the terminal, and as lines in the sweep's folder."""
    from lexray.tuning.views.progress import TerminalView

    kept = TextConsole(file=driver.log, width=LOG_WIDTH, no_color=True, force_terminal=False)
    reused = len(plan.trials) - len(plan.unfinished)
    return [
        TerminalView(console=console, num_trials=plan.num_trials, num_reused=reused) for console in (messages, kept)
    ]


@contextmanager
def _terminable(driver: Driver) -> Iterator[None]:
    """A job that is stopped gets SIGTERM, and seconds: the sweep says so in its folder and ends as by Ctrl-C."""

    def leave(*_: object) -> None:
        driver.interrupt()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wandb(plan: SweepPlan) -> list[Any]:
    block = plan.sweep.wandb
    if block.mode == "disabled":
        return []
    from lexray.tuning.views.wandb_ids import file_name
    from lexray.tuning.views.wandb_mirror import WandbMirror
    from lexray.tuning.views.wandb_runs import has_key, runs_of_sweep

    local = plan.folder.store.local_path or str(Path.cwd() / "wandb-runs" / file_name(plan.sweep.name))
    mode: Any = block.mode if block.mode != "auto" else ("online" if has_key() else "offline")
    runs = runs_of_sweep(plan.folder.store, block.project, plan.sweep.name, folder=local, mode=mode)
    return [WandbMirror(runs=runs)]
