"""The roots of infra/ as tests apply them to a simulated AWS."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import rendered
from terraform_tool import Terraform

BUCKET_BEFORE = "bucket-that-was-there"
EKS_VARIABLES = {
    "name": "lexray-eks",
    "region": "us-east-1",
    "container_image": rendered.VARIABLES["container_image"],
    "existing_bucket": BUCKET_BEFORE,
    "allowed_cidrs": ["203.0.113.7/32"],
    "budget_emails": ["somebody@example.org"],
    "readable_buckets": ["their-activations"],
    "extra_policy_arns": ["arn:aws:iam::aws:policy/AmazonEC2ReadOnlyAccess"],
}


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A root that was applied."""

    terraform: Terraform
    outputs: dict[str, Any]


def client(service: str, endpoint: str) -> Any:
    return boto3.client(service, endpoint_url=endpoint, region_name="us-east-1")


def apply_root(root: Path, variables: dict[str, Any], initialised: Path, cli_config: Path, endpoint: str) -> Applied:
    """Apply a copy of a root; what `init` made in another copy is linked, not made again."""
    (root / ".terraform").symlink_to(initialised / ".terraform")
    (root / ".terraform.lock.hcl").symlink_to(initialised / ".terraform.lock.hcl")
    (root / "terraform.tfvars.json").write_text(json.dumps(variables), encoding="utf-8")
    terraform = Terraform(folder=root, cli_config=cli_config, endpoint=endpoint)
    terraform.run("apply", "-auto-approve", "-no-color", "-input=false", timeout_s=400)
    return Applied(terraform=terraform, outputs=terraform.outputs())
