"""Parses a Terraform plan: changes by kind, their maximum cost, and buckets to be deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NOT_IN_THE_CLOUD = ("terraform_data",)
"""Resource types that exist in Terraform's state only."""
HEADS = ("aws_autoscaling_group", "aws_eks_cluster")
"""Resource types of which a cluster that can run jobs has one."""
BUCKET = "aws_s3_bucket"
HEAD_TEMPLATE = "aws_launch_template.head"
"""Launch template of aws-ec2's head; a running head keeps the version that it was launched from."""
OF_THE_HEAD = {
    "user_data": "start-up script (pools, container image, settings)",
    "image_id": "machine image",
    "instance_type": "instance type",
    "iam_instance_profile": "role",
    "block_device_mappings": "disks",
    "vpc_security_group_ids": "security groups",
    "metadata_options": "metadata options",
}
"""Attributes of that template that take effect only when the head is replaced."""
TAG_KEY = "lexray-cluster"
"""Tag of every resource that the templates create; its value is the cluster's name."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Planned change of one resource."""

    address: str
    type: str
    actions: tuple[str, ...]
    """`create`, `update` or `delete`; a replacement has both create and delete."""
    before: dict[str, Any]
    """Current attributes; empty for a new resource."""
    after: dict[str, Any]
    """Planned attributes; those known only after the apply are missing."""

    @property
    def name(self) -> str:
        """Name of the bucket that the resource is or belongs to; empty otherwise."""
        return str(self.before.get("bucket") or "") if self.type.startswith(BUCKET) else ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Changes that an apply of the plan makes."""

    changes: tuple[Change, ...]
    """Planned changes, without no-ops."""
    variables: dict[str, Any]
    """Variables of the root, defaults included."""
    max_hourly_cost_usd: float | None
    """Maximum hourly cost of the cluster with every pool at its largest; None if the root has no such output."""

    def having(self, action: str) -> list[Change]:
        """Changes of one kind: `create`, `update`, `delete`, or `replace`."""
        return [change for change in self.changes if _word(change) == action]

    @property
    def cluster_name(self) -> str:
        """Value of the tag that all resources of the cluster carry."""
        return str(self.variables["name"])

    @property
    def region(self) -> str | None:
        """Region of the cluster; None if the root has no such variable."""
        return self.variables.get("region")

    def buckets(self) -> list[Change]:
        """Return the buckets that a destroy removes only if they are empty."""
        going = [change for change in self.having("delete") if change.type == BUCKET]
        return [change for change in going if not change.before.get("force_destroy")]

    def without_buckets(self, names: Iterable[str]) -> list[str]:
        """Return the addresses of all other changes, for a destroy that keeps these buckets and their protection."""
        kept = set(names)
        return [change.address for change in self.changes if change.name not in kept]


def read_plan(shown: dict[str, Any]) -> Plan:
    """Parse the output of `terraform show -json` for a saved plan."""
    outputs = shown.get("planned_values", {}).get("outputs", {})
    cost = outputs.get("max_hourly_cost_usd", {}).get("value")
    return Plan(
        changes=tuple(change for entry in shown.get("resource_changes", []) if (change := _change(entry))),
        variables={name: entry.get("value") for name, entry in shown.get("variables", {}).items()},
        max_hourly_cost_usd=None if cost is None else float(cost),
    )


def counts(types: Iterable[str]) -> dict[str, int]:
    """Count resources by type, most frequent first; types that exist in Terraform's state only are left out."""
    found = Counter(type_ for type_ in types if type_ not in NOT_IN_THE_CLOUD)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def counted(types: Iterable[str]) -> str:
    """Format the counts: `4 iam_role, 2 subnet`."""
    return ", ".join(f"{count} {type_.removeprefix('aws_')}" for type_, count in counts(types).items()) or "nothing"


def change_lines(plan: Plan) -> list[str]:
    """Return a line for each action with the number and types of the resources."""
    lines = []
    for action, word in (("create", "make"), ("update", "change"), ("replace", "replace"), ("delete", "remove")):
        found = [change.type for change in plan.having(action)]
        if counts(found):
            lines.append(f"{word:<10}{sum(counts(found).values())}: {counted(found)}")
    return lines or ["nothing to do: everything is as described"]


def head_lines(plan: Plan) -> list[str]:
    """Return lines that name what a running head lacks until it is replaced, and how to replace it; else empty."""
    template = next((one for one in plan.having("update") if one.address.endswith(HEAD_TEMPLATE)), None)
    if template is None:
        return []
    parts = [what for name, what in OF_THE_HEAD.items() if template.before.get(name) != template.after.get(name)]
    if not parts:
        return []
    region = f" --region {plan.region}" if plan.region else ""
    return [
        f"head      the running head keeps its old {', '.join(parts)}. When no job runs, replace it:",
        f"          aws autoscaling start-instance-refresh{region} --auto-scaling-group-name {plan.cluster_name}-head "
        "--preferences MinHealthyPercentage=0",
    ]


def cost_lines(plan: Plan) -> list[str]:
    """Return lines with the maximum hourly cost and the budget alert."""
    limit, budget = plan.variables.get("hourly_cost_limit_usd"), plan.variables.get("monthly_budget_usd")
    emails = plan.variables.get("budget_emails") or []
    lines = []
    if plan.max_hourly_cost_usd is not None:
        ceiling = "" if limit is None else f" (hourly_cost_limit_usd = {float(limit):g})"
        lines.append(
            f"cost      at most {plan.max_hourly_cost_usd:.2f} USD an hour, with every pool at its largest{ceiling}"
        )
    if budget is not None:
        told = ", ".join(emails) if emails else "nobody is told: set budget_emails"
        lines.append(f"budget    {float(budget):g} USD a month; {told}")
    elif "monthly_budget_usd" in plan.variables:
        lines.append("budget    none: monthly_budget_usd is null, nobody is told what the cluster costs")
    return lines


def _change(entry: dict[str, Any]) -> Change | None:
    actions = tuple(action for action in entry["change"]["actions"] if action in ("create", "update", "delete"))
    if entry.get("mode") != "managed" or not actions:
        return None
    before, after = (entry["change"].get(key) or {} for key in ("before", "after"))
    return Change(address=entry["address"], type=entry["type"], actions=actions, before=before, after=after)


def _word(change: Change) -> str:
    return "replace" if len(change.actions) > 1 else change.actions[0]
