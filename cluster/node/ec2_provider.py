"""Launches the nodes of a pool on EC2. Ray's autoscaler loads this class on the head (`provider.module`).

Unlike Ray's own provider it tries launch options (spot, on demand, another type) in the order that the pool states, and
reports AWS's message when all are refused.
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
"""Key of a pool's `node_config`: arguments of RunInstances that override the common ones, in order of preference."""
PAUSE_S = 15.0
"""Seconds between the refusal of every option and the next try; Ray alone would retry every few seconds forever."""


class NodesRefusedError(RuntimeError):
    """AWS refused every launch option of a pool. One line with each option and AWS's reason."""


class Ec2Provider(AWSNodeProvider):
    """Ray's EC2 provider with launch options in order of preference."""

    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def create_node(self, node_config: Mapping[str, Any], tags: Mapping[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` nodes by the first option that AWS grants; return them by instance id.

        Each option is tried in every subnet. Raises NodesRefusedError when none is granted.
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


# Ray 2.60 drops the cause of a failed launch twice before the state that `ray status` and lexray read: the error's text
# leaves out its cause, and an instance update its details. Both are restored.


def _with_cause(error: BaseException) -> str:
    return str(error.__cause__ or Exception.__str__(error))


def _update_with_details(instance: Instance, update: InstanceUpdateEvent) -> Instance:
    updated = _update(instance, update)
    updated.status_history[-1].details = update.details
    return updated


_update = InstanceManager._update_instance
InstanceManager._update_instance = staticmethod(_update_with_details)  # type: ignore[method-assign]
LaunchNodeError.__str__ = _with_cause  # type: ignore[method-assign, unused-ignore]
