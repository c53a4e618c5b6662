"""The script that runs before a worker's pod ends, for real, where a head and two nodes share a machine.

It waits for every training worker that it sees: in a pod those of its node, here also others, a minute at most.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, subprocess, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.cluster.manifests.kube_pods import DRAIN_S, drain_script
from lexray.tuning.ray_backend.cluster_view import cluster_view

folder, environment = sys.argv[1:]
described = ClusterDescription.model_validate({
    "schema": 1, "name": "lexray", "provider": "kubernetes", "python_environment": environment,
    "access": {"kind": "kubectl", "namespace": "lexray", "service": "lexray-head-svc"},
})

def wait_until(is_so, what):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.2)

def train():
    open(f"{folder}/began", "w").close()
    while not os.path.exists(f"{folder}/moves"):
        time.sleep(0.2)

def leaving():
    return {node for node, state in cluster_view().nodes.items() if state.is_leaving}

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_host": "127.0.0.1"})
pod = cluster.add_node(num_cpus=2, env_vars={"RAY_CLOUD_INSTANCE_ID": "a-pod"})
cluster.add_node(num_cpus=0, env_vars={"RAY_CLOUD_INSTANCE_ID": "another-pod"})
ray.init(address=cluster.address, log_to_driver=False)
trainer = TorchTrainer(
    train,
    scaling_config=ScalingConfig(num_workers=1),
    torch_config=TorchConfig(backend="gloo"),
    run_config=RunConfig(storage_path=folder),
)
training = threading.Thread(target=trainer.fit, daemon=True)
training.start()
wait_until(lambda: os.path.exists(f"{folder}/began"), "the training")
assert leaving() == set()
script = drain_script(described).replace(f"SECONDS + {DRAIN_S}", "SECONDS + 60")
told = {"RAY_ADDRESS": cluster.address, "RAY_CLOUD_INSTANCE_ID": "a-pod"}
ending = subprocess.Popen(["bash", "-c", script], env={**os.environ, **told})
wait_until(leaving, "a node that leaves")
assert leaving() == {pod.node_id}, "the pod's node leaves, and no other"
assert ending.poll() is None, "the script did not wait for the worker"
open(f"{folder}/moves", "w").close()
training.join(timeout=60)
assert not training.is_alive(), "the trainer still waits"
assert ending.wait(timeout=90) == 0
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["image", "uv"])
def test_the_placer_sees_that_the_pods_node_leaves_and_the_script_waits_until_its_training_has_left(
    tmp_path, environment
):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), environment]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(command, cwd=root, env={"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
