"""Pools as an argument of a command: what Ray's autoscaler may start, for the sweep that runs on its cluster.

The autoscaler of Ray's open-source releases tells nobody; where every pool begins at zero nodes, a sweep that does not
know of them finds a cluster without room for any trial.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from lexray.cluster.provisioned.description import ClusterDescription, Pool
from lexray.storage.errors import UserError

TOLD = {"name", "cpus", "memory_gib", "gpus", "min_nodes", "max_nodes", "zone"}
"""What of a pool a sweep counts with."""
_POOLS = TypeAdapter(tuple[Pool, ...])


def startable(cluster: ClusterDescription | None) -> tuple[Pool, ...]:
    """Pools whose nodes an autoscaler starts: nobody does on a cluster that was only described by hand."""
    return () if cluster is None or cluster.provider == "ray" else cluster.pools


def pools_option(pools: Sequence[Pool]) -> list[str]:
    """`--pools JSON`, or nothing where no pools are described."""
    if not pools:
        return []
    told = [pool.model_dump(mode="json", include=TOLD) for pool in pools]
    return ["--pools", json.dumps(told, separators=(",", ":"))]


def pools_of(text: str) -> tuple[Pool, ...]:
    """The pools of such an argument; none for no text. Raises UserError naming the first field that is wrong."""
    if not text:
        return ()
    try:
        return _POOLS.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"--pools: {field + ': ' if field else ''}{first['msg']}") from error
