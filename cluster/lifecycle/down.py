"""`lexray down`: end what runs, remove what Terraform made and what Ray launched, and list what is still billed."""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.lifecycle.billed_resources import Leftover, lasting, leftovers
from lexray.cluster.lifecycle.kube_heads import end_ray_clusters
from lexray.cluster.lifecycle.machines import end_workers, stop_head
from lexray.cluster.lifecycle.running_jobs import drain, has_no_head, refuse_running
from lexray.cluster.lifecycle.terraform import Terraform, carry_out, refuse_unasked
from lexray.cluster.lifecycle.terraform_plan import HEADS, Change, Plan, change_lines, counts, read_plan
from lexray.cluster.lifecycle.up import CLUSTER_FILE
from lexray.cluster.output import FAILED, OK, print_json
from lexray.cluster.provisioned.aws import aws_errors, client
from lexray.cluster.provisioned.connection import ended_by_signals
from lexray.cluster.provisioned.description import ClusterDescription, Kubectl, Ssm
from lexray.cluster.provisioned.trust import Ask
from lexray.storage.config_file import checked_content
from lexray.storage.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Result of a removal."""

    name: str
    """Name of the cluster."""
    plan: Plan
    workers: list[str]
    """Instances launched by Ray and terminated by this call."""
    kept: list[str]
    """Buckets kept because they hold data."""
    still_billed: list[Leftover]


def run_down(terraform: Terraform, ask: Ask | None, force: bool, messages: Console, as_json: bool) -> int:
    """Remove a cluster. Returns exit code 0 if nothing is billed any more, 1 if something is or the user declined."""
    removed = down(terraform, ask, force=force, messages=messages)
    if removed is None:
        say(messages, "nothing was removed")
        return FAILED
    if as_json:
        print_json(_document(removed))
    elif removed.still_billed:
        print("\n".join(f"still billed: {one}" for one in removed.still_billed))
    else:
        print(f"nothing of {removed.name} is billed any more")
    return FAILED if removed.still_billed else OK


def down(terraform: Terraform, ask: Ask | None, *, force: bool, messages: Console) -> Removed | None:
    """Remove a cluster; return None if the user declines.

    Raises UserError while a job runs or nobody can tell, unless `force`; RefusedError when something is not removed.
    """
    terraform.check()
    if ask is None:
        raise refuse_unasked("down", "removes")
    with ended_by_signals(), tempfile.TemporaryDirectory() as folder:
        saved, file = Path(folder) / "plan", Path(folder) / CLUSTER_FILE
        say(messages, f"looking at what {terraform.folder} made")
        terraform.init()
        description = _described(terraform, file, force=force)
        plan, kept = _planned(terraform, saved)
        for line in [*change_lines(plan), *(_kept_line(terraform, bucket) for bucket in kept)]:
            say(messages, line)
        if not ask("Remove it?"):
            return None
        if force and description is not None:
            drain(file, messages)
        workers = _end_machines(plan, description, messages)
        if plan.changes:
            carry_out(terraform, saved, f"`lexray down {terraform.folder}` goes on", messages)
    (terraform.folder / CLUSTER_FILE).unlink(missing_ok=True)
    names = [bucket.name for bucket in kept]
    say(messages, "asking AWS what is left")
    left = lasting(lambda: leftovers(plan.cluster_name, plan.region), but=frozenset(names))
    return Removed(name=plan.cluster_name, plan=plan, workers=workers, kept=names, still_billed=left)


def _described(terraform: Terraform, file: Path, *, force: bool) -> ClusterDescription | None:
    """Return the existing cluster's description and write it to `file`; None if there is none or it is incomplete.

    Raises UserError while something runs on it, or when it cannot be asked, unless `force`.
    """
    if not any(type_ in HEADS for type_ in terraform.state()):
        return None
    description = _description(terraform, file)
    if not force and not has_no_head(description):
        refuse_running(file if description is not None else None)
    return description


def _planned(terraform: Terraform, saved: Path) -> tuple[Plan, list[Change]]:
    """Plan the removal; return it with the buckets that are kept because they hold data."""
    plan = read_plan(terraform.plan(saved, "-destroy"))
    if "name" not in plan.variables:
        raise UserError(f"{terraform.folder}: no variable `name`, by which its things are found")
    kept = [bucket for bucket in plan.buckets() if _holds_data(bucket.name, plan.region)]
    return (_plan_without(terraform, saved, plan, kept) if kept else plan), kept


def _description(terraform: Terraform, file: Path) -> ClusterDescription | None:
    """Write the cluster's description to `file` and return it; None if its creation never completed."""
    content = terraform.outputs().get("cluster")
    if content is None:
        return None
    file.write_text(json.dumps(content))
    return checked_content(f"{terraform.folder}: output cluster", content, ClusterDescription)


def _holds_data(bucket: str, region: str | None) -> bool:
    """Return whether a bucket holds objects or old versions, with which AWS does not remove it."""
    with aws_errors(f"bucket {bucket}"):
        found = client("s3", region).list_object_versions(Bucket=bucket, MaxKeys=1)
    return bool(found.get("Versions") or found.get("DeleteMarkers"))


def _plan_without(terraform: Terraform, saved: Path, plan: Plan, kept: list[Change]) -> Plan:
    """Plan again without these buckets and their protection, which stay in Terraform's state."""
    addresses = plan.without_buckets(bucket.name for bucket in kept)
    if not addresses:
        return Plan(changes=(), variables=plan.variables, max_hourly_cost_usd=None)
    return read_plan(
        terraform.plan(saved, "-destroy", "-refresh=false", *(f"-target={address}" for address in addresses))
    )


def _kept_line(terraform: Terraform, bucket: Change) -> str:
    given = [] if terraform.var_file is None else [f"-var-file={terraform.var_file.resolve()}"]
    options = [f"-target={bucket.address}", "-var=force_destroy_bucket=true", *given]
    command = shlex.join(["terraform", f"-chdir={terraform.folder}", "apply", *options])
    return (
        f"keep      bucket {bucket.name}, it holds data. To remove it with everything in it: `{command}`, "
        f"then `lexray down {terraform.folder}` again"
    )


def _end_machines(plan: Plan, description: ClusterDescription | None, messages: Console) -> list[str]:
    """Stop the head, which would relaunch workers, then terminate the workers."""
    if description is not None and isinstance(description.access, Ssm):
        say(messages, "stopping the head")
        stop_head(description.access.autoscaling_group, description.region)
    if description is not None and isinstance(description.access, Kubectl):
        end_ray_clusters(description.access, description.region, messages)
    workers = end_workers(plan.cluster_name, plan.region)
    if workers:
        say(messages, f"ended {len(workers)} worker(s) that Ray had launched: {', '.join(workers)}")
    return workers


def _document(removed: Removed) -> dict[str, Any]:
    return {
        "name": removed.name,
        "removed": counts(change.type for change in removed.plan.having("delete")),
        "ended_workers": removed.workers,
        "kept_buckets": removed.kept,
        "still_billed": [vars(one) for one in removed.still_billed],
    }
