"""Runs in W&B: one for each dictionary, grouped by sweep, and one for the sweep. The only file that knows W&B."""

from __future__ import annotations

import logging
import netrc
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pandas as pd
import wandb

from lexray.storage.anonymous import without_home
from lexray.storage.errors import named_line
from lexray.storage.store import Store
from lexray.tuning.file.wandb_block import split_project
from lexray.tuning.sweep_folder import PAUSED, TrialRecord
from lexray.tuning.views.wandb_ids import MAX_NAME_CHARACTERS, RunIds, shortened

log = logging.getLogger("lexray")

INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 20
"""Seconds that a run of a running sweep, or the end of its process, waits for pending uploads. W&B's own default is
unlimited: a dead server would keep the process from ending."""
WORKERS_SHOWN = 32
"""Maximum number of workers whose own metrics are sent: W&B slows down with the number of names in a project."""
SETTINGS: dict[str, Any] = {
    "init_timeout": INIT_TIMEOUT_S,
    "console": "off",
    "silent": True,
    "x_disable_stats": True,  # this process is the driver: its load says nothing of the trial
    "x_disable_meta": True,
    "disable_git": True,
    "disable_code": True,
    "symlink": False,
    "host": "lexray",  # W&B tells everybody of a project the name of the machine
}

Mode = Literal["online", "offline"]
MAX_FAILURES_IN_A_ROW = 2
"""Consecutive refused runs after which the server counts as unreachable."""


class Described(NamedTuple):
    """Identity and configuration of a dictionary's run."""

    trial: str
    """Trial id."""
    name: str
    config: dict[str, Any]
    workers: int


@dataclass(kw_only=True)
class WandbRuns:
    """The W&B runs of a sweep. Calls may take long, or raise.

    A run that the server refuses is written offline, or left to `lexray wandb sync`; the others stay online. After
    `MAX_FAILURES_IN_A_ROW` of them all that follow are written offline.
    """

    project: str
    entity: str | None = None
    """Entity; None: the user's default."""
    group: str
    """Name of the sweep."""
    folder: str
    """Local folder of W&B's files: the sweep's own if that is local."""
    ids: Callable[[], RunIds] | None = None
    """Called for the first run, since it may write; None: those of `folder`."""
    mode: Mode
    falls_back: bool = True
    """Whether runs are written offline when the server does not answer."""
    links: dict[str, str] = field(default_factory=dict)
    """W&B pages of the trials' online runs, by trial id."""
    finish_timeout_s: float = FINISH_TIMEOUT_S
    """Seconds after which the end of a run raises TimeoutError."""
    _open: dict[str, Any] = field(default_factory=dict)
    _failures_in_a_row: int = 0

    def start(self, about: Described) -> None:
        run = self._open[about.trial] = self._init(
            id=self._ids.of_trial(about.trial),
            name=shortened(about.name, MAX_NAME_CHARACTERS),
            config={**about.config, "trial": about.trial, "workers": about.workers},
        )
        if self.mode == "online" and run.url:  # W&B warns on access to the page of a run that has none
            self.links = {**self.links, about.trial: run.url}

    def log(self, trial: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Log records with their `step`, in order; skip those that a resumed run already has.

        Does nothing, like `finish`, for a trial whose start failed: that was reported, and `send` can repeat it.
        """
        run = self._open.get(trial)
        if run is None:
            return
        for record in records:
            if record["step"] >= run.starting_step:
                run.log(shown(record), step=record["step"])

    def finish(
        self, trial: str, record: TrialRecord | None, measures: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """End a trial's run; its summary holds the result and `measures` under the names of the frontier's columns."""
        run = self._open.pop(trial, None)
        if run is None:
            return
        if record is not None:
            result = {f"result/{k}": v for k, v in {**record.result, **measures}.items() if v is not None}
            run.summary.update(result | {"status": record.status})
        is_well = record is not None and (bool(record.result) or record.status in PAUSED)
        _end(run, 0 if is_well else 1)

    def finish_all(self) -> None:
        for trial in list(self._open):
            self.finish(trial, None)

    def show_sweep(self, url: str, table: pd.DataFrame, picture: bytes) -> None:
        """Upload the frontier as a table and a picture (PNG), in one run of the sweep at `url`."""
        name = shortened(f"{self.group} (sweep)", MAX_NAME_CHARACTERS)
        run = self._init(id=self._ids.of_sweep, name=name, config={"url": url}, job_type="sweep")
        shown = table.astype(object).where(table.notna(), None)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "frontier.png"
            file.write_bytes(picture)
            run.log({"frontier": wandb.Table(dataframe=shown), "frontier_picture": wandb.Image(str(file))})
        run.summary.update({f"trials/{status}": int(n) for status, n in table["status"].value_counts().items()})
        _end(run, 0)

    @cached_property
    def _ids(self) -> RunIds:
        return self.ids() if self.ids is not None else RunIds.of_folder(Store.at(self.folder))

    def _init(self, **about: Any) -> Any:
        os.makedirs(self.folder, exist_ok=True)
        try:
            run = self._try(about, self.mode)
        except Exception as error:
            if self.mode != "online" or not self.falls_back:
                raise
            self._note_failure(about["name"], error)
            if self._open:
                raise  # W&B's process now holds the id, and the open runs
            wandb.teardown()
            return self._try(about, "offline")
        self._failures_in_a_row = 0
        return run

    def _note_failure(self, name: str, error: Exception) -> None:
        """Warn, and switch to offline mode when the server rather than one run fails."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row < MAX_FAILURES_IN_A_ROW:
            log.warning(
                "W&B does not take the run %s (%s): it is written offline; `lexray wandb sync` sends it",
                name, named_line(error),
            )  # fmt: skip
            return
        self.mode = "offline"
        log.warning(
            "W&B does not answer (%s): runs are written offline; `lexray wandb sync` sends them", named_line(error)
        )

    def _try(self, about: dict[str, Any], mode: Mode) -> Any:
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=shortened(self.group, MAX_NAME_CHARACTERS),
            dir=self.folder,
            resume="allow",
            reinit="create_new",
            mode=mode,
            settings=wandb.Settings(
                **SETTINGS, finish_timeout=self.finish_timeout_s, finish_timeout_raises=self.finish_timeout_s > 0
            ),
            **without_home(about),
        )
        run.define_metric("*", step_metric="rows")
        return run


def runs_of_sweep(
    store: Store, project: str, name: str, *, folder: str, mode: Mode, falls_back: bool = True
) -> WandbRuns:
    """Return the runs of the sweep in `store`; `project` is PROJECT or ENTITY/PROJECT. Raises ValueError for others."""
    entity, project_name = split_project(project)
    return WandbRuns(
        project=project_name, entity=entity, group=name, folder=folder, mode=mode, falls_back=falls_back,
        ids=lambda: RunIds.of_folder(store),
    )  # fmt: skip


def _end(run: Any, exit_code: int) -> None:
    """Finish a run, and remove W&B's logs of this process, which contain paths of this machine."""
    logs = Path(run.dir).parent / "logs"
    run.finish(exit_code=exit_code)
    shutil.rmtree(logs, ignore_errors=True)


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record to send: no nulls, and per-worker metrics of the first `WORKERS_SHOWN` only."""
    numbers = {name: re.search(r"_worker(\d+)$", name) for name, value in record.items() if value is not None}
    return {name: record[name] for name, found in numbers.items() if found is None or int(found[1]) < WORKERS_SHOWN}


def has_key() -> bool:
    """Return whether this user is logged in to W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
