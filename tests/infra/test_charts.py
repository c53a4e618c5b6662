"""`infra/kubernetes/install` with a stand-in for helm that keeps its arguments: charts, versions, values, cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hcl_files import INFRA

INSTALL = INFRA / "kubernetes/install"
VALUES = INFRA / "kubernetes/values"
FACTS = yaml.safe_load(Path(__file__).with_name("chart_facts.yaml").read_text(encoding="utf-8"))
PROGRAM = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
files = [sys.argv[i + 1] for i, word in enumerate(sys.argv) if word == "--values"]
record = {{"name": name, "arguments": sys.argv[1:], "kubeconfig": os.environ.get("KUBECONFIG"),
           "contents": {{file: open(file).read() for file in files}}}}
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(record) + "\\n")
if name == "terraform":
    answers = {answers!r}
    if sys.argv[-1] not in answers:
        sys.exit("Error: Output not found")
    print(answers[sys.argv[-1]], end="")
if name == "helm" and {failing!r} in sys.argv:
    sys.exit("Error: context deadline exceeded")
"""
OUTPUTS = {
    "eks_cluster_name": "lab",
    "region": "eu-west-1",
    "kubernetes_values": "autoDiscovery: {clusterName: lab}\nextraArgs: {scale-down-unneeded-time: 10m}\n",
}


class Machine:
    """A user's machine with stand-ins for helm, terraform and aws."""

    def __init__(self, folder, outputs=OUTPUTS, failing="nothing", programs=("helm", "terraform", "aws")):
        self.calls, self.bin = folder / "calls.jsonl", folder / "bin"
        self.bin.mkdir()
        text = PROGRAM.format(python=sys.executable, calls=str(self.calls), answers=outputs, failing=failing)
        for name in programs:
            (self.bin / name).write_text(text, encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def install(self, *arguments):
        path = f"{self.bin}:/usr/bin:/bin"
        env = {"PATH": path, "HOME": str(self.bin), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
        return subprocess.run([str(INSTALL), *arguments], env=env, capture_output=True, text=True, check=False)

    def called(self, name):
        lines = self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []
        return [call for call in map(json.loads, lines) if call["name"] == name]


def option(call, name):
    arguments = call["arguments"]
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == name]


def test_every_chart_comes_at_the_version_whose_affinities_and_tolerations_were_read(tmp_path):
    machine = Machine(tmp_path)
    done = machine.install("infra/aws-eks")
    assert done.returncode == 0, done.stderr
    charts = machine.called("helm")
    assert {call["arguments"][3] for call in charts} == set(FACTS)
    for call in charts:
        release, chart = call["arguments"][2:4]
        assert (release, call["arguments"][:2]) == (chart, ["upgrade", "--install"])
        assert option(call, "--version") == [FACTS[chart]["version"]]
        assert option(call, "--repo") == [FACTS[chart]["repository"]]
        assert "--wait" in call["arguments"]
        assert option(call, "--values")[0] == str(VALUES / f"{chart}.yaml")


def test_shellcheck_has_nothing_to_say():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(INSTALL)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_versions_stand_in_one_place():
    versions = {fact["version"] for fact in FACTS.values()}
    text = INSTALL.read_text(encoding="utf-8")
    assert all(text.count(version) == 1 for version in versions)
    others = [file for file in INFRA.rglob("*") if file.suffix in (".md", ".yaml", ".tf") and file.is_file()]
    repeated = [f"{file}: {v}" for file in others for v in versions if f"--version {v}" in file.read_text("utf-8")]
    assert repeated == []


def test_it_installs_into_the_cluster_that_terraform_made_whatever_the_context_is(tmp_path):
    machine = Machine(tmp_path)
    assert machine.install("infra/aws-eks").returncode == 0
    (credentials,) = machine.called("aws")
    assert credentials["arguments"][:6] == ["eks", "update-kubeconfig", "--name", "lab", "--region", "eu-west-1"]
    assert {call["kubeconfig"] for call in machine.called("helm")} == set(option(credentials, "--kubeconfig"))
    assert not Path(*option(credentials, "--kubeconfig")).parent.exists(), "credentials are left behind"


def test_the_autoscaler_gets_the_clusters_own_values_and_the_operator_the_core_nodes(tmp_path):
    machine = Machine(tmp_path)
    assert machine.install("infra/aws-eks").returncode == 0
    given = {call["arguments"][3]: list(call["contents"].values()) for call in machine.called("helm")}
    assert given["cluster-autoscaler"][-1] == OUTPUTS["kubernetes_values"]
    core = (VALUES / "core-nodes.yaml").read_text(encoding="utf-8")
    assert {chart for chart, files in given.items() if core in files} == {"cluster-autoscaler", "kuberay-operator"}


def test_on_a_cluster_of_somebody_elses_only_the_operator_is_installed(tmp_path):
    machine = Machine(tmp_path, programs=("helm",))
    assert machine.install().returncode == 0
    (call,) = machine.called("helm")
    assert call["arguments"][3] == "kuberay-operator"
    assert (option(call, "--namespace"), call["kubeconfig"]) == (["kuberay-system"], None)
    assert option(call, "--values") == [str(VALUES / "kuberay-operator.yaml")]


@pytest.mark.parametrize(
    ("arguments", "made", "code", "message"),
    [
        (
            ["infra/aws-eks"],
            {"outputs": {}},
            2,
            "has no output eks_cluster_name: run 'lexray up infra/aws-eks'",
        ),
        (["infra/nowhere"], {}, 2, "infra/nowhere is no folder"),
        (["infra/aws-eks", "twice"], {}, 2, "expected at most one folder, got 2"),
        (["infra/aws-eks"], {"programs": ("terraform", "aws")}, 2, "helm is not installed"),
        (["infra/aws-eks"], {"failing": "nvidia-device-plugin"}, 1, "context deadline exceeded"),
    ],
)
def test_what_cannot_be_installed_is_said(tmp_path, arguments, made, code, message):
    machine = Machine(tmp_path, **made)
    done = machine.install(*arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_a_chart_that_fails_ends_the_installation(tmp_path):
    machine = Machine(tmp_path, failing="nvidia-device-plugin")
    machine.install("infra/aws-eks")
    assert [call["arguments"][3] for call in machine.called("helm")] == ["kuberay-operator", "nvidia-device-plugin"]
