"""Resources of a cluster that are still billed: those with its tag, except dead and free ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lexray.cluster.lifecycle.machines import living
from lexray.cluster.lifecycle.terraform_plan import TAG_KEY
from lexray.cluster.provisioned.aws import aws_errors, client, listed
from lexray.storage.polling import poll

PATIENCE_S, LOOK_S = 60.0, 5.0
"""Duration and interval in seconds of polling: AWS lists removed resources for a while."""
FREE = {
    "ec2": ("dhcp-options", "flow-logs", "internet-gateway", "launch-template", "network-interface", "placement-group",
            "route-table", "security-group", "security-group-rule", "spot-instances-request", "subnet", "vpc",
            "vpc-flow-log"),
    "autoscaling": ("autoScalingGroup",),
    "budgets": ("budget",),
    "eks": ("access-entry", "addon", "podidentityassociation"),
    "iam": ("instance-profile", "oidc-provider", "policy", "role"),
    "ssm": ("parameter",),
}  # fmt: skip
"""Kinds that cost nothing by themselves; a kind that is not listed counts as billed."""
ASKED = ("elastic-ip", "instance", "natgateway", "volume", "vpc-endpoint")
"""Kinds of EC2 that are described individually: the list by tag keeps dead ones for an hour."""


@dataclass(frozen=True, order=True)
class Leftover:
    """A resource that is still billed."""

    kind: str
    """Kind as in its ARN: `ec2 natgateway`, `s3 bucket`."""
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


def leftovers(name: str, region: str | None) -> list[Leftover]:
    """Return the billed resources with the cluster's tag, sorted. Raises UserError when AWS does not answer."""
    return sorted({*_listed(name, region), *_of_ec2(name, region)})


def lasting(
    ask: Callable[[], list[Leftover]],
    *,
    but: frozenset[str],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Leftover]:
    """Poll `ask` until it finds only resources with ids in `but`, or time is up; return the last result."""
    return poll(
        ask,
        until=lambda found: all(one.id in but for one in found),
        every_s=LOOK_S,
        at_most_s=PATIENCE_S,
        clock=clock,
        sleep=sleep,
    )


def kind_of(arn: str) -> Leftover:
    """Parse kind and id from `arn:aws:SERVICE:REGION:ACCOUNT:KIND/ID`, in each of AWS's formats."""
    service, _, _, rest = arn.split(":", 5)[2:]
    if service == "s3":
        return Leftover("s3 bucket", rest)
    separator = "/" if "/" in rest and ":" not in rest.split("/")[0] else ":"
    kind, _, id_ = rest.partition(separator)
    return Leftover(f"{service} {kind}", id_ or rest)


def is_billed(one: Leftover) -> bool:
    """Return whether a resource of this kind costs money while it exists."""
    service, _, kind = one.kind.partition(" ")
    return kind not in FREE.get(service, ())


def _listed(name: str, region: str | None) -> list[Leftover]:
    with aws_errors(f"what has the tag {TAG_KEY} = {name}"):
        by_tag = [{"Key": TAG_KEY, "Values": [name]}]
        entries = listed(
            "resourcegroupstaggingapi", region, "get_resources", "ResourceTagMappingList[]", TagFilters=by_tag
        )
    found = [kind_of(entry["ResourceARN"]) for entry in entries]
    asked = {f"ec2 {kind}" for kind in ASKED}
    return [one for one in found if is_billed(one) and one.kind not in asked and not _is_ending_key(one, region)]


def _is_ending_key(one: Leftover, region: str | None) -> bool:
    """Return whether a KMS key is pending deletion: that takes days and costs nothing."""
    if one.kind != "kms key":
        return False
    with aws_errors(f"kms key {one.id}"):
        state: str = client("kms", region).describe_key(KeyId=one.id)["KeyMetadata"]["KeyState"]
    return state == "PendingDeletion"


def _of_ec2(name: str, region: str | None) -> list[Leftover]:
    """Return the live EC2 resources of the kinds that are described individually."""
    by_tag = [{"Name": f"tag:{TAG_KEY}", "Values": [name]}]
    found: list[Leftover] = [Leftover("ec2 instance", one["InstanceId"]) for one in living(name, region)]
    with aws_errors(f"what has the tag {TAG_KEY} = {name}"):
        for kind, operation, entries, id_, dead in (
            ("natgateway", "describe_nat_gateways", "NatGateways[]", "NatGatewayId", ("deleted", "failed")),
            ("volume", "describe_volumes", "Volumes[]", "VolumeId", ("deleting", "deleted")),
            ("vpc-endpoint", "describe_vpc_endpoints", "VpcEndpoints[]", "VpcEndpointId", ("deleting", "deleted")),
        ):
            for one in listed("ec2", region, operation, entries, Filters=by_tag):
                if one["State"].lower() not in dead and one.get("VpcEndpointType") != "Gateway":  # those cost nothing
                    found.append(Leftover(f"ec2 {kind}", one[id_]))
        for one in client("ec2", region).describe_addresses(Filters=by_tag)["Addresses"]:
            found.append(Leftover("ec2 elastic-ip", one["AllocationId"]))
    return found
