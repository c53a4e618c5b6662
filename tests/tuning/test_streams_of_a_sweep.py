"""What a sweep says of its streams and does with them: memory, cache, traffic in the metrics."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.tuning import orchestrate
from lexray.tuning.driver import Driver
from lexray.tuning.driver_record import read_driver
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.plan import Machines
from lexray.tuning.planning.streams import most_workers
from lexray.tuning.ray_backend.cluster_view import living_nodes
from lexray.tuning.ray_backend.window_servers import WindowServers
from lexray.tuning.sweep_plan import SweepPlan, check_room, plan_sweep

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("streams") / "data")


def plan(tmp_path: Path, content: dict[str, Any]) -> SweepPlan:
    file = write_sweep(tmp_path / "sweep.yaml", content)
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


@pytest.mark.slow
def test_a_sweep_says_what_its_streams_cost_and_later_ones_read_the_cache(
    data: str, ray_session: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {
        "cache": {"dir": str(tmp_path / "cache"), "bytes": 2**24},
        "wandb": {"mode": "disabled"},
        "rules": [{"when": {"architecture": "topk"}, "set": {"workers": 2}}],
    }
    records: list[dict[str, list[dict[str, float]]]] = []
    with caplog.at_level(logging.INFO, logger="lexray"):
        for name in ("first", "second"):
            out = tmp_path / name
            made = plan(tmp_path, sweep_content(data, str(out), **changes))
            table = run_sweep(made, [])
            assert not set(table["status"]) - {"done", "target missed"}, list(table["reason"])
            records.append({trial.config.dictionary.architecture: metrics_of(out, trial.id) for trial in made.trials})
    said = [line.message for line in caplog.records if line.message.startswith("stream: up to ")]
    assert len(said) == 2
    assert "of windows in use by 3 worker(s)" in said[0]
    dataset = load_manifest(Store.at(data))
    first, second = records
    read = [sum(lines[-1]["data/bytes_read"] for lines in trials.values()) for trials in records]
    assert 0 < read[0] <= 1.05 * dataset.bytes, "both trials, training and held-out rows"
    assert read[1] == 0, "all of it was on disk"
    for lines in (first["topk"], first["relu"], second["topk"], second["relu"]):
        for line in lines:
            assert 0 <= line["data/wait"] <= 1
            assert 0 <= line["data/hit_rate_disk"] <= line["data/hit_rate"] <= 1
            assert line["data/rows_filtered"] == 0
            assert line["data/retries"] == 0
            assert line["data/bytes_served"] >= line["step"] * 128 * 16 * 2
    assert second["topk"][-1]["data/hit_rate"] == 1
    for line in first["topk"]:
        assert line["data/wait"] == max(line["data/wait_worker0"], line["data/wait_worker1"])
    assert "data/wait_worker0" not in first["relu"][0]


def metrics_of(out: Path, trial: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "trials" / trial / "metrics.jsonl").read_text().splitlines()]


def test_windows_that_do_not_fit_are_refused_before_anything_is_trained(
    data: str, ray_session: str, tmp_path: Path
) -> None:
    made = plan(tmp_path, sweep_content(data, str(tmp_path / "out")))
    shapes = [replace(shape, dataset_rows=10**12, chunk_rows=10**6, chunks_per_window=10**3) for shape in made.shapes]
    line = r"^data.window_bytes: 2 worker\(s\) on a node hold windows of up to .* TiB, Ray's object store has room for "
    with pytest.raises(UserError, match=line):
        WindowServers(trials=made.unfinished, shapes=shapes, cache=None).check(living_nodes())


def test_workers_at_once_are_those_that_fit_and_no_more_than_there_are(data: str, tmp_path: Path) -> None:
    made = plan(tmp_path, sweep_content(data, str(tmp_path / "out"), resources={"workers": 2, "cpus_per_worker": 2}))
    assert [most_workers(made.trials, Node(cpus, 0)) for cpus in (1, 4, 7, 8, 100)] == [1, 2, 3, 4, 4]


def test_windows_are_refused_before_the_folder_is_claimed_or_written(
    data: str, ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(nodes=[Node(8, 0, 2.0**36)], object_store_bytes=[2**10])  # as an autoscaler could add them
    monkeypatch.setattr(orchestrate, "cluster_machines", lambda: machines)
    made = plan(tmp_path, sweep_content(data, str(tmp_path / "out")))
    driver = Driver(store=made.folder.store)
    with pytest.raises(UserError, match=r"^data.window_bytes: .* Ray's object store has room for "):
        run_sweep(made, [], driver)
    assert not made.folder.store.exists("sweep.yaml")
    assert read_driver(made.folder.store) is None


def test_a_node_without_cpus_needs_no_object_store_for_windows(data: str, tmp_path: Path) -> None:
    made = plan(tmp_path, sweep_content(data, str(tmp_path / "out")))
    head, worker = Node(0, 0, 2.0**30), Node(8, 0, 2.0**36)
    check_room(made, Machines(nodes=[head, worker], object_store_bytes=[2**10, 2**34]))
    with pytest.raises(UserError, match=r"^data.window_bytes: "):
        check_room(made, Machines(nodes=[head, worker], object_store_bytes=[2**34, 2**10]))
