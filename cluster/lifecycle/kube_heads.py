"""Ray clusters that live in a namespace of Kubernetes: the described one, and those that jobs brought with them."""

from __future__ import annotations

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.provisioned.description import Kubectl
from lexray.cluster.provisioned.kubernetes import kubectl_call
from lexray.cluster.provisioned.programs import output_of
from lexray.storage.errors import UserError

LABEL = "ray.io/cluster"
"""Of every pod: the name of its Ray cluster."""
HEADS = ("get", "pods", "--selector", "ray.io/node-type=head")
END_S = 300
"""How long the pods may take to save what they do and end."""


def ray_clusters(access: Kubectl, region: str | None) -> list[str]:
    """Names of those with a head, sorted. Raises UserError when Kubernetes cannot be asked."""
    names = f"jsonpath={{.items[*].metadata.labels.{LABEL.replace('.', chr(92) + '.')}}}"
    with kubectl_call(access, region) as kubectl:
        return sorted(set(output_of(kubectl.command(*HEADS, "-o", names)).split()))


def of_jobs(clusters: list[str], access: Kubectl) -> list[str]:
    """Those beside the described one: KubeRay made them, each for a RayJob."""
    return [name for name in clusters if f"{name}-head-svc" != access.service]


def end_ray_clusters(access: Kubectl, region: str | None, messages: Console) -> None:
    """Delete jobs and clusters, so that nodes are free before their network goes. What cannot be asked is told."""
    try:
        if not ray_clusters(access, region):
            return
        say(messages, "ending the Ray clusters")
        with kubectl_call(access, region) as kubectl:
            delete = ("delete", "rayjobs,rayclusters", "--all", "--cascade=foreground", f"--timeout={END_S}s")
            output_of(kubectl.command(*delete), timeout_s=END_S + 30)
    except UserError as error:
        say(messages, f"Ray clusters are not ended, their nodes go with everything else: {error}")
