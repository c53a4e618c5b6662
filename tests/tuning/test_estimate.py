"""What a plan foresees: the order of trials, their memory, what they read, what has no room; and what came of it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import ROWS, WIDTH, sweep_content, write_dataset

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import CorruptDataError, UserError
from lexray.tuning.file.resources import PricesBlock
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.nodes import HEAD, Node, trials_on_head
from lexray.tuning.planning.estimate import (
    START_S,
    SWEEP_START_S,
    Reading,
    Speed,
    finished_speeds,
    kind_of,
    most_at_once,
    store_bytes,
    timeline,
    trial_seconds,
)
from lexray.tuning.planning.memory_check import refuse_what_has_no_room
from lexray.tuning.planning.outcome import outcomes, read_plan
from lexray.tuning.planning.plan import Machines, Plan
from lexray.tuning.planning.plan_file import known_speeds, write_plan
from lexray.tuning.planning.row_counts import HeldOutRows
from lexray.tuning.planning.worker_memory import peak_resident_bytes
from lexray.tuning.records import new_record
from lexray.tuning.results.report import build_results
from lexray.tuning.sweep_folder import DONE, TrialRecord
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep
from lexray.tuning.trials import Footprint

MIB, GIB = 2**20, 2**30
ROOMY = Machines(nodes=[Node(2, 0, 8 * GIB)], object_store_bytes=[2 * GIB])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def planned(data, tmp_path):
    """A checked sweep whose blocks are changed."""

    def make(**changes: Any) -> SweepPlan:
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(sweep_content(data, str(tmp_path / "out"), **changes)))
        return plan_sweep(read_config_file(str(file), SweepFile), file.read_text())

    return make


def speeds_of(plan: SweepPlan, rows_per_s: float) -> dict[str, Speed]:
    return {kind_of(t.config): Speed(rows_per_s=rows_per_s, source="measured") for t in plan.trials}


# The order of trials ----------------------------------------------------------------------------------------------

footprints = st.builds(
    Footprint, workers=st.integers(1, 4), cpus_per_worker=st.sampled_from([0.5, 1.0, 2.0]), gpus_per_worker=st.just(0.0)
)


@given(st.lists(st.tuples(footprints, st.floats(0.1, 100)), min_size=1, max_size=12), st.integers(8, 20))
@settings(max_examples=60, deadline=None)
def test_trials_never_take_more_than_there_is_and_start_in_order_as_soon_as_they_can(trials, cpus: int) -> None:
    taken, seconds = [f for f, _ in trials], [s for _, s in trials]
    starts = timeline(taken, seconds, [Node(cpus, 0)])
    assert [start.trial for start in starts] == list(range(len(trials)))
    assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(starts))
    for start in starts:
        running = [s for s in starts if s.at_s <= start.at_s < s.end_s]
        assert sum(taken[s.trial].cpus for s in running) <= cpus
    ends = {0.0, *(start.end_s for start in starts)}
    assert all(start.at_s in ends for start in starts)


def test_trials_of_equal_length_run_in_waves() -> None:
    one = Footprint(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    starts = timeline([one] * 5, [10.0] * 5, [Node(1, 0), Node(1, 0)])
    assert [start.at_s for start in starts] == [0, 0, 10, 10, 20]
    assert (most_at_once(starts), max(start.end_s for start in starts)) == (2, 30)


def test_gpus_bound_what_runs_at_once_as_cpus_do() -> None:
    one = Footprint(workers=2, cpus_per_worker=1, gpus_per_worker=1)
    assert most_at_once(timeline([one] * 4, [1.0] * 4, [Node(16, 4)])) == 2


def test_the_head_bounds_what_runs_at_once_whatever_workers_find() -> None:
    one = Footprint(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    most = trials_on_head([{"memory": 9.0 * GIB}, {"memory": 0.6 * GIB, HEAD: 1.0}])
    starts = timeline([one] * 5, [10.0] * 5, [Node(64, 0)], most)
    assert (most, most_at_once(starts), max(start.end_s for start in starts)) == (2, 2, 30)


def test_a_head_without_room_for_one_trial_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"head has 100 MiB .* takes 256 MiB there"):
        trials_on_head([{"memory": 100.0 * MIB, HEAD: 1.0}])
    with pytest.raises(UserError, match="head has 0 MiB"):  # Ray does not name what there is none of
        trials_on_head([{HEAD: 1.0}])
    assert trials_on_head([{"memory": 100.0 * MIB}]) is None


def test_a_plan_runs_no_more_at_once_than_the_head_holds(planned) -> None:
    plan = planned(axes={"architecture": ["topk"], "width": [64], "target_l0": [4], "seed": [0, 1, 2, 3]})
    roomy = replace(ROOMY, nodes=[Node(64, 0, 64 * GIB)])
    assert plan.make(roomy, {}).at_once == 4
    assert plan.make(replace(roomy, trials_on_head=3), {}).at_once == 3


# Bytes ------------------------------------------------------------------------------------------------------------


def test_trials_that_start_together_read_once_and_later_ones_again_unless_all_is_kept() -> None:
    one = Footprint(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    starts = timeline([one] * 4, [1.0] * 4, [Node(2, 0)])
    reading = Reading(("site",), 100, 10, kept=False)
    assert store_bytes([reading] * 4, starts, num_nodes=1) == (220, 440)
    assert store_bytes([reading._replace(kept=True)] * 4, starts, num_nodes=1) == (110, 440)
    assert store_bytes([reading] * 4, starts, num_nodes=2) == (440, 440)
    other = reading._replace(sites=("other",))
    assert store_bytes([reading, other, reading, other], starts, num_nodes=1) == (440, 440)


def test_all_trials_read_an_epoch_once_where_its_windows_are_kept_and_the_dataset_once_where_its_chunks_are(
    planned, tmp_path
) -> None:
    one, seven = ({"rows": epochs * 42 * 128} for epochs in (1, 7))  # 42 whole batches an epoch
    few, many = (planned(training=training).make(ROOMY, {}) for training in (one, seven))
    whole = ROWS * planned().manifest.sites["site"].row_bytes
    assert whole <= few.store_bytes <= 2.25 * whole, "less than a chunk is read twice for each lane and part"
    assert 6 * whole <= many.store_bytes - few.store_bytes <= 12 * whole, "windows of an epoch are its own"
    one_by_one = replace(ROOMY, nodes=[Node(1, 0, 8 * GIB)])
    assert planned(training=seven).make(one_by_one, {}).store_bytes == many.store_bytes
    assert few.store_bytes_at_most == 2 * few.store_bytes
    cache = {"dir": str(tmp_path / "cache"), "bytes": 10 * whole}
    assert planned(training=seven, cache=cache).make(one_by_one, {}).store_bytes == few.store_bytes
    poor = replace(ROOMY, object_store_bytes=[0])
    assert planned(training=seven).make(poor, {}).store_bytes >= few.store_bytes


# Time and money ---------------------------------------------------------------------------------------------------


def test_time_is_unknown_without_a_speed_for_every_trial(planned) -> None:
    sweep = planned()
    some = dict(list(speeds_of(sweep, 1000).items())[:1])
    plan = sweep.make(ROOMY, some)
    assert (plan.seconds, plan.cpu_hours, plan.cost) == (None, None, None)
    assert [trial.seconds is None for trial in plan.trials] == [False, True]


def test_a_trial_takes_its_start_its_rows_and_its_evaluations(planned) -> None:
    config = planned().trials[0].config
    trained = config.num_steps * config.data.batch_rows
    endless = Speed(rows_per_s=trained, evaluated_rows_per_s=math.inf, source="measured")
    assert trial_seconds(config, HeldOutRows(300, 300), endless) == pytest.approx(START_S + 1)
    evaluated = replace(endless, evaluated_rows_per_s=600.0)
    assert trial_seconds(config, HeldOutRows(300, 300), evaluated) > START_S + 1 + 3, "60 steps, evaluated each 20"
    finished = replace(endless, overhead_s=5.0, source="finished trials")
    assert trial_seconds(config, HeldOutRows(300, 300), finished) == pytest.approx(6)


def test_the_sweep_costs_what_its_hours_cost(planned) -> None:
    prices = {"cpu_hour": 3600.0, "node_hour": 7200.0, "currency": "EUR"}
    sweep = planned(resources={"cpus_per_worker": 2}, prices=prices)
    plan = sweep.make(ROOMY, speeds_of(sweep, 1000))
    each = [trial.seconds or 0 for trial in plan.trials]
    assert plan.seconds == pytest.approx(SWEEP_START_S + sum(each)), "one after another"
    assert plan.cpu_hours == pytest.approx(2 * sum(each) / 3600)
    assert plan.cost == pytest.approx(2 * sum(each) + 2 * plan.seconds), (
        "CPUs while trials have them, a node all the time"
    )
    assert plan.currency == "EUR"
    assert PricesBlock().currency == "USD"


def finished(sweep: SweepPlan, number: int, **timing: float) -> TrialRecord:
    times = {"total_s": 30.0, "train_s": 20.0, "rows_per_s": 384.0, **timing}
    return replace(new_record(sweep.trials[number], status=DONE), timing=times)


def test_finished_trials_tell_the_speed_of_their_kind_from_the_folder_alone(planned) -> None:
    sweep = planned(axes={"architecture": "topk", "width": 64, "target_l0": 4, "seed": [0, 1, 2]})
    found = finished_speeds([finished(sweep, 0), finished(sweep, 1, rows_per_s=128.0, total_s=40.0), None])
    (speed,) = found.values()
    assert (speed.rows_per_s, speed.overhead_s, speed.source) == (256.0, 15.0, "finished trials")
    assert list(found) == [kind_of(sweep.trials[2].config)]
    sweep.folder.write_trial(finished(sweep, 0))
    (known,) = known_speeds(sweep.folder, [trial.id for trial in sweep.trials]).values()
    assert sweep.make(ROOMY, {kind_of(sweep.trials[2].config): known}).seconds is not None


# Memory and room --------------------------------------------------------------------------------------------------


def test_a_workers_memory_is_at_least_the_sum_of_what_it_holds_in_a_step(planned) -> None:
    (trial,) = planned(axes={"architecture": "topk", "width": 4096, "target_l0": 4}).make(ROOMY, {}).trials
    memory = trial.memory
    weights = (2 * 4096 * WIDTH + 4096 + WIDTH) * 4
    assert (memory.weights, memory.moments, memory.masters) == (weights, 2 * weights, 0)
    held = memory.weights + memory.moments + memory.gradients + memory.step + memory.buffers + memory.batches
    assert memory.host >= memory.process + held
    assert memory.resident == memory.host + memory.windows
    assert memory.windows <= 2 * ROWS * (WIDTH * 4 + 16), "no more windows than the dataset has"


def test_a_trial_without_room_is_refused_with_the_mesh_that_would_fit(planned) -> None:
    sweep = planned(axes={"architecture": "topk", "width": 2**22, "target_l0": 4})

    def refuse(*nodes: Node) -> None:
        refuse_what_has_no_room(sweep.trials, sweep.manifest, nodes, None)

    refuse(Node(4, 0, 14 * GIB))
    refuse(Node(4, 0, 0))  # a memory that is not known
    need = r"resources: 1 worker\(s\) of trial topk-w4194304-l4 each need 9\.\d GiB of memory"
    with pytest.raises(UserError, match=need + r", the largest of 1 node\(s\) has 7\.2 GiB .*: use larger nodes"):
        refuse(Node(4, 0, 8 * GIB))
    with pytest.raises(UserError, match=need + r".*; resources\.mesh: \{data: 3, feature: 1\} would fit"):
        refuse(*[Node(1, 0, 5.5 * GIB)] * 4)


def test_a_gpu_that_is_too_small_is_refused_with_the_mesh_that_would_fit(planned) -> None:
    sweep = planned(axes={"architecture": "topk", "width": 2**22, "target_l0": 4}, resources={"gpus_per_worker": 1})
    nodes = [Node(32, 8, 500 * GIB)]
    refuse_what_has_no_room(sweep.trials, sweep.manifest, nodes, 80 * GIB)
    with pytest.raises(UserError, match=r"GPU memory, a GPU has 1.8 GiB .*; resources.mesh: \{data: 1, feature: \d\}"):
        refuse_what_has_no_room(sweep.trials, sweep.manifest, nodes, 2 * GIB)


def test_workers_that_together_need_more_than_a_node_has_are_warned_of(planned) -> None:
    sweep = planned()
    assert sweep.make(ROOMY, {}).warnings == []
    crowded = Machines(nodes=[Node(2, 0, GIB)], object_store_bytes=[GIB])
    (line,) = sweep.make(crowded, {}).warnings
    assert line.startswith("2 worker(s) at once can need")
    assert line.endswith("resources.cpus_per_worker: 2 would leave 1 worker(s) at once")


def test_the_peak_of_a_process_is_counted_in_bytes() -> None:
    assert 30 * MIB < peak_resident_bytes() < 1000 * GIB


# In the folder ----------------------------------------------------------------------------------------------------


def test_the_estimate_of_a_finished_trial_stays_and_is_compared_with_its_outcome(planned) -> None:
    sweep = planned()
    first: Plan = sweep.make(ROOMY, speeds_of(sweep, 1000))
    write_plan(sweep.folder.store, first)
    assert read_plan(sweep.folder.store) == first.to_dict()
    done = replace(sweep, unfinished=sweep.trials[1:])
    write_plan(sweep.folder.store, done.make(ROOMY, speeds_of(sweep, 1)))
    document = read_plan(sweep.folder.store)
    assert document is not None
    assert document["trials"][0] == first.to_dict()["trials"][0] | {"reused": True}
    assert document["trials"][1]["seconds"] > first.to_dict()["trials"][1]["seconds"]


def test_outcomes_are_of_trials_that_were_estimated_and_measured(planned) -> None:
    sweep = planned()
    document = sweep.make(ROOMY, speeds_of(sweep, 1000)).to_dict()
    records = [
        replace(finished(sweep, 0, total_s=10.0), memory={"peak_bytes": 100.0}),
        replace(finished(sweep, 1, total_s=30.0), memory={"peak_bytes": 200.0}),
    ]
    metrics = {
        record.trial: [{"data/bytes_read": 5.0}, {"data/bytes_read": 7.0}, {"eval/l0": 4.0}] for record in records
    }
    memory, time, read = outcomes(document, records, metrics)
    assert (memory.predicted, memory.real) == (document["trials"][1]["memory"]["resident"], 200.0)
    assert (time.predicted, time.real) == (pytest.approx(sum(t["seconds"] for t in document["trials"])), 40.0)
    assert (read.predicted, read.real) == (document["store_bytes"], 14.0)
    assert time.ratio == pytest.approx(time.predicted / 40)
    assert outcomes(None, records, metrics) == []
    assert [found.name for found in outcomes(document, records[:1], metrics)] == [memory.name, time.name]


def test_the_report_shows_estimates_beside_outcomes(planned) -> None:
    sweep = planned()
    write_plan(sweep.folder.store, sweep.make(ROOMY, speeds_of(sweep, 1000)))
    for number in range(2):
        record = replace(finished(sweep, number), memory={"peak_bytes": 512.0 * MIB})
        sweep.folder.write_trial(record)
    build_results(sweep.folder, [trial.id for trial in sweep.trials])
    page = sweep.folder.store.read("report.html").decode()
    assert "Plan and outcome" in page
    assert "512 MiB" in page
    assert "1 min" in page, "two trials of 30 s"


def test_a_damaged_plan_is_named(planned, tmp_path: Path) -> None:
    sweep = planned()
    sweep.folder.store.write("plan.json", b"{")
    with pytest.raises(CorruptDataError, match=r"plan\.json: is not valid JSON"):
        read_plan(sweep.folder.store)
