"""What the templates render to, kept in `rendered/` to be read, checked and run without Terraform.

Ids that differ from apply to apply are replaced. `make infra-rendered` applies aws-ec2 to a simulated AWS and writes
the files anew; a test compares them with another apply.
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
}
"""Of the apply that these files come from."""


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


def script_in(user_data: str, name: str) -> str:
    """The file that a start-up script writes under /etc/lexray/public: `start-ray` or `ray-cluster.yaml`."""
    pattern = rf"cat > /etc/lexray/public/{re.escape(name)} <<'EOF'\n(.*?\n)EOF\n"
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
