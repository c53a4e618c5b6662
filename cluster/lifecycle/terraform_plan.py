"""A plan of Terraform's, read: what it makes and removes by kind, what that costs at most, which buckets would go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NOT_IN_THE_CLOUD = ("terraform_data",)
"""Types that exist in Terraform's state alone."""
HEADS = ("aws_autoscaling_group", "aws_eks_cluster")
"""Without one of these there is no cluster that could run a job."""
BUCKET = "aws_s3_bucket"
HEAD_TEMPLATE = "aws_launch_template.head"
"""What the next head of aws-ec2 is launched from; a running one stays as it was launched."""
OF_THE_HEAD = {
    "user_data": "start-up script (pools, container image, settings)",
    "image_id": "machine image",
    "instance_type": "instance type",
    "iam_instance_profile": "role",
    "block_device_mappings": "disks",
    "vpc_security_group_ids": "security groups",
    "metadata_options": "metadata options",
}
"""Attributes of that template that a running head has in its old form."""
TAG_KEY = "lexray-cluster"
"""Everything that the templates make carries this tag, with the cluster's name as its value."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What becomes of one thing."""

    address: str
    type: str
    actions: tuple[str, ...]
    """`create`, `update`, `delete`; both of create and delete: it is replaced."""
    before: dict[str, Any]
    """Attributes of the thing that exists; empty where there is none yet."""
    after: dict[str, Any]
    """Attributes as they are planned; what only the apply will know is missing."""

    @property
    def name(self) -> str:
        """What AWS calls the bucket that it is or belongs to; empty otherwise."""
        return str(self.before.get("bucket") or "") if self.type.startswith(BUCKET) else ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an apply of it would do."""

    changes: tuple[Change, ...]
    """Without those that leave a thing as it is."""
    variables: dict[str, Any]
    """Of the root, defaults included."""
    max_hourly_cost_usd: float | None
    """Of the whole cluster with every pool at its largest; None where the root does not tell."""

    def having(self, action: str) -> list[Change]:
        """Changes of one kind: `create`, `update`, `delete`, or `replace`."""
        return [change for change in self.changes if _word(change) == action]

    @property
    def cluster_name(self) -> str:
        """Value of the tag that everything of the cluster carries."""
        return str(self.variables["name"])

    @property
    def region(self) -> str | None:
        """None where the root has no such variable."""
        return self.variables.get("region")

    def buckets(self) -> list[Change]:
        """Those that a destroy removes only when they are empty."""
        going = [change for change in self.having("delete") if change.type == BUCKET]
        return [change for change in going if not change.before.get("force_destroy")]

    def without_buckets(self, names: Iterable[str]) -> list[str]:
        """Addresses of everything else, for a destroy that leaves these buckets with their protection."""
        kept = set(names)
        return [change.address for change in self.changes if change.name not in kept]


def read_plan(shown: dict[str, Any]) -> Plan:
    """Of what `terraform show -json` prints of a saved plan."""
    outputs = shown.get("planned_values", {}).get("outputs", {})
    cost = outputs.get("max_hourly_cost_usd", {}).get("value")
    return Plan(
        changes=tuple(change for entry in shown.get("resource_changes", []) if (change := _change(entry))),
        variables={name: entry.get("value") for name, entry in shown.get("variables", {}).items()},
        max_hourly_cost_usd=None if cost is None else float(cost),
    )


def counts(types: Iterable[str]) -> dict[str, int]:
    """Things by kind, the most frequent first; what exists in Terraform's state alone is left out."""
    found = Counter(type_ for type_ in types if type_ not in NOT_IN_THE_CLOUD)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def counted(types: Iterable[str]) -> str:
    """The same for people: `4 iam_role, 2 subnet`."""
    return ", ".join(f"{count} {type_.removeprefix('aws_')}" for type_, count in counts(types).items()) or "nothing"


def change_lines(plan: Plan) -> list[str]:
    """What would be done to what, by kind."""
    lines = []
    for action, word in (("create", "make"), ("update", "change"), ("replace", "replace"), ("delete", "remove")):
        found = [change.type for change in plan.having(action)]
        if counts(found):
            lines.append(f"{word:<10}{sum(counts(found).values())}: {counted(found)}")
    return lines or ["nothing to do: everything is as described"]


def head_lines(plan: Plan) -> list[str]:
    """Say what a running head will not have until it is replaced, and how to replace it; nothing where it has all."""
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
    """What it costs at most, and who is told when."""
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
