"""What a node on EC2 runs to hear that AWS takes it back, as it is: on a machine that is a network namespace, which has
the address of the instance's metadata, and `docker` that runs what it is given beside Ray.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import rendered
from namespaces import GCS_PORT, Machines, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

METADATA = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Metadata(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.tell(200, b"a token") if self.path == "/latest/api/token" else self.tell(404)
    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != "a token":
            return self.tell(401)
        known = self.path == "/latest/meta-data/spot/instance-action" and os.path.exists(sys.argv[1])
        self.tell(200, b'{"action": "terminate"}') if known else self.tell(404)
    def tell(self, status, text=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

HTTPServer(("169.254.169.254", 80), Metadata).serve_forever()
"""
DOCKER = """#!/bin/bash
[ "$1 $2" = "exec ray" ] || exit 64
shift 2
exec "$@"
"""


def start_metadata(hosts: Machines, name: str, notice: Path) -> None:
    """The machine's own metadata, which has a notice once that file is there."""
    assert hosts.run(name, ["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"]).wait() == 0
    hosts.run(name, [sys.executable, "-c", METADATA, str(notice)])


def test_a_node_that_aws_takes_back_is_drained_and_no_other_is(hosts: Machines, tmp_path: Path) -> None:
    head = hosts.start_head()
    for name in ("spot", "other"):
        hosts.start_worker(name, cpus=1, RAY_CLOUD_INSTANCE_ID=f"i-{name}")
    notice, script, docker = tmp_path / "notice", tmp_path / "watch-notices", tmp_path / "docker"
    start_metadata(hosts, "spot", notice)
    script.write_text(rendered.script_in(rendered.read("worker.sh"), "watch-notices"))
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    path = f"{tmp_path}:{hosts.env['PATH']}"
    told = {"LEXRAY_HEAD_ADDRESS": f"{head}:{GCS_PORT}", "RAY_CLOUD_INSTANCE_ID": "i-spot"}
    watch = hosts.run("spot", ["bash", str(script)], PATH=path, **told)
    time.sleep(12)
    assert watch.poll() is None, "it watches on while there is no notice"
    assert {hosts.addresses[name] for name in ("spot", "other")} < set(hosts.alive())
    notice.touch()
    wait_until(lambda: hosts.addresses["spot"] not in hosts.alive(), "Ray lets the node go, on which nothing runs")
    assert watch.wait(60) == 0, (hosts.place / "spot.log").read_text()[-2000:]
    assert {head, hosts.addresses["other"]} <= set(hosts.alive())
