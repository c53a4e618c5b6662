"""Charts and pods land on the nodes that Terraform makes for them, and on no others.

Labels and taints are those of `rendered/eks-node-groups.json`; what the charts ask is kept in `chart_facts.yaml`.
"""

from __future__ import annotations

import json

import pytest
import rendered
import yaml
from hcl_files import INFRA
from kubernetes_kinds import example
from scheduling import why_not

from lexray.cluster.manifests.manifests import render

HERE = rendered.FOLDER.parent
VALUES = INFRA / "kubernetes/values"
FACTS = yaml.safe_load((HERE / "chart_facts.yaml").read_text(encoding="utf-8"))
GROUPS = json.loads(rendered.read(rendered.NODE_GROUPS))
EIGHT = {"cpus": 94, "memory_gib": 1000, "gpus": 8, "max_nodes": 2}
POOLS = [
    {"name": "cpu", "cpus": 7, "memory_gib": 28, "capacity": "ON_DEMAND", "max_nodes": 2},
    {"name": "a10g", "cpus": 46, "memory_gib": 176, "gpus": 4, "zone": "us-east-1a", "max_nodes": 2},
    {"name": "wide", "cpus": 46, "memory_gib": 176, "gpus": 4, "max_nodes": 2},
    {
        "name": "a100",
        "cpus": 94,
        "memory_gib": 1000,
        "gpus": 8,
        "capacity": "RESERVED",
        "efa_interfaces": 4,
        "max_nodes": 2,
    },
    {
        "name": "h100",
        "cpus": 190,
        "memory_gib": 1900,
        "gpus": 8,
        "capacity": "CAPACITY_BLOCK",
        "efa_interfaces": 32,
        "max_nodes": 2,
    },
]
"""The pools of infra/aws-eks/tests/pools.tftest.hcl as a description has them."""
GPU_POOLS = {"a10g", "wide", "a100", "h100"}
EFA_POOLS = {"a100", "h100"}
RESOURCE_TAG = "k8s.io/cluster-autoscaler/node-template/resources/"


def labels(group):
    """Of a node: what Terraform gives it, and what every node has."""
    made = GROUPS[group]
    instance_type = made["template_instance_type"] or made["instance_types"][0]
    own = {"node.kubernetes.io/instance-type": instance_type, "topology.kubernetes.io/zone": "us-east-1a"}
    return own | made["labels"]


def values(name, *more):
    files = [VALUES / f"{file}.yaml" for file in (name, *more)]
    return {key: value for file in files for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items()}


def chart_pod(name, given):
    """What the chart's pods ask of a node: its own lists, those that values replace, and what its templates add."""
    fact = FACTS[name]
    pod, fixed = fact["defaults"] | given, fact.get("fixed", {})
    tolerations = [*fixed.get("tolerations", []), *(pod.get("tolerations") or [])]
    return pod | {"tolerations": tolerations, "affinity": fixed.get("affinity") or pod.get("affinity")}


def lands_on(pod):
    return {group for group, made in GROUPS.items() if not why_not(pod, labels(group), made["taints"])}


def pods():
    cluster = render(example(provider="aws-eks", pools=POOLS), ray_version="2.60.0")["raycluster.yaml"][0]["spec"]
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return cluster["headGroupSpec"]["template"]["spec"], groups


def test_the_device_plugin_reaches_every_node_with_gpus_and_no_other():
    assert lands_on(chart_pod("nvidia-device-plugin", values("nvidia-device-plugin"))) == GPU_POOLS


def test_the_charts_own_values_would_leave_spot_nodes_without_gpus():
    assert lands_on(chart_pod("nvidia-device-plugin", {})) == EFA_POOLS
    assert lands_on(chart_pod("aws-efa-k8s-device-plugin", {})) == set()


def test_without_its_label_no_node_would_get_the_device_plugin():
    pod = chart_pod("nvidia-device-plugin", values("nvidia-device-plugin"))
    bare = {key: value for key, value in labels("a10g").items() if key != "nvidia.com/gpu.present"}
    assert why_not(pod, bare, []) == ["no term of the node affinity matches"]


def test_efas_device_plugin_reaches_the_nodes_with_efa_and_no_other():
    assert lands_on(chart_pod("aws-efa-k8s-device-plugin", values("aws-efa-k8s-device-plugin"))) == EFA_POOLS


@pytest.mark.parametrize("name", ["kuberay-operator", "cluster-autoscaler"])
def test_what_watches_over_the_cluster_keeps_no_node_of_a_pool_alive(name):
    assert lands_on(chart_pod(name, values(name, "core-nodes"))) == {"core"}
    assert lands_on(chart_pod(name, values(name))) == {"core", "cpu"}


def test_the_head_and_the_workers_of_each_pool_land_on_its_nodes_alone():
    head, workers = pods()
    assert lands_on(head) == {"core"}
    assert {name: lands_on(pod) for name, pod in workers.items()} == {pool["name"]: {pool["name"]} for pool in POOLS}


def test_cluster_autoscaler_knows_what_the_first_node_of_a_pool_will_have():
    _, workers = pods()
    for name, pod in workers.items():
        limits = pod["containers"][0]["resources"]["limits"]
        wanted = {f"{RESOURCE_TAG}{key}": value for key, value in limits.items() if key not in ("cpu", "memory")}
        assert wanted == (GROUPS[name]["tags"] or {}), name
        assert pod["containers"][0]["resources"]["requests"] == limits


def test_cluster_autoscaler_waits_for_the_gpus_of_a_young_node():
    """It takes a node with this label for unready until it offers GPUs, and starts no further one meanwhile."""
    marked = {group for group in GROUPS if "k8s.amazonaws.com/accelerator" in labels(group)}
    assert marked == GPU_POOLS
    assert {group for group in GROUPS if GROUPS[group]["ami_type"].endswith("NVIDIA")} == GPU_POOLS


@pytest.mark.parametrize(
    ("pod", "taint", "tolerated"),
    [
        ({"tolerations": [{"operator": "Exists"}]}, {"key": "a", "value": "b", "effect": "NoExecute"}, True),
        ({"tolerations": [{"key": "a", "value": "b"}]}, {"key": "a", "value": "b", "effect": "NoSchedule"}, True),
        ({"tolerations": [{"key": "a", "value": "c"}]}, {"key": "a", "value": "b", "effect": "NoSchedule"}, False),
        (
            {"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute"}]},
            {"key": "a", "effect": "NoSchedule"},
            False,
        ),
        ({}, {"key": "a", "effect": "NoSchedule"}, False),
    ],
)
def test_the_evaluator_tolerates_as_kubernetes_does(pod, taint, tolerated):
    assert (why_not(pod, {}, [taint]) == []) is tolerated
