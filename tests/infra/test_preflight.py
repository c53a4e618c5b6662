"""What AWS holds against a plan is said before anything is made: both numbers, and what to change."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import aws_simulator
import boto3
import pytest
from hcl_files import ROOTS, declared, type_text
from moto import mock_aws
from moto.core.exceptions import JsonRESTError
from moto.servicequotas.responses import ServiceQuotasResponse
from rich.console import Console

from lexray.cluster.lifecycle import up as up_module
from lexray.cluster.lifecycle.instance_types import InstanceType, Quota, judge_pools, quota_of
from lexray.cluster.lifecycle.preflight import DEFAULTS, preflight
from lexray.cluster.lifecycle.terraform_plan import Plan
from lexray.storage.errors import UserError

REGION, ACCOUNT = "us-east-1", "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/lexray:0.1.0"
POOL = {
    "instance_types": ["g5.12xlarge"], "cpus": 46, "memory_gib": 176, "gpus": 4, "capacity": "SPOT", "max": 2,
    "on_demand_fallback": False, "zone": None,
}  # fmt: skip
ZONES = frozenset({"us-east-1a", "us-east-1b"})
TYPES = {
    "g5.12xlarge": InstanceType(vcpus=48, memory_gib=192, gpus=4, zones=ZONES),
    "p3.16xlarge": InstanceType(vcpus=64, memory_gib=488, gpus=8, zones=ZONES),
    "p6.nowhere": InstanceType(vcpus=64, memory_gib=488, gpus=8, zones=frozenset()),
}
SPOT_G, ON_DEMAND_G = "All G and VT Spot Instance Requests", "Running On-Demand G and VT instances"


def plan(pool: dict[str, Any] | None = None, **variables: Any) -> Plan:
    pools = {"a10g": {**POOL, **(pool or {})}}
    given = {"name": "lexray", "region": REGION, "container_image": IMAGE, "head_instance_type": "m6i.xlarge"}
    return Plan(changes=(), variables={**given, "pools": pools, **variables}, max_hourly_cost_usd=None)


@pytest.fixture(scope="module")
def aws():
    """An account in which everything is there."""
    with mock_aws():
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
        ecr = boto3.client("ecr", region_name=REGION)
        ecr.create_repository(repositoryName="lexray")
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind})
        ecr.put_image(repositoryName="lexray", imageTag="0.1.0", imageManifest=manifest)
        yield


@pytest.fixture
def account(aws, monkeypatch, tmp_path):
    """The file of its quotas; large ones where it has none."""
    monkeypatch.setattr(ServiceQuotasResponse, "list_service_quotas", aws_simulator.list_service_quotas, raising=False)
    file = tmp_path / "quotas.json"
    monkeypatch.setenv("LEXRAY_SIMULATED_QUOTAS", str(file))
    return file


def said(made: Plan) -> list[tuple[str, bool]]:
    return [(finding.text, finding.is_refusal) for finding in preflight(made)]


def test_an_account_in_which_everything_is_there_hears_nothing(account):
    assert said(plan()) == []
    written = {name: POOL[name] for name in ("instance_types", "cpus", "memory_gib")}
    assert said(plan(pools={"a10g": written})) == [], "what a pool leaves out has the root's default"


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_defaults_of_a_pool_are_those_of_the_roots(root):
    text = type_text(declared("variable", root)["pools"])
    assert f'capacity = optional(string, "{DEFAULTS["capacity"]}")' in text
    assert f"max = optional(number, {DEFAULTS['max']})" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"container_image": IMAGE.replace("0.1.0", "0.2.0")}, "container_image: .*:0.2.0: .*ImageNotFoundException"),
        ({"container_image": IMAGE.replace("lexray:", "other:")}, "container_image: .*RepositoryNotFoundException"),
        ({"budget_emails": ["you@example.org"]}, "budget_emails: you@example.org is the example's"),
        ({"head_instance_type": "m6i.none"}, "head_instance_type: m6i.none is offered in 0 zones of us-east-1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_with_what_to_change(account, changes, line):
    ((text, is_refusal),) = said(plan(**changes))
    assert is_refusal
    assert re.match(line, text), text


@pytest.mark.parametrize(
    ("quotas", "pool", "expected"),
    [
        ({SPOT_G: 0}, {},
         [("2 x g5.12xlarge are 96 vCPUs, the quota `All G and VT Spot Instance Requests` of us-east-1 is 0 "
           "(room for 0); ask for more under Service Quotas (L-3819A6DF), or lower max", True)]),
        ({SPOT_G: 64}, {}, [("is 64 (room for 1)", False)]),
        ({SPOT_G: 96}, {}, []),
        ({SPOT_G: 0}, {"on_demand_fallback": True}, [("is 0 (room for 0)", False)]),
        ({SPOT_G: 0, ON_DEMAND_G: 8}, {"on_demand_fallback": True},
         [("is 0 (room for 0)", True), ("is 8 (room for 0)", True)]),
        ({SPOT_G: 0}, {"capacity": "ON_DEMAND"}, []),
        ({SPOT_G: 0, ON_DEMAND_G: 0}, {"capacity": "RESERVED"}, []),
        ({SPOT_G: 0}, {"instance_types": ["g5.12xlarge", "p3.16xlarge"]}, [("is 0 (room for 0)", False)]),
        ({}, {"instance_types": ["g5.12xlarge", "p6.nowhere"]}, [("p6.nowhere is offered in 0 zones", False)]),
        ({}, {"instance_types": ["p6.nowhere"]}, [("p6.nowhere is offered in 0 zones", True)]),
        ({}, {"zone": "us-east-1e"}, [(".zone: us-east-1e does not offer g5.12xlarge; it is in us-east-1a", True)]),
        ({}, {"cpus": 64}, [(".cpus: 64, but g5.12xlarge has 48", True)]),
        ({}, {"memory_gib": 200}, [(".memory_gib: 200, but g5.12xlarge has 192", True)]),
        ({}, {"gpus": 8}, [(".gpus: 8, but g5.12xlarge has 4", True)]),
    ],
)  # fmt: skip
def test_types_and_quotas_are_held_against_the_nodes_of_a_pool(quotas, pool, expected):
    applied = [Quota(name=name, code=code, vcpus=quotas.get(name, 1536)) for name, code in aws_simulator.QUOTAS.items()]
    found = list(judge_pools({"pools.a10g": {**POOL, **pool}}, TYPES, applied, REGION))
    assert [is_refusal for _, is_refusal in found] == [is_refusal for _, is_refusal in expected]
    for (text, _), (part, _) in zip(found, expected, strict=True):
        assert text.startswith("pools.a10g")
        assert part in text


def test_a_quota_of_a_generation_counts_before_that_of_its_family():
    applied = [Quota(name=name, code=code, vcpus=0) for name, code in aws_simulator.QUOTAS.items()]
    spot, on_demand = "All {} Spot Instance Requests", "Running On-Demand {} instances"

    def name_of(type_: str, market: str) -> str | None:
        quota = quota_of(type_, market, applied)
        return None if quota is None else quota.code

    assert (name_of("p5en.48xlarge", spot), name_of("p4d.24xlarge", spot)) == ("L-C4BD4855", "L-7212CCBC")
    assert (name_of("p5.48xlarge", on_demand), name_of("m6i.xlarge", on_demand)) == ("L-417A185B", "L-1216C47A")
    assert name_of("trn1.32xlarge", spot) is None


def test_a_missing_role_and_the_examples_account_are_refused(account, monkeypatch):
    iam = boto3.client("iam")
    (role,) = iam.list_roles(PathPrefix="/aws-service-role/spot.amazonaws.com/")["Roles"]
    iam.delete_role(RoleName=role["RoleName"])
    monkeypatch.setattr("lexray.cluster.lifecycle.preflight.EXAMPLE_ACCOUNT", "999999999999")
    found = said(plan(container_image=IMAGE.replace(ACCOUNT, "999999999999")))
    assert [is_refusal for _, is_refusal in found] == [True, True]
    assert f"account 999999999999 is the example's and yours is {ACCOUNT}" in found[0][0]
    assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in found[1][0]
    assert said(plan({"capacity": "ON_DEMAND"})) == [], "no pool on spot, no role"
    boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")


def test_what_may_not_be_asked_is_a_warning(account, monkeypatch):
    def denied(response: ServiceQuotasResponse) -> str:
        raise JsonRESTError("AccessDeniedException", "not authorized")

    monkeypatch.setattr(ServiceQuotasResponse, "list_service_quotas", denied)
    ((text, is_refusal),) = said(plan({"cpus": 46}))
    assert not is_refusal
    assert text.startswith("not checked: vCPU quotas (servicequotas:ListServiceQuotas): AWS says AccessDenied")


def test_up_makes_nothing_that_could_not_work(account):
    account.write_text(json.dumps({SPOT_G: 0, "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances": 4}))
    out = io.StringIO()
    messages = Console(file=out, width=200)
    with pytest.raises(UserError, match="1 of the above would keep the cluster from working"):
        up_module._refuse_hopeless(plan(), messages)
    assert "refused   pools.a10g: 2 x g5.12xlarge" in out.getvalue()
    up_module._refuse_hopeless(plan({"capacity": "ON_DEMAND"}), messages)
