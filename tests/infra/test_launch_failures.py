"""Nodes that EC2 refuses: Ray's autoscaler asks a simulated EC2, and `lexray status` says why within a minute."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import rendered
import yaml
from namespaces import DASHBOARD_PORT, GCS_PORT, S3_PORT, answers, wait_until
from node_scripts import environment, launch_head, simulated_ec2, start, workers
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.cluster.node.ec2_provider import WAYS, Ec2Provider, NodesRefusedError

SIMULATOR = str(Path(__file__).with_name("aws_simulator.py"))
QUOTA = "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket"
REFUSALS: tuple[tuple[list[dict[str, str]], tuple[str, ...]], ...] = (
    (
        [
            {"market": "spot", "code": "MaxSpotInstanceCountExceeded", "message": "Max spot instance count exceeded"},
            {"market": "", "code": "VcpuLimitExceeded", "message": QUOTA},
        ],
        (
            "pool a10g: no node can be launched: g5.12xlarge on spot: MaxSpotInstanceCountExceeded: Max spot instance "
            f"count exceeded, then g5.12xlarge on demand: VcpuLimitExceeded: {QUOTA}; ask AWS for a larger vCPU quota",
        ),
    ),
    (
        [{"code": "InsufficientInstanceCapacity", "message": "We do not have sufficient g5.12xlarge capacity"}],
        ("InsufficientInstanceCapacity: We do not have sufficient g5.12xlarge capacity; name further zones",),
    ),
    (
        [{"code": "InvalidAMIID.NotFound", "message": "The image id '[ami-0123]' does not exist"}],
        ("InvalidAMIID.NotFound: The image id '[ami-0123]' does not exist; set ami_id to an image of this region",),
    ),
)
POOL = {"name": "a10g", "cpus": 46, "memory_gib": 176, "gpus": 4, "min_nodes": 0, "max_nodes": 2}


def lexray(*words: str) -> list[str]:
    return [sys.executable, "-m", "lexray", *words]


class Cluster:
    """A head in a namespace, as its instance would run it, and an EC2 that refuses what `refuse` says."""

    def __init__(self, hosts: Any) -> None:
        self.hosts, self.refusals = hosts, hosts.place / "refusals.json"
        aws = hosts.machine("aws")
        hosts.start("aws", [sys.executable, SIMULATOR, str(S3_PORT), aws], LEXRAY_SIMULATED_REFUSALS=str(self.refusals))
        wait_until(lambda: answers(aws, S3_PORT), "the simulated AWS")
        self.ec2, config = simulated_ec2(f"http://{aws}:{S3_PORT}")
        node = config["available_node_types"]["a10g"]["node_config"]
        node[WAYS] = [*node[WAYS], {"InstanceType": "g5.12xlarge"}]  # as with on_demand_fallback
        (hosts.place / "ray-cluster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.head, script = hosts.machine("head"), rendered.read("head.sh")
        instance = launch_head(self.ec2, config)
        self.env = environment(script, hosts, "head", instance, "head") | {
            "AWS_ENDPOINT_URL": f"http://{aws}:{S3_PORT}"
        }
        start(hosts, "head", script, self.env)
        wait_until(lambda: answers(self.head, DASHBOARD_PORT) and answers(self.head, GCS_PORT), "the head")

    @property
    def address(self) -> str:
        return f"{self.head}:{GCS_PORT}"

    def refuse(self, refusals: list[dict[str, str]]) -> None:
        self.refusals.write_text(json.dumps(refusals), encoding="utf-8")

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        return self.hosts.run("head", lexray(*words), **self.env)


def status(output: str) -> str:
    return subprocess.run(lexray("status", output), capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_why_no_node_can_be_launched_is_seen_within_a_minute_and_bounds_the_wait(hosts, tmp_path):
    cluster, output = Cluster(hosts), str(tmp_path / "out")
    cluster.refuse(REFUSALS[0][0])
    content = sweep_content(
        write_dataset(tmp_path / "data"), output, wandb={"mode": "disabled"},
        resources={"workers": 2, "gpus_per_worker": 0, "wait_at_most_s": 240},
    )  # fmt: skip
    file = write_sweep(tmp_path / "sweep.yaml", content)
    sweep = cluster.run("sweep", file, "--address", cluster.address, "--pools", json.dumps([POOL]))
    wait_until(lambda: "waits for" in status(output), "a trial that waits", 150)
    for refusals, lines in REFUSALS:
        cluster.refuse(refusals)
        began = time.monotonic()
        for line in lines:
            wait_until(lambda line=line: line in status(output), line, 60)
        print(f"seen after {time.monotonic() - began:.0f} s: {lines[0][:80]}")
    asked = cluster.run("doctor", "--address", cluster.address, "--json")
    assert asked.wait(timeout=120) == 1
    said = (hosts.place / "head.log").read_text(encoding="utf-8")
    assert '"name": "launches", "status": "fail"' in " ".join(said.split())
    assert sweep.wait(timeout=400) == 1
    assert all(line in (tmp_path / "out" / "log.txt").read_text() for _, lines in REFUSALS for line in lines)
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "trials").glob("*/trial.json")]
    assert [record["status"] for record in records] == ["failed", "failed"]
    for record in records:
        assert record["reason"].startswith("no nodes for 2 workers of 1 CPU in 24"), record["reason"]
        assert "InvalidAMIID.NotFound" in record["reason"]
    assert workers(cluster.ec2) == {}
    cluster.refuse(REFUSALS[0][0][:1])
    second = cluster.run("sweep", file, "--address", cluster.address, "--pools", json.dumps([POOL]))
    wait_until(lambda: "running" in workers(cluster.ec2).values(), "a node on demand, as spot is refused", 150)
    second.terminate()
    second.wait(timeout=60)


class Ways:
    """Stands for Ray's provider: grants the ways that a test names."""

    def __init__(self, granted: str) -> None:
        self.granted, self.tried = granted, list[str]()

    def create(self, config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        from ray.autoscaler.node_launch_exception import NodeLaunchException

        assert WAYS not in config
        way = f"{config['InstanceType']} {config.get('InstanceMarketOptions', {}).get('MarketType', 'on demand')}"
        self.tried.append(way)
        if way != self.granted:
            raise NodeLaunchException("InsufficientInstanceCapacity", "none left", None)
        return {"i-1": config}


@pytest.mark.parametrize("granted", ["a spot", "a on demand", "b spot", "nothing"])
def test_ways_are_tried_in_their_order_until_one_is_granted(monkeypatch, granted):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    ways = Ways(granted)
    monkeypatch.setattr(AWSNodeProvider, "create_node", lambda self, *call: ways.create(*call))
    slept: list[float] = []
    monkeypatch.setattr(Ec2Provider, "sleep", staticmethod(slept.append))
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    order = [{"InstanceType": "a", **spot}, {"InstanceType": "a"}, {"InstanceType": "b", **spot}]
    provider = object.__new__(Ec2Provider)
    config = {"InstanceType": "a", "SubnetIds": ["s"], WAYS: order}
    if granted == "nothing":
        reason = "InsufficientInstanceCapacity: none left"
        with pytest.raises(NodesRefusedError) as refused:
            provider.create_node(config, {}, 1)
        expected = [f"{way}: {reason}" for way in ("a on spot", "a on demand", "b on spot")]
        assert str(refused.value) == ", then ".join(expected)
        assert len(slept) == 1, "Ray alone would ask again at once"
        return
    assert list(provider.create_node(config, {}, 1)) == ["i-1"]
    assert ways.tried[-1] == granted
    assert ways.tried == ["a spot", "a on demand", "b spot"][: len(ways.tried)]
    assert slept == []


def test_the_cause_of_a_failed_launch_reaches_rays_own_state_once_the_provider_is_loaded():
    """By Ray's own reconciler and instance manager: where they no longer call what is replaced, the cause is lost."""
    from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
    from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
    from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError
    from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
    from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
    from ray.core.generated import instance_manager_pb2 as messages

    storage = InstanceStorage("cluster", InMemoryStorage())
    manager = InstanceManager(storage, instance_status_update_subscribers=[])
    for version, status in enumerate((messages.Instance.QUEUED, messages.Instance.REQUESTED)):
        event = messages.InstanceUpdateEvent(
            instance_id="i", instance_type="a10g", new_instance_status=status, launch_request_id="r", upsert=True
        )
        request = messages.UpdateInstanceManagerStateRequest(expected_version=version, updates=[event])
        assert manager.update_instance_manager_state(request).status.code == messages.StatusCode.OK
    error = LaunchNodeError("a10g", 1, "r", 0)
    error.__cause__ = NodesRefusedError("a on spot: VcpuLimitExceeded: 0 allowed")
    Reconciler._handle_cloud_instance_allocation(manager, {}, [error])
    instances, _ = storage.get_instances()
    last = instances["i"].status_history[-1]
    assert last.instance_status == messages.Instance.ALLOCATION_FAILED
    assert last.details == "launch failed with a on spot: VcpuLimitExceeded: 0 allowed"


def test_ray_reports_the_cause_of_a_failed_launch_once_the_provider_is_loaded():
    from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError

    error = LaunchNodeError("a10g", 1, "request", 0)
    assert "Failed to launch 1 nodes of type a10g" in str(error)
    error.__cause__ = NodesRefusedError("a on spot: VcpuLimitExceeded: 0 allowed")
    assert str(error) == "a on spot: VcpuLimitExceeded: 0 allowed"
