"""The start-up scripts of nodes, run on network namespaces: their own variables and their own start lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import rendered
import yaml
from namespaces import DASHBOARD_PORT, GCS_PORT, Machines, answers, wait_until

BIN = Path(sys.executable).parent
WORK = """
import ray
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_gpus=1)
def where():
    return ray.util.get_node_ip_address()
print("ran on", ray.get(where.remote()), flush=True)
"""

ZONE = "us-east-1a"
"""Where every node of the tests lies."""


def environment(
    script: str, hosts: Machines, name: str, instance: str, node_type: str, programs: Path = BIN
) -> dict[str, str]:
    """What the script writes for Ray, with its own values where the shell would put them."""
    (block,) = re.findall(r"cat > /etc/lexray/ray.env <<EOF\n(.*?)EOF\n", script, flags=re.DOTALL)
    values = {
        "$token": hosts.token,
        "$instance_id": instance,
        "$node_type": node_type,
        "$zone": ZONE,
        "$node_address": hosts.addresses[name],
        "$head_address": f"{hosts.addresses['head']}:{GCS_PORT}",
    }
    lines = dict(line.split("=", 1) for line in block.splitlines())
    path = f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin"
    return {key: values.get(value, value) for key, value in lines.items()} | {"PATH": path}


def with_small_store(script: str) -> str:
    """The same script for this machine, which has less memory than the instance."""
    return re.sub(r"--object-store-memory=\d+", f"--object-store-memory={256 * 2**20}", script)


def start(hosts: Machines, name: str, script: str, env: dict[str, str]) -> None:
    """Run the script's own `start-ray`; folders that only an instance has are the test's.

    Ray has a folder of its own for each machine: they share this one's disk, and would clear each other's away.
    """
    temp = hosts.temp / name
    temp.mkdir()
    text = with_small_store(rendered.script_in(script, "start-ray"))
    text = text.replace("/mnt/lexray/spill", str(temp)).replace("/etc/lexray/public", str(hosts.place))
    text = text.replace("exec ray start", f"exec ray start --temp-dir={temp}")
    file = hosts.place / f"start-ray-{name}"
    file.write_text(text, encoding="utf-8")
    hosts.start(name, ["/bin/bash", str(file)], **env)


def workers(ec2: Any) -> dict[str, str]:
    """State of each instance that Ray launched."""
    found = ec2.describe_instances(Filters=[{"Name": "tag:ray-node-type", "Values": ["worker"]}])
    return {i["InstanceId"]: i["State"]["Name"] for r in found["Reservations"] for i in r["Instances"]}


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


def start_head(hosts: Machines, programs: Path = BIN, **further: str) -> tuple[Any, dict[str, str]]:
    """Run the head's own start line against a simulated EC2; return a client of that, and the head's variables.

    `programs` holds `ray` and `python`; `further` are variables of the head.
    """
    url = hosts.start_s3()
    ec2, config = simulated_ec2(url)
    (hosts.place / "ray-cluster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    head, script = hosts.machine("head"), rendered.read("head.sh")
    env = environment(script, hosts, "head", launch_head(ec2, config), "head", programs)
    env |= {"AWS_ENDPOINT_URL": url, **further}
    start(hosts, "head", script, env)
    wait_until(lambda: answers(head, DASHBOARD_PORT) and answers(head, GCS_PORT), "the head")
    return ec2, env


def send_work(hosts: Machines, env: dict[str, str], programs: Path = BIN) -> subprocess.Popen[bytes]:
    """Start a driver on the head whose one task needs a GPU."""
    address = {"RAY_ADDRESS": f"{hosts.addresses['head']}:{GCS_PORT}"}
    return hosts.run("head", [str(programs / "python"), "-c", WORK], **(env | address))
