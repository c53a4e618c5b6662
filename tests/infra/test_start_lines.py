"""The start lines that nodes run, as they are, on machines that are network namespaces: Ray's autoscaler on the head
asks a simulated EC2 for a node when there is work, the node joins by its own script, works, and is given back.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import rendered
import yaml
from namespaces import DASHBOARD_PORT, GCS_PORT, Machines, answers, machines, wait_until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
WAIT_S = 200.0
WORK = """
import ray
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_gpus=1)
def where():
    return ray.util.get_node_ip_address()
print("ran on", ray.get(where.remote()), flush=True)
"""


@pytest.fixture
def hosts(tmp_path) -> Iterator[Machines]:
    if reason := why_not():
        pytest.skip(reason)
    with machines(tmp_path) as made:
        yield made


def simulated_ec2(url: str) -> tuple[Any, dict[str, Any]]:
    """A client; and the cluster file for what it finds there: a subnet, a template, a running head."""
    ec2 = boto3.client("ec2", endpoint_url=url, region_name="us-east-1")
    vpc = ec2.create_vpc(CidrBlock="10.42.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.42.1.0/24")["Subnet"]["SubnetId"]
    data = {"ImageId": "ami-0123456789abcdef0", "InstanceType": "g5.12xlarge"}
    template = ec2.create_launch_template(LaunchTemplateName="pool", LaunchTemplateData=data)["LaunchTemplate"]
    config = yaml.safe_load(rendered.read("ray-cluster.yaml"))
    config["idle_timeout_minutes"] = 0.1
    for kind in config["available_node_types"].values():
        kind["node_config"]["SubnetIds"] = [subnet]
    launched = config["available_node_types"]["a10g"]["node_config"]["LaunchTemplate"]
    launched["LaunchTemplateId"] = template["LaunchTemplateId"]
    return ec2, config


def launch_head(ec2: Any, config: dict[str, Any]) -> str:
    """What the group of one does: an instance with the tags by which Ray knows it."""
    tags = {"ray-cluster-name": "lexray", "ray-node-type": "head", "ray-user-node-type": "head"}
    specification = {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}
    subnet = config["available_node_types"]["head"]["node_config"]["SubnetIds"][0]
    answer = ec2.run_instances(
        ImageId="ami-0123456789abcdef0", MinCount=1, MaxCount=1, SubnetId=subnet, TagSpecifications=[specification]
    )
    return answer["Instances"][0]["InstanceId"]


def workers(ec2: Any) -> dict[str, str]:
    """State of each instance that Ray launched."""
    found = ec2.describe_instances(Filters=[{"Name": "tag:ray-node-type", "Values": ["worker"]}])
    return {i["InstanceId"]: i["State"]["Name"] for r in found["Reservations"] for i in r["Instances"]}


def environment(script: str, hosts: Machines, name: str, instance: str, node_type: str) -> dict[str, str]:
    """What the script writes for Ray, with its own values where the shell would put them."""
    (block,) = re.findall(r"cat > /etc/lexray/ray.env <<EOF\n(.*?)EOF\n", script, flags=re.DOTALL)
    values = {
        "$token": hosts.token,
        "$instance_id": instance,
        "$node_type": node_type,
        "$node_address": hosts.addresses[name],
        "$head_address": f"{hosts.addresses['head']}:{GCS_PORT}",
    }
    lines = dict(line.split("=", 1) for line in block.splitlines())
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
    # A folder of Ray's own for each machine: they share this one's disk.
    temp = hosts.temp / name
    temp.mkdir()
    return {key: values.get(value, value) for key, value in lines.items()} | {"PATH": path, "RAY_TMPDIR": str(temp)}


def start(hosts: Machines, name: str, script: str, env: dict[str, str]) -> None:
    """Run the script's own `start-ray`; folders that only an instance has are the test's."""
    text = rendered.script_in(script, "start-ray")
    text = text.replace("/mnt/lexray/spill", env["RAY_TMPDIR"]).replace("/etc/lexray/public", str(hosts.place))
    file = hosts.place / f"start-ray-{name}"
    file.write_text(text, encoding="utf-8")
    hosts.start(name, ["/bin/bash", str(file)], **env)


def status_without_token(address: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}:{DASHBOARD_PORT}/api/version", timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_node_comes_for_work_by_its_own_start_line_and_goes_after_it(hosts):
    url = hosts.start_s3()
    ec2, config = simulated_ec2(url)
    (hosts.place / "ray-cluster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    head = hosts.machine("head")
    head_script = rendered.read("head.sh")
    env = environment(head_script, hosts, "head", launch_head(ec2, config), "head") | {"AWS_ENDPOINT_URL": url}
    start(hosts, "head", head_script, env)
    wait_until(lambda: answers(head, DASHBOARD_PORT) and answers(head, GCS_PORT), "the head")
    assert status_without_token(head) == 401

    work = hosts.run("head", [sys.executable, "-c", WORK], **(env | {"RAY_ADDRESS": f"{head}:{GCS_PORT}"}))
    wait_until(lambda: "running" in workers(ec2).values(), "an instance for the work", WAIT_S)
    (instance,) = workers(ec2)

    worker = hosts.machine("worker")
    worker_script = rendered.read("worker.sh")
    start(hosts, "worker", worker_script, environment(worker_script, hosts, "worker", instance, "a10g"))
    assert work.wait(timeout=WAIT_S) == 0
    assert f"ran on {worker}" in (hosts.place / "head.log").read_text(encoding="utf-8", errors="replace")

    wait_until(lambda: workers(ec2)[instance] in ("shutting-down", "terminated"), "the end of an idle node", WAIT_S)
    assert list(workers(ec2)) == [instance]
