"""A cluster whose machine image Terraform looked up: a newer one changes nothing until it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import rendered
from applied_roots import Applied, apply_root, client
from aws_simulator import PUBLISHED
from hcl_files import INFRA, parsed
from terraform_tool import copy_of_infra

from lexray.cluster.lifecycle.terraform_plan import Plan, head_lines, read_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OLD, NEW = "ami-0aaaaaaaaaaaaaaaa", "ami-0bbbbbbbbbbbbbbbb"
VARIABLES = {**rendered.VARIABLES, "name": "pinned", "enable_nat": False, "enable_flow_logs": False, "ami_id": None}


def publish(endpoint: str, image: str) -> None:
    """Do what AWS does when it has a newer image."""
    (data,) = [
        entry["aws_ssm_parameter"]
        for entry in parsed(INFRA / "aws-ec2/main.tf")["data"]
        if "aws_ssm_parameter" in entry
    ]
    name = PUBLISHED + data["ami"]["name"]
    client("ssm", endpoint).put_parameter(Name=name, Value=image, Type="String", Overwrite=True)


@pytest.fixture
def pinned(infra_copy, cli_config, aws_endpoint, tmp_path) -> Iterator[Applied]:
    publish(aws_endpoint, OLD)
    root = copy_of_infra(tmp_path / "infra") / "aws-ec2"
    applied = apply_root(root, VARIABLES, infra_copy / "aws-ec2", cli_config, aws_endpoint)
    yield applied
    applied.terraform.run("destroy", "-auto-approve", "-no-color")


def plan(applied: Applied, *options: str) -> Plan:
    file = str(applied.terraform.folder / "again")
    applied.terraform.run("plan", "-out", file, "-no-color", "-input=false", *options)
    return read_plan(json.loads(applied.terraform.run("show", "-json", file).stdout))


def images(endpoint: str) -> dict[str, str]:
    """Return the image of each template of the cluster."""
    ec2 = client("ec2", endpoint)
    found = [t["LaunchTemplateName"] for t in ec2.describe_launch_templates()["LaunchTemplates"]]

    def newest(name: str) -> Any:
        versions = ec2.describe_launch_template_versions(LaunchTemplateName=name, Versions=["$Latest"])
        return versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["ImageId"]

    return {name: newest(name) for name in found if name.startswith("pinned")}


def test_a_newer_image_changes_nothing_until_it_is_asked_for(pinned, aws_endpoint):
    assert set(images(aws_endpoint).values()) == {OLD}
    publish(aws_endpoint, NEW)
    again = plan(pinned)
    assert (again.changes, head_lines(again)) == ((), [])

    asked = plan(pinned, "-replace=terraform_data.ami[0]")
    (what, how) = head_lines(asked)
    assert "machine image" in what
    assert "--auto-scaling-group-name pinned-head " in how
    pinned.terraform.run("apply", "-auto-approve", "-replace=terraform_data.ami[0]", "-no-color", timeout_s=400)
    assert set(images(aws_endpoint).values()) == {NEW}
