"""Ray's own autoscaler starts nodes in the zone that a bundle names: what the placer relies on."""

from __future__ import annotations

from collections import Counter

import pytest
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
from ray.core.generated.common_pb2 import LabelSelectorOperator

from lexray.tuning.placement.nodes import ZONE


def started(zone: str | None, bundles: int) -> Counter[str]:
    """Nodes that Ray starts by type for so many bundles of 2 CPUs, of types `a` and `b` with one bundle a node."""
    selectors = None if zone is None else [[(ZONE, LabelSelectorOperator.LABEL_OPERATOR_IN, [zone])]]
    wanted = [ResourceRequestUtil.make({"CPU": 2}, label_selectors=selectors) for _ in range(bundles)]
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=0,
            max_worker_nodes=2,
            resources={"CPU": 2},
            labels={ZONE: name},
            launch_config_hash="",
        )
        for name in ("a", "b")
    }
    types["head"] = NodeTypeConfig(
        name="head", min_worker_nodes=0, max_worker_nodes=1, resources={"CPU": 0}, launch_config_hash=""
    )
    constraint = ClusterResourceConstraint(resource_requests=ResourceRequestUtil.group_by_count(wanted))
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=5,
        cluster_resource_constraints=[constraint],
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    launched = Counter({launch.instance_type: launch.count for launch in reply.to_launch})
    del launched["head"]
    return launched


@pytest.mark.parametrize("zone", ["a", "b"])
def test_all_nodes_of_a_trial_start_in_its_zone(zone: str) -> None:
    assert started(zone, 2) == Counter({zone: 2})


def test_what_can_never_be_is_answered_by_no_node_at_all() -> None:
    assert started("a", 3) == Counter()
    assert started(None, 3).total() == 3
