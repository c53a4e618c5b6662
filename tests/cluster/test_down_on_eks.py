"""`lexray down` of a cluster in EKS: what it refuses, and what it ends before Terraform removes the rest.

Kubernetes is a stand-in for `kubectl` that really forwards its port, AWS a simulated one, Terraform its answers.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_programs import ADashboard, Programs, on_path
from rich.console import Console

from lexray.cluster.lifecycle.down import Removed, down
from lexray.cluster.lifecycle.kube_heads import end_ray_clusters
from lexray.cluster.lifecycle.terraform import Terraform
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.storage.errors import UserError

TOKEN = "a-token-of-kuberay"
CLUSTER = {
    "schema": 1, "name": "eks-down", "provider": "aws-eks", "region": "us-east-1",
    "access": {"kind": "kubectl", "namespace": "lexray", "service": "eks-down-head-svc", "eks_cluster": "eks-down"},
    "token": {"kind": "kubernetes_secret", "name": "eks-down"},
}  # fmt: skip
TERRAFORM = """
import pathlib, sys
folder = pathlib.Path(__file__).parent
_, _, command, *rest = sys.argv
if command in ("show", "output"):
    shown = "plan" if rest[-1].endswith("plan") else "state"
    print((folder / ("outputs" if command == "output" else shown)).read_text())
elif command == "apply":
    kubectl = folder / "calls.jsonl"
    (folder / "applied").write_text(kubectl.read_text() if kubectl.exists() else "")
"""


class Eks:
    """An EKS cluster with the Ray clusters that `heads` says; jobs by id and status."""

    def __init__(self, folder: Path, dashboard: ADashboard) -> None:
        self.folder, self.programs, self.jobs = folder, Programs(folder, dashboard.port), dict[str, str]()
        dashboard.routes["/api/jobs/"] = lambda: (200, json.dumps(self._listed()))
        dashboard.fallback = self._asked
        vpc = {"address": "aws_vpc.this", "type": "aws_vpc", "mode": "managed",
               "change": {"actions": ["delete"], "before": {"id": "vpc-1"}}}  # fmt: skip
        variables = {"name": {"value": "eks-down"}, "region": {"value": "us-east-1"}}
        made = {"resources": [{"type": "aws_eks_cluster", "mode": "managed"}]}
        self._write("plan", {"resource_changes": [vpc], "variables": variables})
        self._write("state", {"values": {"root_module": made}})
        self._write("outputs", {"cluster": {"value": CLUSTER}})
        (folder / "main.tf").touch()
        (folder / "terraform.py").write_text(TERRAFORM)
        self.heads("eks-down")

    def heads(self, *clusters: str, error: str = "") -> None:
        """Whose head pods Kubernetes tells of, or why it does not."""
        secret = base64.b64encode(TOKEN.encode()).decode()
        pods = (1, "", error) if error else (0, " ".join(clusters), "")
        self.programs.answer({"pods": pods, "secret": (0, secret, ""), "delete": (0, "deleted", "")})

    def down(self, *, force: bool = False) -> tuple[Removed, str]:
        """What was removed, and what was said."""
        said = io.StringIO()
        removed = down(self._terraform(), lambda _: True, force=force, messages=Console(file=said, width=500))
        assert removed is not None
        return removed, said.getvalue()

    def ended_before_terraform(self) -> list[str]:
        """What `kubectl` was told to delete by the time that Terraform removed anything."""
        calls = [json.loads(line) for line in (self.folder / "applied").read_text().splitlines()]
        return [call[call.index("delete") + 1] for call in calls if "delete" in call]

    def was_applied(self) -> bool:
        return (self.folder / "applied").exists()

    def _terraform(self) -> Terraform:
        def start(command, **how):
            return subprocess.Popen([sys.executable, str(self.folder / "terraform.py"), *command[1:]], **how)

        return Terraform(folder=self.folder, start=start)

    def _listed(self) -> list[dict]:
        return [
            {"submission_id": job, "status": status, "metadata": {"lexray_output": str(self.folder / "sweep")}}
            for job, status in self.jobs.items()
        ]

    def _asked(self, path: str) -> tuple[int, str]:
        job = path.split("/")[3]
        if path.endswith("/stop"):
            self.jobs[job] = "STOPPED"
        return 200, json.dumps(next(one for one in self._listed() if one["submission_id"] == job))

    def _write(self, name: str, content: dict) -> None:
        (self.folder / name).write_text(json.dumps(content))


@pytest.fixture
def eks(tmp_path, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setattr("lexray.cluster.follow.stop.JOB_PATIENCE_S", 1.0)
    dashboard = ADashboard(TOKEN)
    made = Eks(tmp_path, dashboard)
    monkeypatch.setenv("PATH", on_path(made.programs))
    yield made
    assert made.programs.living() == []
    dashboard.close()


def test_it_is_refused_while_a_job_runs_or_nobody_can_tell(eks):
    eks.jobs = {"lexray-a": "RUNNING"}
    with pytest.raises(UserError, match=r"1 job\(s\) run on the cluster: lexray-a; .*--force"):
        eks.down()
    eks.heads("eks-down", "eks-down-sweep-x7k2p")
    with pytest.raises(UserError, match=r"1 Ray cluster\(s\) of jobs run: eks-down-sweep-x7k2p; .*--namespace lexray"):
        eks.down()
    eks.heads(error="dial tcp: i/o timeout")
    with pytest.raises(UserError, match=r"cannot be asked \(.*i/o timeout\).*--force"):
        eks.down()
    assert not eks.was_applied()


def test_an_idle_ray_cluster_ends_before_anything_is_removed(eks):
    eks.jobs = {"lexray-a": "SUCCEEDED"}
    removed, _ = eks.down()
    assert eks.ended_before_terraform() == ["rayjobs,rayclusters"]
    assert removed.still_billed == []


def test_without_a_ray_cluster_nothing_is_asked_of_its_head(eks):
    eks.heads()
    eks.down()
    assert eks.was_applied()
    assert not [call for call in eks.programs.calls() if "port-forward" in call or "delete" in call]


@pytest.mark.slow
def test_by_force_jobs_are_asked_to_end_first(eks):
    eks.jobs = {"lexray-a": "RUNNING"}
    _, said = eks.down(force=True)
    assert eks.jobs == {"lexray-a": "STOPPED"}
    assert "`lexray resume " in said
    assert eks.ended_before_terraform() == ["rayjobs,rayclusters"]


def test_a_kubernetes_that_is_silent_holds_up_nothing(eks):
    eks.heads(error="dial tcp: i/o timeout")
    said = io.StringIO()
    access = ClusterDescription.model_validate(CLUSTER).access
    end_ray_clusters(access, "us-east-1", Console(file=said, width=500))
    assert "Ray clusters are not ended, their nodes go with everything else: " in said.getvalue()
