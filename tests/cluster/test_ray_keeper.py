"""A keeper starts a Ray again that gave up on its start, and no other."""

from __future__ import annotations

import io
import os
import signal
import time

import pytest

from lexray.cluster.node import ray_keeper
from lexray.cluster.node.ray_keeper import FAILED, STARTS, STOPPED, keep


class Starts:
    """Stands in for `ray start`: each one lasts so many seconds and ends so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lasts: list[tuple[float, int]]) -> None:
        self.left, self.now_s = lasts, 0.0
        monkeypatch.setattr(ray_keeper, "_run_ray", self.run)
        monkeypatch.setattr(ray_keeper.time, "monotonic", lambda: self.now_s)

    def run(self, *_: object) -> int:
        lasting_s, why = self.left.pop(0)
        self.now_s += lasting_s
        return why


@pytest.mark.parametrize(
    ("lasts", "why", "left"),
    [
        ([(40, FAILED), (40, FAILED), (5000, STOPPED)], STOPPED, 0),
        ([(40, FAILED)] * (STARTS + 1), FAILED, 1),
        ([(3, FAILED), (40, FAILED)], FAILED, 1),  # wrong arguments, a port in use
        ([(5000, FAILED), (40, FAILED)], FAILED, 1),  # it ran and died
        ([(40, STOPPED), (40, FAILED)], STOPPED, 1),
    ],
)
def test_only_a_ray_that_gave_up_waiting_for_itself_is_started_again(monkeypatch, tmp_path, lasts, why, left):
    starts, log = Starts(monkeypatch, list(lasts)), io.StringIO()
    assert keep(tmp_path, {}, str(tmp_path), [], {}, log) == why
    assert len(starts.left) == left
    assert ("Ray gave up on its start" in log.getvalue()) == (lasts[0] == (40, FAILED))


def test_a_keeper_that_is_told_to_stop_while_ray_ends_by_itself_does_not_start_it_again(monkeypatch, tmp_path):
    """SIGTERM may arrive while what Ray left behind is being ended."""

    def end_all(ray: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray_keeper, "_end_all", end_all)
    monkeypatch.setattr(ray_keeper.sys, "executable", "/bin/false")
    monkeypatch.setattr(ray_keeper, "GIVES_UP_AFTER_S", 0.0)
    try:
        with open(tmp_path / "log", "w") as log:
            assert keep(tmp_path, {}, str(tmp_path), ["--num-cpus=1"], {}, log) == STOPPED
    finally:
        signal.signal(signal.SIGTERM, handler)
