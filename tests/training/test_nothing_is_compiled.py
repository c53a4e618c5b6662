"""Training compiles nothing and launches nothing: no compiler, no MPI is called, and none need be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mesh_ranks import Task
from training_synthetic import Dataset, small_dataset

from lexray.training.mesh.settings import MeshConfig

TOOLS = (
    "cc", "c++", "gcc", "g++", "clang", "clang++", "ld", "ninja", "make", "nvcc", "hipcc", "mpirun", "mpicc", "pdsh",
    "x86_64-linux-gnu-gcc", "x86_64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++",
)  # fmt: skip
PROGRAM = """
import json, sys
import torch.distributed as dist
from mesh_ranks import train
from lexray.training.config import TrainingConfig
from lexray.training.loop.build import ensure_process_group

rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
ensure_process_group()
for content in json.load(sys.stdin):
    train(TrainingConfig.from_dict(content), rank)
dist.barrier()
dist.destroy_process_group()
"""
ASK_WHAT_COULD_BE_COMPILED = "import deepspeed; deepspeed.ops.__compatible_ops__"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def without_tools(folder: Path) -> dict[str, str]:
    """An environment whose only programs are false compilers and launchers that write down that they were called."""
    tools = folder / "bin"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/called\nexit 1\n')
        (tools / name).chmod(0o755)
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    root = Path(__file__).parents[2]
    return {
        **kept,
        "PATH": str(tools),
        "HOME": str(folder),
        "PYTHONPATH": f"{root}:{root / 'tests'}",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


@pytest.mark.slow
def test_engines_of_every_stage_call_no_compiler(dataset: Dataset, tmp_path: Path) -> None:
    task = Task(name="batch_topk", data=2, steps=3)
    meshes = [
        MeshConfig(data=2, zero_stage=stage, offload_optimizer=stage > 1, micro_batches=1 + stage % 2)
        for stage in range(4)
    ]
    config = task.config(dataset)
    optimizer = replace(config.optimizer, precision="bf16", lr_scale={"b_dec": 2.0})
    content = json.dumps([replace(config, mesh=mesh, optimizer=optimizer).to_dict() for mesh in meshes])
    environment = without_tools(tmp_path)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "meeting")],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write(content)
        rank.stdin.close()
        rank.stdin = None
    said = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert not (tmp_path / "called").exists(), (tmp_path / "called").read_text()
    assert not (tmp_path / "extensions").exists()


def test_a_compiler_that_is_called_would_be_seen(tmp_path: Path) -> None:
    """What the engine keeps DeepSpeed from doing."""
    environment = without_tools(tmp_path)
    subprocess.run(
        [sys.executable, "-c", ASK_WHAT_COULD_BE_COMPILED], env=environment, cwd=tmp_path, check=True, timeout=200,
        capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "called").read_text()
