"""Manifests of KubeRay's RayCluster and RayJob."""

from __future__ import annotations

import copy
import shlex

from lexray.cluster.manifests.kube_pods import (
    Manifest,
    container_security,
    head_pod,
    head_start_params,
    ray_env,
    worker_pod,
    worker_start_params,
)
from lexray.cluster.provisioned.description import ClusterDescription, Pool
from lexray.cluster.provisioned.pools import pools_option
from lexray.tuning.placement.nodes import ZONE

API_VERSION = "ray.io/v1"
IDLE_TIMEOUT_MINUTES = 10.0
"""Default of the description's `idle_timeout_minutes`."""
SWEEP_CONFIG_MAP, SWEEP_FOLDER, SWEEP_FILE = "lexray-sweep", "/etc/lexray", "sweep.yaml"
SWEEP = ("lexray", "sweep", f"{SWEEP_FOLDER}/{SWEEP_FILE}", "--address", "auto")
HEAD_READY_S = 1800
"""Seconds that a job's cluster may take to start: a node, and its first pull of a large image."""
KEEP_ENDED_S = 300
"""Seconds that the cluster of a finished job stays, for its log to be read."""
HEAD_LOSSES = 1
"""Restarts of a job on a new cluster; finished trials stay finished, others resume from checkpoints."""


def ray_cluster(cluster: ClusterDescription, *, namespace: str, ray_version: str) -> Manifest:
    """Return a RayCluster that stays until it is deleted; its pools shrink to `min_nodes` when idle."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": {"name": cluster.name, "namespace": namespace, "labels": _labels()},
        "spec": cluster_spec(cluster, ray_version=ray_version),
    }


def ray_job(cluster: ClusterDescription, *, namespace: str, ray_version: str) -> Manifest:
    """Return a RayJob whose cluster runs one sweep; the sweep file is in a config map."""
    spec: Manifest = {
        "submissionMode": "HTTPMode",  # the other modes end a healthy job when the pod that submitted it dies
        "entrypoint": shlex.join([*SWEEP, *pools_option(cluster.pools)]),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_ENDED_S,
        "preRunningDeadlineSeconds": HEAD_READY_S,
        "backoffLimit": HEAD_LOSSES,
        "rayClusterSpec": with_sweep_file(cluster_spec(cluster, ray_version=ray_version)),
    }
    if cluster.max_cluster_hours is not None:
        spec["activeDeadlineSeconds"] = round(3600 * cluster.max_cluster_hours)
    return {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": {"name": f"{cluster.name}-sweep", "namespace": namespace, "labels": _labels()},
        "spec": spec,
    }


def cluster_spec(cluster: ClusterDescription, *, ray_version: str) -> Manifest:
    """Return the spec of a RayCluster: a head that runs no workers, and one worker group for each pool."""
    auth = {"mode": "token"}
    if cluster.token is not None and cluster.token.kind == "kubernetes_secret" and cluster.token.name != cluster.name:
        auth["secretName"] = cluster.token.name
    minutes = IDLE_TIMEOUT_MINUTES if cluster.idle_timeout_minutes is None else cluster.idle_timeout_minutes
    return {
        "rayVersion": ray_version,
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": _autoscaler(cluster, idle_timeout_s=round(60 * minutes)),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": head_start_params(),
            "template": head_pod(cluster),
        },
        "workerGroupSpecs": [_group(cluster, pool) for pool in cluster.pools],
    }


def with_sweep_file(spec: Manifest) -> Manifest:
    """Return the spec with the sweep file's config map mounted in its head."""
    spec = copy.deepcopy(spec)
    pod = spec["headGroupSpec"]["template"]["spec"]
    pod["volumes"].append({"name": "sweep", "configMap": {"name": SWEEP_CONFIG_MAP}})
    pod["containers"][0]["volumeMounts"].append({"name": "sweep", "mountPath": SWEEP_FOLDER, "readOnly": True})
    return spec


def _autoscaler(cluster: ClusterDescription, *, idle_timeout_s: int) -> Manifest:
    wanted = {"cpu": "500m", "memory": "1Gi"}
    return {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": idle_timeout_s,
        "imagePullPolicy": "IfNotPresent",
        "env": ray_env(cluster),
        "resources": {"requests": wanted, "limits": dict(wanted)},
        "securityContext": container_security(),
    }


def _group(cluster: ClusterDescription, pool: Pool) -> Manifest:
    # Ray's own label: the autoscaler must know the zone of nodes that do not exist yet.
    labels = {"labels": {ZONE: pool.zone}} if pool.zone is not None else {}
    return {
        "groupName": pool.name,
        **labels,
        "replicas": pool.min_nodes,
        "minReplicas": pool.min_nodes,
        "maxReplicas": pool.max_nodes,
        "rayStartParams": worker_start_params(pool),
        "template": worker_pod(cluster, pool),
    }


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "lexray"}
