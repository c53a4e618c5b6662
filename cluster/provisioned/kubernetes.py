"""Calls `kubectl` for a cluster with the credentials that it needs, and reports why pods of its Ray are pending.

Kubernetes knows why; Ray's autoscaler does not.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lexray.cluster.provisioned.description import ClusterDescription, Kubectl
from lexray.cluster.provisioned.programs import output_of

PODS = ("get", "pods", "--selector", "ray.io/cluster", "--field-selector", "status.phase=Pending", "-o", "json")
EVENTS = ("get", "events", "--field-selector", "reason=NotTriggerScaleUp", "-o", "json")
"""Events of cluster-autoscaler for pods for which it adds no node."""
GROUP, HEAD_GROUP = "ray.io/group", "headgroup"
"""Label of KubeRay's pods with their pool, and its value for the head."""
STARTING = ("ContainerCreating", "PodInitializing")
"""Reasons of containers that are starting."""
_ADVICE = {
    "Insufficient nvidia.com/gpu": "nodes with free GPUs are missing: a node autoscaler adds them, and NVIDIA's device "
    "plugin shows their GPUs",
    "Insufficient cpu": "lower the pool's `cpus` to what a node can give to one pod",
    "Insufficient memory": "lower the pool's `memory_gib` to what a node can give to one pod",
    "untolerated taint": "add the taint to the pool's `tolerations`",
    "node affinity/selector": "compare the pool's `node_selector`, `zone` and `instance_types` with the nodes' labels",
    "ErrImagePull": "name an image that is there, and `image_pull_secrets` for a private registry",
    "ImagePullBackOff": "name an image that is there, and `image_pull_secrets` for a private registry",
    "CreateContainerConfigError": "make the secret that the message names",
}
"""Remedies, by a part of Kubernetes' message."""


@dataclass(frozen=True, kw_only=True)
class KubectlCall:
    """Common options of kubectl calls."""

    namespace: str
    context: str | None = None
    kubeconfig: str | None = None
    """Path of the kubeconfig; None: the user's own."""

    def command(self, *arguments: str) -> list[str]:
        context = ["--context", self.context] if self.context is not None else []
        config = ["--kubeconfig", self.kubeconfig] if self.kubeconfig is not None else []
        return ["kubectl", *config, *context, "--namespace", self.namespace, *arguments]

    def forward(self, service: str, port: int, local_port: int) -> list[str]:
        """Return the command of a port-forward from loopback."""
        return self.command("port-forward", "--address", "127.0.0.1", f"service/{service}", f"{local_port}:{port}")


@contextmanager
def kubectl_call(access: Kubectl, region: str | None) -> Iterator[KubectlCall]:
    """Yield the options of kubectl calls, with temporary credentials for a cluster of EKS."""
    if access.eks_cluster is None:
        yield KubectlCall(namespace=access.namespace, context=access.context)
        return
    with TemporaryDirectory(prefix="lexray-kube-") as folder:
        config = str(Path(folder) / "config")
        place = ["--region", region] if region is not None else []
        output_of(["aws", "eks", "update-kubeconfig", "--name", access.eks_cluster, *place, "--kubeconfig", config])
        yield KubectlCall(namespace=access.namespace, context=access.context, kubeconfig=config)


def pending_pods(cluster: ClusterDescription, now: datetime | None = None) -> list[str]:
    """Return why pods of the cluster's namespace are pending, as `pending_lines`; none where Kubernetes is not used.

    Raises UserError when kubectl fails.
    """
    if not isinstance(cluster.access, Kubectl):
        return []
    with kubectl_call(cluster.access, cluster.region) as kubectl:
        pods = json.loads(output_of(kubectl.command(*PODS)))["items"]
        events = json.loads(output_of(kubectl.command(*EVENTS)))["items"] if pods else []
    return pending_lines(pods, events, now or datetime.now(UTC))


def pending_lines(pods: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]], now: datetime) -> list[str]:
    """Return `pool NAME: N pod(s) pending for up to M min: REASON; ADVICE`, one line for each pool and reason."""
    refusals = {event["involvedObject"]["name"]: event.get("message", "") for event in events}
    groups: dict[tuple[str, str], list[datetime]] = defaultdict(list)
    for pod in pods:
        metadata = pod["metadata"]
        if reason := _reason(pod["status"], refusals.get(metadata["name"], "")):
            group = metadata.get("labels", {}).get(GROUP, "?")
            groups[group, reason].append(datetime.fromisoformat(metadata["creationTimestamp"]))
    return [_line(group, reason, since, now) for (group, reason), since in sorted(groups.items())]


def _reason(status: Mapping[str, Any], refusal: str) -> str:
    """Return why a pod is pending, in Kubernetes' words on one line; empty while it starts."""
    found = [
        f"{condition.get('reason', '')}: {condition.get('message', '')}"
        for condition in status.get("conditions", [])
        if condition["type"] == "PodScheduled" and condition["status"] == "False"
    ]
    found += [f"the node autoscaler adds no node ({refusal})"] if found and refusal else []
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting and waiting.get("reason") not in STARTING:
            found.append(f"{waiting.get('reason', '')}: {waiting.get('message', '')}")
    return " ".join("; ".join(part.strip(": ") for part in found).split())


def _line(group: str, reason: str, since: list[datetime], now: datetime) -> str:
    who = "head" if group == HEAD_GROUP else f"pool {group}"
    minutes = max(0.0, (now - min(since)).total_seconds()) / 60
    advice = dict.fromkeys(advice for part, advice in _ADVICE.items() if part in reason)
    return "; ".join([f"{who}: {len(since)} pod(s) pending for up to {minutes:.0f} min: {reason}", *advice])
