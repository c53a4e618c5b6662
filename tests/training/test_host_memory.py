"""What the plan says of a worker's memory on its host holds of its process, from the start of a training to its end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from training_synthetic import Dataset, sparse_features, write_features

from lexray.storage.store import Store
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.cost.memory import PROCESS_BYTES, needs
from lexray.training.dictionaries import dictionary_config
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.settings import MeshConfig

SITE, BATCH_ROWS, STEPS = 256, 64, 6
MESHES = [
    MeshConfig(),
    MeshConfig(data=2, zero_stage=1),
    MeshConfig(feature=2),
    MeshConfig(data=2, zero_stage=3),
]
STREAM_BYTES = 64 * 2**20
"""Windows, batches and what torch's and numpy's allocators keep for themselves."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_features(tmp_path_factory.mktemp("data"), sparse_features(512, SITE, active=4, rows=2000))


def config_on(mesh: MeshConfig, dataset: Dataset, latents: int) -> TrainingConfig:
    return TrainingConfig(
        dictionary=dictionary_config({"architecture": "topk", "width": latents, "target_l0": 8, "aux_weight": 0.0}),
        data=DataConfig(
            url=dataset.store.url, dataset_id=dataset.manifest.id, inputs=("site",), batch_rows=BATCH_ROWS, lanes=4
        ),
        rows=STEPS * BATCH_ROWS,
        mesh=mesh,
        optimizer=OptimizerConfig(lr=1e-3),
        every=EveryConfig(log=1, evaluate=3, checkpoint=2, eval_rows=64),
    )


def status(name: str) -> int:
    (kib,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(kib)


def _work(rank: int, configs: list[TrainingConfig], folder: str) -> None:
    """A small training first, so that all libraries are there; then the large one, whose peak counts."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    ranks = configs[0].mesh.data * configs[0].mesh.feature
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    ensure_process_group()
    before = 0
    for i, config in enumerate(configs):
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
        Trainer(config=config, store=Store.at(f"{folder}/out{i}"), rank=rank, num_ranks=ranks).run()
    Path(f"{folder}/{rank}.json").write_text(json.dumps([before, status("VmHWM")]))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m.data}x{m.feature}-zero{m.stage}")
def test_a_workers_process_stays_within_the_plan_and_near_it(
    mesh: MeshConfig, dataset: Dataset, tmp_path: Path
) -> None:
    configs = [config_on(mesh, dataset, latents) for latents in (64, 2**16)]
    ranks = mesh.data * mesh.feature
    torch.multiprocessing.spawn(_work, args=(configs, str(tmp_path)), nprocs=ranks)
    sites = configs[-1].data.sites_in(dataset.manifest)
    planned = needs(configs[-1], sites, on_gpu=False).host
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    taken = np.array([peak - before for before, peak in found])
    assert max(before for before, _ in found) < PROCESS_BYTES
    assert taken.max() < planned - PROCESS_BYTES + STREAM_BYTES
    assert taken.max() > (planned - PROCESS_BYTES) / 1.3
