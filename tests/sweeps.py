"""A small dataset and sweep files over it, for tests that run real sweeps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import yaml

from lexray.storage.store import Store
from lexray.storage.writer import DatasetWriter
from lexray.tuning.placement.allocator import NodeState, View
from lexray.tuning.placement.nodes import Node
from lexray.tuning.ray_backend.placer import Placer

ROWS, WIDTH = 6000, 16


def write_dataset(folder: Path, *, rows: int = ROWS, width: int = WIDTH, special: int | None = None) -> str:
    """Rows made of 32 sparse features, 40 documents."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(32, width))
    codes = rng.exponential(size=(rows, 32)) * (rng.random((rows, 32)) < 0.1)
    writer = DatasetWriter(
        store=Store.at(str(folder)),
        sites={"site": width},
        chunk_rows=128,
        shard_rows=1280,
        special_token_ids=[special] if special is not None else [],
    )
    number = np.arange(rows)
    columns = {"token_id": number % 50, "position": number % 30, "document": number * 40 // rows}
    writer.add({"site": torch.from_numpy(codes @ features + 1.0).float()}, columns)
    writer.close()
    return str(folder)


def sweep_content(data: str, output: str, **changes) -> dict:
    """The content of a sweep file of two quick trials; keyword arguments replace whole blocks."""
    content = {
        "name": "small",
        "output": output,
        "data": {"url": data, "site": "site", "batch_rows": 128, "held_out": 0.1},
        "training": {"rows": 128 * 60, "lr": 0.003},
        "axes": {"architecture": ["topk", "relu"], "width": [64], "target_l0": [4]},
        "every": {"log": 10, "evaluate": 20, "checkpoint": 20},
    }
    return {**content, **changes}


def write_sweep(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def fixed_allocator(nodes: Mapping[str, Node]) -> Placer:
    """Nodes that nobody else uses, that stay, and that have no window servers."""
    states = {node_id: NodeState(total=node, available=node) for node_id, node in nodes.items()}
    return Placer(None, lambda: View(nodes=states))


def diverging_at(lr: float):
    """Return what runs a trial whose steps are far too large if it has this learning rate. Ray gets it by value."""

    def work(config):
        from lexray.tuning.ray_backend import trial

        real = trial.train_worker

        def train_worker(config):
            from lexray.training.config import OptimizerConfig

            lr_at = OptimizerConfig.lr_at
            OptimizerConfig.lr_at = lambda self, *step, **of: 1e30 if self.lr == lr else lr_at(self, *step, **of)
            real(config)

        trial.train_worker = train_worker
        trial.run_trial(config)

    return work
