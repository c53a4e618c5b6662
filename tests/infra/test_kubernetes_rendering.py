"""One description, one cluster: the files, the overlays and what the command renders are the same."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubernetes_kinds import FOLDER, ROOT, by_name, example, kustomized, needs_kubectl, pod_templates
from pydantic import ValidationError

from lexray.cluster.manifests.kube_cluster import SWEEP, SWEEP_CONFIG_MAP, SWEEP_FOLDER
from lexray.cluster.manifests.kube_pods import DRAIN_ARGUMENTS, GPU_RESOURCE, drain_script
from lexray.cluster.manifests.manifests import applied, render, to_yaml
from lexray.cluster.provisioned.description import SETUP_TIMEOUT_S
from lexray.cluster.provisioned.pools import pools_of
from lexray.storage.errors import UserError

PUSHED_IMAGE = "registry.example.com/lexray:0.1.0"
BASE = FOLDER / "base"


def render_example(**changes):
    return render(example(**changes), ray_version="2.60.0")


def ray_cluster(**changes):
    return render_example(**changes)["raycluster.yaml"][0]


def pool(**changes):
    return {"name": "gpu", "cpus": 8, "memory_gib": 32, "gpus": 1, "max_nodes": 3} | changes


def test_the_base_is_what_the_command_renders_of_the_example():
    """After a change: lexray manifests infra/kubernetes/example-cluster.yaml --output infra/kubernetes/base"""
    rendered = {name: to_yaml(manifests) for name, manifests in render_example().items()}
    files = {str(file.relative_to(BASE)): file.read_text() for file in BASE.rglob("*") if file.is_file()}
    assert files == rendered


def test_the_example_names_the_ray_that_is_tested():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert example().ray_version == pinned["ray"]


@needs_kubectl
def test_the_base_applies_to_everything_rendered_but_the_job():
    assert by_name(kustomized(BASE)) == by_name(applied(render_example()))
    assert by_name(kustomized(BASE / "job")) == by_name(render_example()["job/rayjob.yaml"])


@needs_kubectl
def test_the_eks_overlay_is_the_rendering_of_the_same_cluster_on_eks():
    rendered = applied(render_example(provider="aws-eks", image=PUSHED_IMAGE))
    assert by_name(kustomized(FOLDER / "overlays" / "eks")) == by_name(rendered)


@needs_kubectl
def test_the_overlay_for_any_cluster_only_says_where_the_image_lies():
    found = by_name(kustomized(FOLDER / "overlays" / "any-cluster"))
    assert found == by_name(applied(render_example(image=PUSHED_IMAGE)))


@needs_kubectl
def test_under_kueue_a_job_of_fixed_size_waits_in_a_queue_and_no_cluster_holds_quota():
    found = by_name(kustomized(FOLDER / "overlays" / "kueue"))
    assert [kind for kind, _ in found if kind.startswith("Ray")] == ["RayJob"]
    job = found["RayJob", "lexray-sweep"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"]
    assert job["spec"]["entrypoint"] == shlex.join(SWEEP), "no node comes that is not there"
    assert job["spec"]["shutdownAfterJobFinishes"]
    spec = job["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    rendered = render_example()["job/rayjob.yaml"][0]["spec"]["rayClusterSpec"]
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == [p.name for p in example().pools]
    for group, of_base in zip(spec["workerGroupSpecs"], rendered["workerGroupSpecs"], strict=True):
        assert 0 < group["replicas"] <= group["maxReplicas"] == of_base["maxReplicas"]


@needs_kubectl
def test_the_pod_monitor_watches_ports_that_the_pods_have(tmp_path):
    folder = tmp_path / "monitored"
    shutil.copytree(FOLDER, folder)
    overlay = folder / "overlays" / "any-cluster" / "kustomization.yaml"
    content = yaml.safe_load(overlay.read_text())
    overlay.write_text(yaml.safe_dump(content | {"components": ["../../components/pod-monitor"]}))
    found = by_name(kustomized(overlay.parent))
    (endpoint,) = found["PodMonitor", "ray"]["spec"]["podMetricsEndpoints"]
    (allowed,) = found["NetworkPolicy", "metrics"]["spec"]["ingress"][0]["ports"]
    for template in pod_templates(found["RayCluster", "lexray"]):
        named = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert named[endpoint["port"]] == allowed["port"]
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(allowed["port"])


def test_each_pool_is_a_worker_group_of_its_size():
    description = example(pools=[pool(min_nodes=1, cpus=7.5, gpus=2), pool(name="cpu", gpus=0, capacity="ON_DEMAND")])
    groups = render(description, ray_version="2.60.0")["raycluster.yaml"][0]["spec"]["workerGroupSpecs"]
    for group, made_of in zip(groups, description.pools, strict=True):
        assert group["groupName"] == made_of.name
        assert (group["minReplicas"], group["maxReplicas"]) == (made_of.min_nodes, made_of.max_nodes)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get(GPU_RESOURCE, "0") == group["rayStartParams"]["num-gpus"] == str(made_of.gpus)
        assert limits["memory"] == f"{1024 * made_of.memory_gib:.0f}Mi"
    first = groups[0]["template"]["spec"]
    assert first["containers"][0]["resources"]["limits"]["cpu"] == "7500m"
    assert groups[0]["rayStartParams"]["num-cpus"] == "7"  # Ray counts whole cores
    assert "tolerations" not in groups[1]["template"]["spec"]


@pytest.mark.parametrize("memory_gib", [1.5, 28, 176, 1900])
def test_what_ray_hands_out_and_dev_shm_fit_the_memory_of_the_pod(memory_gib):
    group = ray_cluster(pools=[pool(memory_gib=memory_gib)])["spec"]["workerGroupSpecs"][0]
    (shm,) = [v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shared-mem"]
    shm_bytes = int(shm["sizeLimit"].removesuffix("Mi")) * 2**20
    functions, store = (int(group["rayStartParams"][name]) for name in ("memory", "object-store-memory"))
    assert store < shm_bytes
    assert functions + shm_bytes <= memory_gib * 2**30


def test_the_job_brings_the_same_cluster_and_the_sweep_file_in_its_head():
    files = render_example()
    job = files["job/rayjob.yaml"][0]["spec"]
    assert job["entrypoint"].startswith(f"lexray sweep {SWEEP_FOLDER}/")
    told = pools_of(shlex.split(job["entrypoint"])[-1])
    assert [(one.name, one.max_nodes) for one in told] == [(one.name, one.max_nodes) for one in example().pools]
    assert job["activeDeadlineSeconds"] == 72 * 3600
    brought = copy.deepcopy(job["rayClusterSpec"])
    head = brought["headGroupSpec"]["template"]["spec"]
    assert head["volumes"].pop()["configMap"]["name"] == SWEEP_CONFIG_MAP
    assert head["containers"][0]["volumeMounts"].pop()["mountPath"] == SWEEP_FOLDER
    assert brought == files["raycluster.yaml"][0]["spec"]
    assert "activeDeadlineSeconds" not in render_example(max_cluster_hours=None)["job/rayjob.yaml"][0]["spec"]


def test_what_the_description_says_of_liveness_idling_region_and_token_reaches_the_cluster():
    made = ray_cluster(
        liveness={"health_check_failures": 9},
        idle_timeout_minutes=2.5,
        region="eu-west-1",
        token={"kind": "kubernetes_secret", "name": "shared-token"},
    )
    assert made["spec"]["authOptions"] == {"mode": "token", "secretName": "shared-token"}
    assert made["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 150
    containers = [template["spec"]["containers"][0] for template in pod_templates(made)]
    for env in (made["spec"]["autoscalerOptions"]["env"], *(container["env"] for container in containers)):
        values = {each["name"]: each.get("value") for each in env}
        assert values["RAY_health_check_failure_threshold"] == "9"
        assert values["AWS_REGION"] == "eu-west-1"


def test_pods_go_where_their_pool_is():
    pools = [pool(zone="eu-west-1a", instance_types=["g5.xlarge", "g6.xlarge"])]
    anywhere = ray_cluster(pools=pools)["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    (term,) = anywhere["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"][0]["values"] == ["g5.xlarge", "g6.xlarge"]
    assert anywhere["nodeSelector"] == {"topology.kubernetes.io/zone": "eu-west-1a"}
    on_eks = ray_cluster(pools=pools, provider="aws-eks")["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert on_eks["nodeSelector"]["lexray.io/pool"] == "gpu"
    assert "affinity" not in on_eks  # the node group has these instances and no others


def test_terraform_names_the_service_account_of_the_pods():
    account = render_example(provider="aws-eks")["service-account.yaml"][0]["metadata"]["name"]
    root = " ".join((ROOT / "infra" / "aws-eks" / "main.tf").read_text().split())
    assert f'service_account = "{account}"' in root


def test_a_pool_says_what_its_pods_need_of_nodes_that_others_made():
    tolerations = [{"key": "team", "operator": "Equal", "value": "a", "effect": "NoExecute"}, {"key": "old"}]
    own = pool(
        node_selector={"lab/kind": "big"},
        tolerations=tolerations,
        labels={"cost": "us"},
        runtime_class="nvidia",
        gpus=0,
    )
    made = ray_cluster(pools=[own, pool(name="plain")], image_pull_secrets=["registry"])["spec"]["workerGroupSpecs"]
    first, second = (group["template"] for group in made)
    assert first["metadata"]["labels"] == {"cost": "us"}
    assert (first["spec"]["nodeSelector"], first["spec"]["runtimeClassName"]) == ({"lab/kind": "big"}, "nvidia")
    assert first["spec"]["tolerations"][-2:] == [tolerations[0], {"key": "old", "operator": "Exists"}]
    assert {"nodeSelector", "runtimeClassName"} & second["spec"].keys() == set()
    account = render_example(image_pull_secrets=["registry"])["service-account.yaml"][0]
    assert account["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize(
    ("toleration", "message"),
    [
        ({"key": "a", "operator": "Equal"}, "Equal needs a key and a value.*got Equal, key 'a', value None"),
        ({"operator": "Equal", "value": "b"}, "got Equal, key None, value 'b'"),
        ({"key": "a", "value": "b"}, "Exists takes no value"),
    ],
)
def test_a_toleration_that_kubernetes_would_refuse_is_refused_here(toleration, message):
    with pytest.raises(ValidationError, match=message):
        example(pools=[pool(tolerations=[toleration])])


def test_pods_of_an_efa_pool_request_its_cards_and_huge_pages():
    group = ray_cluster(pools=[pool(efa_interfaces=4)])["spec"]["workerGroupSpecs"][0]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    devices = {"nvidia.com/gpu": "1", "vpc.amazonaws.com/efa": "4", "hugepages-2Mi": "5120Mi"}
    assert {key: value for key, value in resources["limits"].items() if key not in ("cpu", "memory")} == devices


def test_the_autoscaler_and_ray_know_the_zone_of_a_pool_that_has_one():
    spread, near = ray_cluster(pools=[pool(), pool(name="near", zone="eu-west-1a")])["spec"]["workerGroupSpecs"]
    assert "labels" not in spread
    assert near["labels"] == {"ray.io/availability-zone": "eu-west-1a"}


def test_the_quota_is_the_pools_at_their_largest():
    (made,) = render_example(pools=[pool(gpus=8, max_nodes=3), pool(name="big", gpus=2, max_nodes=5)])["quota.yaml"]
    assert made["spec"]["hard"][f"requests.{GPU_RESOURCE}"] == "34"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"provider": "aws-ec2"}, "provider: .*'aws-ec2'"),
        ({"access": {"kind": "direct", "address": "http://127.0.0.1:8265"}}, "access.kind: .*'direct'"),
        ({"access": {"kind": "kubectl", "namespace": "lexray", "service": "head"}}, "'lexray-head-svc'.*got 'head'"),
        ({"image": None}, "image: required"),
        ({"pools": []}, "pools: at least one"),
        ({"pools": [pool(cpus=0.5)]}, r"pools\.0\.cpus: .*at least 1, got 0\.5"),
        ({"pools": [pool(), pool()]}, "pools: two have the name 'gpu'"),
        ({"token": None}, "token: .*got none"),
        ({"token": {"kind": "file", "path": "token"}}, "token: .*got 'file'"),
        ({"token": {"kind": "kubernetes_secret", "name": "lexray", "key": "t"}}, "token.key: .*'auth_token'.*got 't'"),
    ],
)
def test_a_description_that_kubernetes_could_not_go_by_is_refused_by_its_field(changes, field):
    with pytest.raises(UserError, match=field):
        render_example(**changes)


@pytest.mark.parametrize("environment", ["image", "uv"])
def test_the_script_that_drains_a_node_is_one_that_bash_reads(environment):
    script = drain_script(example(python_environment=environment))
    subprocess.run(["bash", "-n", "-c", script], check=True)


def test_nothing_of_a_cluster_without_lexray_in_its_image_calls_lexray():
    """But jobs, which bring it along."""
    files = render_example(image="rayproject/ray:2.60.0-py311-gpu", python_environment="uv")
    assert not [name for name in files if "job" in name], "a RayJob brings no code"
    for pod in pod_templates(files["raycluster.yaml"][0]):
        (container,) = pod["spec"]["containers"]
        assert {"name": "RAY_JOB_START_TIMEOUT_SECONDS", "value": str(SETUP_TIMEOUT_S)} in container["env"]
        script = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "", ""])[2]
        assert not re.search(r"^python -m lexray", script, re.MULTILINE)


def test_a_worker_without_lexray_leaves_by_the_same_program():
    """Without its arguments it says so; with them it runs in the slow tests of draining."""
    script = drain_script(example(python_environment="uv")).partition("end=$((")[0].replace(DRAIN_ARGUMENTS, "")
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=120, cwd="/")
    assert (done.returncode, "not enough values to unpack" in done.stderr) == (1, True), done.stderr
