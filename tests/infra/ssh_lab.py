"""Hosts of a lab: machines that are network namespaces, each with a real sshd, and a user whose `ssh` knows them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from namespaces import Machines, answers, wait_until
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.store import StorageSettings, Store

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
SetEnv XDG_STATE_HOME={folder}/hosts
"""


class Lab:
    """A user at a machine that is no host, with a copy of `infra/ssh` and a dataset in an S3 server."""

    def __init__(self, hosts: Machines, folder: Path, names: tuple[str, ...]) -> None:
        self.hosts, self.folder, self.names = hosts, folder, names
        folder.mkdir()
        for key in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        (folder / "sshd_config").write_text(CONFIG.format(folder=folder))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd keeps nothing, and wants a place for it
        lines = ["UserKnownHostsFile /dev/null", "StrictHostKeyChecking no", "LogLevel ERROR"]
        for name in names:
            lines += [
                f"Host {name}",
                f"  HostName {hosts.machine(name)}",
                "  User root",
                f"  IdentityFile {folder}/key",
            ]
            assert SSHD is not None
            hosts.start(name, [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")])
        (folder / "ssh_config").write_text("\n".join(lines) + "\n")
        self._write_ssh()
        for name in names:
            wait_until(lambda name=name: answers(hosts.addresses[name], 22), f"the sshd of {name}")
        self.s3_url = hosts.start_s3()
        self.cluster = folder / "cluster"
        self.cluster.mkdir()

    def write_hosts(self, *entries: Any, **changes: Any) -> None:
        """The list of hosts, two CPUs each."""
        listed = list(entries) or [{"host": name, "cpus": 2} for name in self.names]
        env = {"AWS_ENDPOINT_URL_S3": self.s3_url, "OMP_NUM_THREADS": "1"}
        env |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_") and name not in env}
        content = {"name": "lab", "hosts": listed, "python": sys.executable, "env": env, **changes}
        content["temp_dir"] = str(self.hosts.temp)  # removed whatever happens
        (self.cluster / "hosts.yaml").write_text(yaml.safe_dump(content))

    def lexray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the user."""
        env = os.environ | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "XDG_STATE_HOME": str(self.folder / "state"),
            "AWS_ENDPOINT_URL_S3": self.s3_url, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "lexray", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)

    def succeed(self, *words: str) -> str:
        done = self.lexray(*words)
        assert done.returncode == 0, f"{words}: {done.stderr[-5000:]}"
        return done.stdout

    def sweep(self, **changes: Any) -> tuple[str, Store]:
        """A sweep file over rows in the S3 server, and where its folder will lie."""
        settings = StorageSettings(endpoint_url=self.s3_url)
        rows = Path(write_dataset(self.folder / "rows"))
        data = Store.at("s3://lab/rows", settings)
        subprocess.run(
            [sys.executable, "-c", "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1])"
             ".create_bucket(Bucket='lab')", self.s3_url], check=True,
        )  # fmt: skip
        for file in (path for path in rows.rglob("*") if path.is_file()):
            data.write(str(file.relative_to(rows)), file.read_bytes())
        content = sweep_content(data.url, "s3://lab/runs/widths", wandb={"mode": "disabled"}, **changes)
        return write_sweep(self.folder / "sweep.yaml", content), Store.at("s3://lab/runs/widths", settings)

    def described(self) -> dict[str, Any]:
        return json.loads((self.cluster / "cluster.json").read_text())

    def processes(self, name: str) -> list[str]:
        """Command lines of all that runs on a host, but for its sshd."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.hosts.space(name)], capture_output=True, text=True, check=True
        )
        lines = [_command_line(pid) for pid in pids.stdout.split()]
        return [line for line in lines if line and "sshd" not in line.split()[0]]

    def _write_ssh(self) -> None:
        file = self.folder / "bin" / "ssh"
        file.parent.mkdir()
        file.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.folder}/ssh_config "$@"\n')
        file.chmod(0o755)


def _command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
