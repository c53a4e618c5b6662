"""Machines of a cluster that Terraform does not know: Ray's autoscaler launched them, and nobody else ends them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lexray.cluster.lifecycle.terraform_plan import TAG_KEY
from lexray.cluster.provisioned.aws import aws_errors, client, listed
from lexray.cluster.provisioned.errors import RefusedError
from lexray.storage.polling import poll

LIVING = ("pending", "running", "stopping", "stopped")
OF_A_GROUP = "aws:autoscaling:groupName"
"""Tag of machines that an autoscaling group keeps, and replaces when they end."""
LOOK_S, PATIENCE_S = 5.0, 600.0
"""Between looks, and how long machines may take to end."""


def is_stopped(group: str, region: str | None) -> bool:
    """Whether an autoscaling group of one is there no more, or keeps no machine and has none left."""
    with aws_errors(f"autoscaling group {group}"):
        answer = client("autoscaling", region).describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    return all(found["DesiredCapacity"] == 0 and not found["Instances"] for found in answer["AutoScalingGroups"])


def stop_head(
    group: str,
    region: str | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Let the group keep none, and wait: a head that lives would launch workers again."""
    if is_stopped(group, region):
        return
    with aws_errors(f"autoscaling group {group}"):
        scaling = client("autoscaling", region)
        scaling.update_auto_scaling_group(AutoScalingGroupName=group, MinSize=0, DesiredCapacity=0)
    _await(lambda: is_stopped(group, region), f"the head (autoscaling group {group})", clock, sleep)


def end_workers(
    name: str,
    region: str | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Ids of the machines that carry the cluster's tag, that no group keeps, and that are ended now.

    Raises RefusedError when they do not end.
    """
    ids = workers(name, region)
    if ids:
        with aws_errors(f"the workers of {name}"):
            client("ec2", region).terminate_instances(InstanceIds=ids)
        _await(lambda: not workers(name, region), f"{len(ids)} worker(s)", clock, sleep)
    return ids


def workers(name: str, region: str | None) -> list[str]:
    """Ids of those that live."""
    return [one["InstanceId"] for one in living(name, region) if OF_A_GROUP not in tags_of(one)]


def living(name: str, region: str | None) -> list[dict[str, Any]]:
    """Machines with the cluster's tag, groups' too."""
    filters = [{"Name": f"tag:{TAG_KEY}", "Values": [name]}, {"Name": "instance-state-name", "Values": [*LIVING]}]
    with aws_errors(f"the machines of {name}"):
        return listed("ec2", region, "describe_instances", "Reservations[].Instances[]", Filters=filters)


def tags_of(thing: dict[str, Any]) -> dict[str, str]:
    """As a mapping."""
    return {tag["Key"]: tag["Value"] for tag in thing.get("Tags", [])}


def _await(is_over: Callable[[], bool], what: str, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    if not poll(is_over, every_s=LOOK_S, at_most_s=PATIENCE_S, clock=clock, sleep=sleep):
        raise RefusedError(f"{what}: not ended after {PATIENCE_S:.0f} s; run the same command again")
