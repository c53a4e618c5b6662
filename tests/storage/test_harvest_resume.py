"""Killed at any moment and started again, a harvest ends in the same dataset, byte for byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harvest_cases import files_of, harvest_file, refusal, tiny_model, write_text
from quick_cases import quick

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store

DOCUMENTS = [" ".join(f"w{(i * (n + 3) + n) % 40}" for i in range(40)) for n in range(60)]
NUM_SHARDS = 38
PRELOADED = [
    "lexray.storage.harvest.harvest",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
]
"""What a harvest imports: a process that is forked from one that has it begins at once."""


def many_shards(tmp_path: Path, name: str, **changes: Any) -> HarvestFile:
    """2400 rows in 38 shards, by one thread."""
    text = {"files": write_text(tmp_path / "documents", DOCUMENTS)}
    settings: dict[str, Any] = {"text": text, "spread": True, "shard_rows": 64, "chunk_rows": 16, "cpus_per_worker": 1}
    return harvest_file(tmp_path, output=str(tmp_path / name), **settings | changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the dataset of `many_shards`."""
    config = many_shards(tmp_path_factory.mktemp("undisturbed"), "out")
    assert len(harvest(config)[0].shards) == NUM_SHARDS
    return without_places(files_of(config.output))


def without_places(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a dataset, but for where the text of the test lay."""
    manifest = json.loads(files["manifest.json"])
    manifest["provenance"]["settings"].pop("text")
    return files | {"manifest.json": json.dumps(manifest).encode()}


def entries(config: HarvestFile) -> list[Path]:
    """What the journal says is written."""
    return sorted(Path(config.output, "harvest").glob("[0-9]*.json"))


def begin(config: HarvestFile) -> multiprocessing.process.BaseProcess:
    """A harvest in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=harvest, args=(config,), daemon=True)
    process.start()
    return process


def kill_at_random(config: HarvestFile, draw: random.Random) -> None:
    """Begin or continue a harvest, and kill -9 it when a random number of shards is there and a moment has passed."""
    process, wanted, moment_s = begin(config), draw.randrange(NUM_SHARDS), draw.uniform(0, 0.01)
    while process.is_alive() and len(entries(config)) < wanted:
        time.sleep(0.001)
    time.sleep(moment_s)
    process.kill()
    process.join()


def check_kills(seed: int, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    draw, config = random.Random(seed), many_shards(tmp_path, "out")
    for _ in range(draw.choice([1, 1, 2, 3])):
        kill_at_random(config, draw)
    harvest(config)
    assert without_places(files_of(config.output)) == undisturbed


@pytest.mark.parametrize("seed", quick(range(6), range(2)))
def test_a_killed_harvest_ends_in_the_same_bytes(seed: int, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    check_kills(seed, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 16))
def test_many_killed_harvests_end_in_the_same_bytes(seed: int, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    check_kills(seed, tmp_path, undisturbed)


class Interruption:
    """Ends a harvest when so many rows are done, and remembers what it was told."""

    def __init__(self, rows: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.rows, self.error, self.first = rows, error, -1

    def __call__(self, done: int, total: int) -> None:
        self.first = done if self.first < 0 else self.first
        if done >= self.rows:
            raise self.error


def test_an_interrupted_harvest_continues_with_what_is_missing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    config = many_shards(tmp_path, "out")
    with pytest.raises(KeyboardInterrupt):
        harvest(config, on_progress=Interruption(1000))
    kept = entries(config)
    assert 10 < len(kept) < NUM_SHARDS
    names = [path.stem for path in kept]
    before = {n: Path(config.output, f"shards/{n}.safetensors").stat().st_mtime_ns for n in names}
    again = Interruption(10**9)
    harvest(config, on_progress=again)
    assert again.first > 600, "finished shards count from the start"
    assert {n: Path(config.output, f"shards/{n}.safetensors").stat().st_mtime_ns for n in names} == before
    assert without_places(files_of(config.output)) == undisturbed


def test_what_is_begun_without_a_shard_leaves_nothing(tmp_path: Path) -> None:
    config = many_shards(tmp_path, "out")
    with pytest.raises(KeyboardInterrupt):
        harvest(config, on_progress=Interruption(0))
    assert files_of(tmp_path / "out") == {}


def test_another_file_does_not_continue(tmp_path: Path) -> None:
    config = many_shards(tmp_path, "out")
    with pytest.raises(KeyboardInterrupt):
        harvest(config, on_progress=Interruption(500))
    kept = files_of(config.output)
    was = f"but the unfinished harvest in {config.output} was started with"
    rest = "choose another output or remove that one"
    assert refusal(many_shards(tmp_path, "out", max_rows=9)) == f"max_rows: 9, {was} none; {rest}"
    llama = str(tiny_model("llama"))
    assert refusal(many_shards(tmp_path, "out", model=llama)).startswith(f"model: {llama}, {was} ")
    plan = Path(config.output, "harvest", "plan.json")
    changed = json.loads(plan.read_text())
    changed["run"]["torch"] = "1.0"
    plan.write_text(json.dumps(changed))
    assert refusal(config).endswith(f"{was} 1.0; {rest}")
    assert files_of(config.output).keys() == kept.keys()
    (tmp_path / "documents" / "0003.txt").write_text("w1")
    assert refusal(config).startswith("text.")


def test_threads_stay_those_of_the_beginning(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    config = many_shards(tmp_path, "out")
    with pytest.raises(KeyboardInterrupt):
        harvest(config, on_progress=Interruption(500))
    manifest, _ = harvest(many_shards(tmp_path, "out", cpus_per_worker=2))
    assert manifest.provenance["run"]["threads"] == 1
    assert without_places(files_of(config.output)) == undisturbed


def test_shards_of_a_plan_that_was_removed_are_not_taken(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    other = many_shards(tmp_path, "out", sites={"layer2": {"hidden_state": 1}}, shard_rows=32)
    with pytest.raises(KeyboardInterrupt):
        harvest(other, on_progress=Interruption(2200))
    assert len(entries(other)) > NUM_SHARDS
    Path(other.output, "harvest", "plan.json").unlink()
    Path(other.output, "shards", "notes.txt").write_text("not ours")
    for name in ("shards/000003.safetensors.77.partial", "manifest.json.77.partial", ".lexray-write-check-77"):
        Path(other.output, name).write_text("of a process that was killed")
    config = many_shards(tmp_path, "out")
    harvest(config)
    found = files_of(config.output)
    assert found.pop("shards/notes.txt") == b"not ours"
    assert without_places(found) == undisturbed


def test_a_shard_that_is_gone_is_made_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    config = many_shards(tmp_path, "out")
    with pytest.raises(KeyboardInterrupt):
        harvest(config, on_progress=Interruption(1000))
    first, second, third = entries(config)[:3]
    Path(config.output, f"shards/{first.stem}.safetensors").unlink()
    Path(config.output, f"shards/{second.stem}.safetensors").write_bytes(b"cut")
    third.write_text("{half a line")
    harvest(config)
    assert without_places(files_of(config.output)) == undisturbed


def test_a_journal_beside_a_whole_dataset_is_removed(tmp_path: Path) -> None:
    config = many_shards(tmp_path, "out")
    harvest(config)
    whole = files_of(config.output)
    Path(config.output, "harvest").mkdir()
    Path(config.output, "harvest", "000007.json").write_text("{}")
    assert harvest(config)[1]
    assert files_of(config.output) == whole


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[None]:
    """A filesystem of that size. Skips where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "lexray-test", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no filesystem can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_in_one_line_and_the_harvest_continues(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 150):
        config = many_shards(tmp_path, "disk/out")
        expected = f"output: cannot write to file://{disk}/out (No space left on device); run the same command again"
        assert refusal(config).startswith(expected)
        kept = entries(config)
        assert 5 < len(kept) < NUM_SHARDS
        assert not list(disk.rglob("*.partial"))
        assert refusal(config).startswith("output: cannot write to ")
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        harvest(config)
        assert without_places(files_of(config.output)) == undisturbed


def test_a_failed_write_leaves_nothing_when_no_shard_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    def full_disk(store: Store, path: str, data: bytes) -> None:
        if path.endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        write(store, path, data)

    monkeypatch.setattr(Store, "write", full_disk)
    assert "(No space left on device)" in refusal(many_shards(tmp_path, "out"))
    assert files_of(tmp_path / "out") == {}


def test_a_second_harvest_into_the_same_place_is_noticed(tmp_path: Path) -> None:
    config = many_shards(tmp_path, "out")

    def meddle(done: int, total: int) -> None:
        plan = Path(config.output, "harvest", "plan.json")
        if done > 500 and plan.exists():
            plan.write_text(json.dumps(json.loads(plan.read_text()) | {"settings": {}}))

    with pytest.raises(UserError, match="another harvest writes into"):
        harvest(config, on_progress=meddle)
    with pytest.raises(UserError, match=r"no manifest\.json there"):
        load_manifest(Store.at(config.output))
