"""What Terraform itself says of the files: form, types, and a refusal for every rule of a variable. No AWS is asked."""

from __future__ import annotations

import re

import pytest
from hcl_files import INFRA, ROOTS, declared
from terraform_tool import Terraform

pytestmark = pytest.mark.slow
ROOT_NAMES = [root.name for root in ROOTS]


def test_files_have_terraforms_own_form(cli_config):
    done = Terraform(folder=INFRA, cli_config=cli_config).run("fmt", "-check", "-recursive", "-diff", ok=(0, 3))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_each_root_is_valid(infra_copy, cli_config, name):
    Terraform(folder=infra_copy / name, cli_config=cli_config).run("validate")


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_plans_hold_and_bad_values_are_refused(infra_copy, cli_config, name):
    done = Terraform(folder=infra_copy / name, cli_config=cli_config).run("test", "-no-color")
    assert re.search(r"Success! [1-9]\d* passed, 0 failed", done.stdout), done.stdout[-3000:]


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_a_misspelt_argument_is_refused(infra_copy, cli_config, name, tmp_path):
    extra = infra_copy / name / "misspelt.tf"
    extra.write_text('resource "aws_vpc" "wrong" {\n  cidr_blok = "10.0.0.0/16"\n}\n', encoding="utf-8")
    try:
        done = Terraform(folder=infra_copy / name, cli_config=cli_config).run("validate", "-no-color", ok=(1,))
    finally:
        extra.unlink()
    assert 'Did you mean "cidr_block"?' in " ".join(done.stderr.split())


def test_the_head_boots_after_its_way_out_and_its_rights(infra_copy, cli_config):
    """And all that is in subnets goes before their routes do."""
    dot = Terraform(folder=infra_copy / "aws-ec2", cli_config=cli_config).run("graph").stdout
    needs: dict[str, set[str]] = {}
    for one, other in re.findall(r'"([^"]+)" -> "([^"]+)"', dot):
        needs.setdefault(one, set()).add(other)
    found, queue = set(), ["module.ray.aws_autoscaling_group.head"]
    while queue:
        if (node := queue.pop()) not in found:
            found.add(node)
            queue += needs.get(node, ())
    network = (
        "route.nat",
        "route.internet",
        "route_table_association.private",
        "vpc_endpoint.s3",
        "vpc_endpoint.service",
    )
    ray = ("iam_role_policy.node", "iam_role_policy.head", "vpc_security_group_egress_rule.https")
    first = {f"module.network.aws_{name}" for name in network} | {f"module.ray.aws_{name}" for name in ray}
    first |= {f"module.ray.module.{who}_identity.aws_iam_role_policy.workload" for who in ("head", "worker")}
    assert first - found == set()


def test_every_rule_of_every_variable_has_a_run_that_it_refuses():
    for root in ROOTS:
        rules = {name: len(body.get("validation", [])) for name, body in declared("variable", root).items()}
        text = (root / "tests/refusals.tftest.hcl").read_text(encoding="utf-8")
        expected = " ".join(re.findall(r"expect_failures = \[(.*?)\]", text, flags=re.DOTALL))
        refused = {name: len(re.findall(rf"var\.{name}\b", expected)) for name in rules}
        assert [name for name, count in rules.items() if refused[name] < count] == [], root.name
