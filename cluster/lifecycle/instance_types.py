"""Instance types and vCPU quotas of EC2, and whether pools of nodes fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lexray.cluster.provisioned.aws import aws_errors, listed

ON_DEMAND, SPOT = "Running On-Demand {} instances", "All {} Spot Instance Requests"
"""Names of quotas; the placeholder is the families that share one: `G and VT`, `P5`, `Standard (A, C, D, ...)`."""
MARKETS = {"SPOT": (SPOT,), "ON_DEMAND": (ON_DEMAND,)}
"""Quotas by the capacity of a pool; reservations have their vCPUs already."""


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """Resources of an instance type, and the zones that offer it."""

    vcpus: int
    memory_gib: float
    gpus: int
    zones: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Quota:
    """vCPUs that an account may run at once in a region."""

    name: str
    code: str
    vcpus: float


def instance_types(names: Sequence[str], region: str | None) -> dict[str, InstanceType]:
    """Return the types that exist in the region, by name. Raises UserError when AWS does not answer."""
    by_name = [{"Name": "instance-type", "Values": list(names)}]
    with aws_errors("instance types"):
        described = listed("ec2", region, "describe_instance_types", "InstanceTypes[]", Filters=by_name)
        offered = listed(
            "ec2", region, "describe_instance_type_offerings", "InstanceTypeOfferings[]", Filters=by_name,
            LocationType="availability-zone",
        )  # fmt: skip
    return {
        found["InstanceType"]: InstanceType(
            vcpus=found["VCpuInfo"]["DefaultVCpus"],
            memory_gib=found["MemoryInfo"]["SizeInMiB"] / 1024,
            gpus=sum(gpu["Count"] for gpu in found.get("GpuInfo", {}).get("Gpus", [])),
            zones=frozenset(one["Location"] for one in offered if one["InstanceType"] == found["InstanceType"]),
        )
        for found in described
        if found["InstanceType"] in names
    }


def quotas(region: str | None) -> list[Quota]:
    """Return the quotas of EC2 that count vCPUs. Raises UserError when they may not be asked for."""
    with aws_errors("vCPU quotas (servicequotas:ListServiceQuotas)"):
        found = listed("service-quotas", region, "list_service_quotas", "Quotas[]", ServiceCode="ec2")
    named = [
        entry for entry in found if _families(entry["QuotaName"], SPOT) or _families(entry["QuotaName"], ON_DEMAND)
    ]
    return [Quota(name=entry["QuotaName"], code=entry["QuotaCode"], vcpus=entry["Value"]) for entry in named]


def quota_of(type_: str, market: str, applied: Sequence[Quota]) -> Quota | None:
    """Return the quota that a launch of the type counts against: that of its generation (`P5`), else of its family."""
    letters, generation = re.match(r"([a-z]+)(\d*)", type_).groups()  # type: ignore[union-attr]
    for family in (f"{letters}{generation}".upper(), letters.upper()):
        for quota in applied:
            if family in _families(quota.name, market):
                return quota
    return None


def _families(name: str, market: str) -> set[str]:
    """`{"G", "VT"}` of a quota's name; empty for a quota of another market."""
    before, after = market.split("{}")
    if not (name.startswith(before) and name.endswith(after)):
        return set()
    return set(re.findall(r"\b[A-Z]+\d*\b", name[len(before) : -len(after)]))


def judge_pools(
    pools: Mapping[str, Mapping[str, Any]],
    types: Mapping[str, InstanceType],
    applied: Sequence[Quota],
    region: str | None,
) -> Iterator[tuple[str, bool]]:
    """Yield a line for everything that keeps nodes of the pools from starting, and whether it keeps all of them."""
    for name, pool in pools.items():
        there = [type_ for type_ in pool["instance_types"] if type_ in types and types[type_].zones]
        for type_ in pool["instance_types"]:
            if type_ not in there:
                yield f"{name}: {type_} is offered in 0 zones of {region}; use another type or region", not there
        for type_ in there:
            yield from _misfits(name, pool, type_, types[type_])
        if applied and there:
            yield from _over_quota(name, pool, {type_: types[type_].vcpus for type_ in there}, applied, region)


def _misfits(name: str, pool: Mapping[str, Any], type_: str, has: InstanceType) -> Iterator[tuple[str, bool]]:
    zone = pool.get("zone")
    if zone is not None and zone not in has.zones:
        yield f"{name}.zone: {zone} does not offer {type_}; it is in {', '.join(sorted(has.zones))}", True
    for field, most in (("cpus", has.vcpus), ("memory_gib", has.memory_gib), ("gpus", has.gpus)):
        if pool.get(field, 0) > most:
            yield f"{name}.{field}: {pool[field]:g}, but {type_} has {most:g}; lower it, or use a larger type", True


def _over_quota(
    name: str, pool: Mapping[str, Any], vcpus: Mapping[str, int], applied: Sequence[Quota], region: str | None
) -> Iterator[tuple[str, bool]]:
    """Yield a line for each exceeded quota; it is fatal only if every quota allows no node."""
    markets = [*MARKETS.get(pool["capacity"], ()), *((ON_DEMAND,) if pool.get("on_demand_fallback") else ())]
    ways = [(type_, quota) for type_ in vcpus for market in markets if (quota := quota_of(type_, market, applied))]
    is_hopeless = all(quota.vcpus < vcpus[type_] for type_, quota in ways)
    for type_, quota in ways:
        wanted = pool["max"] * vcpus[type_]
        if quota.vcpus < wanted:
            fit = int(quota.vcpus // vcpus[type_])
            yield (
                f"{name}: {pool['max']} x {type_} are {wanted} vCPUs, the quota `{quota.name}` of {region} is "
                f"{quota.vcpus:g} (room for {fit}); ask for more under Service Quotas ({quota.code}), or lower max",
                is_hopeless,
            )
