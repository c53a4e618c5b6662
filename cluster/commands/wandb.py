"""`lexray wandb`: what was written offline, or did not get to W&B, is sent from the sweep's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexray.cluster.consoles import say
from lexray.cluster.options import Json, messages
from lexray.cluster.output import FAILED, print_json
from lexray.storage.errors import UserError
from lexray.storage.store import Store

if TYPE_CHECKING:
    from lexray.tuning.views.wandb_runs import Mode, WandbRuns

wandb_app = typer.Typer(no_args_is_help=True, help="Show sweeps in W&B.")


@wandb_app.command()
def sync(
    url: Annotated[str, typer.Argument(help="Folder of a sweep: path or url.")],
    project: Annotated[
        str | None, typer.Option(help="W&B project, or ENTITY/PROJECT; by default that of the sweep file.")
    ] = None,
    offline: Annotated[str | None, typer.Option(help="Write W&B's offline files below this folder instead.")] = None,
    as_json: Json = False,
) -> None:
    """Send a sweep to W&B from its folder: one run per dictionary, and one with the frontier.

    Runs that W&B has already get what they lack, so it may be called again.

    Example: lexray wandb sync runs/quickstart/sweep
    """
    from lexray.tuning.results.report import build_results
    from lexray.tuning.sweep_folder import SweepFolder
    from lexray.tuning.views.wandb_mirror import send

    folder = SweepFolder.existing(url)
    runs = _runs_of(folder.store, project, offline)
    table = build_results(folder, folder.store.list_folders("trials"))
    sent: dict[str, int] = {}
    with messages.status("W&B") as status:

        def on_sent(trial: str, records: int) -> None:
            sent[trial] = records
            status.update(f"W&B: {len(sent)} trials, {sum(sent.values()):,} records")

        refused = send(folder, runs, table, on_sent)
    if as_json:
        print_json({"url": folder.store.url, "project": runs.project, "records": sent, "refused": refused})
    else:
        print(f"{folder.store.url}: {len(sent)} trials sent, {sum(sent.values()):,} records, {runs.mode}")
    if refused:
        name, reason = next(iter(refused.items()))
        say(messages, f"W&B refused {len(refused)} runs, first {name}: {reason}")
        raise typer.Exit(FAILED)


def _runs_of(store: Store, project: str | None, offline: str | None) -> WandbRuns:
    """Return the runs of a sweep's folder, where its sweep file or the options put them. Raises UserError."""
    from lexray.tuning.views.wandb_runs import has_key, runs_of_sweep

    block, name = _wandb_of(store)
    if offline is None and not has_key():
        raise UserError("W&B: no API key here; run `wandb login`, set WANDB_API_KEY, or give --offline FOLDER")
    folder = offline or store.local_path or "wandb-runs"
    mode: Mode = "online" if offline is None else "offline"
    try:
        return runs_of_sweep(store, project or block.project, name, folder=folder, mode=mode, falls_back=False)
    except ValueError as error:
        raise UserError(f"--project: {error}") from error


def _wandb_of(store: Store) -> tuple[Any, str]:
    """The W&B block and the name of the sweep file as run."""
    from lexray.storage.config_file import MAX_BYTES, checked_content, mapping_of
    from lexray.storage.documents import read_bounded
    from lexray.tuning.file.wandb_block import WandbBlock

    file = f"{store.url}/sweep.yaml"
    content = mapping_of(read_bounded(store, "sweep.yaml", MAX_BYTES, file).decode(errors="replace"), file)
    block = content.get("wandb", {})
    if not isinstance(block, dict) or not isinstance(content.get("name"), str):
        raise UserError(f"{file}: name is no text, or wandb holds no settings")
    return checked_content(f"{file}: wandb", block, WandbBlock), content["name"]
