"""The model of a cluster: rows are conserved, faster parts never slow it, and each limit is what it is said to be."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cluster_model import Job, Rates, ring, simulate
from benchmarks.event_loop import Line, Loop
from benchmarks.machine_costs import fitted
from benchmarks.simulate_cluster import first_to_saturate
from benchmarks.sweep_runs import Interval, covered_s

FAST = Rates(
    store_bytes_per_s=1e12,
    store_latency_s=0.0,
    inlet_bytes_per_s=1e12,
    fabric_bytes_per_s=1e12,
    server_bytes_per_s=1e12,
    pcie_bytes_per_s=1e12,
    link_bytes_per_s=1e12,
    hop_latency_s=0.0,
)
JOB = Job(
    workers=8,
    workers_per_node=4,
    workers_per_trial=4,
    batch_rows=64,
    row_bytes=1000,
    step_s=0.01,
    sum_bytes=10_000,
    steps=20,
)

shapes = st.sampled_from([(1, 1, 1), (4, 4, 1), (8, 4, 2), (8, 4, 4), (8, 2, 4), (16, 4, 16), (8, 1, 8)])
"""Workers of all, of a node, of a trial."""
jobs = st.builds(
    lambda shape, steps, ahead_steps: replace(
        JOB,
        workers=shape[0],
        workers_per_node=shape[1],
        workers_per_trial=shape[2],
        steps=steps,
        ahead_steps=ahead_steps,
    ),
    shapes,
    st.integers(1, 12),
    st.integers(1, 5),
)
speeds = st.floats(1e5, 1e9)
rates = st.builds(
    Rates,
    store_bytes_per_s=speeds,
    store_latency_s=st.floats(0, 0.05),
    inlet_bytes_per_s=speeds,
    fabric_bytes_per_s=speeds,
    server_bytes_per_s=speeds,
    pcie_bytes_per_s=speeds,
    link_bytes_per_s=speeds,
    hop_latency_s=st.floats(0, 0.001),
)


@given(jobs, rates)
@settings(max_examples=40, deadline=None)
def test_every_row_is_trained_by_every_trial_and_read_once_by_the_nodes_of_one(job: Job, machine: Rates) -> None:
    outcome = simulate(job, machine)
    assert outcome.rows_trained == job.trials * job.batch_rows * job.steps
    groups = job.nodes // job.nodes_per_trial
    assert outcome.rows_read == groups * job.batch_rows * job.steps, "trials of a node share what it reads"
    assert outcome.bytes_read == outcome.rows_read * job.row_bytes


@given(jobs, rates, st.sampled_from([one.name for one in fields(Rates)]), st.floats(1.1, 100))
@settings(max_examples=60, deadline=None)
def test_a_faster_part_never_makes_the_whole_slower(job: Job, machine: Rates, name: str, factor: float) -> None:
    value = getattr(machine, name)
    faster = replace(machine, **{name: value / factor if name.endswith("latency_s") else value * factor})
    assert simulate(job, faster).seconds <= simulate(job, machine).seconds * (1 + 1e-9)


@given(jobs, rates)
@settings(max_examples=40, deadline=None)
def test_nothing_is_busier_than_always_and_devices_compute_wait_or_have_ended(job: Job, machine: Rates) -> None:
    outcome = simulate(job, machine)
    assert all(0 <= share <= 1 + 1e-9 for share in outcome.busy.values())
    assert outcome.data_wait >= 0
    assert outcome.sum_wait >= 0
    assert outcome.idle <= 1 + 1e-9
    assert outcome.seconds >= job.steps * job.step_s


def test_with_nothing_to_wait_for_the_devices_are_the_limit_and_never_idle() -> None:
    outcome = simulate(JOB, FAST)
    assert outcome.limit == "devices"
    assert outcome.idle < 0.01
    assert outcome.rows_per_s == pytest.approx(JOB.trials * JOB.batch_rows / JOB.step_s, rel=0.01)


@pytest.mark.parametrize(
    ("rate", "name", "bytes_per_row"),
    [
        ("store_bytes_per_s", "store", JOB.row_bytes),  # one trial a node: each row twice, for two trials
        ("inlet_bytes_per_s", "networks from the store", JOB.row_bytes / 2),  # of two nodes
        ("server_bytes_per_s", "window servers", JOB.row_bytes / 2),
        ("pcie_bytes_per_s", "PCIe", JOB.row_bytes / 8),  # of eight workers
    ],
)
def test_a_slow_part_is_the_limit_and_gives_the_rows_that_it_can(rate: str, name: str, bytes_per_row: float) -> None:
    slow = 1e6
    outcome = simulate(replace(JOB, steps=60), replace(FAST, **{rate: slow}))
    assert outcome.limit == name
    assert outcome.rows_per_s == pytest.approx(slow / bytes_per_row, rel=0.05)
    assert outcome.data_wait > 0.3


def test_trials_of_one_node_share_what_one_trial_a_node_reads_again() -> None:
    store = replace(FAST, store_bytes_per_s=1e6)
    together = simulate(replace(JOB, workers_per_trial=1, steps=60), store)
    apart = simulate(replace(JOB, steps=60), store)
    assert together.rows_per_s == pytest.approx(4 * apart.rows_per_s, rel=0.05)


def test_sums_over_nodes_take_what_a_ring_takes() -> None:
    job = replace(JOB, workers_per_trial=8)
    slow = replace(FAST, fabric_bytes_per_s=1e5, hop_latency_s=0.001)
    sent, hops = ring(job.sum_bytes, 2)
    in_node = ring(job.sum_bytes, 4)
    expected = job.step_s + sent / 1e5 + (hops + in_node[1]) * 0.001
    assert simulate(job, slow).rows_per_s == pytest.approx(job.batch_rows / expected, rel=0.01)
    assert simulate(job, slow).limit == "networks between nodes"


def test_a_store_that_answers_late_costs_nothing_once_enough_is_read_ahead() -> None:
    late = replace(FAST, store_latency_s=0.025)
    waiting = simulate(replace(JOB, ahead_steps=1, steps=60), late)
    ahead = simulate(replace(JOB, ahead_steps=5, steps=60), late)
    assert waiting.data_wait > 0.3
    assert ahead.data_wait < 0.01


def test_trials_that_part_nodes_unevenly_are_refused() -> None:
    with pytest.raises(ValueError, match="nodes have whole trials or trials whole nodes"):
        replace(JOB, workers=12, workers_per_node=6)


def test_events_happen_in_order_of_time_and_those_of_one_time_as_they_were_announced() -> None:
    loop, seen = Loop(), list[str]()
    for time_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        loop.at(time_s, partial(seen.append, name))
    loop.run()
    assert (seen, loop.now_s) == (["a", "b", "c"], 2.0)


def test_a_line_serves_in_turn_and_a_delay_holds_up_nobody_else() -> None:
    loop, done = Loop(), list[float]()
    line = Line(loop, per_s=10.0, latency_s=1.0)
    for _ in range(2):
        line.serve(20, lambda: done.append(loop.now_s))
    loop.run()
    assert done == [3.0, 5.0]
    assert (line.busy_s, line.served) == (4.0, 40)


def test_the_cost_of_a_step_is_the_line_through_what_was_measured_and_never_negative() -> None:
    cost = fitted([100, 200, 400], [0.3, 0.5, 0.9])
    assert (cost.fixed_s, cost.row_s) == pytest.approx((0.1, 0.002))
    steep = fitted([100, 200], [0.1, 0.3])
    assert steep.fixed_s == 0.0
    assert steep.row_s == pytest.approx(0.0014)


def test_what_saturates_first_is_named_at_the_smallest_cluster_where_it_does() -> None:
    store = replace(FAST, store_bytes_per_s=2e7)
    found = {n: simulate(replace(JOB, workers=n, steps=40), store) for n in (4, 8, 64)}
    assert first_to_saturate(found) == "first to saturate: store, at 64 GPUs or before"
    del found[64]
    assert first_to_saturate(found).startswith("nothing saturates before the GPUs; next are the store")


def test_time_that_several_intervals_cover_counts_once() -> None:
    some = [Interval(begin_s=b, end_s=e) for b, e in ((5, 6), (0, 2), (1, 3), (1.5, 2))]
    assert covered_s(some) == 4
