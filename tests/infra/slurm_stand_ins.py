"""What Slurm does for a batch script, on machines that are network namespaces: `srun` really starts a process on each.

Slurm itself sends signals to all of a step's processes, and kills what is left of a job; nobody does that here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from hcl_files import INFRA
from namespaces import Machines

SCRIPT = INFRA / "slurm" / "sweep.sbatch"
JOB = "4711"
SRUN = '''#!{python}
"""srun [--option=VALUE ...] COMMAND: one process on each node, which gets what srun gets of SIGTERM."""
import os, signal, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
cpus = list(os.sched_getaffinity(0))[: int(os.environ["SLURM_CPUS_PER_TASK"])]
nodes, started = {nodes!r}, []
for number, (name, space) in enumerate(nodes):
    env = {{**os.environ, "SLURM_PROCID": str(number), "SLURMD_NODENAME": name, "SLURM_LAUNCH_NODE_IPADDR": {first!r}}}
    command = ["nsenter", f"--net=/var/run/netns/{{space}}", *words]
    started.append(subprocess.Popen(command, env=env, preexec_fn=lambda: os.sched_setaffinity(0, cpus)))
signal.signal(signal.SIGTERM, lambda *_: [one.terminate() for one in started])
sys.exit(max(abs(one.wait()) for one in started))
'''
SCONTROL = '#!/bin/sh\necho "$@" >> {file}\n'


class Slurm:
    """An allocation of some machines, which one job has again and again."""

    def __init__(self, hosts: Machines, folder: Path, names: tuple[str, ...]) -> None:
        self.hosts, self.folder, self.names = hosts, folder, names
        self.submit_folder = folder / "home"
        self.requests, self.log = folder / "scontrol", folder / "job.log"
        self.bin = folder / "bin"
        for made in (self.submit_folder, self.bin):
            made.mkdir(parents=True)
        addresses = [hosts.machine(name) for name in names]
        nodes = [(name, hosts.space(name)) for name in names]
        programs = {
            "srun": SRUN.format(python=sys.executable, nodes=nodes, first=addresses[0]),
            "scontrol": SCONTROL.format(file=self.requests),
            "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        }
        for name, text in programs.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def sbatch(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Run the batch script on the first machine, as slurmd does; signals go to the shell alone (`--signal=B:`)."""
        given = {
            "SLURM_JOB_ID": JOB, "SLURM_NNODES": str(len(self.names)), "SLURM_CPUS_PER_TASK": "1",
            "SLURM_SUBMIT_DIR": str(self.submit_folder), "RAY_TMPDIR": str(self.hosts.temp), "OMP_NUM_THREADS": "1",
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }  # fmt: skip
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        way = ["ip", "netns", "exec", self.hosts.space(self.names[0]), "bash", str(SCRIPT), *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                way, cwd=self.submit_folder, env={**clean, **given, **env}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def requeued(self) -> list[str]:
        """What was asked of `scontrol`."""
        return self.requests.read_text().splitlines() if self.requests.exists() else []

    def processes(self) -> list[str]:
        """Ids of all that runs on the machines."""
        found = [
            subprocess.run(["ip", "netns", "pids", self.hosts.space(name)], capture_output=True, text=True, check=True)
            for name in self.names
        ]
        return [pid for one in found for pid in one.stdout.split()]


def directives() -> dict[str, str]:
    """The options in the script's `#SBATCH` lines."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), flags=re.MULTILINE))


def send_late(job: subprocess.Popen[bytes]) -> None:
    """What Slurm sends to the shell before the time limit."""
    name = directives()["signal"].split("@")[0].removeprefix("B:")
    os.kill(job.pid, getattr(signal, f"SIG{name}"))
