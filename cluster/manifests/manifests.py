"""Renders Kubernetes manifests from a ClusterDescription, so that Terraform, YAML and Python agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lexray.cluster.manifests.kube_cluster import ray_cluster, ray_job
from lexray.cluster.manifests.kube_namespace import namespace, network_policies, quota, service_account
from lexray.cluster.manifests.kube_pods import Manifest
from lexray.cluster.provisioned.description import ClusterDescription, Kubectl
from lexray.storage.errors import UserError

RENDERED = (
    "# Rendered by `lexray manifests`; change the description of the cluster, or an overlay, and render it again.\n"
)
KUSTOMIZATION = "kustomization.yaml"
JOB_FOLDER = "job"


def render(cluster: ClusterDescription, *, ray_version: str) -> dict[str, list[Manifest]]:
    """Return the objects of every file by its path; the RayJob is in `job/`, so that applying all starts no sweep.

    There is no RayJob for an image without lexray, since it sends no code. `ray_version` is the default of the
    description's own. Raises UserError naming the field that Kubernetes, KubeRay or lexray cannot use.
    """
    space = _check(cluster).namespace
    version = cluster.ray_version or ray_version
    around = {
        "namespace.yaml": [namespace(space)],
        "service-account.yaml": [service_account(cluster, space)],
        "network-policy.yaml": network_policies(cluster, space),
        "quota.yaml": [quota(cluster, space)],
        "raycluster.yaml": [ray_cluster(cluster, namespace=space, ray_version=version)],
    }
    job = f"{JOB_FOLDER}/rayjob.yaml"
    files = {KUSTOMIZATION: [_kustomization(list(around))], **around}
    if cluster.python_environment == "uv":
        return files
    return {
        **files,
        f"{JOB_FOLDER}/{KUSTOMIZATION}": [_kustomization([Path(job).name])],
        job: [ray_job(cluster, namespace=space, ray_version=version)],
    }


def applied(files: dict[str, list[Manifest]]) -> list[Manifest]:
    """Return the objects that `kubectl apply -k` of the folder creates, in order: all but the job."""
    inside = [name for name in files if "/" not in name and name != KUSTOMIZATION]
    return [manifest for name in inside for manifest in files[name]]


def to_yaml(manifests: list[Manifest]) -> str:
    """Render one YAML document for each manifest, below a line that names their origin."""
    return RENDERED + yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120)


def write(files: dict[str, list[Manifest]], folder: Path) -> list[Path]:
    """Write all files below `folder`, overwriting existing ones. Raises UserError if it is not writable."""
    try:
        for name, manifests in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(to_yaml(manifests))
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); name another folder") from error
    return [folder / name for name in files]


class _Dumper(yaml.SafeDumper):
    """Dumps multi-line strings as blocks and writes no anchors: kustomize's patches would change every use of one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _kustomization(resources: list[str]) -> Manifest:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}


def _check(cluster: ClusterDescription) -> Kubectl:
    """Validate the description for Kubernetes and return the access to its head. Raises UserError."""
    if cluster.provider not in ("kubernetes", "aws-eks"):
        raise UserError(f"provider: manifests are for 'kubernetes' and 'aws-eks', this cluster is {cluster.provider!r}")
    if not isinstance(cluster.access, Kubectl):
        raise UserError(f"access.kind: a head in Kubernetes is reached by 'kubectl', got {cluster.access.kind!r}")
    service = f"{cluster.name}-head-svc"
    if cluster.access.service != service:
        raise UserError(
            f"access.service: KubeRay calls the head's service {service!r} after the cluster's name, "
            f"got {cluster.access.service!r}"
        )
    if cluster.image is None:
        raise UserError(
            "image: required, one with lexray's libraries (infra/image builds one), or "
            "rayproject/ray:VERSION-py311-gpu with `python_environment: uv`"
        )
    if not cluster.pools:
        raise UserError("pools: at least one is required, the head takes no work")
    _check_token(cluster)
    for number, pool in enumerate(cluster.pools):
        if pool.cpus < 1:
            raise UserError(f"pools.{number}.cpus: Ray counts whole cores, at least 1, got {pool.cpus:g}")
    names = [pool.name for pool in cluster.pools]
    if len(set(names)) < len(names):
        raise UserError(f"pools: two have the name {max(names, key=names.count)!r}; each is a worker group of its own")
    return cluster.access


def _check_token(cluster: ClusterDescription) -> None:
    token = cluster.token
    if token is None or token.kind != "kubernetes_secret":
        given = "none" if token is None else repr(token.kind)
        raise UserError(
            f"token: the pods take theirs from a secret of their namespace, {{kind: kubernetes_secret, "
            f"name: {cluster.name}}} is the one that KubeRay makes; got {given}"
        )
    if token.key != "auth_token":
        raise UserError(f"token.key: KubeRay reads the key 'auth_token' of the secret, got {token.key!r}")
