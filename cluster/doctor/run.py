"""One run of the doctor on a cluster that this process joins, or starts here."""

from __future__ import annotations

from dataclasses import replace

from lexray.cluster.doctor import machine_checks, reach_checks, store_checks, traffic_checks
from lexray.cluster.doctor.collect import Request, gather
from lexray.cluster.doctor.findings import Findings
from lexray.cluster.doctor.nodes import Deadline
from lexray.cluster.doctor.verdict import Check, Limits, fail
from lexray.cluster.ray_backend.connect import connected, local_ray
from lexray.cluster.ray_backend.local_ray import RayStartError

TOTAL_S = 26.0
"""All questions together, once connected; what they leave undone is told as such."""


def examine(found: Findings, limits: Limits | None = None) -> list[Check]:
    """Run every check, whatever the others say: one line for each, in the order of the table.

    The checks are the functions `check_NAME` of the modules, in the order in which these define them.
    """
    return [
        replace(check(found, limits or Limits()), name=name.removeprefix("check_"))
        for module in (reach_checks, machine_checks, store_checks, traffic_checks)
        for name, check in vars(module).items()
        if name.startswith("check_")
    ]


def diagnose(request: Request, address: str | None, limits: Limits, *, is_job: bool = False) -> list[Check]:
    """Look at the cluster at `address`, None is this machine. Raises UserError when nobody answers there.

    A job of the cluster (`is_job`) has its code from there: Ray refuses a second working directory.
    """
    if address is None:
        return _of_this_machine(request, limits)
    with connected(address, is_job=is_job):
        found = gather(request, Deadline.after(TOTAL_S))
    return examine(found, limits)


def _of_this_machine(request: Request, limits: Limits) -> list[Check]:
    """One failed check where Ray cannot start here: there is nothing else to look at."""
    try:
        with local_ray() as folder:
            found = gather(request, Deadline.after(TOTAL_S))
    except RayStartError as error:
        advice = "mend what the line names; a sweep on this machine would end the same way"
        return [fail(str(error), advice, name="start")]
    return examine(replace(found, start_notes=folder.notes), limits)
