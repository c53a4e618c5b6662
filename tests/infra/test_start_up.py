"""What nodes run at their first boot, as the last apply rendered it: read by shellcheck and by Ray."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rendered
import yaml
from hcl_files import INFRA
from ray.autoscaler._private.util import validate_config
from ray.autoscaler.v2.instance_manager.config import FileConfigReader

from lexray.cluster.jobs.submit import machines_of
from lexray.cluster.manifests.kube_pods import worker_start_params
from lexray.cluster.provisioned.description import ClusterDescription, Liveness
from lexray.tuning.placement.memory_split import memory_split, store_beside

TEMPLATES = INFRA / "modules/aws/ray-ec2/templates"
SCRIPTS = ("head.sh", "worker.sh")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def shellcheck(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SHELLCHECK, "-"], input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing_in_what_a_node_runs(name):
    script = rendered.read(name)
    files = {"head.sh": ("ray-answers", "watch-ray"), "worker.sh": ("watch-notices",)}[name]
    for text in (script, *(rendered.script_in(script, file) for file in ("start-ray", "report", *files))):
        done = shellcheck(text)
        assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something():
    assert "SC2086" in shellcheck('#!/bin/bash\nls $1 "$2"\n').stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_kept_was_rendered_from_the_templates_as_they_are(name):
    """Lines without a value in them; the others are compared where Terraform is installed."""
    for template in ("node.sh.tftpl", f"{name}.tftpl"):
        lines = (TEMPLATES / template).read_text(encoding="utf-8").splitlines()
        fixed = [line.replace("$${", "${") for line in lines if not re.search(r"(?<!\$)\$\{|%\{", line)]
        assert len(fixed) > 10
        assert [line for line in fixed if line not in rendered.read(name).splitlines()] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_node_has_the_liveness_of_the_description_and_asks_for_a_token(name):
    script = rendered.read(name)
    variables = dict(re.findall(r"^(RAY_\w+)=(.*)$", script, flags=re.MULTILINE))
    assert Liveness().ray_env.items() <= variables.items()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert {"RAY_AUTH_TOKEN", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME"} <= variables.keys()


def test_no_script_holds_a_token_or_shows_one_to_everybody():
    for name in SCRIPTS:
        assert re.search(r"RAY_AUTH_TOKEN=\$token$", rendered.read(name), flags=re.MULTILINE)
        assert "install -m 600 /dev/null /etc/lexray/ray.env" in rendered.read(name)


def test_the_head_does_no_work_and_workers_offer_what_the_description_says():
    head = rendered.script_in(rendered.read("head.sh"), "start-ray")
    worker = rendered.script_in(rendered.read("worker.sh"), "start-ray")
    (pool,) = ClusterDescription.model_validate(json.loads(rendered.read("cluster.json"))).pools
    assert "--num-cpus=0 --num-gpus=0" in head
    assert f"--num-cpus={pool.cpus:g} --num-gpus={pool.gpus} " in worker


def test_nodes_plan_placement_and_kubernetes_divide_memory_alike():
    described = ClusterDescription.model_validate(json.loads(rendered.read("cluster.json")))
    (pool,) = described.pools
    split = memory_split(pool.memory_gib)
    script = rendered.read("worker.sh")
    assert f" --memory={split.heap} --object-store-memory={split.store} " in rendered.script_in(script, "start-ray")
    assert f" --memory {split.total} " in script
    types = yaml.safe_load(rendered.read("ray-cluster.yaml"))["available_node_types"]
    assert types["a10g"]["resources"]["memory"] == split.heap
    machines = machines_of(described, [])
    assert {node.memory_bytes for node in machines.nodes} == {split.heap}
    assert set(machines.object_store_bytes) == {split.store}
    pod = worker_start_params(pool)
    assert (pod["memory"], pod["object-store-memory"]) == (str(split.heap), str(split.store))
    assert store_beside(split.heap) == pytest.approx(split.store, rel=1e-4)


@pytest.mark.parametrize("memory_gib", [1, 7.5, 176, 1900.25])
def test_what_memory_is_divided_into_adds_up(memory_gib):
    split = memory_split(memory_gib)
    assert split.heap + split.shared == split.total <= memory_gib * 2**30
    assert split.store < split.shared


def test_a_node_that_lost_its_ray_ends_itself_and_the_head_starts_again():
    assert "start_ray 'ExecStopPost=/usr/sbin/shutdown -h now'" in rendered.read("worker.sh")
    assert "start_ray 'Restart=always" in rendered.read("head.sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_call_to_aws_of_a_boot_is_retried_and_so_is_the_boot(name):
    script = rendered.read(name)
    boot = script.partition("\n# A boot that fails says why.")[2]
    for file in re.findall(r"cat > /etc/lexray/public/(\S+) <<'EOF'", boot):
        boot = boot.replace(rendered.script_in(script, file), "")  # these are services, which are restarted
    assert 'aws() { retry command aws "$@"; }' in boot
    calls = re.findall(r"\baws [a-z]+ [a-z-]+", re.sub(r"(?m)^ *#.*", "", boot))
    assert len(calls) >= 3
    assert [line for line in boot.splitlines() if "command aws" in line] == ['aws() { retry command aws "$@"; }']
    assert not re.search(r"\| *aws |/usr/\S*/aws ", boot), "a retried call cannot read a pipe twice"
    for once in ("curl", "docker pull", "log_in"):
        assert [line for line in boot.splitlines() if re.match(rf"\s*{once} ", line)] == []
    assert {"Restart=on-failure", "StartLimitIntervalSec=0"} <= set(script.splitlines())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_systemd_reads_the_units(name, tmp_path):
    units = re.findall(
        r"cat > /etc/systemd/system/(\S+) <<'?EOF'?\n(.*?\n) *EOF\n", rendered.read(name), flags=re.DOTALL
    )
    assert {"lexray-boot.service", "lexray-ray.service"} < {unit for unit, _ in units}
    for unit, text in units:
        known = text.replace("$1", "").replace("/usr/bin/docker", "/bin/true")
        (tmp_path / unit).write_text(
            known.replace("After=docker.service", "After=").replace("Requires=docker.service", "")
        )
        done = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / unit], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), unit


def test_ray_takes_the_cluster_file_that_the_head_writes(tmp_path):
    text = rendered.script_in(rendered.read("head.sh"), "ray-cluster.yaml")
    config = yaml.safe_load(text)
    assert config == yaml.safe_load(rendered.read("ray-cluster.yaml"))
    validate_config(config)
    (tmp_path / "cluster.yaml").write_text(text, encoding="utf-8")
    read = FileConfigReader(str(tmp_path / "cluster.yaml")).get_cached_autoscaling_config()
    assert read.disable_node_updaters()
    assert read.get_idle_timeout_s() == 600
    types = read.get_node_type_configs()
    assert types is not None
    assert (types["a10g"].min_worker_nodes, types["a10g"].max_worker_nodes) == (0, 2)
    assert types["a10g"].resources["GPU"] == 4
    assert read.get_cloud_node_config("a10g")["SubnetIds"]


def test_ray_refuses_a_cluster_file_with_a_misspelt_key():
    config = yaml.safe_load(rendered.read("ray-cluster.yaml"))
    config["idle_timeout_minuts"] = 3
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(config)
