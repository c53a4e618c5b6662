"""Two sweeps side by side in one bucket, or on one disk: whatever is done to one, the other stays byte for byte."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.cluster.follow.resolve import SweepRef
from lexray.cluster.follow.stop import stop
from lexray.storage.config_file import read_config_file
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.harvest.journal import Journal, close_journal, remove_beginnings, remove_leftovers
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store
from lexray.training.checkpoint.format import Checkpoint, newest_checkpoint
from lexray.training.checkpoint.parts import WHOLE
from lexray.training.checkpoint.writer import CheckpointWriter, delete_temporary
from lexray.tuning.driver_record import RUNNING as DRIVER_RUNS
from lexray.tuning.driver_record import DriverRecord, write_driver
from lexray.tuning.endings.budget import BY_HAND, clear_ending, read_ending, write_ending
from lexray.tuning.fence import Fence
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.sweep_folder import PENDING, SweepFolder, TrialRecord
from lexray.tuning.sweep_plan import plan_sweep

BUCKET = "neighbours"
TRIAL = "topk-w64-l4-0123abcd"
HOSTILE = [
    ("sw*p", "sweep"),
    ("run?", "run1"),
    ("run[1]", "run1"),
    ("**", "sweep"),
    ("sweep", "sweep/trials-of-another"),
    ("run", "run2"),
    ("run#1", "run"),
    ("50%", "50%25"),
    ("{a,b}", "a"),
    (" a ", "a"),
    ("naïve 名", "naïve"),
    ("-rf", "rf"),
]
"""Names of a sweep and of its neighbour, which a pattern made of the first would find, or a prefix."""


@dataclass(frozen=True)
class Neighbourhood:
    """A place for several sweeps, and all that lies there."""

    root: Store
    snapshot: Callable[[], dict[str, Any]]
    """Every file with its content and time of writing, by its path below the root."""

    def sweep(self, name: str) -> Store:
        return self.root.at_path(name)


@pytest.fixture(scope="module")
def client(s3_server: str) -> Any:
    found = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")
    found.create_bucket(Bucket=BUCKET)
    return found


@pytest.fixture
def bucket(client: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Neighbourhood:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)  # for commands that take a url alone
    prefix = uuid.uuid4().hex
    root = Store.at(f"s3://{BUCKET}/{prefix}", StorageSettings(endpoint_url=s3_server, retry_budget_s=2))

    def snapshot() -> dict[str, Any]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        entries = [entry for page in pages for entry in page.get("Contents", [])]
        return {e["Key"].removeprefix(f"{prefix}/"): (e["ETag"], e["LastModified"]) for e in entries}

    return Neighbourhood(root, snapshot)


@pytest.fixture
def disk(tmp_path: Path) -> Neighbourhood:
    def snapshot() -> dict[str, Any]:
        files = [path for path in (tmp_path / "all").rglob("*") if path.is_file()]
        return {str(p.relative_to(tmp_path / "all")): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    return Neighbourhood(Store.at(str(tmp_path / "all")), snapshot)


def save(store: Store, steps: list[int], *, keep: int = 2, attempt: str = "a1") -> None:
    """Train: save checkpoints, the oldest of which are pruned."""
    writer = CheckpointWriter(store=store, attempt=attempt, about={}, keep=keep)
    for step in steps:
        checkpoint = Checkpoint(step, {"W": torch.full((2, 2), float(step))}, {})
        writer.save(step, dict(WHOLE.to_write(checkpoint.state())))
    writer.close()


def settle(sweep: Store) -> None:
    """The folder of a sweep under way, with an unfinished harvest beside its trials."""
    folder = SweepFolder(sweep)
    sweep.write("sweep.yaml", b"name: x")
    folder.write_trial(TrialRecord(trial=TRIAL, name="topk", config={}, status=PENDING))
    save(folder.trial_store(TRIAL).at_path("checkpoints"), [10, 20])
    sweep.write("ending.json", b'{"status": "stopped: by hand"}')
    sweep.write("driver.json", b"{}")
    sweep.write("harvest/plan.json", b"{}")
    sweep.write("shards/000000.safetensors", b"rows")


def live(sweep: Store) -> None:
    """Everything that deletes or rewrites: prune, resume, stop, the end of a trial, the end of a harvest."""
    folder = SweepFolder(sweep)
    fence = Fence(store=folder.trial_store(TRIAL), token="mine")
    fence.take()
    checkpoints = fence.fenced_store.at_path("checkpoints")
    found = newest_checkpoint(checkpoints)
    assert found is not None
    assert found.step == 20, "what it resumes from is its own"
    save(checkpoints, [30, 40, 50], keep=1, attempt="a2")
    assert [name[:14] for name in checkpoints.list_folders()] == ["step-000000050"]
    write_driver(sweep, DriverRecord(claim="c", started_s=0.0, seen_s=100.0, state=DRIVER_RUNS))
    stop(SweepRef(url=sweep.url), None, force=True, messages=Console(quiet=True), clock=lambda: 101.0)
    assert read_ending(folder) == BY_HAND
    clear_ending(sweep)
    journal = Journal(store=sweep, plan={"a": 1})
    journal.begin()
    remove_beginnings(sweep)
    remove_leftovers(sweep, 0)
    close_journal(sweep)
    sweep.check_writable("output")
    delete_temporary(checkpoints, keep_every=0)
    assert not checkpoints.exists("")
    sweep.delete(f"trials/{TRIAL}")
    assert folder.read_trial(TRIAL) is None


def of(neighbour: str, found: dict[str, Any]) -> dict[str, Any]:
    return {path: content for path, content in found.items() if path.startswith(f"{neighbour}/")}


def check_neighbours(place: Neighbourhood, mine: str, neighbour: str) -> None:
    settle(place.sweep(neighbour))
    settle(place.sweep(mine))
    before = of(neighbour, place.snapshot())
    assert len(before) >= 11
    live(place.sweep(mine))
    assert of(neighbour, place.snapshot()) == before


@pytest.mark.parametrize(("mine", "neighbour"), HOSTILE)
def test_a_sweep_of_a_hostile_name_touches_nothing_of_its_neighbour_on_disk(
    mine: str, neighbour: str, disk: Neighbourhood
) -> None:
    check_neighbours(disk, mine, neighbour)


@pytest.mark.parametrize(("mine", "neighbour"), HOSTILE[:4])
def test_a_sweep_of_a_hostile_name_touches_nothing_of_its_neighbour_in_a_bucket(
    mine: str, neighbour: str, bucket: Neighbourhood
) -> None:
    check_neighbours(bucket, mine, neighbour)


@given(
    mine=st.text(st.sampled_from("*?[]!{}ab1-~%#.\\ "), min_size=1, max_size=5),
    neighbour=st.text(st.sampled_from("ab1*?~% "), min_size=1, max_size=5),
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_name_reaches_the_neighbours_files(mine: str, neighbour: str, disk: Neighbourhood) -> None:
    place = Neighbourhood(disk.root.at_path(uuid.uuid4().hex), disk.snapshot)
    below = place.root.url.rsplit("/", 1)[-1]
    if mine == neighbour:
        return
    try:
        place.sweep(mine)
    except UserError:
        return
    settle(place.sweep(neighbour))
    settle(place.sweep(mine))
    before = of(f"{below}/{neighbour}", disk.snapshot())
    live(place.sweep(mine))
    assert of(f"{below}/{neighbour}", disk.snapshot()) == before


@pytest.mark.parametrize("trial", ["../../sweep/trials/x", "another", "/etc", ""])
def test_a_record_that_names_another_trial_is_refused(trial: str, disk: Neighbourhood) -> None:
    folder = SweepFolder(disk.sweep("mine"))
    record = {"trial": trial, "name": "topk", "config": {}}
    folder.trial_store(TRIAL).write("trial.json", json.dumps(record).encode())
    with pytest.raises(CorruptDataError, match=f"trials/{TRIAL}/trial.json: trial: .*, but its folder is called"):
        folder.read_trial(TRIAL)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_real_sweeps_side_by_side_in_a_bucket(
    ray_session: str, client: Any, s3_server: str, tmp_path: Path, bucket: Neighbourhood
) -> None:
    data = write_dataset(tmp_path / "data")
    storage = {"endpoint_url": s3_server}

    def run(name: str) -> None:
        content = sweep_content(data, bucket.sweep(name).url, storage=storage)
        content["axes"]["architecture"] = ["topk"]
        file = write_sweep(tmp_path / "sweep.yaml", content)
        made = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
        table = run_sweep(made, [])
        assert set(table["status"]) <= {"done", "target missed"}

    run("sweep1")
    save(bucket.sweep("sweep1").at_path(f"trials/{TRIAL}/checkpoints"), [10, 20])
    before = of("sweep1", bucket.snapshot())
    write_ending(bucket.sweep("sw*[1]?"), BY_HAND)
    run("sw*[1]?")
    assert of("sweep1", bucket.snapshot()) == before
    mine = SweepFolder(bucket.sweep("sw*[1]?"))
    for trial in mine.store.list_folders("trials"):
        mine.store.delete(f"trials/{trial}")
    run("sw*[1]?")
    assert of("sweep1", bucket.snapshot()) == before
