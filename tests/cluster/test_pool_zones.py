"""The zone of a pool on its way to a sweep on the cluster."""

from __future__ import annotations

from lexray.cluster.provisioned.description import Pool
from lexray.cluster.provisioned.pools import pools_of, pools_option
from lexray.cluster.ray_backend import connect
from lexray.tuning.ray_backend import cluster_view


def test_the_zone_of_a_pool_reaches_the_placer(monkeypatch):
    kept = {}
    monkeypatch.setattr(connect, "_internal_kv_put", lambda key, value, **_: kept.update(config=value))
    told = pools_option([Pool(name="near", cpus=4, memory_gib=8, max_nodes=2, zone="eu-west-1a")])
    connect._announce(pools_of(told[1]))
    config = connect.autoscaler_pb2.ClusterConfig.FromString(kept["config"])
    monkeypatch.setattr(cluster_view.state, "get_cluster_config", lambda: config)
    there = {"Labels": {"ray.io/node-group": "near"}}
    assert {name: node.zone for name, node in cluster_view._to_come([there])} == {"near/0": "eu-west-1a"}
