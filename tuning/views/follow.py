"""Follows a running sweep by polling its trials' files, for the terminal and for W&B alike.

Listeners are fed from the folder, so a view that is slow, broken or absent changes nothing in the
sweep.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lexray.storage.polling import Repeat
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.sweep_folder import SweepFolder, TrialRecord

log = logging.getLogger("lexray")


class Listener(Protocol):
    """A view of a sweep. Called from one thread; its exceptions are logged and go no further."""

    def started(self, run: TrialRun) -> None: ...

    def logged(self, run: TrialRun, records: list[dict[str, Any]]) -> None:
        """New records of a running trial in order, each step once; the last one again when values were added to it."""

    def ended(self, run: TrialRun, record: TrialRecord | None) -> None: ...

    def close(self) -> None: ...


@dataclass(kw_only=True)
class _Followed:
    run: TrialRun
    last: dict[str, Any] = field(default_factory=lambda: {"step": -1})
    """The newest record that was told. The metrics on test rows are added to that of the last step."""
    announced: bool = False
    over: bool = False


@dataclass(kw_only=True)
class FollowThread:
    """Reads the folders of running trials every `interval_s` seconds and notifies the listeners."""

    folder: SweepFolder
    listeners: Sequence[Listener]
    interval_s: float = 2.0
    _trials: dict[str, _Followed] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _polls: Repeat = field(init=False)

    def __enter__(self) -> FollowThread:
        self._polls = Repeat(work=self._poll, every_s=self.interval_s, name="follow")
        self._polls.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Notify the listeners of what is left, and close them."""
        self._polls.stop()
        self._poll()
        for listener in self.listeners:
            self._tell(listener.close)

    def changed(self, run: TrialRun, started: bool) -> None:
        """Record the start or end of a trial."""
        with self._lock:
            if started:
                self._trials[run.trial.id] = _Followed(run=run)
            else:
                self._trials[run.trial.id].over = True

    def _poll(self) -> None:
        with self._lock:
            trials = [(followed, followed.over) for followed in self._trials.values()]
        for followed, over in trials:
            self._follow(followed, over)

    def _follow(self, followed: _Followed, over: bool) -> None:
        run = followed.run
        if not followed.announced:
            followed.announced = True
            for listener in self.listeners:
                self._tell(listener.started, run)
        try:
            records = self.folder.read_metrics(run.trial.id)
            step, known = followed.last["step"], followed.last.keys()
            new = [r for r in records if r["step"] > step or (r["step"] == step and r.keys() != known)]
            result = self.folder.read_trial(run.trial.id) if over else None
        except Exception as error:
            log.warning("trial %s cannot be followed just now: %s", run.trial.id, error)
            return
        if new:
            followed.last = new[-1]
            for listener in self.listeners:
                self._tell(listener.logged, run, new)
        if over:
            with self._lock:
                del self._trials[run.trial.id]
            for listener in self.listeners:
                self._tell(listener.ended, run, result)

    def _tell(self, call: Any, *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            log.warning("%s: %s", type(call.__self__).__name__, error)
