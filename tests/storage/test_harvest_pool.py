"""Replicas in Ray actors give the bytes of one replica in this process, also when they are killed."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from harvest_cases import GPT2, files_of, harvest_file, save_model, write_text

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.size import PoolSize, Resources, choose_size

DOCUMENTS = [" ".join(f"w{(i * (n + 3) + n) % 40}" for i in range(40)) for n in range(300)]
"""Enough for a second or two of two actors."""


def many_shards(tmp_path: Path, name: str, **changes: Any) -> HarvestFile:
    text = {"files": write_text(tmp_path / "documents", DOCUMENTS)}
    settings: dict[str, Any] = {"text": text, "spread": True, "shard_rows": 64, "chunk_rows": 16, "cpus_per_worker": 1}
    return harvest_file(tmp_path, output=str(tmp_path / name), **settings | changes)


def replica_processes() -> list[psutil.Process]:
    """Processes of replicas that belong to this session's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::Replica"):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Killer:
    """Kills -9 a replica at a random moment of a harvest, `times` times."""

    def __init__(self, seed: int, times: int) -> None:
        self._draw, self._times = random.Random(seed), times
        self.killed: list[int] = []
        self._next = self._draw.uniform(0, 0.5)
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        if len(self.killed) == self._times or done < self._next * total:
            return
        time.sleep(self._draw.uniform(0, 0.02))
        victims = replica_processes()
        if victims:
            victim = self._draw.choice(victims)
            victim.kill()
            self.killed.append(victim.pid)
            self._next += self._draw.uniform(0, 0.3)


def check_kills(seed: int, times: int, tmp_path: Path) -> None:
    alone = many_shards(tmp_path, "alone")
    harvest(alone)
    config, killer = many_shards(tmp_path, "out", workers=2), Killer(seed, times)
    harvest(config, joins=True, on_progress=killer)
    assert len(killer.killed) == times
    assert files_of(config.output) == files_of(alone.output)
    _, alive = psutil.wait_procs(replica_processes(), timeout=60)  # Ray ends actors in its own time
    assert not alive


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_two_actors_of_which_one_is_killed_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    check_kills(0, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("seed", range(1, 4))
def test_actors_that_are_killed_again_and_again_change_no_byte(seed: int, tmp_path: Path) -> None:
    check_kills(seed, 2, tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_an_actor_refuses_is_one_line(tmp_path: Path) -> None:
    loud = save_model(tmp_path / "loud", GPT2, "$A", lambda model: model.wte.weight.fill_(100_000))
    sites = {"start": {"hidden_state": 0}}
    config = many_shards(tmp_path, "out", workers=1, model=str(loud), sites=sites, dtype="float16")
    with pytest.raises(UserError) as caught:
        harvest(config, joins=True)
    assert str(caught.value) == "dtype: float16 cannot hold sites.start, which reaches 100,000; use bfloat16"
    assert files_of(tmp_path / "out") == {}


class Doomed:
    """Stands for a replica whose process dies of the same thing each time, memory for example."""

    def __init__(self, settings: Any) -> None:
        pass

    def describe(self) -> None:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_always_dies_ends_the_harvest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("lexray.storage.harvest.pool.Replica", Doomed)
    with pytest.raises(RuntimeError, match="a worker died 3 times while it loaded the models"):
        harvest(many_shards(tmp_path, "out", workers=1), joins=True)
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("changes", "there", "joins", "expected"),
    [
        ({}, (8, 0), False, (1, 8, 0)),
        ({}, (8, 1), False, (1, 8, 1)),
        ({}, (64, 4), False, (4, 16, 1)),
        ({"cpus_per_worker": 2}, (8, 0), False, (1, 2, 0)),
        ({"workers": 3}, (8, 0), False, (3, 2, 0)),
        ({"workers": 4, "gpus_per_worker": 0.5}, (16, 2), False, (4, 4, 0.5)),
        ({"gpus_per_worker": 0.25}, (16, 1), False, (4, 4, 0.25)),
        ({"gpus_per_worker": 0}, (16, 2), False, (1, 16, 0)),
        ({}, (32, 0), True, (8, 4, 0)),
        ({}, (2, 0), True, (1, 2, 0)),
        ({}, (96, 8), True, (8, 12, 1)),
        ({"cpus_per_worker": 8}, (32, 0), True, (4, 8, 0)),
        ({"workers": 100, "cpus_per_worker": 4, "gpus_per_worker": 1}, (8, 0), True, (100, 4, 1)),
    ],
)
def test_sizes_of_pools(
    changes: dict[str, Any], there: tuple[int, int], joins: bool, expected: tuple[int, int, float], tmp_path: Path
) -> None:
    config, resources = harvest_file(tmp_path, **changes), Resources(cpus=there[0], gpus=there[1])
    workers, threads, gpus = expected
    found = choose_size(config, resources, threads=None, joins=joins)
    assert found == PoolSize(workers=workers, threads=threads, gpus=gpus)
    assert choose_size(config, resources, threads=1, joins=joins).threads == 1


@pytest.mark.parametrize(
    ("changes", "there", "joins", "message"),
    [
        (
            {"workers": 4, "cpus_per_worker": 3},
            (8, 0),
            False,
            "workers: 4 with 3 CPUs each need 12, but this machine has 8; lower workers or cpus_per_worker",
        ),
        (
            {"workers": 3, "gpus_per_worker": 1},
            (8, 2),
            False,
            "workers: 3 with 1 GPUs each need 3, but this machine has 2; lower workers or gpus_per_worker",
        ),
        (
            {"gpus_per_worker": 2},
            (8, 1),
            True,
            "gpus_per_worker: 2, but there are 1 GPUs; lower it, or say how many workers",
        ),
    ],
)
def test_more_than_there_is(
    changes: dict[str, Any], there: tuple[int, int], joins: bool, message: str, tmp_path: Path
) -> None:
    config = harvest_file(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        choose_size(config, Resources(cpus=there[0], gpus=there[1]), threads=None, joins=joins)
    assert str(caught.value) == message
