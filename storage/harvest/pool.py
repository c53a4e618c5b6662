"""Pools that make the shards of a harvest: replicas in Ray actors, or one replica in this process without Ray.

Both yield shards as they are completed; a task is created when a replica is free for it. A replica has two tasks, so
that one shard is written while the next is computed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch

from lexray.storage.errors import one_line
from lexray.storage.harvest.plan import ShardTask
from lexray.storage.harvest.replica import Replica, ReplicaFacts, ReplicaSettings
from lexray.storage.harvest.size import PoolSize
from lexray.storage.writer import WrittenShard

TASKS_PER_REPLICA = 2
POLL_S = 0.5
"""Seconds between polls of the rows in progress."""
MOST_DEATHS = 3
"""Maximum deaths of replicas on the same task before the harvest fails."""

MakeTask = Callable[[int], ShardTask]
OnRows = Callable[[int], None]
"""Called with the number of rows computed for unfinished shards."""


@dataclass(kw_only=True)
class LocalPool:
    """One replica in this process."""

    settings: ReplicaSettings

    def __post_init__(self) -> None:
        self._replica = Replica(self.settings)
        self._threads_before = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(TASKS_PER_REPLICA, thread_name_prefix="replica")

    def describe(self) -> ReplicaFacts:
        """Return the facts of its replicas, once one has loaded and tried the models. Raises UserError."""
        return self._replica.describe()

    def write(self, numbers: Sequence[int], make_task: MakeTask, on_rows: OnRows) -> Iterator[tuple[int, WrittenShard]]:
        """Yield number and shard on completion. Raises UserError; OSError for a store that cannot be written."""
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
    """Replicas in actors of the connected Ray. One that dies is replaced and its tasks are reassigned."""

    settings: ReplicaSettings
    size: PoolSize
    _deaths: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        import ray

        self._ray: Any = ray  # a harvest by one replica does without
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
                actor, task = self._free.pop(0), make_task(waiting.popleft())
                self._calls[actor.write.remote(task)] = actor, task.number
            for actor, number, result in self._finished(timeout_s=POLL_S):
                if isinstance(result, WrittenShard) and number is not None:
                    left -= 1
                    self._free.append(actor)
                    yield number, result
                elif not isinstance(result, ReplicaFacts):
                    waiting.extendleft(reversed(self._note_death(actor, number, result)))
            on_rows(self._rows_in_progress())

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        self._calls.clear()

    def _start(self) -> None:
        options = {"num_cpus": self.size.threads, "num_gpus": self.size.gpus, "scheduling_strategy": "SPREAD"}
        # A third thread reports the progress of the two tasks.
        actor = self._make.options(max_concurrency=TASKS_PER_REPLICA + 1, **options).remote(self.settings)
        self._actors.append(actor)
        self._calls[actor.describe.remote()] = actor, None

    def _finished(self, timeout_s: float | None) -> Iterator[tuple[Any, int | None, Any]]:
        """Yield actor, task number and result of finished calls; the result is the error when the actor died."""
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        for reference in done:
            if reference not in self._calls:  # its actor has died
                continue
            actor, number = self._calls.pop(reference)
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                result = error
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            if isinstance(result, ReplicaFacts):
                self._free += [actor] * TASKS_PER_REPLICA
            yield actor, number, result

    def _note_death(self, actor: Any, number: int | None, error: Exception) -> list[int]:
        """Replace an actor and return the numbers of its tasks. Raises RuntimeError after too many deaths."""
        lost = [(reference, n) for reference, (owner, n) in self._calls.items() if owner is actor]
        numbers = sorted(n for n in [number, *(n for _, n in lost)] if n is not None)
        for reference, _ in lost:
            del self._calls[reference]
        self._free = [free for free in self._free if free is not actor]
        self._rows.pop(actor, None)
        self._actors.remove(actor)
        self._ray.kill(actor)
        for key in numbers or [-1]:  # -1 stands for loading the models
            self._deaths[key] += 1
            if self._deaths[key] >= MOST_DEATHS:
                what = "loaded the models" if key < 0 else f"made shard {key}"
                reason = one_line(error)
                raise RuntimeError(f"harvest: a worker died {MOST_DEATHS} times while it {what} ({reason})") from error
        self._start()
        return numbers

    def _rows_in_progress(self) -> int:
        busy = {actor for actor, number in self._calls.values() if number is not None}
        asked = {actor.rows_in_progress.remote(): actor for actor in busy}
        done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=POLL_S) if asked else ([], [])
        for reference in done:
            try:
                self._rows[asked[reference]] = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                continue  # its tasks report a dead actor
        return sum(self._rows.get(actor, 0) for actor in busy)


Pool = LocalPool | RayPool
