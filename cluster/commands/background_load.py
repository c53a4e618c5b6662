"""Processes that compute beside a measurement, as the other trials of a sweep will: cores share caches and memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROWS, LATENTS = 1024, 4096
STARTED_WITHIN_S = 120


@contextmanager
def background_load(processes: int, *, threads: int, site_width: int) -> Iterator[None]:
    """Inside, so many processes multiply matrices, each with so many threads."""
    spawning = multiprocessing.get_context("spawn")
    busy = spawning.Semaphore(0)
    workers = [
        spawning.Process(target=_multiply, args=(busy, threads, site_width), daemon=True) for _ in range(processes)
    ]
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            if not busy.acquire(timeout=STARTED_WITHIN_S):
                raise RuntimeError(f"a process to measure beside did not start within {STARTED_WITHIN_S} s")
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _multiply(busy: Any, threads: int, site_width: int) -> None:
    import torch

    torch.set_num_threads(threads)
    rows, weights = torch.randn(ROWS, site_width), torch.randn(site_width, LATENTS)
    busy.release()
    while True:
        rows @ weights
