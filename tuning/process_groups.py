"""The process group of a trial's workers, on the network by which their nodes know each other.

gloo listens where the name of its machine leads, and that is the loopback on many a machine: workers of other nodes
then wait for each other in vain.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from lexray.training.device import use_device
from lexray.tuning.worker_device import device_of_worker

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class _OnTheNodesNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_interface_of_the_node)
        worker_group.execute(prepare_worker, on_gpu=backend_config.on_gpu)
        super().on_start(worker_group, backend_config)


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
    import lexray.training.engine  # noqa: F401


def use_interface_of_the_node() -> None:
    """Let gloo, which asks the environment, listen at the address by which Ray knows this node.

    An interface that somebody chose stays.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)


def interface_of(address: str) -> str | None:
    """The network interface that has this IP address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.split("%")[0] == address for found in addresses):
            return name
    return None
