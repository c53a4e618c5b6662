"""A way to a cluster's head: address or description, token, tunnel; each failure is one line, no process is left."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from fake_programs import ADashboard, Programs, on_path

from lexray.cluster.provisioned.connection import Target, connect, dashboard_url, read_description
from lexray.cluster.provisioned.errors import ClusterLostError
from lexray.cluster.provisioned.tokens import Secret
from lexray.cluster.provisioned.tunnel import free_port, is_taken
from lexray.storage.errors import UserError

TOKEN = "t0ken-that-nobody-may-see"
KUBECTL = {"kind": "kubectl", "namespace": "sae", "service": "sae-head-svc"}


@pytest.fixture
def dashboard():
    made = ADashboard(token=TOKEN)
    yield made
    made.close()


@pytest.fixture
def programs(tmp_path, dashboard, monkeypatch) -> Programs:
    made = Programs(tmp_path, dashboard.port)
    monkeypatch.setenv("PATH", on_path(made))
    return made


@pytest.fixture
def described(tmp_path):
    """Writes a cluster's file and gives its path."""

    def write(access: dict[str, Any], token: dict[str, Any] | None = None, **changes: Any) -> str:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        token = token or {"kind": "file", "path": str(tmp_path / "token")}
        content = {"schema": 1, "name": "sae", "provider": "ray", "access": access, "token": token, **changes}
        (tmp_path / "cluster.json").write_text(json.dumps(content))
        return str(tmp_path / "cluster.json")

    return write


def trusted(file: str) -> Target:
    return Target(cluster=file, is_trusted=True)


def one_line(target: Target) -> str:
    with pytest.raises(UserError) as refused, connect(target):
        pass
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def test_a_tunnel_by_kubectl_leads_to_the_dashboard_and_leaves_no_process(programs, described):
    with connect(trusted(described({**KUBECTL, "context": "prod"}))) as connection:
        assert (connection.name, connection.ray_version, connection.is_tunnelled) == ("sae", "2.60.0", True)
        assert len(programs.living()) == 2
    assert programs.living() == []
    (call,) = programs.calls()
    assert call[:7] == ["kubectl", "--context", "prod", "--namespace", "sae", "port-forward", "--address"]
    assert call[7:9] == ["127.0.0.1", "service/sae-head-svc"]
    assert not any(TOKEN in word for word in call)


def test_a_tunnel_that_dies_is_opened_anew_and_the_question_is_answered(programs, described, dashboard, caplog):
    dashboard.routes["/api/jobs/"] = lambda: (200, "[]")
    with connect(trusted(described(KUBECTL))) as connection:
        for pid in programs.living():
            os.kill(pid, signal.SIGKILL)
        with caplog.at_level(logging.WARNING, "lexray"):
            assert connection.dashboard.get("/api/jobs/") == []
        assert len(programs.calls()) >= 2
    assert programs.living() == []
    assert "opening it anew" in caplog.text


def test_a_port_that_another_program_has_taken_is_left_to_it(programs, described, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1], free_port()])
        monkeypatch.setattr("lexray.cluster.provisioned.tunnel.free_port", lambda: next(ports))
        with connect(trusted(described(KUBECTL))) as connection:
            assert connection.dashboard.url != f"http://127.0.0.1:{other.getsockname()[1]}"
        other.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody connected there
            other.accept()
    assert programs.living() == []


def test_no_token_goes_to_a_program_that_takes_the_port_of_a_tunnel_that_is_down(programs, described):
    with connect(trusted(described(KUBECTL))) as connection:
        port = int(connection.dashboard.url.rpartition(":")[2])
        programs.answer({"port-forward": (1, "", "gone")})  # it does not come back
        for pid in programs.living():
            os.kill(pid, signal.SIGKILL)
        until_s = time.monotonic() + 10
        while is_taken(port) and time.monotonic() < until_s:
            time.sleep(0.01)
        thief = ADashboard(port=port)
        with pytest.raises(ClusterLostError, match="another program listens at the tunnel's port"):
            connection.dashboard.ask("GET", "/api/version")
        thief.close()
        assert thief.seen == []


def test_whoever_is_told_to_go_closes_the_tunnel_first(programs, described):
    script = (
        "import sys, time\nfrom lexray.cluster.provisioned.connection import *\n"
        "with connect(Target(cluster=sys.argv[1], is_trusted=True)):\n print('open', flush=True)\n time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, described(KUBECTL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert len(programs.living()) == 2
        process.send_signal(signal.SIGHUP)
        process.wait(30)
    assert programs.living() == []


def test_credentials_of_an_eks_cluster_lie_in_a_file_that_lasts_as_long_as_the_tunnel(programs, described):
    with connect(trusted(described({**KUBECTL, "eks_cluster": "sae-eks"}, region="eu-north-1"))):
        update, forward = programs.calls()
        config = update[update.index("--kubeconfig") + 1]
        assert update[1:7] == ["eks", "update-kubeconfig", "--name", "sae-eks", "--region", "eu-north-1"]
        assert forward[1:3] == ["--kubeconfig", config]
        assert Path(config).read_text() == "credentials"
    assert not Path(config).exists()


def test_the_token_of_a_kubernetes_secret_is_read_by_kubectl(programs, described):
    programs.answer({"get": (0, base64.b64encode(TOKEN.encode()).decode(), "")})
    with connect(trusted(described(KUBECTL, {"kind": "kubernetes_secret", "name": "sae-auth"}))):
        assert programs.calls()[0][3:] == ["get", "secret", "sae-auth", "-o", "jsonpath={.data.auth_token}"]
    programs.answer({"get": (1, "", 'Error from server (NotFound): secrets "sae-auth" not found\n')})
    line = one_line(trusted(described(KUBECTL, {"kind": "kubernetes_secret", "name": "sae-auth"})))
    assert 'secrets "sae-auth" not found' in line


@pytest.fixture
def aws(s3_server, monkeypatch):
    """Clients of AWS as far as moto is it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    return lambda service: boto3.client(service, region_name="us-east-1")


def group_of_one(aws, name: str, size: int = 1) -> None:
    autoscaling = aws("autoscaling")
    autoscaling.create_launch_configuration(
        LaunchConfigurationName=name, ImageId="ami-12c6146b", InstanceType="t2.micro"
    )
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name, LaunchConfigurationName=name, MinSize=size, MaxSize=1, DesiredCapacity=size,
        AvailabilityZones=["us-east-1a"],
    )  # fmt: skip


def test_a_tunnel_by_ssm_leads_to_the_instance_that_the_group_keeps_now(programs, described, aws):
    group_of_one(aws, "sae-head")
    arn = aws("secretsmanager").create_secret(Name="sae-token", SecretString=TOKEN)["ARN"]
    file = described(
        {"kind": "ssm", "autoscaling_group": "sae-head"}, {"kind": "secrets_manager", "arn": arn}, region="us-east-1"
    )
    with connect(trusted(file)) as connection:
        assert connection.is_tunnelled
    (call,) = programs.calls()
    found = aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=["sae-head"])
    instance = found["AutoScalingGroups"][0]["Instances"][0]["InstanceId"]
    assert call[1:9] == [
        "ssm", "start-session", "--region", "us-east-1", "--target", instance,
        "--document-name", "AWS-StartPortForwardingSession",
    ]  # fmt: skip
    assert programs.living() == []


def test_what_aws_does_not_have_or_allow_is_one_line(programs, described, aws):
    group_of_one(aws, "sae-asleep", size=0)
    access = {"kind": "ssm", "autoscaling_group": "sae-asleep"}
    assert "its head is stopped; start it by `aws autoscaling set-desired-capacity --region us-east-1" in one_line(
        trusted(described(access, region="us-east-1"))
    )
    access["autoscaling_group"] = "sae-none"
    assert "none of that name in us-east-1" in one_line(trusted(described(access, region="us-east-1")))
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:none"
    line = one_line(trusted(described(access, {"kind": "secrets_manager", "arn": arn}, region="us-east-1")))
    assert "AWS says ResourceNotFoundException" in line


def test_what_kubectl_complains_of_is_one_line(programs, described, monkeypatch, tmp_path):
    programs.answer({"port-forward": (1, "", "noise\nerror: You must be logged in to the server\n")})
    assert one_line(trusted(described(KUBECTL))).endswith("You must be logged in to the server")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "kubectl: not found on PATH" in one_line(trusted(described(KUBECTL)))


def test_the_printed_output_of_terraform_is_read_with_and_without_its_wrapper(described, tmp_path, dashboard):
    plain = read_description(described({"kind": "direct", "address": dashboard.url}))
    content = json.loads((tmp_path / "cluster.json").read_text())
    wrapped = tmp_path / "all.json"
    wrapped.write_text(json.dumps({"cluster": {"sensitive": False, "type": "object", "value": content}, "region": {}}))
    assert read_description(str(wrapped)) == plain
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    assert read_description(str(tmp_path / "cluster.yaml")) == plain
    with connect(trusted(str(wrapped))) as connection:
        assert not connection.is_tunnelled
        assert connection.description == plain


def test_a_wrong_description_is_refused_with_its_field(described, tmp_path):
    for changes, message in (
        ({"schema": 2}, "schema: input should be 1, got 2"),
        ({"acess": 1}, "acess: unknown key; did you mean 'access'?"),
        ({"access": {"kind": "ssh"}}, "access"),
    ):
        described({"kind": "direct", "address": "http://h"})
        content = json.loads((tmp_path / "cluster.json").read_text()) | changes
        (tmp_path / "cluster.json").write_text(json.dumps(content))
        assert message in one_line(trusted(str(tmp_path / "cluster.json")))
    (tmp_path / "cluster.json").write_text(json.dumps({"cluster": {"value": None, "type": "dynamic"}}))
    assert "was `terraform apply` run?" in one_line(trusted(str(tmp_path / "cluster.json")))


def test_a_missing_and_a_wrong_token_are_refused_in_one_line_within_seconds(dashboard, tmp_path):
    (tmp_path / "wrong").write_text("another")
    began = time.monotonic()
    assert "wants a token; give --token-file" in one_line(Target(address=dashboard.url))
    wrong = one_line(Target(address=dashboard.url, token_file=str(tmp_path / "wrong")))
    assert "refuses this token" in wrong
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("content", "line"), [("", "empty"), ("two words", "more than one word"), (None, "cannot be")])
def test_a_token_file_that_holds_none_is_named(tmp_path, content, line):
    if content is not None:
        (tmp_path / "token").write_text(content)
    assert line in one_line(Target(address="http://127.0.0.1:1", token_file=str(tmp_path / "token")))


def test_a_token_is_never_printed():
    secret = Secret(TOKEN)
    assert TOKEN not in f"{secret} {secret!r} {vars(Target(token_file='f'))}"
    assert secret.headers == {"Authorization": f"Bearer {TOKEN}"}


def test_no_cluster_and_two_clusters_are_refused(described):
    assert "--address http://HOST:8265" in one_line(Target())
    assert "give one of the two" in one_line(Target(address="h", cluster="c"))


def test_an_address_where_nobody_or_something_else_answers_is_named(dashboard):
    assert "nothing answers there (Connection refused)" in one_line(Target(address=f"127.0.0.1:{free_port()}"))
    other = ADashboard()
    other.routes["/api/version"] = lambda: (200, "<html>hello</html>")
    assert "no dashboard of Ray (HTTP 200)" in one_line(Target(address=other.url))
    other.routes["/api/version"] = lambda: (302, dashboard.url)
    assert "no dashboard of Ray (HTTP 302)" in one_line(Target(address=other.url))
    other.close()
    assert not dashboard.seen, "a redirect would take the token elsewhere"


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("host", "http://host:8265"),
        ("10.0.0.1:9000", "http://10.0.0.1:9000"),
        ("http://host:8265/", "http://host:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("ray://host:10001", None),
        ("http://user:password@host", None),
        ("host:port", None),
    ],
)
def test_addresses_are_those_of_dashboards(written, url):
    if url is not None:
        assert dashboard_url(written, "--address") == url
        return
    with pytest.raises(UserError, match="--address"):
        dashboard_url(written, "--address")
