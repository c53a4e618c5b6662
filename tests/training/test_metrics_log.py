"""`metrics.jsonl`: every step once, in order, written no oftener than asked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexray.storage.store import Store
from lexray.training.loop.metrics_log import METRICS, MetricsLog


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.at(str(tmp_path))


def written(store: Store) -> list[dict]:
    return [json.loads(line) for line in store.read(METRICS).decode().splitlines()]


def logged(store: Store, steps, *, resumed_at: int | None = None) -> MetricsLog:
    log = MetricsLog(store=store, interval_s=0)
    if resumed_at is not None:
        log.resume(resumed_at)
    for step in steps:
        log.add({"step": step, "train/loss": step / 7})
    return log


def test_flush_writes_every_record_in_order(store):
    logged(store, [5, 10, 15]).flush()
    assert written(store) == [{"step": step, "train/loss": step / 7} for step in (5, 10, 15)]


@given(stopped=st.integers(0, 30), resumed=st.integers(0, 30))
def test_each_step_appears_once_after_a_resume_at_any_step(tmp_path_factory, stopped, resumed):
    store = Store.at(str(tmp_path_factory.mktemp("log")))
    resumed = min(resumed, stopped)
    logged(store, range(1, stopped + 1)).flush()
    logged(store, range(resumed + 1, 31), resumed_at=resumed).flush()
    assert [record["step"] for record in written(store)] == list(range(1, 31))


def test_a_resume_where_nothing_was_written_starts_empty(store):
    log = MetricsLog(store=store)
    log.resume(10)
    assert log.records == []


def test_records_of_the_same_step_become_one(store):
    log = MetricsLog(store=store)
    log.add({"step": 5, "train/loss": 1.0})
    log.add({"step": 10, "train/loss": 0.5})
    log.add({"step": 10, "eval/fvu": 0.3})
    log.flush()
    assert written(store) == [
        {"step": 5, "train/loss": 1.0},
        {"step": 10, "train/loss": 0.5, "eval/fvu": 0.3},
    ]


def test_a_record_logged_again_after_a_resume_at_its_own_step_is_merged(store):
    logged(store, [5, 10]).flush()
    log = logged(store, [], resumed_at=10)
    log.add({"step": 10, "eval/fvu": 0.3})
    log.flush()
    assert written(store)[-1] == {"step": 10, "train/loss": 10 / 7, "eval/fvu": 0.3}


def test_the_file_is_written_at_most_once_per_interval(store):
    clock = Clock()
    log = MetricsLog(store=store, interval_s=2.0, clock=clock)
    writes = []
    for step in range(100):
        log.add({"step": step})
        clock.now_s += 0.25
        if store.exists(METRICS):
            writes.append(len(written(store)))
    assert len(set(writes)) == 13  # 25 s: at once, then every 2 s
    assert writes == sorted(writes)


def test_an_unfinished_step_is_not_written_by_the_interval(store):
    clock = Clock()
    log = MetricsLog(store=store, interval_s=2.0, clock=clock)
    log.add({"step": 1, "train/loss": 1.0})
    clock.now_s += 10
    log.add({"step": 2, "train/loss": 0.5})
    assert [record["step"] for record in written(store)] == [1]
    log.add({"step": 2, "eval/fvu": 0.3})
    clock.now_s += 10
    log.add({"step": 3, "train/loss": 0.4})
    assert written(store)[-1] == {"step": 2, "train/loss": 0.5, "eval/fvu": 0.3}
