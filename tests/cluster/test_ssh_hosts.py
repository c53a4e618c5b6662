"""The list of hosts, what is refused in it, and what ssh and Ray are called with; nothing is started."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lexray.cluster.lifecycle.ssh_hosts import HostList, check_hosts, described, read_hosts
from lexray.cluster.node import agent_call
from lexray.cluster.node.ray_start import node_environment, start_arguments
from lexray.cluster.provisioned import programs
from lexray.cluster.provisioned.connection import Target, connect
from lexray.cluster.provisioned.description import ClusterDescription, Liveness, Ssh, SshFile
from lexray.cluster.provisioned.trust import token_use
from lexray.storage.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "infra/ssh/hosts.example.yaml"


def written(folder: Path, **changes: Any) -> Path:
    (folder / "hosts.yaml").write_text(yaml.safe_dump({"hosts": ["a", "b"], **changes}))
    return folder


def found(**changes: Any) -> dict[str, dict[str, Any]]:
    """What hosts `a`, the head, and `b` answer."""
    one = {"python": "3.11.7", "ray": "2.60.0", "taken": []}
    return {"a": {**one, "address": "10.0.0.1"}, "b": {**one, "address": "10.0.0.2", **changes}}


def test_the_example_is_a_list_of_hosts_with_or_without_its_comments(tmp_path):
    text = EXAMPLE.read_text(encoding="utf-8")
    for content in (text, text.replace("# user: me                  # and key: ~/.ssh/id_lab,", "user: me #")):
        (tmp_path / "hosts.yaml").write_text(content.replace("# temp_dir", "temp_dir").replace("# env", "env"))
        hosts = read_hosts(tmp_path)
        assert [one.host for one in hosts.hosts] == ["gpu-1", "gpu-2", "gpu-3"]
        assert (hosts.head_host.host, hosts.hosts[2].gpus, hosts.temp_dir) == ("gpu-1", 2, "/scratch")
    assert hosts.user == "me"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hosts": []}, "hosts: empty; name at least one"),
        ({"hosts": ["a", "b", "a"]}, "hosts: a is listed 2 times; list each host once"),
        ({"head": "c"}, "head: c is not among the 2 hosts"),
        ({"hosts": ["-oProxyCommand=x"]}, "hosts.0.host: string should match pattern"),
        ({"hosts": [{"host": "a", "gpu": 2}]}, "hosts.0.gpu: unknown key; did you mean 'gpus'?"),
        ({"temp_dir": "/a/path/that/is/far/too/long/for/sockets"}, "temp_dir: string should match"),
        ({"env": {"RAY_AUTH_TOKEN": "x"}}, "env.RAY_AUTH_TOKEN: the head makes the token; leave it out"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_its_field(lexray, tmp_path, changes, line):
    for command in ("up", "down"):
        code, _, err = lexray(command, written(tmp_path, **changes))
        assert code == 2
        assert f"{tmp_path / 'hosts.yaml'}: {line}" in err
        assert err.count("\n") == 1


def test_options_of_terraform_are_refused(lexray, tmp_path):
    code, _, err = lexray("up", written(tmp_path), "--var-file", "x.tfvars")
    assert (code, "--var-file: for Terraform's variables" in err) == (2, True)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"ray": "2.59.0"}, "hosts: b: Ray 2.59.0, but 2.60.0 on the head a; install Ray 2.60.0 there"),
        ({"ray": None}, "hosts: b: Ray none, but 2.60.0 on the head a"),
        ({"python": "3.12.1"}, "hosts: b: Python 3.12.1, but 3.11.7 on the head a"),
        ({"address": "10.0.0.1"}, "hosts: a and b are one machine (10.0.0.1); list it once"),
    ],
)
def test_hosts_that_cannot_be_one_cluster_are_refused(changes, line):
    hosts = HostList(hosts=["a", "b"])
    check_hosts(hosts, found())
    with pytest.raises(UserError) as error:
        check_hosts(hosts, found(**changes))
    assert str(error.value).startswith(line)


def test_the_ports_of_another_ray_on_the_head_are_named_by_their_field():
    for port, field in ((6379, "port"), (8265, "dashboard_port")):
        answers = found()
        answers["a"]["taken"] = [port]
        with pytest.raises(UserError, match=rf"^{field}: {port} is in use on a, by another Ray"):
            check_hosts(HostList(hosts=["a", "b"]), answers)


def test_the_description_leads_to_the_head_by_ssh_and_holds_no_token(tmp_path):
    hosts = HostList(hosts=["a", "b"], head="b", user="me", key="~/.ssh/lab", runs_url="file:///shared/runs")
    content = described(hosts, "10.0.0.2", "/home/me/token", "2.60.0")
    description = ClusterDescription.model_validate(content)
    assert description.access == Ssh(host="b", user="me", key="~/.ssh/lab", address="10.0.0.2")
    assert description.token == SshFile(path="/home/me/token")
    assert description.python_environment == "image"
    bare = hosts.model_copy(update={"python_environment": "uv"})
    assert described(bare, "10.0.0.2", "/t", "2.60.0")["python_environment"] == "uv"
    use = token_use(description, None, None)
    assert str(use) == "token file /home/me/token on that host would be sent to port 8265 of 10.0.0.2, by ssh to me@b"


def test_ssh_never_asks_and_shares_no_connection_with_a_tunnel():
    access = Ssh(host="b", user="me", key="k", address="fd00::2")
    command = programs.forward_command(access, 5000)
    assert command[-2:] == ["--", "b"]
    assert "BatchMode=yes" in command
    assert command[command.index("-S") + 1] == "none"
    assert command[command.index("-L") + 1] == "127.0.0.1:5000:[fd00::2]:8265"


def test_a_token_on_a_host_needs_ssh_to_it(tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        "{schema: 1, name: lab, provider: ray, access: {kind: kubectl, namespace: n, service: s}, "
        "token: {kind: ssh_file, path: /t}}"
    )
    target = Target(cluster=str(tmp_path / "cluster.yaml"), is_trusted=True)
    with pytest.raises(UserError, match=r"but access[.]kind is not ssh"), connect(target):
        pass


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("echo motd >&2; echo 'Permission denied (publickey).' >&2; exit 255", "ssh a: Permission denied (publickey)."),
        ("exit 3", "ssh a: exit code 3"),
        ("echo hello", "ssh a: python3 printed no answer; is it a Python?"),
    ],
)
def test_what_ssh_complains_of_is_one_line_that_names_the_host(lexray, tmp_path, monkeypatch, text, line):
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ncat > {tmp_path}/stdin\n{text}\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, _, err = lexray("up", written(tmp_path, hosts=["a"]))
    assert code == 2
    assert line in err
    code, _, err = lexray("down", tmp_path)
    assert code == 2
    assert f"is a job running? The cluster cannot be asked ({line})" in err
    code, out, _ = lexray("down", tmp_path, "--force")
    assert (code, out) == (1, f"not ended: {line}\n")


def test_no_ssh_at_all_is_said(lexray, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = lexray("up", written(tmp_path, hosts=["a"]))
    assert (code, "ssh: not found on PATH; install it" in err) == (2, True)


def test_what_is_sent_to_a_host_needs_python_alone():
    """As on a host: no module of lexray can be imported there."""
    request = {"do": "look", "cluster": "x", "address": "127.0.0.9", "ports": []}
    given = "".join(f"{line}\n" for line in agent_call.program(request))
    done = subprocess.run(
        ["python3", "-I", "-S", "-c", agent_call.FIRST],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert '"address": "127.0.0.9"' in done.stdout


def test_only_the_two_ports_of_the_head_are_fixed():
    head = start_arguments("10.0.0.1", head=None, port=6379, dashboard_port=8265)
    worker = start_arguments("10.0.0.2", head="10.0.0.1", port=6379, dashboard_port=8265, cpus=4, gpus=0)
    ports = [option for option in head if "port" in option and not option.endswith("=0")]
    assert ports == ["--port=6379", "--dashboard-port=8265"]
    assert {"--address=10.0.0.1:6379", "--num-cpus=4", "--num-gpus=0"} <= set(worker)
    assert "--head" not in worker


def test_every_process_of_a_node_knows_which_ray_is_meant_beside_others():
    env = node_environment(Liveness(), {"AWS_PROFILE": "lab", "PYTHONSAFEPATH": "0"}, head="10.0.0.1:6379")
    assert env.items() >= {"RAY_ADDRESS": "10.0.0.1:6379", "AWS_PROFILE": "lab", "PYTHONSAFEPATH": "0"}.items()
    assert Liveness().ray_env.items() <= env.items()
