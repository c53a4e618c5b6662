"""The whole start-up scripts of head and worker, as they are, on machines that are network namespaces.

The network comes up late, the boot is tried again, and Ray runs; a head whose Ray falls silent ends itself.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import boto3
import pytest
import rendered
from boot_stand_ins import Instance
from namespaces import Machines, wait_until
from node_scripts import launch_head, simulated_ec2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BOOT_S = 240.0


@pytest.fixture
def endpoint(hosts: Machines) -> str:
    """A simulated AWS with what Terraform makes before it starts the head."""
    url = hosts.start_s3()
    for name in ("ray-token", "wandb-api-key"):
        aws("secretsmanager", url).create_secret(Name=f"/lexray/lexray/{name}")
    aws("ssm", url).put_parameter(Name="/lexray/lexray/head-address", Value="none", Type="String")
    aws("logs", url).create_log_group(logGroupName="/lexray/lexray/nodes")
    return url


def aws(service: str, url: str) -> Any:
    return boto3.client(service, endpoint_url=url, region_name="us-east-1")


def uncut(hosts: Machines, name: str) -> None:
    subprocess.run(["ip", "link", "set", f"lx{hosts.number}{name}"[:15], "up"], check=True)


def test_a_network_that_comes_up_late_delays_the_boot_and_does_not_end_it(hosts: Machines, endpoint: str) -> None:
    ec2, config = simulated_ec2(endpoint)
    head = Instance(hosts, "head", launch_head(ec2, config), endpoint)
    hosts.cut("head")
    head.boot("head.sh")
    wait_until(lambda: "lexray-boot.service ended with 1" in head.log("units.log"), "the end of a first try", BOOT_S)
    assert "start-up failed with status" in head.log("boot.log")
    uncut(hosts, "head")
    wait_until(lambda: "lexray-boot.service ended with 0" in head.log("units.log"), "the head", BOOT_S)
    address = f"{hosts.addresses['head']}:6379"
    assert aws("ssm", endpoint).get_parameter(Name="/lexray/lexray/head-address")["Parameter"]["Value"] == address
    hosts.token = aws("secretsmanager", endpoint).get_secret_value(SecretId="/lexray/lexray/ray-token")["SecretString"]
    wait_until(lambda: hosts.alive() == [hosts.addresses["head"]], "the head among its nodes")
    assert "set-desired-capacity" in head.log("timers.log")

    worker = Instance(hosts, "worker", "i-worker", endpoint)
    hosts.cut("worker")
    worker.boot("worker.sh")
    wait_until(lambda: "attempt 1 failed: command aws" in worker.log("boot.log"), "a failed call", BOOT_S)
    uncut(hosts, "worker")
    wait_until(lambda: hosts.addresses["worker"] in hosts.alive(), "the worker", BOOT_S)
    assert worker.log("shutdown.log") == "-h +1440\n", "its deadline alone"
    assert head.log("shutdown.log") == ""


def test_a_boot_that_fails_is_in_the_log_group(hosts: Machines, endpoint: str) -> None:
    aws("secretsmanager", endpoint).delete_secret(SecretId="/lexray/lexray/ray-token", ForceDeleteWithoutRecovery=True)
    head = Instance(hosts, "head", "i-head", endpoint)
    head.boot("head.sh")
    wait_until(lambda: "lexray-boot.service ended with 1" in head.log("units.log"), "the end of a first try", BOOT_S)
    logs = aws("logs", endpoint)
    (stream,) = logs.describe_log_streams(logGroupName="/lexray/lexray/nodes")["logStreams"]
    (event,) = logs.get_log_events(logGroupName="/lexray/lexray/nodes", logStreamName=stream["logStreamName"])["events"]
    assert "ResourceNotFoundException" in event["message"]
    assert "attempt 5 failed: command aws secretsmanager describe-secret" in event["message"]


DASHBOARD = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Dashboard(BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/api/gcs_healthz" and self.headers.get("Authorization") == "Bearer secret"
        self.send_response(200 if known else 401)
        self.end_headers()

HTTPServer(("127.0.0.1", 8265), Dashboard).serve_forever()
"""


def test_a_head_whose_ray_falls_silent_ends_itself_and_no_other_does(hosts: Machines, endpoint: str) -> None:
    head = Instance(hosts, "head", "i-head", endpoint)
    (head.home / "etc").mkdir()
    (head.home / "etc/ray.env").write_text("RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN=secret\n")
    for name in ("ray-answers", "watch-ray", "report"):
        text = rendered.script_in(rendered.read("head.sh"), name)
        text = text.replace("answered=1800", "answered=4").replace("-lt 600", "-lt 6").replace("sleep 20", "sleep 1")
        (head.home / "etc" / name).write_text(head.moved(text))
    dashboard = hosts.run("head", [sys.executable, "-c", DASHBOARD])
    watch = hosts.run("head", ["bash", str(head.home / "etc/watch-ray")], **head.env, AWS_DEFAULT_REGION="us-east-1")
    with pytest.raises(subprocess.TimeoutExpired):
        watch.wait(20)
    dashboard.kill()
    assert watch.wait(60) == 0
    assert head.log("shutdown.log") == "-h now\n"
    assert "Ray has not answered for" in head.log("boot.log")
