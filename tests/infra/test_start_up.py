"""What nodes run at their first boot, as the last apply rendered it: read by shellcheck and by Ray."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rendered
import yaml
from hcl_files import INFRA
from ray.autoscaler._private.util import validate_config
from ray.autoscaler.v2.instance_manager.config import FileConfigReader

from lexray.cluster.provisioned.description import ClusterDescription, Liveness

TEMPLATES = INFRA / "modules/aws/ray-ec2/templates"
SCRIPTS = ("head.sh", "worker.sh")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def shellcheck(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SHELLCHECK, "-"], input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing_in_what_a_node_runs(name):
    script = rendered.read(name)
    for text in (script, rendered.script_in(script, "start-ray")):
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
    assert f"--num-cpus={pool.cpus:g} --num-gpus={pool.gpus} --memory={pool.memory_gib * 2**30:.0f}" in worker


def test_a_node_that_lost_its_ray_ends_itself_and_the_head_starts_again():
    assert "start_ray 'ExecStopPost=/usr/sbin/shutdown -h now'" in rendered.read("worker.sh")
    assert "start_ray 'Restart=always" in rendered.read("head.sh")


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
