"""Pod templates of a Ray cluster in Kubernetes: the head, and the workers of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lexray.cluster.provisioned.description import DASHBOARD_PORT, SETUP_TIMEOUT_S, ClusterDescription, Pool
from lexray.tuning.placement.memory_split import memory_split, whole_mib

Manifest = dict[str, Any]

GCS_PORT, METRICS_PORT = 6379, 8080
ZONE_LABEL = "topology.kubernetes.io/zone"
POOL_LABEL = "lexray.io/pool"
"""Label of every node of an EKS node group: the name of its pool, or CORE_POOL. Terraform sets it."""
CORE_POOL = "core"
"""Node group that always runs, with the head."""
SPOT_TAINTS = ("lexray.io/spot", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")
GPU_RESOURCE, EFA_RESOURCE = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
HUGE_PAGES = {"hugepages-2Mi": "5120Mi"}
"""Huge pages for libfabric's buffers, on nodes with EFA; only pods that request some may use them. Terraform reserves
as many."""
STORAGE_SECRET = "lexray-storage"
"""Secret with AWS_ACCESS_KEY_ID and the like, for pods without a cloud identity."""
WANDB_SECRET = "lexray-wandb"

HEAD_CPUS, HEAD_GIB = 2, 12.0
HEAD_FUNCTIONS_GIB, HEAD_STORE_GIB, HEAD_SHM_GIB = 6.0, 1.0, 1.25
"""Parts of the head's memory in GiB: functions without a core, one a running trial at a quarter GiB (24 at once); Ray's
object store, which holds no windows there; /dev/shm around it."""
GRACE_S, DRAIN_S = 120, 100
"""Seconds from the interruption notice of a spot node to its end, and those that workers may use to save and exit."""

# Draining tells the placer, and through it each trial, that the node is lost soon: workers save a checkpoint and end. A
# pod without workers ends at once. KubeRay gives every pod the head's address, and its own name as Ray knows it.
DRAIN_ARGUMENTS = f""""$RAY_ADDRESS" "$RAY_CLOUD_INSTANCE_ID" {DRAIN_S} 'the pod is ending'"""
AWAIT_WORKERS = f"""\
end=$((SECONDS + {DRAIN_S}))
while [ $SECONDS -lt $end ] && grep -aqs '^ray::RayTrainWorker' /proc/[0-9]*/cmdline; do sleep 1; done
"""


def head_pod(cluster: ClusterDescription) -> Manifest:
    """Return the head's template: it runs the control plane and drivers, but no workers."""
    container = {
        **_container("ray-head", cluster),
        "resources": _resources(HEAD_CPUS, HEAD_GIB),
        "ports": [
            {"containerPort": GCS_PORT, "name": "gcs"},
            {"containerPort": DASHBOARD_PORT, "name": "dashboard"},
            {"containerPort": METRICS_PORT, "name": "metrics"},
        ],
    }
    spec = _pod_spec(container, shm_bytes=whole_mib(HEAD_SHM_GIB))
    if cluster.provider == "aws-eks":
        spec["nodeSelector"] = {POOL_LABEL: CORE_POOL}
    return _template(spec)


def head_start_params() -> dict[str, str]:
    """Return the arguments of `ray start --head`; with no CPUs it gets no task, actor or worker that requests one."""
    return {
        "dashboard-host": "0.0.0.0",
        "num-cpus": "0",
        "num-gpus": "0",
        "memory": str(round(HEAD_FUNCTIONS_GIB * 2**30)),
        "object-store-memory": str(whole_mib(HEAD_STORE_GIB)),
    }


def worker_pod(cluster: ClusterDescription, pool: Pool) -> Manifest:
    """Return the template of a pool's workers; one pod fills one node."""
    container = {
        **_container("ray-worker", cluster),
        "resources": _resources(pool.cpus, pool.memory_gib, _devices(pool)),
        "ports": [{"containerPort": METRICS_PORT, "name": "metrics"}],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/bash", "-c", drain_script(cluster)]}}},
    }
    spec = _pod_spec(container, shm_bytes=memory_split(pool.memory_gib).shared)
    spec["automountServiceAccountToken"] = False  # only the head's autoscaler calls the Kubernetes API
    spec |= _placement(cluster, pool)
    if pool.runtime_class is not None:
        spec["runtimeClassName"] = pool.runtime_class
    return _template(spec, pool.labels)


def drain_script(cluster: ClusterDescription) -> str:
    """Return the `preStop` of a worker. A pod without lexray gets the program from the manifest itself."""
    if cluster.python_environment == "image":
        return f"python -m lexray.cluster.node.drain_node {DRAIN_ARGUMENTS}\n{AWAIT_WORKERS}"
    program = (Path(__file__).parents[1] / "node" / "drain_node.py").read_text(encoding="utf-8")
    return f"python - {DRAIN_ARGUMENTS} <<'END'\n{program}END\n{AWAIT_WORKERS}"


def worker_start_params(pool: Pool) -> dict[str, str]:
    """Return the arguments of `ray start`, memory in bytes; the autoscaler needs them before a pool has any node."""
    split = memory_split(pool.memory_gib)
    return {
        "num-cpus": str(int(pool.cpus)),
        "num-gpus": str(pool.gpus),
        "memory": str(split.heap),
        "object-store-memory": str(split.store),
    }


def ray_env(cluster: ClusterDescription) -> list[Manifest]:
    """Return the environment variables of every container with a Ray process; KubeRay adds the token's."""
    given = dict(cluster.liveness.ray_env)
    if cluster.region is not None:
        given |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), cluster.region)
    if cluster.python_environment == "uv":
        given["RAY_JOB_START_TIMEOUT_SECONDS"] = str(SETUP_TIMEOUT_S)  # the head installs before it starts a job
    return [{"name": name, "value": value} for name, value in given.items()]


def quantity(cpus: float) -> str:
    """Format cores as a Kubernetes quantity."""
    return str(int(cpus)) if cpus == int(cpus) else f"{int(1000 * cpus)}m"


def container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _container(name: str, cluster: ClusterDescription) -> Manifest:
    wandb_key = {"name": WANDB_SECRET, "key": "WANDB_API_KEY", "optional": True}
    container: Manifest = {
        "name": name,
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [*ray_env(cluster), {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": wandb_key}}],
        "volumeMounts": [
            {"name": "shared-mem", "mountPath": "/dev/shm"},
            {"name": "scratch", "mountPath": "/scratch"},
        ],
        "securityContext": container_security(),
    }
    if cluster.provider == "kubernetes":
        container["envFrom"] = [{"secretRef": {"name": STORAGE_SECRET, "optional": True}}]
    return container


def _pod_spec(container: Manifest, *, shm_bytes: int) -> Manifest:
    return {
        "serviceAccountName": "lexray",
        "restartPolicy": "Never",  # the autoscaler mistakes a restarted pod for another node
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_bytes // 2**20}Mi"}},
            {"name": "scratch", "emptyDir": {}},
        ],
    }


def _template(spec: Manifest, labels: Mapping[str, str] | None = None) -> Manifest:
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(METRICS_PORT),
        "prometheus.io/path": "/metrics",
        # Node autoscalers would evict from a node that looks half used; Ray releases its nodes itself.
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    metadata = {"annotations": annotations} | ({"labels": dict(labels)} if labels else {})
    return {"metadata": metadata, "spec": spec}


def _devices(pool: Pool) -> dict[str, str]:
    """Return the pod's requests for devices and huge pages."""
    devices = {GPU_RESOURCE: str(pool.gpus)} if pool.gpus else {}
    return devices | ({EFA_RESOURCE: str(pool.efa_interfaces), **HUGE_PAGES} if pool.efa_interfaces else {})


def _resources(cpus: float, memory_gib: float, devices: Mapping[str, str] | None = None) -> Manifest:
    """Set requests equal to limits, so that neighbours cannot slow a pod or have it killed."""
    wanted = {"cpu": quantity(cpus), "memory": f"{whole_mib(memory_gib) // 2**20}Mi", **(devices or {})}
    return {"requests": wanted, "limits": dict(wanted)}


def _placement(cluster: ClusterDescription, pool: Pool) -> Manifest:
    selector = dict(pool.node_selector)
    if cluster.provider == "aws-eks":
        selector[POOL_LABEL] = pool.name
    if pool.zone is not None:
        selector[ZONE_LABEL] = pool.zone
    tainted = [GPU_RESOURCE] if pool.gpus else []
    if pool.capacity == "SPOT":
        tainted += SPOT_TAINTS
    placement: Manifest = {}
    if selector:
        placement["nodeSelector"] = selector
    tolerations = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tainted]
    tolerations += [toleration.model_dump(exclude_none=True) for toleration in pool.tolerations]
    if tolerations:
        placement["tolerations"] = tolerations
    if pool.instance_types and cluster.provider == "kubernetes":
        placement["affinity"] = _on_instances(pool.instance_types)
    return placement


def _on_instances(types: tuple[str, ...]) -> Manifest:
    term = {"matchExpressions": [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": list(types)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
