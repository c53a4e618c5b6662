"""Passes pools as a command's argument, so that a sweep knows the nodes that its cluster's autoscaler can launch.

The autoscaler of Ray's open-source releases does not report them; where every pool begins at zero nodes, a sweep
without this argument would find no room for any trial.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from lexray.cluster.provisioned.description import ClusterDescription, Pool
from lexray.storage.errors import UserError

TOLD = {"name", "cpus", "memory_gib", "gpus", "min_nodes", "max_nodes", "zone"}
"""Fields of a pool that are passed to a sweep."""
_POOLS = TypeAdapter(tuple[Pool, ...])


def startable(cluster: ClusterDescription | None) -> tuple[Pool, ...]:
    """Return the pools that an autoscaler can launch; none for a cluster that was only described by hand."""
    return () if cluster is None or cluster.provider == "ray" else cluster.pools


def pools_option(pools: Sequence[Pool]) -> list[str]:
    """Return `--pools JSON`, or nothing without described pools."""
    if not pools:
        return []
    told = [pool.model_dump(mode="json", include=TOLD) for pool in pools]
    return ["--pools", json.dumps(told, separators=(",", ":"))]


def pools_of(text: str) -> tuple[Pool, ...]:
    """Parse the argument; empty text gives no pools. Raises UserError naming the first wrong field."""
    if not text:
        return ()
    try:
        return _POOLS.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"--pools: {field + ': ' if field else ''}{first['msg']}") from error
