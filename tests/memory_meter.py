"""What a computation, or a process, holds in tensors."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that torch's allocator had given out at once, beyond those before, while `work` ran on a CPU.

    What earlier work left behind in cycles would count as given back if it were collected meanwhile.
    """
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work()
    finally:
        gc.enable()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert most > 0, "the profiler saw no allocation"
    return most


def live_storages() -> dict[int, int]:
    """Bytes of every storage that some tensor of this process has, by address."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules of torch that warn when they are looked at
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found
