"""What Terraform makes of pools of every kind: markets, reservations, zones, EFA. AWS is made up."""

from __future__ import annotations

import base64

import pytest
import rendered
import yaml
from terraform_tool import Terraform

pytestmark = pytest.mark.slow
POOLS = "tests/pools.tftest.hcl"
RESERVATIONS = {"a100": "cr-0123456789abcdef0", "h100": "cr-0fedcba9876543210"}
MARKETS = {"cpu": None, "a10g": "spot", "wide": "spot", "a100": None, "h100": "capacity-block"}


@pytest.fixture(scope="module")
def ec2(infra_copy, cli_config):
    return Terraform(folder=infra_copy / "aws-ec2", cli_config=cli_config).tested_state(POOLS)


@pytest.fixture(scope="module")
def eks(infra_copy, cli_config):
    return Terraform(folder=infra_copy / "aws-eks", cli_config=cli_config).tested_state(POOLS)


def templates(state):
    found = [r for r in state["resources"] if r["type"] == "aws_launch_template" and r["name"] == "pool"]
    return {r["index"]: r["values"] for r in found}


def market(template):
    return next((options["market_type"] for options in template["instance_market_options"]), None)


def reservation(template):
    targets = [
        target["capacity_reservation_id"]
        for specification in template["capacity_reservation_specification"]
        for target in specification["capacity_reservation_target"]
    ]
    return targets[0] if targets else None


def test_nodes_on_ec2_are_bought_as_their_pool_says(ec2):
    made, types = templates(ec2), yaml.safe_load(ec2["outputs"]["ray_cluster_yaml"])["available_node_types"]
    assert {market(template) for template in made.values()} == {None}, "a launch could not take a template's away"
    ways = {name: types[name]["node_config"]["LaunchWays"] for name in made}
    markets = {name: way.get("InstanceMarketOptions", {}).get("MarketType") for name, (way,) in ways.items()}
    assert markets == MARKETS
    assert {name: reservation(template) for name, template in made.items()} == dict.fromkeys(MARKETS) | RESERVATIONS
    # A Capacity Block is a placement of its own.
    assert [name for name, template in made.items() if template["placement"]] == ["a100"]


def test_the_head_may_launch_into_the_reservations_of_its_pools_alone(ec2):
    (document,) = [r for r in ec2["resources"] if r["type"] == "aws_iam_policy_document" and r["name"] == "head"]
    resources = {r for statement in document["values"]["statement"] for r in statement["resources"] or ()}
    reserved = {resource.rpartition("/")[2] for resource in resources if ":capacity-reservation/" in resource}
    assert reserved == set(RESERVATIONS.values())


def test_rays_autoscaler_on_ec2_launches_each_pool_in_one_zone_which_it_knows(ec2):
    types = yaml.safe_load(ec2["outputs"]["ray_cluster_yaml"])["available_node_types"]
    labels = {name: types[name]["labels"].get("ray.io/availability-zone") for name in MARKETS}
    assert labels == {
        "cpu": "us-east-1a",
        "a10g": "us-east-1a",
        "wide": None,
        "a100": "us-east-1a",
        "h100": "us-east-1b",
    }
    assert {name: len(types[name]["node_config"].get("SubnetIds", ())) for name in ("a10g", "wide")} == {
        "a10g": 1,
        "wide": 4,
    }


def test_node_groups_are_bought_as_their_pool_says(eks):
    made = templates(eks)
    assert {name: market(template) for name, template in made.items()} == {
        name: kind if kind == "capacity-block" else None for name, kind in MARKETS.items()
    }
    assert {name: reservation(template) for name, template in made.items()} == dict.fromkeys(MARKETS) | RESERVATIONS
    groups = {
        r["index"]: r["values"] for r in eks["resources"] if r["type"] == "aws_eks_node_group" and r["name"] == "pool"
    }
    types = {name: group["capacity_type"] for name, group in groups.items()}
    assert types == {"cpu": "ON_DEMAND", "a10g": "SPOT", "wide": "SPOT", "a100": "ON_DEMAND", "h100": "CAPACITY_BLOCK"}
    # EKS wants the type of a Capacity Block in the template, and refuses it in both places.
    assert (made["h100"]["instance_type"], groups["h100"]["instance_types"]) == ("p5.48xlarge", [])
    assert (made["a100"]["instance_type"], groups["a100"]["instance_types"]) == (None, ["p4d.24xlarge"])


def test_huge_pages_are_reserved_on_nodes_with_efa_alone(eks):
    scripts = {name: base64.b64decode(template["user_data"]).decode() for name, template in templates(eks).items()}
    assert {name for name, script in scripts.items() if "vm.nr_hugepages=2560" in script} == {"a100", "h100"}


def test_the_node_groups_that_are_kept_are_those_that_terraform_makes(eks):
    assert rendered.read(rendered.NODE_GROUPS) == rendered.node_groups(eks["resources"]), "run `make infra-rendered`"


def test_a_key_and_policies_of_the_users_own_are_used(eks):
    def values(kind, name):
        return [r["values"] for r in eks["resources"] if (r["type"], r["name"]) == (kind, name)]

    key = "arn:aws:kms:us-east-1:123456789012:key/ours"
    assert values("aws_kms_key", "secrets") == []
    (cluster,) = values("aws_eks_cluster", "this")
    assert cluster["encryption_config"][0]["provider"][0]["key_arn"] == key
    disks = [
        t["block_device_mappings"][0]["ebs"][0] for n in ("core", "pool") for t in values("aws_launch_template", n)
    ]
    assert {(disk["kms_key_id"], disk["encrypted"]) for disk in disks} == {(key, "true")}
    (attached,) = values("aws_iam_role_policy_attachment", "extra")
    assert attached["policy_arn"] == "arn:aws:iam::123456789012:policy/read-another-bucket"
