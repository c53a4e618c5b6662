"""What every manifest of lexray must keep to, as one function that names what a manifest breaks."""

from collections.abc import Iterator

from kubernetes_kinds import cluster_spec, pod_templates

from lexray.cluster.manifests.kube_namespace import POD_IDENTITY_AGENT
from lexray.cluster.manifests.kube_pods import DRAIN_S, GPU_RESOURCE, Manifest
from lexray.cluster.provisioned.description import Liveness


def violations(manifest: Manifest) -> list[str]:
    """One short text for each rule that is broken."""
    found = list(_of_any_kind(manifest))
    if manifest["kind"] in ("RayCluster", "RayJob"):
        found += _of_a_cluster(cluster_spec(manifest))
        for template in pod_templates(manifest):
            found += [*_of_annotations(template["metadata"]["annotations"]), *_of_a_pod(template["spec"])]
    if manifest["kind"] == "NetworkPolicy":
        found += _of_a_policy(manifest["spec"])
    return found


def _of_any_kind(manifest: Manifest) -> Iterator[str]:
    if manifest["kind"] in ("Secret", "Ingress", "Service"):
        yield f"a {manifest['kind']}: secrets are made by hand or by the operator, nothing is reachable from outside"
    for key, value in _everything(manifest):
        if value in ("LoadBalancer", "NodePort"):
            yield f"{key}: {value} can be reached from outside"
        if key == "enableIngress" and value:
            yield "enableIngress: the dashboard runs whatever it is sent"


def _of_a_cluster(spec: Manifest) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "no token: whoever reaches the head runs code"
    if not spec.get("rayVersion"):
        yield "rayVersion: KubeRay refuses a token without it"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work"
    if spec.get("enableInTreeAutoscaling") and not spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds"):
        yield "idle nodes are never given back"
    for group in spec["workerGroupSpecs"]:
        yield from _of_a_group(group, scales=spec.get("enableInTreeAutoscaling", False))


def _of_a_group(group: Manifest, *, scales: bool) -> Iterator[str]:
    name = group["groupName"]
    container = group["template"]["spec"]["containers"][0]
    gpus = container["resources"]["limits"].get(GPU_RESOURCE, "0")
    if group["rayStartParams"].get("num-gpus") != gpus:
        yield f"{name}: Ray counts other GPUs than the pod asks for"
    if gpus == "0":
        return
    if group["minReplicas"] or (scales and group["replicas"]):
        yield f"{name}: GPUs run without work"
    tolerated = {each["key"] for each in group["template"]["spec"].get("tolerations", [])}
    if GPU_RESOURCE not in tolerated:
        yield f"{name}: no node with GPUs takes its pods"


def _of_annotations(annotations: dict[str, str]) -> Iterator[str]:
    if annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
        yield "moved to another node in the middle of a training"
    if annotations.get("prometheus.io/scrape") != "true":
        yield "nobody reads its metrics"


def _of_a_pod(pod: Manifest) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        yield "runs as root"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares its node's namespaces"
    if any("hostPath" in volume for volume in pod["volumes"]):
        yield "reaches into its node's files"
    if pod["restartPolicy"] != "Never":
        yield "restartPolicy: autoscaler v2 wants Never"
    for container in pod["containers"]:
        yield from _of_a_container(container, pod)


def _of_a_container(container: Manifest, pod: Manifest) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may become privileged"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if container["resources"]["requests"] != container["resources"]["limits"]:
        yield "requests are not limits"
    if ":" not in container["image"].rpartition("/")[2] or container["image"].endswith(":latest"):
        yield f"{container['image']}: not one version"
    env = {each["name"]: each.get("value") for each in container["env"]}
    if not Liveness().ray_env.items() <= env.items():
        yield "a node that vanishes is noticed after minutes"
    shm = [volume for volume in pod["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
    if not shm or "sizeLimit" not in shm[0]["emptyDir"]:
        yield "/dev/shm has no size"
    if container["name"] == "ray-worker":
        if "preStop" not in container.get("lifecycle", {}):
            yield "a worker's node goes without a word"
        if pod["terminationGracePeriodSeconds"] <= DRAIN_S:
            yield "no time to save a checkpoint"


def _of_a_policy(spec: Manifest) -> Iterator[str]:
    if "Ingress" in spec["policyTypes"]:
        for rule in spec.get("ingress", []):
            if not rule.get("from") or any("ipBlock" in peer or peer == {} for peer in rule["from"]):
                yield "lets in whoever comes"
    for rule in spec.get("egress", []):
        cidrs = {peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer}
        ports = {port["port"] for port in rule.get("ports", [])}
        if not rule.get("to") or (cidrs and not ports):
            yield "lets out whatever goes"
        if "0.0.0.0/0" in cidrs and not ports <= {443, 6443}:
            yield f"lets out to everywhere on {sorted(ports)}"
        if 80 in ports and cidrs != {POD_IDENTITY_AGENT}:
            yield "lets out to the node's metadata"


def _everything(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf with the key that holds it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _everything(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _everything(inner, key)
    else:
        yield key, value
