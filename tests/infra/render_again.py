"""`make infra-rendered`: apply aws-ec2 to a simulated AWS, plan pools on EKS, and write `rendered/` anew."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rendered
from terraform_tool import Terraform, copy_of_infra, write_cli_config

PORT = 5799


def main() -> None:
    simulator = Path(__file__).with_name("aws_simulator.py")
    server = subprocess.Popen(
        [sys.executable, str(simulator), str(PORT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            infra = copy_of_infra(Path(folder))
            root = infra / "aws-ec2"
            (root / "terraform.tfvars.json").write_text(json.dumps(rendered.VARIABLES), encoding="utf-8")
            write_cli_config(Path(folder, "terraformrc"))
            time.sleep(5)
            terraform = Terraform(
                folder=root, cli_config=Path(folder, "terraformrc"), endpoint=f"http://127.0.0.1:{PORT}"
            )
            terraform.run("init", "-backend=false")
            terraform.run("apply", "-auto-approve", "-no-color", timeout_s=600)
            rendered.write(terraform.outputs())
            eks = Terraform(folder=infra / "aws-eks", cli_config=Path(folder, "terraformrc"))
            eks.run("init", "-backend=false")
            groups = rendered.node_groups(eks.tested_state("tests/pools.tftest.hcl")["resources"])
            (rendered.FOLDER / rendered.NODE_GROUPS).write_text(groups, encoding="utf-8")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
