"""Checks with AWS, before anything is created, that a planned cluster can work.

vCPU quotas, zones that offer the instance types, the pushed image, the service role of spot instances, and placeholder
values left from the example file. A check that AWS does not permit gives a warning: whoever applies the plan need not
have every right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lexray.cluster.lifecycle.instance_types import InstanceType, Quota, instance_types, judge_pools, quotas
from lexray.cluster.lifecycle.terraform_plan import Plan
from lexray.cluster.provisioned.aws import aws_errors, client
from lexray.storage.errors import UserError

EXAMPLE_ACCOUNT, EXAMPLE_DOMAIN = "123456789012", "@example.org"
"""Placeholder values of `terraform.tfvars.example`."""
SPOT = "spot.amazonaws.com"
DEFAULTS = {"capacity": "SPOT", "max": 2}
"""Defaults of a pool; a test compares them with the roots' variables."""
_ECR_IMAGE = re.compile(
    r"^(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+)(?::([^@]+)|@(sha256:.+))$"
)


@dataclass(frozen=True)
class Finding:
    """One line about a planned cluster."""

    text: str
    is_refusal: bool = False
    """True if the cluster could not work; False for a warning."""


def preflight(plan: Plan) -> list[Finding]:
    """Return what AWS says against the plan, refusals first; empty when nothing does."""
    checks = (_examples, _image, _spot_role, _pools)
    found = [finding for check in checks for finding in _asked(check, plan)]
    return sorted(found, key=lambda finding: not finding.is_refusal)


def _asked(check: Callable[[Plan], Iterator[Finding]], plan: Plan) -> list[Finding]:
    """Run a check; add a finding with AWS's reason if it cannot complete."""
    found = []
    try:
        for finding in check(plan):
            found.append(finding)
    except UserError as error:
        found.append(Finding(f"not checked: {error}"))
    return found


def _examples(plan: Plan) -> Iterator[Finding]:
    for email in plan.variables.get("budget_emails") or []:
        if email.endswith(EXAMPLE_DOMAIN):
            yield Finding(f"budget_emails: {email} is the example's; name who is to be told, or nobody: []", True)


def _image(plan: Plan) -> Iterator[Finding]:
    image = str(plan.variables.get("container_image") or "")
    parts = _ECR_IMAGE.match(image)
    if parts is None:
        return  # another registry: only the nodes may have the right to ask it
    account, region, repository, tag, digest = parts.groups()
    with aws_errors("container_image: account"):
        own = client("sts", plan.region).get_caller_identity()["Account"]
    if account == EXAMPLE_ACCOUNT != own:
        yield Finding(f"container_image: account {account} is the example's and yours is {own}; name your image", True)
        return
    wanted = {"imageTag": tag} if tag else {"imageDigest": digest}
    try:
        with aws_errors(f"container_image: {image}"):
            client("ecr", region).describe_images(registryId=account, repositoryName=repository, imageIds=[wanted])
    except UserError as error:
        if "NotFoundException" not in str(error):
            raise
        yield Finding(f"{error}; build and push it (infra/image/README.md), or name one that is there", True)


def _spot_role(plan: Plan) -> Iterator[Finding]:
    if not any(pool["capacity"] == "SPOT" for pool in _pools_of(plan).values()):
        return
    with aws_errors("role of spot instances"):
        roles = client("iam", plan.region).list_roles(PathPrefix=f"/aws-service-role/{SPOT}/")["Roles"]
    if not roles:
        command = f"aws iam create-service-linked-role --aws-service-name {SPOT}"
        yield Finding(f"role of {SPOT}: not in this account, so no spot node can start; run `{command}`", True)


def _pools(plan: Plan) -> Iterator[Finding]:
    """Check instance types and quotas of the pools and of the instances that always run."""
    pools = _pools_of(plan)
    for name, number in (("head_instance_type", 1), ("core_instance_type", 2)):
        if (type_ := plan.variables.get(name)) is not None:
            pools[name] = {"instance_types": [type_], "capacity": "ON_DEMAND", "max": number}
    if not pools:
        return
    names = sorted({type_ for pool in pools.values() for type_ in pool["instance_types"]})
    types: dict[str, InstanceType] = instance_types(names, plan.region)
    applied: list[Quota] = []
    try:
        applied = quotas(plan.region)
    except UserError as error:
        yield Finding(f"not checked: {error}")
    for text, is_refusal in judge_pools(pools, types, applied, plan.region):
        yield Finding(text, is_refusal)


def _pools_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the pools with the root's defaults: a plan holds only what the user wrote."""
    return {f"pools.{name}": {**DEFAULTS, **pool} for name, pool in (plan.variables.get("pools") or {}).items()}
