"""The start lines that nodes run, as they are, on machines that are network namespaces: Ray's autoscaler on the head
asks a simulated EC2 for a node when there is work, the node joins by its own script, works, and is given back.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from typing import Any

import boto3
import pytest
import rendered
import yaml
from namespaces import DASHBOARD_PORT, GCS_PORT, answers, wait_until
from node_scripts import environment, start, workers

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
