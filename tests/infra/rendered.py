"""What the templates render to, kept in `rendered/` to be read, checked and run without Terraform.

Ids that differ from apply to apply are replaced. `make infra-rendered` applies aws-ec2 to a simulated AWS, plans pools
of every kind on EKS, and writes the files anew; tests compare them with another apply and another plan.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("rendered")
VARIABLES = {
    "region": "us-east-1",
    "container_image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/lexray:0.1.0",
    "ami_id": "ami-0123456789abcdef0",
    "max_cluster_hours": 24,
    "kms_key_arn": "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555",
    "egress_ports": [22],
}
"""Of the apply that these files come from."""


NODE_GROUPS = "eks-node-groups.json"
EFFECTS = {"NO_SCHEDULE": "NoSchedule", "NO_EXECUTE": "NoExecute", "PREFER_NO_SCHEDULE": "PreferNoSchedule"}
"""EKS's names of Kubernetes' taint effects."""


def without_ids(text: str) -> str:
    """The same text from every apply."""
    text = re.sub(r"\b(lt|sg|subnet|vpc)-[0-9a-f]{8,17}\b", r"\1-0", text)
    return re.sub(r"(secret:/lexray/[a-z0-9-]+/[a-z-]+)-[A-Za-z0-9]{6}\b", r"\1-000000", text)


def files(outputs: dict[str, Any]) -> dict[str, str]:
    """Contents by name, from the outputs of the aws-ec2 root."""
    contents = {
        "head.sh": outputs["head_user_data"],
        "worker.sh": outputs["worker_user_data"]["a10g"],
        "ray-cluster.yaml": outputs["ray_cluster_yaml"],
        "cluster.json": json.dumps(outputs["cluster"], indent=2, sort_keys=True) + "\n",
    }
    return {name: without_ids(text) for name, text in contents.items()}


def node_groups(resources: list[dict[str, Any]]) -> str:
    """Return what the node groups of an EKS root give to their nodes, as JSON, from the resources of its state."""
    kept = ("ami_type", "capacity_type", "instance_types", "labels", "tags")
    templates = {r.get("index"): r["values"] for r in resources if r["type"] == "aws_launch_template"}
    groups = {
        r["values"]["node_group_name"]: {
            **{name: r["values"][name] for name in kept},
            "taints": [{**taint, "effect": EFFECTS[taint["effect"]]} for taint in r["values"]["taint"]],
            "template_instance_type": templates.get(r.get("index"), {}).get("instance_type"),
        }
        for r in resources
        if r["type"] == "aws_eks_node_group"
    }
    return json.dumps(groups, indent=2, sort_keys=True) + "\n"


def script_in(user_data: str, name: str) -> str:
    """The file that a start-up script writes under /etc/lexray, such as `start-ray` or `ray-cluster.yaml`."""
    pattern = rf"cat > /etc/lexray/(?:public/)?{re.escape(name)} <<'EOF'\n(.*?\n) *EOF\n"
    found = re.search(pattern, user_data, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"the start-up script writes no {name}")
    return found.group(1)


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def write(outputs: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in files(outputs).items():
        (FOLDER / name).write_text(text, encoding="utf-8")
