"""The metrics of a sweep for Prometheus, at the port of metrics that Ray opens on each node.

They are a view. A process counts in plain numbers; a thread of its own hands them to Ray every `PUBLISH_EVERY_S`. So a
training neither waits for Ray nor fails with it. An error ends the view of that process, with one line in its log.

All metrics are counters and gauges: Ray rebuilds histograms from the middles of their buckets, which makes sums wrong.
Ray drops gauges that were not set for 20 s (twice its own interval), and adds the prefix `ray_` to every name.

Window servers load this module, so it loads no torch.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge

from lexray.storage.server import ServerStats

log = logging.getLogger("lexray")

PUBLISH_EVERY_S = 5.0
"""Half of Ray's interval."""

DESCRIPTIONS = {
    "lexray_steps_total": "Optimizer steps",
    "lexray_rows_total": "Rows trained on, of all workers of a trial",
    "lexray_step_seconds_total": "Seconds spent in optimizer steps",
    "lexray_data_wait_seconds_total": "Seconds spent waiting for batches, of the worker that waited most",
    "lexray_fvu": "Fraction of variance unexplained of the last logged batch",
    "lexray_l0": "Mean number of active latents per row of the last logged batch",
    "lexray_read_bytes_total": "Bytes of chunks that a node's window server read, by source (store, disk)",
    "lexray_served_bytes_total": "Bytes of windows that a node's window server gave to workers",
    "lexray_windows_read_total": "Windows that a node's window server read",
    "lexray_windows_served_total": "Windows that a node's window server gave to workers",
    "lexray_window_cache_bytes": "Bytes of windows that a node's window server keeps",
    "lexray_store_retries_total": "Repeated calls to the object store, of a window server or a trial's first worker",
    "lexray_trials": "Trials by status",
}
"""Every metric, by name. Those that end in `_total` are counters, the others gauges."""


class Sample(NamedTuple):
    """A number to publish: the total so far of a counter, the value of a gauge."""

    name: str
    value: float
    tags: tuple[tuple[str, str], ...] = ()
    """Beyond those that all samples of the process have; of one name, always the same keys."""


@dataclass(kw_only=True)
class Publisher:
    """Publishes what `samples` returns, from a thread, until it is closed or its process ends."""

    tags: Mapping[str, str]
    samples: Callable[[], Sequence[Sample]]
    every_s: float = PUBLISH_EVERY_S
    _metrics: dict[str, Any] = field(default_factory=dict)
    _counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Publish once more and end; nobody waits for it."""
        self._closed.set()

    def _run(self) -> None:
        try:
            while not self._closed.wait(self.every_s):
                self.publish()
            self.publish()
        except Exception as error:
            log.warning("metrics are published no more: %s", error)

    def publish(self) -> None:
        """Hand the samples to Ray; values that are not finite are left out."""
        for name, value, own in self.samples():
            tags = {**self.tags, **dict(own)}
            if name not in self._metrics:
                kind = Counter if name.endswith("_total") else Gauge
                self._metrics[name] = kind(name, DESCRIPTIONS[name], tuple(tags))
            if not name.endswith("_total"):
                if math.isfinite(value):
                    self._metrics[name].set(value, tags)
            elif (added := value - self._counted.get((name, own), 0.0)) > 0:
                self._counted[name, own] = value
                self._metrics[name].inc(added, tags)


def publish_server(sweep: str, stats: Callable[[], ServerStats]) -> None:
    """Publish what a window server does, until its process ends; see `lexray.storage.server.Publish`."""
    Publisher(tags={"sweep": sweep}, samples=lambda: server_samples(stats())).start()


def server_samples(stats: ServerStats) -> list[Sample]:
    """Return what is published of a window server's statistics."""
    return [
        Sample("lexray_read_bytes_total", stats.read.store_bytes, (("source", "store"),)),
        Sample("lexray_read_bytes_total", stats.read.disk_bytes, (("source", "disk"),)),
        Sample("lexray_served_bytes_total", stats.bytes_served),
        Sample("lexray_windows_read_total", stats.windows_read),
        Sample("lexray_windows_served_total", stats.windows_served),
        Sample("lexray_window_cache_bytes", stats.bytes_kept),
        Sample("lexray_store_retries_total", stats.retries),
    ]
