"""Terraform as tests call it: found on this machine, with a provider that comes from a folder where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcl_files import INFRA

PROVIDER = "registry.terraform.io/hashicorp/aws"


def mirror() -> Path | None:
    """A folder that has the AWS provider, or None: then Terraform asks its registry.

    `LEXRAY_TF_MIRROR` names one. Else the folders where Terraform looks by itself, and those of machine images that
    keep providers under /opt.
    """
    named = os.environ.get("LEXRAY_TF_MIRROR")
    data = (os.environ.get("XDG_DATA_HOME", "~/.local/share"), "/usr/local/share", "/usr/share")
    candidates = [Path("~/.terraform.d/plugins"), *(Path(folder, "terraform/plugins") for folder in data)]
    candidates += sorted(Path("/opt").glob("*/"))
    candidates += sorted(Path("/opt").glob("*/*/"))
    for candidate in [Path(named)] if named else candidates:
        if (candidate.expanduser() / PROVIDER).is_dir():
            return candidate.expanduser()
    return None


def write_cli_config(file: Path) -> None:
    """Terraform's own settings: no calls home, and the mirror."""
    found = mirror()
    lines = ["disable_checkpoint = true"]
    if found is not None:
        lines += ["provider_installation {", "  filesystem_mirror {", f'    path = "{found}"', "  }", "}"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_of_infra(folder: Path) -> Path:
    """The Terraform files alone, so that nothing is left among them."""
    for part in ("modules", "aws-ec2", "aws-eks"):
        ignored = shutil.ignore_patterns(".terraform*", "terraform.tfstate*", "*.tfvars")
        shutil.copytree(INFRA / part, folder / part, ignore=ignored)
    return folder


def _resources(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from module.get("resources", [])
    for child in module.get("child_modules", []):
        yield from _resources(child)


@dataclass(frozen=True, kw_only=True)
class Terraform:
    """Terraform in one folder."""

    folder: Path
    cli_config: Path
    endpoint: str | None = None
    """Where AWS is simulated; None: no call to AWS is expected."""

    def run(
        self, *arguments: str, ok: tuple[int, ...] = (0,), timeout_s: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """Raises AssertionError with what Terraform said when it ends with another status."""
        done = subprocess.run(
            ["terraform", f"-chdir={self.folder}", *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode in ok, f"terraform {' '.join(arguments)}: {done.stdout[-6000:]}{done.stderr[-6000:]}"
        return done

    def tested_state(self, file: str) -> dict[str, Any]:
        """Run one file of Terraform's own tests; return `outputs` and `resources` of its last state."""
        done = self.run("test", "-json", "-verbose", f"-filter={file}")
        messages = [json.loads(line) for line in done.stdout.splitlines()]
        state = [message["test_state"] for message in messages if "test_state" in message][-1]
        outputs = {name: entry["value"] for name, entry in state["outputs"].items()}
        return {"outputs": outputs, "resources": list(_resources(state["root_module"]))}

    def outputs(self) -> dict[str, Any]:
        return {name: entry["value"] for name, entry in json.loads(self.run("output", "-json").stdout).items()}

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "TF_"))}
        aws = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_ENDPOINT_URL": self.endpoint or "http://127.0.0.1:9",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        return kept | aws | {"TF_CLI_CONFIG_FILE": str(self.cli_config), "TF_IN_AUTOMATION": "1"}
