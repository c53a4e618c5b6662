"""Ranks that hang are named by the others; ranks that share what they must not are refused before the first step."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from quick_cases import quick

from lexray.training.mesh.liveness import (
    Heartbeat,
    RankIdentity,
    RankSilentError,
    Watch,
    check_rows,
    check_seats,
    describe,
    seat_of,
    silent_ranks,
)
from lexray.training.mesh.mesh import MeshCoord

RANKS, INTERVAL_S = 3, 0.1


def beats(*ages_s: float) -> list[Heartbeat]:
    return [Heartbeat(rank, f"host{rank}", 7, 100.0 - age) for rank, age in enumerate(ages_s)]


def test_a_rank_is_silent_when_it_missed_several_beats():
    assert silent_ranks(beats(0.0, 0.4, 0.6, 30.0), 100.0, interval_s=0.1) == beats(0.0, 0.4, 0.6, 30.0)[2:]
    assert silent_ranks(beats(0.0, -3.0), 100.0, interval_s=0.1) == [], "a clock that goes ahead"


def test_the_line_names_every_silent_rank():
    line = describe([Heartbeat(2, "node7", 41, 70.0), Heartbeat(5, "?", -1, -float("inf"))], 100.0)
    assert line == "rank 2 on node7 has been silent for 30 s, since step 41; rank 5 gives no sign of life"


def work(rank: int, folder: str, frozen: int) -> None:
    """Meet in a collective again and again; one rank stops dead on the way."""
    store = dist.FileStore(f"{folder}/meeting", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=3))
    watch = Watch(rank=rank, num_ranks=RANKS, store=dist.FileStore(f"{folder}/beats", RANKS), interval_s=INTERVAL_S)
    try:
        with watch.watching():
            for step in range(1000):
                watch.step = step
                if rank == frozen and step == 5:
                    Path(folder, "frozen").write_text(str(os.getpid()))
                    os.kill(os.getpid(), signal.SIGSTOP)
                dist.all_reduce(torch.ones(1))
                time.sleep(0.01)
    except RankSilentError as error:
        Path(folder, f"said{rank}").write_text(str(error))
    os._exit(0)  # its peers are in no state to say goodbye to


@pytest.mark.parametrize("frozen", quick([0, 2], [0]))
def test_a_frozen_rank_is_named_by_those_that_wait_for_it(tmp_path, frozen):
    context = torch.multiprocessing.spawn(work, args=(str(tmp_path), frozen), nprocs=RANKS, join=False)
    deadline, others = time.monotonic() + 60, [rank for rank in range(RANKS) if rank != frozen]
    while time.monotonic() < deadline and not all((tmp_path / f"said{rank}").exists() for rank in others):
        time.sleep(0.05)
    os.kill(int((tmp_path / "frozen").read_text()), signal.SIGKILL)
    for process in context.processes:
        process.join(30)
    for rank in others:
        assert (tmp_path / f"said{rank}").read_text().startswith(f"rank {frozen} on ")


class DeadStore:
    """The store of a process group whose host was stopped: nothing comes back until the connection breaks."""

    def _no_answer(self, *_: object) -> None:
        time.sleep(5)
        raise RuntimeError("Connection was likely closed")

    set = get = wait = _no_answer


def test_a_store_that_does_not_answer_is_its_host_s_silence():
    watch = Watch(rank=1, num_ranks=2, store=DeadStore(), interval_s=0.05)
    with pytest.raises(RankSilentError, match="rank 0 gives no sign of life"), watch.watching():
        raise RuntimeError("Timed out waiting 3000ms for send operation to complete")


def test_errors_of_a_rank_whose_peers_are_well_stay_what_they_are(tmp_path):
    store = dist.FileStore(str(tmp_path / "beats"), 1)
    watch = Watch(rank=0, num_ranks=1, store=store, interval_s=INTERVAL_S)
    watch.beat()
    with pytest.raises(RuntimeError, match="the loss is nan"), watch.watching():
        raise RuntimeError("the loss is nan at step 3")


# Seats ------------------------------------------------------------------------------------------------------------

PLACES = [MeshCoord(rank=rank, data=2, feature=2) for rank in range(4)]


def seats(rows: str, devices: str = "    ", hosts: str = "hhhh") -> list[RankIdentity]:
    return [RankIdentity(host, device.strip(), row) for host, device, row in zip(hosts, devices, rows, strict=True)]


def test_ranks_of_one_mesh_read_what_they_must():
    check_seats(seats("aabb"), PLACES)
    check_seats(seats("aabb", "0123"), PLACES)
    check_seats(seats("aabb", "0101", "hhkk"), PLACES)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (seats("aaaa"), "ranks 0 and 2 read the same rows, but split them"),
        (seats("abcc"), "ranks 0 and 1 read other rows, but share them"),
        (seats("aabb", "0121"), "ranks 1 and 3 both compute on GPU 1 of h, and NCCL needs one for each"),
    ],
)
def test_ranks_that_share_what_they_must_not_are_named(found, line):
    with pytest.raises(RuntimeError, match=line):
        check_seats(found, PLACES)


def test_a_seat_tells_rows_apart():
    cpu = torch.device("cpu")
    same, other = (seat_of(np.arange(start, start + 5), cpu) for start in (0, 1))
    assert seat_of(np.arange(5), cpu) == same != other


# The rows of every batch ------------------------------------------------------------------------------------------

PLANNED = np.arange(20, 32)
HALVES = [PLANNED[:7], PLANNED[7:]]


def test_rows_that_are_those_planned_pass_whatever_the_mesh():
    check_rows(3, [PLANNED], PLANNED, feature=1)
    check_rows(3, HALVES[::-1], PLANNED, feature=1)
    check_rows(3, [HALVES[0], HALVES[0], HALVES[1], HALVES[1]], PLANNED, feature=2)


@pytest.mark.parametrize(
    ("by_rank", "feature", "said"),
    [
        ([PLANNED[:8], PLANNED[7:]], 1, "batch 3: ranks 0 and 1 both read row 27"),
        ([PLANNED[:6], PLANNED[7:]], 1, "batch 3: 1 of 12 planned rows are read by no rank, 11 rows are read"),
        ([HALVES[0], HALVES[1] + 100], 1, "batch 3: 5 of 12 planned rows are read by no rank, 12 rows are read"),
        ([HALVES[0], HALVES[0], HALVES[1], HALVES[0]], 2, "batch 3: ranks 2 and 3 share their rows, but read other"),
        ([HALVES[0], HALVES[0], PLANNED[6:], PLANNED[6:]], 2, "batch 3: ranks 0 and 2 both read row 26"),
        ([np.append(PLANNED, PLANNED[:1])], 1, "batch 3: 0 of 12 planned rows are read by no rank, 13 rows are read"),
    ],
)
def test_rows_that_are_not_those_planned_are_named(by_rank, feature, said):
    with pytest.raises(RuntimeError, match=said):
        check_rows(3, by_rank, PLANNED, feature)
