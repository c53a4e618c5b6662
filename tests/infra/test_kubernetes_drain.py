"""The script that runs before a worker's pod ends, for real: a training on that node hears of it and leaves.

It waits for every such worker that it sees, in a pod those of its node, here also those of others: a minute at most.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, subprocess, sys, threading, time
import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.train.torch import TorchConfig, TorchTrainer
from cluster.provisioned.kube_pods import DRAIN_S, DRAIN_SCRIPT

folder = sys.argv[1]

def train():
    open(f"{folder}/began", "w").close()
    while ray.train.get_preemption_info() is None:
        time.sleep(0.2)
    open(f"{folder}/left", "w").close()

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_host": "127.0.0.1"})
node = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
trainer = TorchTrainer(
    train,
    scaling_config=ray.train.ScalingConfig(num_workers=1),
    torch_config=TorchConfig(backend="gloo"),
    run_config=ray.train.RunConfig(storage_path=folder),
)
training = threading.Thread(target=trainer.fit, daemon=True)
training.start()
deadline = time.monotonic() + 120
while not os.path.exists(f"{folder}/began"):
    assert time.monotonic() < deadline, "the training never began"
    time.sleep(0.2)
# In a pod there is one node to mean; here two share a machine.
script = DRAIN_SCRIPT.replace("ray drain-node", f"ray drain-node --node-id {node.node_id}")
script = script.replace(f"SECONDS + {DRAIN_S}", "SECONDS + 60")
done = subprocess.run(["bash", "-c", script], env={**os.environ, "RAY_ADDRESS": cluster.address})
assert done.returncode == 0
assert os.path.exists(f"{folder}/left"), "the script did not wait for the worker, or the worker was not told"
training.join(timeout=60)
assert not training.is_alive(), "the trainer still waits"
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_training_on_the_node_is_told_and_the_script_waits_until_it_has_left(tmp_path):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(command, cwd=root, env={"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
