"""All checks in the order of the table."""

from __future__ import annotations

from collections.abc import Callable

from lexray.cluster.doctor.findings import Findings
from lexray.cluster.doctor.machine_checks import (
    check_clock,
    check_code,
    check_devices,
    check_disk,
    check_efa,
    check_liveness,
    check_memory,
    check_shared_memory,
    check_versions,
)
from lexray.cluster.doctor.reach_checks import (
    check_dashboard,
    check_exposure,
    check_launches,
    check_nodes,
    check_start,
    check_token,
)
from lexray.cluster.doctor.store_checks import check_data, check_identity, check_output, check_region
from lexray.cluster.doctor.traffic_checks import check_network, check_wandb
from lexray.cluster.doctor.verdict import Check, Limits

CHECKS: tuple[Callable[[Findings, Limits], Check], ...] = (
    check_start,
    check_nodes,
    check_launches,
    check_dashboard,
    check_token,
    check_exposure,
    check_versions,
    check_code,
    check_devices,
    check_efa,
    check_shared_memory,
    check_disk,
    check_memory,
    check_clock,
    check_liveness,
    check_data,
    check_output,
    check_region,
    check_identity,
    check_network,
    check_wandb,
)


def examine(found: Findings, limits: Limits | None = None) -> list[Check]:
    """One line for each check, whatever the others say."""
    return [check(found, limits or Limits()) for check in CHECKS]
