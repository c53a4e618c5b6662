"""What one window server gives to one and to eight consumers on its node (Ray)."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from benchmarks.s3_server import CREDENTIALS
from benchmarks.stream_readers import BATCH_ROWS, Place
from lexray.cluster.ray_backend.connect import PROCESS_ENV
from lexray.storage.server import ServedWindows, start_server
from lexray.storage.stream import BatchStream

KEEP_BYTES = 512 * 2**20
OBJECT_STORE_BYTES = 3 * 2**30
CONSUMERS = 8


class Cost(NamedTuple):
    """Cost of an epoch."""

    seconds: float
    """Until the last consumer had its last batch."""
    server_cpu_s: float
    store_bytes: int


class Consumer:
    """A worker of a trial of its own: it reads every batch of the stream."""

    def __init__(self, place: Place, server: Any, number: int) -> None:
        source = ServedWindows(place.spec, server, f"consumer {number}")
        self._stream = BatchStream(spec=place.spec, source=source, batch_rows=BATCH_ROWS)

    def epoch(self, number: int) -> int:
        steps = range(number * self._stream.steps_per_epoch, (number + 1) * self._stream.steps_per_epoch)
        return sum(self._stream.batches(steps, lambda batch: len(batch.row_ids)))


@dataclass
class Node:
    """A server and its consumers, which wait for their turn."""

    server: Any
    consumers: list[Any]
    epochs: int = 0
    """Epochs read so far: no window is asked for twice."""

    def cost(self, consumers: int) -> Cost:
        """One epoch of so many consumers at once."""
        before, cpu_before = ray.get(self.server.stats.remote()), _cpu_s(self.server)
        began = time.perf_counter()
        rows = ray.get([consumer.epoch.remote(self.epochs) for consumer in self.consumers[:consumers]])
        seconds = time.perf_counter() - began
        assert len(set(rows)) == 1, rows
        self.epochs += 1
        after = ray.get(self.server.stats.remote())
        store_bytes = after.read.store_bytes - before.read.store_bytes
        return Cost(seconds, _cpu_s(self.server) - cpu_before, store_bytes)


def on_one_node(place: Place, rounds: int) -> tuple[list[Cost], list[Cost]]:
    """Costs of one consumer and of eight, in turns. Ray must run."""
    node_id = ray.get_runtime_context().get_node_id()
    server = start_server(node_id, keep_bytes=KEEP_BYTES)
    actor = ray.remote(num_cpus=0)(Consumer)
    node = Node(server, [actor.remote(place, server, number) for number in range(CONSUMERS)])
    try:
        node.cost(CONSUMERS)  # processes start, the manifest is read
        pairs = [(node.cost(1), node.cost(CONSUMERS)) for _ in range(rounds)]
    finally:
        for one in (*node.consumers, server):
            ray.kill(one)
    return [one for one, _ in pairs], [eight for _, eight in pairs]


def start_ray() -> None:
    """As `lexray` starts it, with a small object store and the S3 server's credentials."""
    environment = {**PROCESS_ENV, **CREDENTIALS, "OMP_NUM_THREADS": "1"}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": environment},
    )


def print_costs(title: str, ones: list[Cost], eights: list[Cost]) -> None:
    """Medians, and medians of the rounds' ratios."""

    def line(name: str, value: Callable[[Cost], float], unit: str) -> None:
        one, eight = (statistics.median(map(value, costs)) for costs in (ones, eights))
        ratio = statistics.median(value(e) / value(o) for o, e in zip(ones, eights, strict=True))
        print(f"  {name:46} {one:10,.2f} {eight:10,.2f} {unit:4} {ratio:6.2f} x one consumer")

    print(f"\n{title}: one consumer, {CONSUMERS} consumers")
    line("time until the last has its last batch", lambda cost: cost.seconds, "s")
    line("processor time of the window server", lambda cost: cost.server_cpu_s, "s")
    line("bytes from the store", lambda cost: cost.store_bytes / 1e6, "MB")


def _cpu_s(server: Any) -> float:
    import psutil

    times = psutil.Process(ray.get(server.stats.remote()).pid).cpu_times()
    return float(times.user + times.system)
