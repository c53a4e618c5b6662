"""What no manifest may do, whoever made it: the files, the overlays, what the command renders."""

import pytest
import yaml
from kubernetes_kinds import FOLDER, by_name, example, kustomized, needs_kubectl
from kubernetes_policy import violations

from lexray.cluster.manifests.manifests import KUSTOMIZATION, applied, render

SPOT_ONLY = [{"name": "gpu", "cpus": 8, "memory_gib": 32, "gpus": 8, "max_nodes": 2, "capacity": "RESERVED"}]
CLUSTER = ("RayCluster", "lexray")
HEAD = ("headGroupSpec", "template", "spec")
WORKER = ("workerGroupSpecs", 1, "template", "spec")


def every_rendered(**changes):
    files = render(example(**changes), ray_version="2.60.0")
    return [manifest for name, made in files.items() if not name.endswith(KUSTOMIZATION) for manifest in made]


@pytest.mark.parametrize(
    "changes", [{}, {"provider": "aws-eks"}, {"pools": SPOT_ONLY}], ids=["base", "eks", "reserved"]
)
def test_what_the_command_renders_keeps_to_every_rule(changes):
    for manifest in every_rendered(**changes):
        assert violations(manifest) == [], manifest["kind"]


@needs_kubectl
@pytest.mark.parametrize("overlay", ["any-cluster", "eks", "kueue"])
def test_overlays_keep_to_every_rule(overlay):
    for manifest in kustomized(FOLDER / "overlays" / overlay):
        assert violations(manifest) == [], manifest["kind"]


def test_every_other_file_keeps_to_every_rule():
    rest = [file for file in FOLDER.rglob("*.yaml") if "base" not in file.parts]
    manifests = [made for file in rest for made in yaml.safe_load_all(file.read_text()) if "kind" in made]
    assert {"PodMonitor", "NetworkPolicy"} <= {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        assert violations(manifest) == [], manifest["kind"]


def test_in_the_namespace_nothing_is_let_through_that_no_rule_names():
    policies = {name: m["spec"] for (kind, name), m in by_name(applied(_rendered())).items() if kind == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert all(policy["podSelector"] for name, policy in policies.items() if name != "deny-all")


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        (("headGroupSpec", "serviceType"), "LoadBalancer", "from outside"),
        (("headGroupSpec", "serviceType"), "NodePort", "from outside"),
        (("headGroupSpec", "enableIngress"), True, "whatever it is sent"),
        (("authOptions", "mode"), "disabled", "no token"),
        (("rayVersion",), "", "rayVersion"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), "4", "the head takes work"),
        (("autoscalerOptions", "idleTimeoutSeconds"), 0, "never given back"),
        (("workerGroupSpecs", 1, "minReplicas"), 1, "run without work"),
        (("workerGroupSpecs", 1, "replicas"), 1, "run without work"),
        (("workerGroupSpecs", 1, "rayStartParams", "num-gpus"), "3", "other GPUs"),
        ((*WORKER, "tolerations"), [], "no node with GPUs"),
        ((*WORKER, "hostNetwork"), True, "node's namespaces"),
        ((*WORKER, "volumes", 1), {"name": "scratch", "hostPath": {"path": "/"}}, "node's files"),
        ((*WORKER, "terminationGracePeriodSeconds"), 30, "no time"),
        ((*WORKER, "containers", 0, "lifecycle"), {}, "without a word"),
        ((*WORKER, "volumes", 0), {"name": "shared-mem", "emptyDir": {"medium": "Memory"}}, "no size"),
        (
            (*WORKER[:-1], "metadata", "annotations", "cluster-autoscaler.kubernetes.io/safe-to-evict"),
            "true",
            "moved to another node",
        ),
        ((*HEAD[:-1], "metadata", "annotations", "prometheus.io/scrape"), "false", "nobody reads"),
        ((*HEAD, "securityContext", "runAsNonRoot"), False, "as root"),
        ((*HEAD, "restartPolicy"), "Always", "Never"),
        ((*HEAD, "containers", 0, "securityContext", "privileged"), True, "privileged"),
        ((*HEAD, "containers", 0, "securityContext", "capabilities"), {}, "capabilities"),
        ((*HEAD, "containers", 0, "resources", "requests"), {"cpu": "1"}, "not limits"),
        ((*HEAD, "containers", 0, "image"), "registry:5000/lexray", "not one version"),
        ((*HEAD, "containers", 0, "env", 0, "value"), "1", "noticed after minutes"),
    ],
)
def test_a_cluster_that_breaks_a_rule_is_named(path, value, rule):
    cluster = by_name(applied(_rendered()))[CLUSTER]
    place = cluster["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (found,) = violations(cluster)
    assert rule in found


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"policyTypes": ["Ingress"], "ingress": [{}]}, "lets in"),
        ({"policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}, "lets in"),
        ({"policyTypes": ["Egress"], "egress": [{}]}, "lets out whatever"),
        ({"policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}, "lets out whatever"),
        (
            {
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 22}]}],
            },
            r"on [22]",
        ),
        (
            {
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80}]}],
            },
            "metadata",
        ),
    ],
)
def test_a_network_policy_that_opens_more_is_named(spec, rule):
    (found,) = violations({"kind": "NetworkPolicy", "metadata": {"name": "hole"}, "spec": spec})
    assert rule in found


@pytest.mark.parametrize("kind", ["Secret", "Service", "Ingress"])
def test_a_secret_or_a_way_in_is_named(kind):
    assert len(violations({"kind": kind, "metadata": {"name": "x"}})) == 1


def _rendered():
    return render(example(), ray_version="2.60.0")
