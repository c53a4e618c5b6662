"""Kubernetes and KubeRay would take the manifests, by their schemas; neither runs here."""

import copy

import jsonschema
import pytest
from kubernetes_kinds import FOLDER, check, example, kustomized, needs_kubectl, needs_kuberay_schemas, read_manifests

from lexray.cluster.manifests.manifests import KUSTOMIZATION, applied, render

CUSTOM = ("RayCluster", "RayJob")
FULL = {
    "image_pull_secrets": ["registry"],
    "region": "eu-west-1",
    "token": {"kind": "kubernetes_secret", "name": "shared-token"},
    "pools": [
        {
            "name": "gpu",
            "instance_types": ["g5.xlarge"],
            "cpus": 3.5,
            "memory_gib": 14.5,
            "gpus": 1,
            "zone": "eu-west-1a",
            "efa_interfaces": 1,
            "node_selector": {"lab/kind": "big"},
            "tolerations": [{"key": "team", "effect": "NoExecute"}],
            "labels": {"cost": "us"},
            "runtime_class": "nvidia",
            "min_nodes": 1,
            "max_nodes": 64,
        }
    ],
}


def everything(**changes):
    files = render(example(**changes), ray_version="2.60.0")
    return [manifest for name, made in files.items() if not name.endswith(KUSTOMIZATION) for manifest in made]


def place(manifest, path):
    for step in path:
        manifest = manifest[step]
    return manifest


@pytest.mark.parametrize("provider", ["kubernetes", "aws-eks"])
def test_kubernetes_knows_what_stands_around_the_cluster(provider):
    around = [manifest for manifest in everything(provider=provider, **FULL) if manifest["kind"] not in CUSTOM]
    assert {m["kind"] for m in around} == {"Namespace", "ServiceAccount", "NetworkPolicy", "ResourceQuota"}
    for manifest in around:
        check(manifest)
    check(*read_manifests(FOLDER / "components" / "pod-monitor" / "network-policy.yaml"))


@needs_kuberay_schemas
@pytest.mark.parametrize("changes", [{}, FULL, FULL | {"provider": "aws-eks"}], ids=["example", "full", "full on eks"])
def test_kuberay_knows_every_field_of_the_cluster_and_of_the_job(changes):
    custom = [manifest for manifest in everything(**changes) if manifest["kind"] in CUSTOM]
    assert [m["kind"] for m in custom] == list(CUSTOM)
    for manifest in custom:
        check(manifest)


@needs_kubectl
@needs_kuberay_schemas
@pytest.mark.parametrize("overlay", ["any-cluster", "eks", "kueue"])
def test_an_overlay_makes_nothing_that_would_be_refused(overlay):
    for manifest in kustomized(FOLDER / "overlays" / overlay):
        check(manifest)


@needs_kuberay_schemas
@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ((), "idleTimeoutSecond", 60),
        (("autoscalerOptions",), "idleTimeout", 60),
        (("workerGroupSpecs", 0), "minReplica", 0),
        (("workerGroupSpecs", 0, "template", "spec"), "toleration", []),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0), "volumeMount", []),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0, "securityContext"), "privilege", True),
        (("authOptions",), "mode", "tokens"),
        (("autoscalerOptions",), "version", "v3"),
        (("headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("workerGroupSpecs", 0), "maxReplicas", "two"),
    ],
)
def test_a_misspelt_field_a_wrong_type_and_an_unknown_value_are_refused(path, field, value):
    cluster = render(example(), ray_version="2.60.0")["raycluster.yaml"][0]
    check(cluster)
    place(cluster["spec"], path)[field] = value
    with pytest.raises(jsonschema.ValidationError):
        check(cluster)


@pytest.mark.parametrize(
    ("kind", "path", "field"),
    [
        ("NetworkPolicy", ("spec",), "policyType"),
        ("NetworkPolicy", ("spec", "podSelector"), "matchLabel"),
        ("ResourceQuota", ("spec",), "hards"),
        ("Namespace", ("metadata",), "label"),
        ("ServiceAccount", (), "automountToken"),
    ],
)
def test_a_misspelt_field_of_kubernetes_own_kinds_is_refused(kind, path, field):
    manifests = applied(render(example(), ray_version="2.60.0"))
    manifest = copy.deepcopy(next(m for m in manifests if m["kind"] == kind))
    place(manifest, path)[field] = {"a": "b"}
    with pytest.raises(jsonschema.ValidationError):
        check(manifest)
