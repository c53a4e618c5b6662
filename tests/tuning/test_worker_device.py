"""A worker computes on the GPU that Ray gave to it, and on CPUs when its trial asked for none, whatever CUDA sees."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train.v2._internal.callbacks.accelerators import _get_visible_accelerator_ids_per_worker
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.training.mesh.device import CPU
from lexray.tuning.file.resources import ResourcesBlock
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.placement.nodes import Node, place
from lexray.tuning.planning.mesh_choice import gpu_lines, with_gpus
from lexray.tuning.ray_backend.tuner import Work
from lexray.tuning.ray_backend.worker_device import choose_device
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep, with_meshes
from lexray.tuning.trials import Footprint

GIB = 2**30
NODES = [(1,), (2,), (4,), (12,), (2, 2), (1, 1, 1, 1), (3, 1), (8, 8)]
"""GPUs of each node."""


# Which GPU is whose -----------------------------------------------------------------------------------------------


def ids_of_ray(places: tuple[str, ...], gpus: float, nodes: dict[str, Node]) -> list[str]:
    """The GPU that Ray gives to each worker: the first of its node with so much left."""
    left = {name: [1.0] * int(node.gpus) for name, node in nodes.items()}
    given = []
    for name in places:
        number = next(n for n, share in enumerate(left[name]) if share >= gpus - 1e-9)
        left[name][number] -= gpus
        given.append(str(number))
    return given


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize("gpus", [0, 0.25, 0.5, 1, 1.5, 2, 4])
def test_workers_of_every_mesh_get_a_gpu_each_or_are_refused(workers: int, gpus: float) -> None:
    resources = ResourcesBlock(workers=workers, gpus_per_worker=gpus)
    if gpus > 1 or (gpus % 1 and workers > 1):
        with pytest.raises(UserError, match=rf"resources\.gpus_per_worker: {gpus:g}, but .* give 1"):
            resources.check_gpus()
        return
    resources.check_gpus()
    for gpus_of_nodes in NODES:
        check_devices(workers, gpus, gpus_of_nodes)


def check_devices(workers: int, gpus: float, gpus_of_nodes: tuple[int, ...]) -> None:
    """Place the workers as lexray does, give them GPUs as Ray does, and look at what each takes."""
    nodes = {f"n{number}": Node(64, count) for number, count in enumerate(gpus_of_nodes)}
    places = place(Footprint(workers=workers, cpus_per_worker=1, gpus_per_worker=gpus), 1, nodes)
    assert (places is None) == (gpus == 1 and workers > sum(gpus_of_nodes))
    if places is None:
        return
    given = [[gpu] for gpu in ids_of_ray(places, gpus, nodes)] if gpus else [[] for _ in places]
    workers_of_ray: Any = [
        SimpleNamespace(node_id=name, accelerator_ids={"GPU": ids}) for name, ids in zip(places, given, strict=True)
    ]
    # Without GPUs Ray shows a worker all of its node.
    shown = _get_visible_accelerator_ids_per_worker(workers_of_ray, "GPU") if gpus else ["0,1"] * workers
    devices = [
        choose_device(ids, visible.split(","), on_gpu=gpus > 0) for ids, visible in zip(given, shown, strict=True)
    ]
    if not gpus:
        assert set(devices) == {CPU}
        return
    for device, ids, visible in zip(devices, given, shown, strict=True):
        assert visible.split(",")[device.index] == ids[0], "CUDA counts among the visible ones"
    assert len(set(zip(places, devices, strict=True))) == workers, "no two ranks share a GPU"


@pytest.mark.parametrize(
    ("given", "visible", "index"),
    [
        (["3"], ["3"], 0),
        (["1"], ["0", "1"], 1),
        (["10"], ["0", "1", "10", "11", "2"], 2),  # Ray sorts them as text
        (["GPU-b1"], ["GPU-a0", "GPU-b1"], 1),
    ],
)
def test_a_device_is_counted_among_the_visible_ones(given: list[str], visible: list[str], index: int) -> None:
    assert choose_device(given, visible, on_gpu=True) == torch.device("cuda", index)
    assert choose_device(given, visible, on_gpu=False) == CPU


# What is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def plan(data: str, folder: Path, **changes: Any) -> SweepPlan:
    content = sweep_content(data, str(folder / "out"), **changes)
    file = write_sweep(folder / "sweep.yaml", content)
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


@pytest.mark.parametrize(
    ("resources", "line"),
    [
        (
            {"workers": 2, "gpus_per_worker": 0.5},
            "resources.gpus_per_worker: 0.5, but mesh: {data: 2, feature: 1} has 2 workers, and NCCL needs 1 GPU for "
            "each; give 1, or 0 to train on CPUs, or train with 1 worker",
        ),
        ({"mesh": {"data": 2, "feature": 2}, "gpus_per_worker": 0.25}, "mesh: {data: 2, feature: 2} has 4 workers"),
        (
            {"gpus_per_worker": 2},
            "resources.gpus_per_worker: 2, but a worker computes on 1 GPU; give 1, and mesh: {data: 2, feature: 1} to "
            "train on as many GPUs",
        ),
        ({"mesh": {"feature": 2}, "gpus_per_worker": 4}, "give 1, and mesh: {data: 4, feature: 2}"),
        ({"mesh": "auto", "gpus_per_worker": 1.5}, "resources.gpus_per_worker: 1.5, but a worker computes on 1 GPU"),
        (
            {"gpus_per_worker": 0.5, "elastic": {"max_data": 3}},
            "resources.elastic.max_data: 3, but gpus_per_worker is 0.5",
        ),
        ({"gpus_per_worker": -1}, "resources.gpus_per_worker"),
        ({"gpus_per_worker": float("inf")}, "resources.gpus_per_worker"),
        ({"gpus_per_worker": "all"}, "resources.gpus_per_worker"),
    ],
)
def test_a_mesh_that_nccl_would_refuse_is_refused_before_anything_starts(
    data: str, tmp_path: Path, resources: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError) as refused:
        plan(data, tmp_path, resources=resources)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rule_is_refused_as_the_block_is_and_may_mend_it(data: str, tmp_path: Path) -> None:
    rule = {"when": {"architecture": "relu"}, "set": {"workers": 2}}
    with pytest.raises(UserError, match=r"gpus_per_worker: 0\.5, but mesh: \{data: 2, feature: 1\}"):
        plan(data, tmp_path, resources={"gpus_per_worker": 0.5}, rules=[rule])
    rule["set"] = {"workers": 2, "gpus_per_worker": 1}
    made = plan(data, tmp_path, resources={"gpus_per_worker": 0.5}, rules=[rule])
    assert [trial.footprint.gpus for trial in made.trials] == [0.5, 2]


def test_an_open_mesh_on_a_share_of_a_gpu_is_one_worker(data: str, tmp_path: Path) -> None:
    resources = {"mesh": "auto", "gpus_per_worker": 0.5, "gpu_memory_gib": 0.0001}
    with pytest.raises(UserError, match="GPU memory for each of 1 x 1 workers"):
        with_meshes(plan(data, tmp_path, resources=resources), [Node(8, 4, 64 * GIB)])


# What `auto` becomes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "nodes", "gpus"),
    [
        ({}, [Node(4, 0, GIB)], 0),
        ({}, [Node(4, 1, GIB)], 1),
        ({}, [Node(4, 0, GIB), Node(4, 1, GIB)], 1),
        ({"workers": 2}, [Node(4, 1, GIB)], 0),
        ({"workers": 2}, [Node(4, 1, GIB)] * 2, 1),
        ({"mesh": {"feature": 2}}, [Node(4, 1, GIB)] * 2, 0),
        ({"mesh": {"feature": 2}}, [Node(4, 2, GIB)], 1),
        ({"mesh": "auto"}, [Node(4, 1, GIB)], 1),
        ({"cpus_per_worker": 8}, [Node(4, 4, GIB), Node(8, 0, GIB)], 0),
        ({"gpus_per_worker": 0}, [Node(4, 4, GIB)], 0),
        ({"gpus_per_worker": 0.5}, [Node(4, 4, GIB)], 0.5),
    ],
)
def test_auto_is_a_gpu_for_each_worker_where_there_is_one_for_all(
    data: str, tmp_path: Path, resources: dict[str, Any], nodes: list[Node], gpus: float
) -> None:
    trial = plan(data, tmp_path, resources=resources).trials[0]
    decided = with_gpus(trial, nodes)
    assert decided.footprint.gpus_per_worker == gpus
    assert not decided.auto_gpus
    assert decided.id == trial.id, "the choice is no part of a trial's identity"
    assert with_gpus(decided, [Node(4, 8, GIB)]) == decided, "it is made once"


def test_a_sweep_says_what_auto_became(data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = [{"when": {"architecture": "relu"}, "set": {"workers": 2}}]
    made, nodes = plan(data, tmp_path, rules=rules), [Node(4, 1, 64 * GIB)]
    with caplog.at_level("INFO"):
        decided = with_meshes(made, nodes)
    assert [trial.footprint.gpus for trial in decided.unfinished] == [1, 0]
    assert "gpus_per_worker: auto gives 1 of 2 trial(s) 1 GPU a worker" in caplog.text
    assert "1 trial(s) of up to 2 worker(s) train on CPUs: the 1 node(s) with 1 GPU(s) have no room" in caplog.text
    assert gpu_lines(made.unfinished, made.unfinished, [Node(4, 0, GIB)]) == [], "nothing to say without GPUs"


def test_a_cap_on_hours_of_gpus_waits_for_what_auto_becomes(data: str, tmp_path: Path) -> None:
    made = plan(data, tmp_path, gpu_hours=1)
    assert with_meshes(made, [Node(4, 1, 64 * GIB)]).unfinished[0].footprint.on_gpu
    with pytest.raises(UserError, match=r"gpu_hours: 1, but no trial has a GPU"):
        with_meshes(made, [Node(4, 0, 64 * GIB)])


# On Ray -----------------------------------------------------------------------------------------------------------


def beside_a_gpu() -> Work:
    """Return what runs a trial whose workers find that CUDA is available, as they do on a node with GPUs.

    It is sent to Ray by value: this file is no module there.
    """

    def work(config: dict[str, Any]) -> None:
        from lexray.tuning.ray_backend import trial

        real = trial.train_worker

        def train_worker(config: dict[str, Any]) -> None:
            import torch

            torch.cuda.is_available = lambda: True
            torch.cuda.device_count = lambda: 1
            real(config)

        trial.train_worker = train_worker
        trial.run_trial(config)

    return work


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_beside_a_gpu_that_its_trial_did_not_ask_for_trains_to_the_end(
    data: str, ray_session: str, tmp_path: Path
) -> None:
    axes = {"architecture": ["topk"], "width": [64], "target_l0": [4]}
    resources = {"gpus_per_worker": 0, "offload_optimizer": True, "zero_stage": 1}
    made = plan(data, tmp_path, axes=axes, training={"rows": 128 * 10}, resources=resources)
    frontier = run_sweep(made, [], work=beside_a_gpu())
    assert list(frontier["status"]) == ["done"], list(frontier["reason"])


SEES_A_GPU = """
import torch.cuda

torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 1)
"""
"""What every process of a sweep runs when Python starts, as if its machine had a GPU."""

WITH_A_GPU_FOR_RAY_ALONE = """
import os
import socket
import subprocess
import sys
from pathlib import Path

import ray

from lexray.cluster.ray_backend.connect import PROCESS_ENV
from lexray.storage.config_file import read_config_file
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.sweep_plan import plan_sweep

if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, runtime_env={"env_vars": PROCESS_ENV})
    plan = plan_sweep(read_config_file(sys.argv[1], SweepFile), Path(sys.argv[1]).read_text())
    frontier = run_sweep(plan, [])
    print(*frontier["status"], *frontier["reason"], sep="\\n")
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, which is on the path of all its processes, with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = f"{folder}:{Path(__file__).parents[2]}"
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_without_gpus_is_trained_on_a_machine_that_seems_to_have_one(data: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SEES_A_GPU)
    content = sweep_content(data, str(tmp_path / "out"), resources={"gpus_per_worker": 0})
    done = run(tmp_path, "-m", "lexray", "sweep", write_sweep(tmp_path / "sweep.yaml", content), "--json")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("out/trials/*/dictionary/*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_on_a_gpu_that_torch_cannot_use_fails_with_the_host_and_what_to_do(data: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WITH_A_GPU_FOR_RAY_ALONE)
    content = sweep_content(data, str(tmp_path / "out"), retries=0)
    done = run(tmp_path, "program.py", write_sweep(tmp_path / "sweep.yaml", content))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("failed") == 2
    line = f"Ray gave GPU 0 of {socket.gethostname()} to a worker, but torch {torch.__version__} can use 0 GPU(s) there"
    assert done.stdout.count(line) == 2, done.stdout
