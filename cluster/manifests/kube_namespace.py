"""Manifests around a Ray cluster in Kubernetes: namespace, service account, network policies and quota."""

from __future__ import annotations

from lexray.cluster.manifests.kube_pods import GPU_RESOURCE, Manifest
from lexray.cluster.provisioned.description import DASHBOARD_PORT, ClusterDescription

OPERATOR_NAMESPACE = "kuberay-system"
RAY_PODS = {"ray.io/is-ray-node": "yes"}
"""Label of every pod of every Ray cluster; a RayJob's cluster has a generated name."""
HEAD_PODS = RAY_PODS | {"ray.io/node-type": "head"}
NODE_LOCAL_DNS = "169.254.20.10/32"
POD_IDENTITY_AGENT = "169.254.170.23/32"
SPARE_PODS = 4
"""Pods in addition to the workers: the heads of the cluster and of a job, and two for debugging."""


def namespace(name: str) -> Manifest:
    """Return the namespace. `restricted` only warns: the operator adds settings to pods that lexray cannot know."""
    levels = {"enforce": "baseline", "audit": "restricted", "warn": "restricted"}
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode, level in levels.items()}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def service_account(cluster: ClusterDescription, namespace: str) -> Manifest:
    """Return the service account of head and workers: cloud identities bind to it by name, and it pulls their image."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "lexray", "namespace": namespace}}
    secrets = [{"name": name} for name in cluster.image_pull_secrets]
    return account | ({"imagePullSecrets": secrets} if secrets else {})


def network_policies(cluster: ClusterDescription, namespace: str) -> list[Manifest]:
    """Return policies that deny all traffic except that of Ray, storage and the operator.

    KubeRay's own policies are behind a feature gate, off by default: it then refuses a cluster that requests them.
    """
    everything: Manifest = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return [
        _policy("deny-all", namespace, everything),
        _policy("ray", namespace, _between_ray_pods(cluster)),
        _policy("ray-head", namespace, _of_the_head()),
    ]


def quota(cluster: ClusterDescription, namespace: str) -> Manifest:
    """Return a quota for the pools at their largest; it allows no volumes, load balancers or node ports."""
    hard = {
        "pods": str(sum(pool.max_nodes for pool in cluster.pools) + SPARE_PODS),
        f"requests.{GPU_RESOURCE}": str(sum(pool.max_nodes * pool.gpus for pool in cluster.pools)),
        "persistentvolumeclaims": "0",
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "lexray", "namespace": namespace},
        "spec": {"hard": hard},
    }


def _policy(name: str, namespace: str, spec: Manifest) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _between_ray_pods(cluster: ClusterDescription) -> Manifest:
    ray = {"podSelector": {"matchLabels": dict(RAY_PODS)}}
    in_kube_system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    egress: list[Manifest] = [
        {"to": [dict(ray)]},
        {"to": [in_kube_system, {"ipBlock": {"cidr": NODE_LOCAL_DNS}}], "ports": [_port(53, "UDP"), _port(53)]},
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [_port(443)]},
    ]
    if cluster.provider == "aws-eks":
        egress.append({"to": [{"ipBlock": {"cidr": POD_IDENTITY_AGENT}}], "ports": [_port(80)]})
    return {
        "podSelector": {"matchLabels": dict(RAY_PODS)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [dict(ray)]}],
        "egress": egress,
    }


def _of_the_head() -> Manifest:
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OPERATOR_NAMESPACE}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    return {
        "podSelector": {"matchLabels": dict(HEAD_PODS)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [operator], "ports": [_port(DASHBOARD_PORT)]}],
        # The autoscaler's access to Kubernetes: many networks match the server's own port, not the service's.
        "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [_port(6443)]}],
    }


def _port(port: int, protocol: str = "TCP") -> Manifest:
    return {"port": port, "protocol": protocol}
