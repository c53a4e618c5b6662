"""Manifests of the repository, and the schemas that Kubernetes and KubeRay publish of them."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lexray.cluster.manifests.kube_pods import Manifest
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.storage.config_file import read_config_file

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "infra" / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "schemas"
KUBERNETES_VERSIONS = ("1.30", "1.37")
"""The oldest and the newest whose schemas the manifests are held against."""

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
needs_kuberay_schemas = pytest.mark.skipif(
    not SCHEMAS.exists(), reason="KubeRay's CRD schemas are not there (../shared/schemas beside the checkout)"
)


def example(**changes) -> ClusterDescription:
    """The example's description with some fields of the file replaced."""
    found = read_config_file(str(FOLDER / "example-cluster.yaml"), ClusterDescription)
    return ClusterDescription.model_validate(found.model_dump(by_alias=True) | changes)


def read_manifests(file: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(file.read_text()))


@cache
def _kustomized(folder: Path) -> str:
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kustomized(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    return list(yaml.safe_load_all(_kustomized(folder)))


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    found = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
    assert len(found) == len(manifests)
    return found


def check(manifest: Manifest) -> None:
    """Raises jsonschema.ValidationError for what the API server, or KubeRay's custom resources, would not take."""
    if manifest["apiVersion"].startswith("ray.io/"):
        check_custom(manifest)
        return
    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def check_custom(manifest: Manifest) -> None:
    """A RayCluster or RayJob against KubeRay's schema, and its pods against Kubernetes' own."""
    unknown = manifest["metadata"].keys() - {"name", "namespace", "labels", "annotations"}
    if unknown:  # the schema of a custom resource leaves its metadata open
        raise jsonschema.ValidationError(f"metadata: {unknown}")
    _kuberay_validator(manifest["kind"].lower()).validate(manifest)
    for template in pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, KUBERNETES_VERSIONS[-1], strict=True)


def cluster_spec(manifest: Manifest) -> Manifest:
    """Spec of the Ray cluster that a RayCluster or a RayJob asks for."""
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


def pod_templates(manifest: Manifest) -> list[Manifest]:
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


@cache
def _kuberay_validator(kind: str) -> jsonschema.Draft202012Validator:
    document = json.loads((SCHEMAS / f"kuberay-{kind}-v1.json").read_text())
    return jsonschema.Draft202012Validator(_strict(document["openAPIV3Schema"]))


def _strict(schema: Manifest) -> Manifest:
    """An API server's structural schema as JSON Schema: unknown fields refused, fields with a default optional."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    copied = {name: schema[name] for name in ("type", "enum", "pattern", "minimum", "maximum") if name in schema}
    if "items" in schema:
        copied["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        copied["additionalProperties"] = _strict(schema["additionalProperties"])
    if "properties" in schema:
        fields = schema["properties"]
        copied["properties"] = {name: _strict(field) for name, field in fields.items()}
        copied["required"] = [name for name in schema.get("required", []) if "default" not in fields[name]]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            copied["additionalProperties"] = False
    return copied
