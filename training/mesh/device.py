"""The device on which a rank computes: decided by what its trial asked for, once, and passed down from there.

Whether a process can see a GPU decides nothing for a trial. Ray does not hide the GPUs of a node from workers that
asked for none, so `torch.cuda.is_available()` is true in them as well. It is read here alone, for commands that train
or measure in their own process, and to count GPUs before a trial has its share.
"""

from __future__ import annotations

import os

import torch

CPU = torch.device("cpu")
ACCELERATOR = "DS_ACCELERATOR"
"""The environment variable that DeepSpeed reads when it is imported."""


def backend_of(device: torch.device) -> str:
    """Return the backend of torch's collectives whose tensors lie on such devices."""
    return "nccl" if device.type == "cuda" else "gloo"


def use_device(device: torch.device) -> None:
    """Make `device` the one of this process: for CUDA's calls without a device, and for DeepSpeed's import."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ[ACCELERATOR] = device.type


def usable_gpus() -> int:
    """Return how many GPUs torch can use in this process; 0 under a build without CUDA, or a driver that is too old."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_of_command() -> torch.device:
    """Return the device of a command that computes in its own process, for no trial: the first GPU, if there is any."""
    return torch.device("cuda", torch.cuda.current_device()) if usable_gpus() else CPU
