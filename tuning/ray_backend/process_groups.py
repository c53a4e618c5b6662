"""The process group of a trial's workers, on the network by which their nodes know each other.

torch's own store listens on every interface of rank 0's machine; theirs is at the node's address.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.util
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from lexray.training.mesh.device import use_device
from lexray.tuning.ray_backend.meeting import Endpoint, join_meeting, open_meeting
from lexray.tuning.ray_backend.node_interface import use_interface_of_the_node
from lexray.tuning.ray_backend.worker_device import device_of_worker

NCCL_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class _OnTheNodesNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        try:
            self._join(worker_group, backend_config)
        except BaseException:
            # Ray forgets workers whose start fails here: they would keep their node from the next attempt.
            worker_group.shutdown()
            raise

    def _join(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_interface_of_the_node)
        worker_group.execute(prepare_worker, on_gpu=backend_config.on_gpu)
        worker_group.execute(_set_torch_distributed_env_vars)
        group = {
            "backend": backend_config.backend,
            "meeting": worker_group.execute_single(0, open_meeting_at_node),
            "size": len(worker_group),
            "timeout_s": backend_config.timeout_s,
        }
        joining = [
            worker_group.execute_single_async(number, join_process_group, number=number, **group)
            for number in range(len(worker_group))
        ]
        ray.get(joining)


@dataclass
class WorkersConfig(TorchConfig):
    """Ray Train's configuration of torch, whose workers first choose a network interface and a device."""

    on_gpu: bool = False
    """Whether they compute on GPUs, and so talk over NCCL."""

    def __post_init__(self) -> None:
        self.backend = "nccl" if self.on_gpu else "gloo"

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OnTheNodesNetwork


def prepare_worker(*, on_gpu: bool) -> None:
    """Take this worker's device and import what trains on it, before its process group begins to count the time.

    Raises UserError when torch cannot use the GPU that Ray gave to the worker.
    """
    use_device(device_of_worker(on_gpu=on_gpu))
    import lexray.training.engines.deepspeed_engine  # noqa: F401


def open_meeting_at_node() -> Endpoint:
    """Hold a port of this node, at the address by which Ray knows it, for the ranks to meet at."""
    return open_meeting(ray.util.get_node_ip_address())


def join_process_group(*, backend: str, meeting: Endpoint, number: int, size: int, timeout_s: float) -> None:
    """Join the group of `size` ranks as rank `number`; a collective beyond `timeout_s` ends the process."""
    os.environ.update(MASTER_ADDR=meeting.host, MASTER_PORT=str(meeting.port))  # libraries expect them
    os.environ.setdefault(NCCL_ERRORS, "1")
    store = join_meeting(meeting, number, size, timeout_s)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
