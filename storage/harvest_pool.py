"""Who makes the shards of a harvest: replicas in Ray actors, or one replica in this process without Ray.

Both give shards in the order in which they get done, each of a task that is made when a replica is free for it. A
replica has two tasks, so that one shard is written while the next is computed.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from storage.errors import UserError
from storage.harvest_file import HarvestFile
from storage.harvest_plan import ShardTask
from storage.replica import Replica, ReplicaFacts, ReplicaSettings
from storage.writer import WrittenShard

TASKS_PER_REPLICA = 2
POLL_S = 0.5
"""How often rows in progress are asked for."""
MOST_DEATHS = 3
"""Of replicas while they had the same task, before the harvest ends."""
AUTO_CPUS = 4
"""Threads of a replica on a cluster without GPUs."""

MakeTask = Callable[[int], ShardTask]
OnRows = Callable[[int], None]
"""Called with the rows computed of unfinished shards."""


class Pool(Protocol):
    """Makes shards."""

    def describe(self) -> ReplicaFacts:
        """Of its replicas, once one has loaded and tried the models. Raises UserError."""
        ...

    def write(self, numbers: Sequence[int], make_task: MakeTask, on_rows: OnRows) -> Iterator[tuple[int, WrittenShard]]:
        """Number and shard as they get done. Raises UserError, and OSError for a store that cannot be written."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of this machine or a cluster."""

    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """Of a harvest's replicas."""

    workers: int
    threads: int
    """CPU threads of each."""
    gpus: float
    """GPUs of each."""


def choose_size(config: HarvestFile, there: Resources, *, threads: int | None, joins: bool) -> PoolSize:
    """How many replicas of which size. `threads` are those that the harvest began with, if it goes on.

    Raises UserError for more than there is, unless a cluster is joined, which may grow.
    """
    gpus = float(there.gpus > 0) if config.gpus_per_worker == "auto" else config.gpus_per_worker
    given = None if config.cpus_per_worker == "auto" else config.cpus_per_worker
    cpus = threads or given or (min(AUTO_CPUS, there.cpus) if joins and not gpus else None)
    if config.workers != "auto":
        workers = config.workers
    elif gpus:
        workers = int(there.gpus / gpus)
    else:
        workers = there.cpus // max(1, cpus or 1) if joins else 1
    if config.workers == "auto" and workers < 1:
        raise UserError(
            f"gpus_per_worker: {gpus:g}, but there are {there.gpus} GPUs; lower it, or say how many workers"
        )
    size = PoolSize(workers=workers, threads=cpus or max(1, there.cpus // workers), gpus=gpus)
    if not joins and workers > 1:
        _check_fits(size, there)
    return size


def _check_fits(size: PoolSize, there: Resources) -> None:
    for what, each, total in (("CPUs", size.threads, there.cpus), ("GPUs", size.gpus, there.gpus)):
        if size.workers * each > total:
            raise UserError(
                f"workers: {size.workers} with {each:g} {what} each need {size.workers * each:g}, "
                f"but this machine has {total}; lower workers or {what.lower()}_per_worker"
            )


@dataclass(kw_only=True)
class LocalPool:
    """One replica in this process."""

    settings: ReplicaSettings

    def __post_init__(self) -> None:
        self._replica = Replica(self.settings)
        self._threads_before = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(TASKS_PER_REPLICA, thread_name_prefix="replica")

    def describe(self) -> ReplicaFacts:
        return self._replica.describe()

    def write(self, numbers: Sequence[int], make_task: MakeTask, on_rows: OnRows) -> Iterator[tuple[int, WrittenShard]]:
        waiting, running = deque(numbers), dict[Future[WrittenShard], int]()
        while waiting or running:
            while waiting and len(running) < TASKS_PER_REPLICA:
                task = make_task(waiting.popleft())
                running[self._executor.submit(self._replica.write, task)] = task.number
            done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                yield running.pop(future), future.result()
            on_rows(self._replica.rows_in_progress())

    def close(self) -> None:
        self._replica.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)


@dataclass(kw_only=True)
class RayPool:
    """Replicas in actors of a Ray that is connected. One that dies is replaced and its tasks are given out again."""

    settings: ReplicaSettings
    size: PoolSize
    _deaths: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        import ray

        self._make: Any = ray.remote(Replica)
        self._calls: dict[Any, tuple[Any, int | None]] = {}  # reference -> actor, number of its task or None
        self._free: list[Any] = []
        self._actors: list[Any] = []
        self._rows: dict[Any, int] = {}
        for _ in range(self.size.workers):
            self._start()

    def describe(self) -> ReplicaFacts:
        while True:
            for actor, _, facts in self._finished(timeout_s=None):
                if isinstance(facts, ReplicaFacts):
                    return facts
                self._note_death(actor, None, facts)

    def write(self, numbers: Sequence[int], make_task: MakeTask, on_rows: OnRows) -> Iterator[tuple[int, WrittenShard]]:
        waiting = deque(numbers)
        left = len(waiting)
        while left:
            while waiting and self._free:
                self._submit(self._free.pop(0), make_task(waiting.popleft()))
            for actor, number, result in self._finished(timeout_s=POLL_S):
                if isinstance(result, WrittenShard) and number is not None:
                    left -= 1
                    self._free.append(actor)
                    yield number, result
                elif not isinstance(result, ReplicaFacts):
                    waiting.extendleft(reversed(self._note_death(actor, number, result)))
            on_rows(self._rows_in_progress())

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self._calls.clear()

    def _start(self) -> None:
        options = {"num_cpus": self.size.threads, "num_gpus": self.size.gpus, "scheduling_strategy": "SPREAD"}
        # A third thread answers how far the two tasks are.
        actor = self._make.options(max_concurrency=TASKS_PER_REPLICA + 1, **options).remote(self.settings)
        self._actors.append(actor)
        self._calls[actor.describe.remote()] = actor, None

    def _submit(self, actor: Any, task: ShardTask) -> None:
        self._calls[actor.write.remote(task)] = actor, task.number

    def _finished(self, timeout_s: float | None) -> Iterator[tuple[Any, int | None, Any]]:
        """Actor, number of the task and result of calls that ended; the result is the error when the actor died."""
        import ray

        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        for reference in done:
            if reference not in self._calls:  # its actor was found dead
                continue
            actor, number = self._calls.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                result = error
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            if isinstance(result, ReplicaFacts):
                self._free += [actor] * TASKS_PER_REPLICA
            yield actor, number, result

    def _note_death(self, actor: Any, number: int | None, error: Exception) -> list[int]:
        """Replace an actor and give the numbers of the tasks that it had. Raises RuntimeError after too many deaths."""
        import ray

        lost = [(reference, n) for reference, (owner, n) in self._calls.items() if owner is actor]
        numbers = sorted(n for n in [number, *(n for _, n in lost)] if n is not None)
        for reference, _ in lost:
            del self._calls[reference]
        self._free = [free for free in self._free if free is not actor]
        self._rows.pop(actor, None)
        self._actors.remove(actor)
        ray.kill(actor)
        for key in numbers or [-1]:  # -1 stands for loading the models
            self._deaths[key] += 1
            if self._deaths[key] >= MOST_DEATHS:
                what = "loaded the models" if key < 0 else f"made shard {key}"
                reason = str(error).splitlines()[0]
                raise RuntimeError(f"harvest: a worker died {MOST_DEATHS} times while it {what} ({reason})") from error
        self._start()
        return numbers

    def _rows_in_progress(self) -> int:
        import ray

        busy = {actor for actor, number in self._calls.values() if number is not None}
        asked = {actor.rows_in_progress.remote(): actor for actor in busy}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_S) if asked else ([], [])
        for reference in done:
            try:
                self._rows[asked[reference]] = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # a dead one is noticed by its tasks
        return sum(self._rows.get(actor, 0) for actor in busy)


def resources_of_machine() -> Resources:
    """What this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Resources(cpus=cpus, gpus=torch.cuda.device_count())


def resources_of_cluster() -> Resources:
    """What the connected Ray has now."""
    import ray

    total = ray.cluster_resources()
    return Resources(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)))
