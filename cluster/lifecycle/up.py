"""`lexray up`: show what Terraform would make and what that costs at most, ask, make it, and say how to use it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.lifecycle.preflight import preflight
from lexray.cluster.lifecycle.terraform import Terraform, carry_out, refuse_unasked
from lexray.cluster.lifecycle.terraform_plan import Plan, change_lines, cost_lines, counts, head_lines, read_plan
from lexray.cluster.output import FAILED, OK, print_json
from lexray.cluster.provisioned.connection import ended_by_signals
from lexray.cluster.provisioned.description import ClusterDescription, Direct, TokenFile
from lexray.cluster.provisioned.trust import Ask, remember, token_use
from lexray.storage.config_file import checked_content
from lexray.storage.errors import UserError

CLUSTER_FILE = "cluster.json"


@dataclass(frozen=True, kw_only=True)
class Made:
    """Result of an `up`."""

    file: Path
    """File with the cluster's description."""
    cluster: dict[str, Any]
    """Contents of `file`."""
    plan: Plan


def run_up(
    terraform: Terraform, ask: Ask | None, messages: Console, as_json: bool, *, skip_checks: bool = False
) -> int:
    """Create a cluster. Returns exit code 0 once it exists, 1 if the user declined or Terraform failed."""
    made = up(terraform, ask, messages, skip_checks=skip_checks)
    if made is None:
        say(messages, "nothing was made")
        return FAILED
    if as_json:
        print_json(_document(made))
        return OK
    print(made.file)
    say(messages, "its head takes some minutes to start; next:")
    for command in ("lexray doctor --cluster", "lexray submit SWEEP.yaml --cluster"):
        say(messages, f"  {command} {made.file}")
    say(messages, f"  lexray down {terraform.folder}  when you are done: until then it costs money")
    return OK


def up(terraform: Terraform, ask: Ask | None, messages: Console, *, skip_checks: bool = False) -> Made | None:
    """Create a cluster and write its description; return None if the user declines.

    Raises UserError before anything is made, RefusedError when something failed after that.
    """
    terraform.check()
    if ask is None:
        raise refuse_unasked("up", "makes")
    with ended_by_signals(), tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "plan"
        say(messages, f"planning {terraform.folder}")
        terraform.init()
        plan = read_plan(terraform.plan(saved))
        for line in [*change_lines(plan), *head_lines(plan), *cost_lines(plan)]:
            say(messages, line)
        if plan.changes:
            if not skip_checks:
                _refuse_hopeless(plan, messages)
            if not ask("Make it?"):
                return None
            advice = f"`lexray up {terraform.folder}` goes on, `lexray down {terraform.folder}` removes it"
            carry_out(terraform, saved, advice, messages)
    return _described(terraform, plan)


def _refuse_hopeless(plan: Plan, messages: Console) -> None:
    """Report the preflight findings. Raises UserError when the cluster could not work."""
    say(messages, "asking AWS whether it grants this")
    findings = preflight(plan)
    refusals = [finding for finding in findings if finding.is_refusal]
    for finding in findings:
        say(messages, f"{'refused' if finding.is_refusal else 'warning':<10}{finding.text}")
    if refusals:
        raise UserError(
            f"{len(refusals)} of the above would keep the cluster from working, nothing was made; mend it, or "
            "make the cluster all the same with --skip-checks"
        )


def _described(terraform: Terraform, plan: Plan) -> Made:
    """Write the `cluster` output beside the Terraform files."""
    content = terraform.outputs().get("cluster")
    if not isinstance(content, dict):
        raise UserError(f"{terraform.folder}: has no output `cluster`, which says how the cluster is reached")
    described = checked_content(f"{terraform.folder}: output cluster", content, ClusterDescription)
    _remember(described)
    file = terraform.folder / CLUSTER_FILE
    file.write_text(json.dumps(content, indent=1) + "\n")
    return Made(file=file, cluster=content, plan=plan)


def _remember(description: ClusterDescription) -> None:
    """Remember the user's trust in a cluster of their own making: its head may receive the token made with it."""
    if isinstance(description.access, Direct) or isinstance(description.token, TokenFile):
        return  # another server, or a file that was there before
    if (use := token_use(description, None, None)) is not None:
        remember(use)


def _document(made: Made) -> dict[str, Any]:
    done = {action: counts(change.type for change in made.plan.having(action)) for action in ("create", "update")}
    return {
        "file": str(made.file),
        "cluster": made.cluster,
        "made": done["create"],
        "changed": done["update"],
        "max_hourly_cost_usd": made.plan.max_hourly_cost_usd,
        "monthly_budget_usd": made.plan.variables.get("monthly_budget_usd"),
    }
