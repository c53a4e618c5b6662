"""The view in W&B: one run per dictionary, grouped by sweep, fed from what the trials wrote.

The only file that knows W&B. Without a key, or when the server does not answer, runs are written offline and can be
sent later by `wandb sync`. Nothing here can stop or slow a trial: it runs in the sweep's driver, beside the trials.
"""

from __future__ import annotations

import logging
import netrc
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import wandb

from tuning.sweep_file import WandbBlock
from tuning.sweep_folder import TrialRecord
from tuning.trial import TrialRun

log = logging.getLogger("lexray")

INIT_TIMEOUT_S = 30


@dataclass(kw_only=True)
class WandbMirror:
    """Follows a sweep, see `tuning.follow.Follower`."""

    block: WandbBlock
    group: str
    """The sweep's name."""
    folder: str
    """Local folder below which W&B keeps its files."""
    _runs: dict[str, Any] = field(default_factory=dict)

    def started(self, run: TrialRun) -> None:
        os.makedirs(self.folder, exist_ok=True)
        mode = self.block.mode if self.block.mode != "auto" else ("online" if has_key() else "offline")
        try:
            self._runs[run.trial.id] = self._init(run, mode)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("W&B does not answer (%s): trial %s is written offline", error, run.trial.id)
            self._runs[run.trial.id] = self._init(run, "offline")

    def logged(self, run: TrialRun, records: list[dict[str, Any]]) -> None:
        wandb_run = self._runs.get(run.trial.id)
        if wandb_run is not None:
            for record in records:
                wandb_run.log(record, step=record["step"])

    def ended(self, run: TrialRun, record: TrialRecord | None) -> None:
        wandb_run = self._runs.pop(run.trial.id, None)
        if wandb_run is None:
            return
        if record is not None:
            wandb_run.summary.update({f"result/{k}": v for k, v in record.result.items()} | {"status": record.status})
        wandb_run.finish(exit_code=0 if record is not None and record.result else 1)

    def close(self) -> None:
        for wandb_run in self._runs.values():
            wandb_run.finish(exit_code=1)
        self._runs.clear()

    def _init(self, run: TrialRun, mode: Literal["online", "offline", "disabled"]) -> Any:
        trial = run.trial
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            console="off",
            silent=True,
            x_disable_stats=True,  # this process is the driver: its load says nothing of the trial
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
        )
        wandb_run = wandb.init(
            project=self.block.project,
            group=self.group,
            id=trial.id,
            name=trial.name,
            dir=self.folder,
            config=trial.config.to_dict() | {"trial": trial.id, "workers": trial.footprint.workers},
            resume="allow",
            reinit="create_new",
            mode=mode,
            settings=settings,
        )
        wandb_run.define_metric("*", step_metric="rows")
        return wandb_run


def has_key() -> bool:
    """Whether this user is logged in to W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
