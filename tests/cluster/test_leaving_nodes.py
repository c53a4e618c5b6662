"""Which of Ray's nodes a machine or pod is that ends."""

import pytest
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from lexray.cluster.node.drain_node import node_of


def node(number, instance, state=GcsNodeInfo.ALIVE):
    return GcsNodeInfo(node_id=bytes([number]), instance_id=instance, state=state)


def test_it_is_the_living_node_that_was_started_as_this_instance():
    nodes = [node(1, ""), node(2, "a-pod", GcsNodeInfo.DEAD), node(3, "another-pod"), node(4, "a-pod")]
    assert node_of("a-pod", nodes) == "04"


def test_nobody_is_taken_for_a_node_that_does_not_know_its_name():
    with pytest.raises(LookupError, match="RAY_CLOUD_INSTANCE_ID is empty"):
        node_of("", [node(1, "")])


@pytest.mark.parametrize("names", [[], ["another-pod"], ["a-pod", "a-pod"]])
def test_no_node_is_taken_where_none_or_several_have_the_name(names):
    with pytest.raises(LookupError, match=rf"of Ray's {len(names)} living nodes are 'a-pod', not one"):
        node_of("a-pod", [node(number, name) for number, name in enumerate(names)])
