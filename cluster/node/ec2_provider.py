"""How nodes of a pool are launched on EC2. Ray's autoscaler loads this class on the head (`provider.module`).

Two things that Ray's own provider does not do: try further ways to launch (spot, on demand, another type) in the order
that the pool states, and report AWS's words when none is granted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError
from ray.core.generated.instance_manager_pb2 import (  # type: ignore[attr-defined]  # protobuf makes them when imported
    Instance,
    InstanceUpdateEvent,
)

WAYS = "LaunchWays"
"""Key of a pool's `node_config`: arguments of RunInstances that replace the common ones, the preferred way first."""
PAUSE_S = 15.0
"""Between a refusal of every way and the next try: Ray alone would try again every few seconds, for ever."""


class NodesRefusedError(RuntimeError):
    """AWS granted none of a pool's ways to launch a node. One line with each way and AWS's reason."""


class Ec2Provider(AWSNodeProvider):
    """Ray's provider for EC2, with ways to launch in a stated order."""

    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def create_node(self, node_config: Mapping[str, Any], tags: Mapping[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` nodes by the first way that AWS grants; return them by instance id.

        Each way is tried in every subnet. Raises NodesRefusedError when no way is granted.
        """
        common = {key: value for key, value in node_config.items() if key != WAYS}
        refusals = []
        for way in node_config.get(WAYS) or [{}]:
            launch = {**common, **way}
            try:
                made: dict[str, Any] = super().create_node(launch, tags, count)
                return made
            except NodeLaunchException as error:
                refusals.append(f"{_named(launch)}: {error.category}: {error.description}")
        self.sleep(PAUSE_S)
        raise NodesRefusedError(", then ".join(refusals))


def _named(launch: Mapping[str, Any]) -> str:
    """`g5.12xlarge on spot`."""
    market = launch.get("InstanceMarketOptions", {}).get("MarketType")
    return f"{launch.get('InstanceType', 'a node')} {f'on {market}' if market else 'on demand'}"


# Ray 2.60 knows the cause of a failed launch and drops it twice on the way to the state that `ray status` and lexray
# read: the text of the error leaves its cause out, and an update of an instance its details. Both are put back.


def _with_cause(error: BaseException) -> str:
    return str(error.__cause__ or Exception.__str__(error))


def _update_with_details(instance: Instance, update: InstanceUpdateEvent) -> Instance:
    updated = _update(instance, update)
    updated.status_history[-1].details = update.details
    return updated


_update = InstanceManager._update_instance
InstanceManager._update_instance = staticmethod(_update_with_details)  # type: ignore[method-assign]
LaunchNodeError.__str__ = _with_cause  # type: ignore[method-assign, unused-ignore]
