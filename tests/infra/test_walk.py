"""A new user's walk on EC2 through infra/README.md: every command as written, against a simulated AWS, there and back.

What cannot be had here stands in `walk_stand_ins` and in `Walk.boot_head`: the AWS command line, a head that boots.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from hcl_files import INFRA
from readme_tables import commands
from sweeps import sweep_content, write_sweep
from synthetic import write_rows
from terraform_tool import copy_of_infra
from walk_stand_ins import Head, programs

from lexray.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOKEN = "a-token-of-the-walk"
ROOT = "infra/aws-ec2"
BUCKET = "lexray-123456789012-us-east-1"
AMI = 'ami_id = "ami-0123456789abcdef0"\n'
"""Added to the values of the example: the simulated AWS publishes no machine images."""


@dataclass(kw_only=True)
class Walk:
    """A user at the top of a copy of the repository."""

    folder: Path
    environment: dict[str, str]
    head: Head

    def type(self, command: str, *, answer: str = "") -> tuple[int, str]:
        """Exit code and all that a terminal shows; `answer` is typed when asked."""
        near, far = pty.openpty()
        os.write(near, answer.encode())
        try:
            done = subprocess.run(
                command, shell=True, cwd=self.folder, env=self.environment, stdin=far, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=400, check=False,
            )  # fmt: skip
        finally:
            os.close(far)
            with suppress(OSError):
                os.close(near)
        return done.returncode, done.stdout

    def succeed(self, command: str, **how: str) -> str:
        code, said = self.type(command, **how)
        assert code == 0, f"{command}: {said}"
        return said

    def aws(self, service: str):
        return boto3.client(service, region_name="us-east-1", endpoint_url=self.environment["AWS_ENDPOINT_URL"])

    def push_image(self) -> None:
        """What `docker push` of the image that the example names would have done."""
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind})
        self.aws("ecr").put_image(repositoryName="lexray", imageTag="0.1.0", imageManifest=manifest)

    def boot_head(self) -> None:
        """What the instance would have done; and S3 is spoken to without TLS here, which its policy refuses."""
        self.aws("secretsmanager").put_secret_value(SecretId="/lexray/lexray/ray-token", SecretString=TOKEN)
        self.aws("s3").delete_bucket_policy(Bucket=BUCKET)


@pytest.fixture
def walk(cli_config, aws_endpoint, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    copy_of_infra(folder / "infra")
    head = Head(TOKEN)
    path = f"{programs(tmp_path / 'bin', head.port)}:{os.environ['PATH']}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_endpoint)
    monkeypatch.setattr("lexray.storage.objects.connections._CONNECTIONS", {})  # of another endpoint
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = {
        "PATH": path, "TF_CLI_CONFIG_FILE": str(cli_config), "PYTHONPATH": str(INFRA.parent), "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }  # fmt: skip
    yield Walk(folder=folder, environment=os.environ | settings, head=head)
    head.close()


def test_every_command_of_the_walk_does_what_the_readme_says(walk):
    role, repository, copy, up, secret, submit, status, down = commands("The walk on EC2")
    walk.succeed(role)
    walk.succeed(repository)
    walk.push_image()
    walk.succeed(copy)
    variables = walk.folder / ROOT / "terraform.tfvars"
    variables.write_text(variables.read_text() + AMI)
    refuses_values_of_the_example(walk, up)
    variables.write_text(variables.read_text().replace("you@example.org", "me@our-lab.org"))
    goes_up(walk, up)
    walk.boot_head()
    walk.succeed(secret)
    runs_a_sweep(walk, submit, status.replace("BUCKET", BUCKET))
    worker = launched_by_ray(walk)
    is_refused_while_a_job_runs(walk, down)
    goes_down(walk, down, worker)


def refuses_values_of_the_example(walk: Walk, up: str) -> None:
    code, said = walk.type(up, answer="y\n")
    assert (code, "refused   budget_emails: you@example.org is the example's" in said) == (2, True), said
    assert "1 of the above would keep the cluster from working, nothing was made" in said


def goes_up(walk: Walk, up: str) -> None:
    """A wrong variable and a user who says no make nothing; then the cluster is made and described."""
    wrong = walk.folder / "wrong.tfvars"
    wrong.write_text('region = "Ohio"\n')
    code, said = walk.type(f"{up} --var-file wrong.tfvars", answer="y\n")
    assert (code, "region is Ohio: use one such as us-east-1." in said) == (2, True), said
    assert walk.aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    said = walk.succeed(up, answer="y\n")
    assert "cost      at most 11.5" in said
    assert "me@our-lab.org" in said
    assert f"lexray submit SWEEP.yaml --cluster {ROOT}/cluster.json" in said
    described = json.loads((walk.folder / ROOT / "cluster.json").read_text())
    (group,) = walk.aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert described["access"]["autoscaling_group"] == group["AutoScalingGroupName"]


def runs_a_sweep(walk: Walk, submit: str, status: str) -> None:
    write_rows(f"s3://{BUCKET}/data/tiny", 640)  # each held-out part fills the 16 lanes
    output = f"s3://{BUCKET}/runs/widths"
    content = sweep_content(f"s3://{BUCKET}/data/tiny", output)
    content["data"] |= {"site": "x", "batch_rows": 16}
    content["training"] = {"rows": 64, "lr": 0.003}
    write_sweep(walk.folder / "sweep.yaml", content)
    said = walk.succeed(submit)
    (job,) = walk.head.jobs
    assert job["submission_id"] in said
    Store.at(output).write("sweep.yaml", (walk.folder / "sweep.yaml").read_bytes())  # the first that the job does
    assert output in walk.succeed(status)


def launched_by_ray(walk: Walk) -> str:
    """A worker as the autoscaler launches it, from the pool's template."""
    template = {"LaunchTemplateName": "lexray-pool-a10g"}
    (made,) = walk.aws("ec2").run_instances(LaunchTemplate=template, MinCount=1, MaxCount=1)["Instances"]
    return str(made["InstanceId"])


def is_refused_while_a_job_runs(walk: Walk, down: str) -> None:
    code, said = walk.type(down, answer="y\n")
    assert (code, "1 job(s) run on the cluster: lexray-small-" in said) == (2, True), said
    walk.head.finish()


def goes_down(walk: Walk, down: str, worker: str) -> None:
    """Everything goes but the bucket with the sweep, which stays whole, and goes by the command that is told."""
    code, said = walk.type(down, answer="y\n")
    assert code == 1, said
    assert re.findall(r"still billed: (.*)", said) == [f"s3 bucket {BUCKET}"]
    assert f"ended 1 worker(s) that Ray had launched: {worker}" in said
    assert alive(walk) == []
    assert walk.aws("s3").get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]["BlockPublicAcls"]
    assert not (walk.folder / ROOT / "cluster.json").exists()
    (remove,) = re.findall(r"with everything in it: `(.*?)`", said)
    walk.succeed(remove, answer="yes\n")
    assert "nothing of lexray is billed any more" in walk.succeed(down, answer="y\n")
    assert [bucket["Name"] for bucket in walk.aws("s3").list_buckets()["Buckets"] if bucket["Name"] == BUCKET] == []


def alive(walk: Walk) -> list[str]:
    pages = walk.aws("ec2").describe_instances()["Reservations"]
    machines = [machine for page in pages for machine in page["Instances"]]
    ours = [machine for machine in machines if {"Key": "lexray-cluster", "Value": "lexray"} in machine.get("Tags", [])]
    return [machine["InstanceId"] for machine in ours if machine["State"]["Name"] != "terminated"]
