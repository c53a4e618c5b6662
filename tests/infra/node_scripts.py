"""The start-up scripts of nodes, run on network namespaces: their own variables and their own start lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import rendered
from namespaces import GCS_PORT, Machines

ZONE = "us-east-1a"
"""Where every node of the tests lies."""


def environment(script: str, hosts: Machines, name: str, instance: str, node_type: str) -> dict[str, str]:
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
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
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
