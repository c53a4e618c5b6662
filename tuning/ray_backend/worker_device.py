"""The device of a trial's worker: the GPU that Ray gave to it, or the CPUs of a trial that asked for no GPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import ray
import torch

from lexray.storage.errors import UserError
from lexray.training.mesh.device import CPU, usable_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"


def device_of_worker(*, on_gpu: bool) -> torch.device:
    """Return the device of this Ray worker. Raises UserError naming the host whose torch cannot use its GPU."""
    given = [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"]]
    device = choose_device(given, os.environ.get(VISIBLE, "").split(","), on_gpu=on_gpu)
    if device.type == "cuda" and (device.index or 0) >= usable_gpus():
        raise UserError(
            f"resources.gpus_per_worker: Ray gave GPU {given[0]} of {socket.gethostname()} to a worker, but torch "
            f"{torch.__version__} can use {usable_gpus()} GPU(s) there; install a torch for its driver, or give "
            "gpus_per_worker: 0"
        )
    return device


def choose_device(given: Sequence[str], visible: Sequence[str], *, on_gpu: bool) -> torch.device:
    """Return the device of a worker to which Ray gave the GPUs `given`, of those `visible` in CUDA's order.

    GPUs have the names of Ray: numbers or UUIDs. A node's GPUs are visible to workers that asked for none, and those of
    its neighbours to each worker of a mesh, so that neither what CUDA sees nor the number of a rank on its node says
    which GPU is whose.
    """
    if not on_gpu:
        return CPU
    assert len(given) == 1, f"a worker computes on one GPU, Ray gave {list(given)}"
    assert given[0] in visible, f"{VISIBLE} is {','.join(visible)!r}, without the worker's GPU {given[0]}"
    return torch.device("cuda", visible.index(given[0]))
