"""A cluster that Terraform made, running, and a user's machine beside it.

The head runs by the start line that was rendered and asks the simulated AWS for nodes; each that it launches is started
here by its own. Objects lie in an S3 server of their own, so that the simulated AWS stays as Terraform left it. The
user's `aws` and `kubectl` are stand-ins whose tunnels lead to the head.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import rendered
from applied_roots import Applied, client
from fake_programs import Programs, on_path
from namespaces import DASHBOARD_PORT, GCS_PORT, Machines, answers, wait_until
from node_scripts import environment, start, workers
from sweeps import sweep_content, write_dataset, write_sweep
from tunnels import forward

from lexray.cluster.lifecycle.machines import OF_A_GROUP
from lexray.storage.store import StorageSettings, Store
from lexray.training.checkpoint.saved import load_dictionary
from lexray.tuning.results.frontier import read_frontier

NODE_S = 120.0
"""How long work may wait for a node."""


class RunningCluster:
    """What the root aws-ec2 made, by its outputs."""

    def __init__(self, hosts: Machines, outputs: Mapping[str, Any], aws_endpoint: str) -> None:
        self.hosts, self.outputs = hosts, outputs
        self.ec2 = client("ec2", aws_endpoint)
        self._relay = Relay(f"10.83.{hosts.number}.1", int(aws_endpoint.rpartition(":")[2]))
        self.s3_url = hosts.start_s3()
        self.endpoints = {"AWS_ENDPOINT_URL": self._relay.url, "AWS_ENDPOINT_URL_S3": self.s3_url}
        self.head = hosts.machine("head")
        script = outputs["head_user_data"]
        (hosts.place / "ray-cluster.yaml").write_text(rendered.script_in(script, "ray-cluster.yaml"), encoding="utf-8")
        env = environment(script, hosts, "head", self.head_instance(), "head")
        start(hosts, "head", script, env | self.endpoints)
        wait_until(lambda: answers(self.head, DASHBOARD_PORT) and answers(self.head, GCS_PORT), "the head")

    def head_instance(self) -> str:
        """Id of the machine that the group of the head keeps."""
        group = [{"Name": f"tag:{OF_A_GROUP}", "Values": [self.outputs["cluster"]["access"]["autoscaling_group"]]}]
        (reservation,) = self.ec2.describe_instances(Filters=group)["Reservations"]
        return str(reservation["Instances"][0]["InstanceId"])

    def start_the_node_that_it_launches(self, pool: str, work: subprocess.Popen[bytes]) -> str:
        """What the instance would do by itself; its id. `work` is what it is launched for."""
        wait_until(lambda: work.poll() is not None or bool(self.launched()), "an instance for the work", NODE_S)
        assert work.poll() is None, (self.hosts.place / "user" / "err").read_text(encoding="utf-8")
        (instance,) = self.launched()
        self.hosts.machine("worker")
        script = self.outputs["worker_user_data"][pool]
        env = environment(script, self.hosts, "worker", instance, pool) | self.endpoints
        # This machine has fewer cores than the instance: no process ahead of time for each of those.
        start(self.hosts, "worker", script, env | {"RAY_prestart_worker_first_driver": "0"})
        return instance

    def launched(self) -> list[str]:
        """Instances that Ray launched and that live."""
        return [instance for instance, state in workers(self.ec2).items() if state == "running"]

    def close(self) -> None:
        """End what Ray launched; the machines are those of `hosts`."""
        self._relay.close()
        if found := self.launched():
            self.ec2.terminate_instances(InstanceIds=found)


class User:
    """A machine with `lexray`, `aws` and `kubectl`, that reaches the head by their tunnels alone."""

    def __init__(self, folder: Path, cluster: RunningCluster, aws_endpoint: str) -> None:
        folder.mkdir()
        self.folder, self.token, self.s3_url = folder, cluster.hosts.token, cluster.s3_url
        self.rows = Path(write_dataset(folder / "rows"))
        self.programs = Programs(folder, DASHBOARD_PORT, cluster.head)
        self.programs.answer({"secret": (0, base64.b64encode(self.token.encode()).decode(), "")})
        given = {"AWS_ENDPOINT_URL": aws_endpoint, "AWS_ENDPOINT_URL_S3": cluster.s3_url, "OMP_NUM_THREADS": "1"}
        given |= {"XDG_STATE_HOME": str(folder / "state")}  # where agreements to send a token lie
        self.env = os.environ | given | {"PATH": on_path(self.programs)}

    def files_for(self, root: Applied, **changes: Any) -> tuple[str, str]:
        """A sweep over rows in the root's bucket, and the description that the root prints: the paths of both files."""
        described = self.folder / f"{root.outputs['cluster']['name']}.json"
        described.write_text(root.terraform.run("output", "-json", "cluster").stdout)
        uris = root.outputs["bucket_uris"]
        client("s3", self.s3_url).create_bucket(Bucket=uris["data"].split("/")[2])
        data = self.store(f"{uris['data']}/tiny")
        for file in (path for path in self.rows.rglob("*") if path.is_file()):
            data.write(str(file.relative_to(self.rows)), file.read_bytes())
        changes["resources"] = {"gpus_per_worker": 0}  # the pools' nodes have GPUs, this machine that plays them none
        content = sweep_content(data.url, f"{uris['runs']}/widths", wandb={"mode": "disabled"}, **changes)
        return write_sweep(described.with_suffix(".yaml"), content), str(described)

    def store(self, url: str) -> Store:
        """As the cluster's nodes reach it."""
        return Store.at(url, StorageSettings(endpoint_url=self.s3_url))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run `lexray`; what it says lies in files of the folder."""
        command = [sys.executable, "-m", "lexray", *words]
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            return subprocess.Popen(command, env=self.env, stdout=out, stderr=err, stdin=subprocess.DEVNULL)

    def result(self, started: subprocess.Popen[bytes]) -> str:
        """What it printed, once it has succeeded; the token stands nowhere."""
        code = started.wait(timeout=200)
        out, err = ((self.folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert code == 0, err[-5000:]
        assert self.token not in out + err + json.dumps(self.programs.calls())
        return out


class Relay:
    """Leads from an address that only namespaces reach to a port of loopback."""

    def __init__(self, host: str, port: int) -> None:
        self._server, self._port = socket.create_server((host, 0)), port
        self.url = f"http://{host}:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # wakes the thread that waits
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            forward(self._server, "127.0.0.1", self._port)


def finished_in(sweep: Store) -> list[str]:
    """Names of the dictionaries that were trained to the end and can be loaded; sorted."""
    assert sweep.exists("report.html")
    found = []
    for row in read_frontier(sweep).itertuples():
        load_dictionary(f"{sweep.url}/trials/{row.trial}/dictionary", sweep.settings)
        assert row.status == "done"
        found.append(str(row.name))
    return sorted(found)
