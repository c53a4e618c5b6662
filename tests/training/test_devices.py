"""What a trial asked for decides where it computes, down to DeepSpeed: what a process could see decides nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.engine import DeepSpeedEngine

from lexray.training.config import OptimizerConfig
from lexray.training.engines.deepspeed_settings import deepspeed_config
from lexray.training.mesh.device import CPU, backend_of
from lexray.training.mesh.settings import MeshConfig

ROOT = Path(__file__).parents[2]
LOOKS = re.compile(r"cuda\.(is_available|device_count)")
MAY_LOOK = {"training/mesh/device.py", "storage/harvest/size.py"}
"""They count the GPUs of a machine, for commands that belong to no trial."""

ON_CPUS_WHATEVER_IS_SEEN = """
import sys
import torch
torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 1)

from lexray.training.loop.build import ensure_process_group
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from training_cases import default_case, random_rows, untrained
from lexray.training.config import OptimizerConfig
from lexray.training.mesh.settings import MeshConfig
from lexray.training.engines.deepspeed_engine import DeepSpeedEngine

print(get_accelerator().device_name())
ensure_process_group()
made = untrained(default_case("topk"))
engine = DeepSpeedEngine(made, OptimizerConfig(), MeshConfig(zero_stage=int(sys.argv[1])))
engine.backward(random_rows(made.sites, 0, dtype=torch.float32), 24)
engine.step(0.001)
print(engine.device, get_accelerator().device_name(), dist.get_backend())
"""


def test_only_what_counts_gpus_asks_what_a_process_can_see() -> None:
    files = [path for floor in ("storage", "training", "tuning", "cluster") for path in (ROOT / floor).rglob("*.py")]
    assert len(files) > 100
    assert {str(path.relative_to(ROOT)) for path in files if LOOKS.search(path.read_text())} == MAY_LOOK


def test_a_device_has_its_backend() -> None:
    assert [backend_of(torch.device(name)) for name in ("cpu", "cuda", "cuda:3")] == ["gloo", "nccl", "nccl"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_an_optimizer_on_the_host_is_pinned_for_a_gpu_alone(on_gpu: bool) -> None:
    workers = MeshConfig(zero_stage=1, offload_optimizer=True)
    found = deepspeed_config(OptimizerConfig(), workers, 1000, on_gpu=on_gpu)["zero_optimization"]["offload_optimizer"]
    assert found == {"device": "cpu", "pin_memory": on_gpu}


class _FourGpus(CPU_Accelerator):
    """Notes which device DeepSpeed chooses."""

    chosen: Any = None

    def device_name(self, device_index: int | None = None) -> str:
        return "cuda" if device_index is None else f"cuda:{device_index}"

    def set_device(self, device_index: int) -> None:
        self.chosen = device_index


@pytest.mark.parametrize("index", [0, 1, 3])
def test_deepspeed_takes_the_device_that_it_is_given_and_not_the_one_of_its_local_rank(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private method of DeepSpeed on which `Engine` relies, as there is no GPU to see it by."""
    before, pretended, engine = get_accelerator(), _FourGpus(), SimpleNamespace(local_rank=2)
    alone = SimpleNamespace(get_world_size=lambda: 1, get_rank=lambda: 0)
    monkeypatch.setattr("deepspeed.runtime.engine.dist", alone)
    set_accelerator(pretended)
    try:
        DeepSpeedEngine._set_distributed_vars(engine, SimpleNamespace(device_rank=index))
    finally:
        set_accelerator(before)
    assert (pretended.chosen, engine.device) == (index, torch.device("cuda", index))


@pytest.mark.slow
@pytest.mark.parametrize(("told", "first"), [("cpu", "cpu"), ("cuda", "cuda"), ("", "cuda")])
@pytest.mark.parametrize("stage", [0, 3])
def test_an_engine_is_where_its_dictionary_is_whatever_deepspeed_was_imported_for(
    told: str, first: str, stage: int
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **({"DS_ACCELERATOR": told} if told else {})}
    done = subprocess.run(
        [sys.executable, "-c", ON_CPUS_WHATEVER_IS_SEEN, str(stage)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == (first, f"{CPU} cpu gloo")
