"""DeepSpeed's configuration, and parameter groups with separate learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from lexray.storage.errors import UserError
from lexray.training.config import OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.mesh.settings import MeshConfig

REDUCE_BUCKET = 50_000_000
"""Maximum number of gradients in DeepSpeed's reduce bucket, which it allocates."""
BUCKET_SHARE = 1 / 32
"""Maximum bucket as a share of the parameters; larger gradients are reduced individually, without the bucket."""


class LiveGroup(NamedTuple):
    """A parameter group of the optimizer."""

    names: tuple[str, ...]
    lr: float


def parameter_groups(dictionary: Dictionary, lr_scale: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the parameters grouped by learning rate factor, the group of factor 1 first."""
    parameters = dict(dictionary.named_parameters())
    for name in lr_scale:
        if name not in parameters:
            have = ", ".join(parameters)
            raise UserError(f"lr_scale.{name}: {dictionary.config.architecture} has no such parameter; it has {have}")
    by_scale: dict[float, list[str]] = {1.0: []}
    for name in parameters:
        by_scale.setdefault(lr_scale.get(name, 1.0), []).append(name)
    return [
        {"params": [parameters[name] for name in names], "names": tuple(names), "lr_scale": scale}
        for scale, names in by_scale.items()
        if names
    ]


def check_names(config: TrainingConfig, sites: Sites) -> None:
    """Raise UserError when `lr_scale` names a parameter that does not exist. Nothing is allocated."""
    dictionary = config.dictionary
    if config.optimizer.lr_scale and dictionary.learns_by == "gradient":
        with torch.device("meta"):
            parameter_groups(make_dictionary(dictionary, sites), config.optimizer.lr_scale)


def check_groups(live: list[LiveGroup], wanted: list[LiveGroup]) -> None:
    """Raise RuntimeError unless the optimizer has the requested groups, with their learning rates."""
    if live != wanted:
        raise RuntimeError(f"DeepSpeed's optimizer has the groups {live}, asked for were {wanted}")


def deepspeed_config(
    config: OptimizerConfig, workers: MeshConfig, num_parameters: int, *, on_gpu: bool = False
) -> dict[str, Any]:
    """Return DeepSpeed's configuration: fp32 parameters and reductions, no printing, no compilation."""
    bucket = min(REDUCE_BUCKET, max(1, round(BUCKET_SHARE * num_parameters)))
    # Every parameter is sharded, however small, so that the memory of a rank follows a formula.
    zero: dict[str, Any] = {
        "stage": workers.stage,
        "reduce_bucket_size": bucket,
        "stage3_param_persistence_threshold": 0,
    }
    if workers.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        "train_micro_batch_size_per_gpu": 1,  # used by DeepSpeed for its reports alone
        "gradient_accumulation_steps": workers.micro_batches,
        "gradient_clipping": config.clip_norm if workers.stage else 0.0,  # the engine's own where it needs the norm
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own Adam would have to be compiled
        "steps_per_print": 10**9,
        "zero_optimization": zero,
    }
