"""Ray clusters in a namespace of Kubernetes: the described one, and those of RayJobs."""

from __future__ import annotations

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.provisioned.description import Kubectl
from lexray.cluster.provisioned.kubernetes import kubectl_call
from lexray.cluster.provisioned.programs import output_of
from lexray.storage.errors import UserError

LABEL = "ray.io/cluster"
"""Label of every pod with the name of its Ray cluster."""
HEADS = ("get", "pods", "--selector", "ray.io/node-type=head")
END_S = 300
"""Seconds that the pods may take to save and end."""


def ray_clusters(access: Kubectl, region: str | None) -> list[str]:
    """Return the sorted names of Ray clusters with a head. Raises UserError when Kubernetes does not answer."""
    names = f"jsonpath={{.items[*].metadata.labels.{LABEL.replace('.', chr(92) + '.')}}}"
    with kubectl_call(access, region) as kubectl:
        return sorted(set(output_of(kubectl.command(*HEADS, "-o", names)).split()))


def of_jobs(clusters: list[str], access: Kubectl) -> list[str]:
    """Return all but the described cluster: KubeRay made each of them for a RayJob."""
    return [name for name in clusters if f"{name}-head-svc" != access.service]


def end_ray_clusters(access: Kubectl, region: str | None, messages: Console) -> None:
    """Delete jobs and Ray clusters, so that nodes are released before their network is removed; failures are reported
    only.
    """
    try:
        if not ray_clusters(access, region):
            return
        say(messages, "ending the Ray clusters")
        with kubectl_call(access, region) as kubectl:
            delete = ("delete", "rayjobs,rayclusters", "--all", "--cascade=foreground", f"--timeout={END_S}s")
            output_of(kubectl.command(*delete), timeout_s=END_S + 30)
    except UserError as error:
        say(messages, f"Ray clusters are not ended, their nodes go with everything else: {error}")
