"""A cluster of hosts by ssh, real sshds in network namespaces: `lexray up`, a sweep to its end, and back to nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from namespaces import wait_until
from running_cluster import finished_in
from ssh_lab import SSHD, Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = ("gpu-1", "gpu-2", "gpu-3")


@pytest.fixture
def lab(hosts, tmp_path):
    if SSHD is None:
        pytest.skip("sshd is not installed (openssh-server): a cluster of hosts by ssh is checked by reading alone")
    return Lab(hosts, tmp_path / "user", NAMES)


def keeper_of(lab: Lab, name: str) -> int:
    address = lab.hosts.addresses[name]
    run = json.loads((lab.folder / "hosts/lexray/nodes/lab" / address / "run.json").read_text())
    return int(run["pid"])


def test_a_sweep_runs_over_three_hosts_and_nothing_is_left_of_it(lab):
    lab.write_hosts(*({"host": name, "cpus": 1} for name in NAMES))
    file = str(lab.cluster / "cluster.json")
    lab.hosts.run("gpu-2", ["bash", "-c", "exec -a raylet sleep 900"])  # `ray stop` would take it for a Ray
    assert json.loads(lab.succeed("up", str(lab.cluster), "--json"))["started"] == list(NAMES)
    token = (lab.folder / "hosts/lexray/nodes/lab" / lab.hosts.addresses["gpu-1"] / "token").read_text()
    assert token not in "".join(line for name in NAMES for line in lab.processes(name)) + Path(file).read_text()

    axes = {"architecture": ["topk"], "width": [64], "target_l0": [2, 4]}
    sweep, output = lab.sweep(axes=axes, resources={"workers": 3})  # of one CPU each, which no host alone has
    lab.succeed("submit", sweep, "--cluster", file)
    refused = lab.lexray("down", str(lab.cluster))
    assert (refused.returncode, "1 job(s) run on the cluster: lexray-small-" in refused.stderr) == (2, True)
    lab.succeed("submit", sweep, "--cluster", file, "--wait")
    assert finished_in(output) == ["topk-w64-l2", "topk-w64-l4"]
    assert json.loads(lab.succeed("list", "--cluster", file, "--json"))

    assert "nothing of lab runs any more: ended on 3 of 3 host(s)" in lab.succeed("down", str(lab.cluster))
    assert [lab.processes(name) for name in NAMES] == [[], ["raylet 900"], []]
    assert [path for path in (lab.folder / "hosts").rglob("*") if path.is_file()] == []
    assert list(lab.cluster.iterdir()) == [lab.cluster / "hosts.yaml"]


def test_what_ends_on_the_way_is_started_again_and_a_host_that_is_gone_is_told(lab):
    lab.write_hosts()
    lab.succeed("up", str(lab.cluster))

    os.kill(keeper_of(lab, "gpu-2"), signal.SIGKILL)  # as a machine that ends everything of a user's does
    wait_until(lambda: lab.processes("gpu-2") == [], "the end of what a killed keeper started")
    assert json.loads(lab.succeed("up", str(lab.cluster), "--json"))["started"] == ["gpu-2"]

    os.kill(keeper_of(lab, "gpu-1"), signal.SIGTERM)
    wait_until(lambda: lab.processes("gpu-2") == [] == lab.processes("gpu-3"), "nodes that end without their head", 200)
    assert sorted(json.loads(lab.succeed("up", str(lab.cluster), "--json"))["started"]) == list(NAMES)

    lab.hosts.cut("gpu-3")
    gone = lab.lexray("down", str(lab.cluster))
    assert gone.returncode == 1
    assert gone.stdout.startswith("not ended: ssh gpu-3: ")
    assert [lab.processes(name) for name in NAMES[:2]] == [[], []]


def test_a_list_that_cannot_be_a_cluster_is_refused_in_one_line(lab, tmp_path):
    def refusal(*entries: str, **changes: str) -> str:
        lab.write_hosts(*entries, **changes)
        done = lab.lexray("up", str(lab.cluster))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        return done.stderr

    assert "ssh nowhere: ssh: Could not resolve hostname nowhere" in refusal("gpu-1", "nowhere")
    assert "gpu-1: bash: line 1: /no/python: No such file or directory" in refusal("gpu-1", python="/no/python")
    bare = tmp_path / "bare"
    os.symlink(Path(sys.executable).resolve(), bare)  # outside its environment
    assert "has no Ray; set `python` to one with lexray's dependencies" in refusal("gpu-1", python=str(bare))
    config = lab.folder / "ssh_config"
    config.write_text(config.read_text().replace("Host gpu-3", "Host other gpu-3"))
    assert f"gpu-3 and other are one machine ({lab.hosts.addresses['gpu-3']})" in refusal("gpu-1", "gpu-3", "other")
    listen = "import socket, time; s = socket.create_server(('', 8265)); time.sleep(600)"
    lab.hosts.run("gpu-1", [sys.executable, "-c", listen])
    wait_until(lambda: socket.socket().connect_ex((lab.hosts.addresses["gpu-1"], 8265)) == 0, "another Ray")
    assert "dashboard_port: 8265 is in use on gpu-1, by another Ray?; set dashboard_port" in refusal(*NAMES)
    assert len(lab.processes("gpu-1")) == 1
