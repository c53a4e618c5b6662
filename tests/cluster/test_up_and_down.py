"""`lexray up` and `down`: what they read of Terraform and AWS, what they refuse, and what they say when it fails."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from fake_programs import ADashboard
from rich.console import Console

from lexray.cluster.lifecycle.billed_resources import Leftover, is_billed, kind_of, lasting, leftovers
from lexray.cluster.lifecycle.machines import end_workers, is_stopped, stop_head, workers
from lexray.cluster.lifecycle.running_jobs import drain, refuse_running
from lexray.cluster.lifecycle.terraform import Terraform, complaint, diagnoses, one_line
from lexray.cluster.lifecycle.terraform_plan import TAG_KEY, cost_lines, counted, head_lines, read_plan
from lexray.cluster.lifecycle.up import run_up, up
from lexray.cluster.provisioned.errors import RefusedError
from lexray.storage.errors import UserError

REGION = "us-east-1"
TERRAFORM = '''
"""Answers as Terraform does, in the folder of this file; `apply` does what apply.json says, line by line."""
import json, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent
_, _, command, *rest = sys.argv
with open(folder / "calls", "a") as calls:
    calls.write(command + "\\n")
if command == "show":
    print((folder / ("plan.json" if rest[-1].endswith("plan") else "state.json")).read_text())
elif command == "output":
    print((folder / "outputs.json").read_text())
elif command == "apply":
    signal.signal(signal.SIGINT, lambda *_: ((folder / "saved").write_text("state"), sys.exit(1)))
    for line in json.loads((folder / "apply.json").read_text()):
        print(json.dumps(line), flush=True)
    if "wait" in line:
        time.sleep(60)
    sys.exit("diagnostic" in line)
'''


def diagnostic(summary: str, detail: str = "", severity: str = "error") -> dict:
    return {"type": "diagnostic", "diagnostic": {"severity": severity, "summary": summary, "detail": detail}}


def change(type_: str, *actions: str, **before) -> dict:
    return {
        "address": f"{type_}.this", "type": type_, "mode": "managed",
        "change": {"actions": list(actions), "before": before or None},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (diagnostic("Invalid value for variable", "region is oops: use one such as us-east-1.\n\nThis was checked by"),
         "region is oops: use one such as us-east-1."),
        (diagnostic("No value for required variable", 'The root module input variable "region" is not set, and'),
         "region: not set; set it in root/terraform.tfvars, or give --var-file FILE"),
        (diagnostic("Value for undeclared variable", 'The root module does not declare a variable named "regoin" but',
                    "warning"), "regoin: no variable of root has this name"),
        (diagnostic("Resource precondition failed", "Everything costs 90.00 USD an hour,\nabove 50"),
         "Everything costs 90.00 USD an hour, above 50"),
        (diagnostic("Unsupported argument", 'An argument named "x" is not expected here.'),
         'Unsupported argument: An argument named "x" is not expected here.'),
    ],
)  # fmt: skip
def test_what_terraform_finds_wrong_is_one_line_that_names_the_variable(said, line):
    others = [diagnostic("Deprecated", severity="warning"), {"type": "version"}]
    found = one_line(diagnoses([*others, said]), Path("root"))
    assert found.startswith(line)
    assert "\n" not in found


def test_a_variable_is_told_before_what_follows_from_it():
    lines = [diagnostic("no credentials"), diagnostic("Invalid value for variable", "region is oops: use another.")]
    assert one_line(diagnoses(lines), Path("root")) == "region is oops: use another. (and 1 more)"


def test_the_words_of_terraform_for_people_become_one_line():
    assert complaint("\u2577\n\u2502 Error: Failed to query\n\u2502 \n\u2502 no such host\n\u2575\n") == (
        "Failed to query no such host"
    )


def test_a_plan_is_counted_by_kind_and_its_cost_comes_from_its_outputs():
    plan = read_plan({
        "resource_changes": [
            change("aws_subnet", "create"), change("aws_subnet", "create"), change("aws_vpc", "no-op"),
            change("aws_eip", "delete", "create"), change("terraform_data", "create"),
            {**change("aws_ami", "read"), "mode": "data"},
        ],
        "variables": {"monthly_budget_usd": {"value": 500}, "hourly_cost_limit_usd": {"value": 50}},
        "planned_values": {"outputs": {"max_hourly_cost_usd": {"value": 11.585}}},
    })  # fmt: skip
    assert counted(each.type for each in plan.having("create")) == "2 subnet"
    assert [each.type for each in plan.having("replace")] == ["aws_eip"]
    cost, budget = cost_lines(plan)
    assert "at most 11.5" in cost
    assert "hourly_cost_limit_usd = 50" in cost
    assert "500 USD a month; nobody is told" in budget
    without = read_plan({"variables": {"monthly_budget_usd": {}}})
    assert cost_lines(without) == ["budget    none: monthly_budget_usd is null, nobody is told what the cluster costs"]


def test_a_plan_says_what_a_running_head_will_not_have_and_how_to_replace_it():
    address = "module.ray.aws_launch_template.head"
    old = {"user_data": "H4sI", "image_id": "ami-1", "latest_version": 1}
    variables = {"name": {"value": "lexray"}, "region": {"value": "us-east-1"}}

    def lines(*actions: str, **after: object) -> list[str]:
        entry = {**change("aws_launch_template", *actions), "address": address}
        entry["change"] |= {"before": old, "after": after}
        return head_lines(read_plan({"resource_changes": [entry], "variables": variables}))

    what, how = lines("update", user_data="other", image_id="ami-1")
    assert what.startswith(
        "head      the running head keeps its old start-up script (pools, container image, settings)."
    )
    assert "start-instance-refresh --region us-east-1 --auto-scaling-group-name lexray-head " in how
    assert "machine image" in lines("update", user_data="H4sI", image_id="ami-2")[0]
    assert lines("update", user_data="H4sI", image_id="ami-1", latest_version=2) == []
    assert lines("create", user_data="other") == []


def test_a_bucket_that_is_kept_keeps_what_protects_it():
    plan = read_plan({
        "resource_changes": [
            change("aws_s3_bucket", "delete", bucket="data", force_destroy=False),
            change("aws_s3_bucket_policy", "delete", bucket="data"),
            change("aws_s3_bucket", "delete", bucket="scratch", force_destroy=True),
            change("aws_vpc", "delete", id="vpc-1"),
        ],
    })  # fmt: skip
    assert [bucket.name for bucket in plan.buckets()] == ["data"]
    assert plan.without_buckets(["data"]) == ["aws_s3_bucket.this", "aws_vpc.this"]


@pytest.mark.parametrize(
    ("arn", "kind", "id_", "billed"),
    [
        ("arn:aws:s3:::a-bucket", "s3 bucket", "a-bucket", True),
        ("arn:aws:ec2:us-east-1:1:vpc/vpc-1", "ec2 vpc", "vpc-1", False),
        ("arn:aws:logs:us-east-1:1:log-group:/lexray/a/nodes", "logs log-group", "/lexray/a/nodes", True),
        ("arn:aws:ssm:us-east-1:1:parameter/lexray/head", "ssm parameter", "lexray/head", False),
        ("arn:aws:eks:us-east-1:1:cluster/a", "eks cluster", "a", True),
        ("arn:aws:new-service:us-east-1:1:thing/a", "new-service thing", "a", True),
    ],
)
def test_kinds_that_nobody_knows_count_as_billed(arn, kind, id_, billed):
    found = kind_of(arn)
    assert (found, is_billed(found)) == (Leftover(kind, id_), billed)


@pytest.fixture
def aws(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    return lambda service: boto3.client(service, region_name=REGION)


def launched(aws, name: str) -> str:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": TAG_KEY, "Value": name}]}]
    made = aws("ec2").run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1, TagSpecifications=tags)
    return made["Instances"][0]["InstanceId"]


def test_workers_of_this_cluster_end_and_no_others(aws):
    ours, theirs = launched(aws, "end-ours"), launched(aws, "end-theirs")
    assert leftovers("end-ours", REGION) == [Leftover("ec2 instance", ours)]
    assert end_workers("end-ours", REGION) == [ours]
    assert (workers("end-ours", REGION), workers("end-theirs", REGION)) == ([], [theirs])


def test_the_head_stays_away_once_its_group_keeps_none(aws):
    aws("autoscaling").create_launch_configuration(
        LaunchConfigurationName="down-head", ImageId="ami-12c6146b", InstanceType="t2.micro"
    )
    aws("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="down-head", LaunchConfigurationName="down-head", MinSize=1, MaxSize=1,
        AvailabilityZones=["us-east-1a"],
    )  # fmt: skip
    assert not is_stopped("down-head", REGION)
    stop_head("down-head", REGION)
    assert is_stopped("down-head", REGION)
    assert is_stopped("a-group-that-never-was", REGION)


def test_what_goes_late_is_waited_for_and_what_stays_is_told():
    address, bucket = Leftover("ec2 elastic-ip", "eip-1"), Leftover("s3 bucket", "kept")
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def goes_after(seconds: float) -> list[Leftover]:
        now[0] = 0.0
        kept = frozenset(["kept"])
        found = lambda: [bucket] if now[0] >= seconds else [address, bucket]  # noqa: E731
        return lasting(found, but=kept, clock=lambda: now[0], sleep=sleep)

    assert (goes_after(0), now[0]) == ([bucket], 0)
    assert (goes_after(20), now[0]) == ([bucket], 20)
    assert (goes_after(1000), now[0]) == ([address, bucket], 60)


def described(folder: Path, address: str) -> Path:
    file = folder / "cluster.json"
    access = {"kind": "direct", "address": address}
    file.write_text(json.dumps({"schema": 1, "name": "sae", "provider": "ray", "access": access}))
    return file


def test_a_cluster_goes_only_while_nothing_runs_on_it_lexrays_or_not(tmp_path):
    dashboard = ADashboard()
    file = described(tmp_path, dashboard.url)
    jobs = [{"submission_id": "lexray-a", "status": "SUCCEEDED"}]
    dashboard.routes["/api/jobs/"] = lambda: (200, json.dumps(jobs))
    refuse_running(file)
    jobs += [{"submission_id": None, "job_id": "02", "status": "RUNNING"}]
    with pytest.raises(UserError, match=r"1 job\(s\) run on the cluster: driver 02; .*--force"):
        refuse_running(file)
    dashboard.close()
    with pytest.raises(UserError, match=r"cannot be asked .*--force"):
        refuse_running(file)
    with pytest.raises(UserError, match=r"never made whole.*--force"):
        refuse_running(None)


@pytest.fixture
def root(tmp_path) -> Terraform:
    """A root whose Terraform makes one subnet, as its files say."""
    plan = {"resource_changes": [change("aws_subnet", "create")], "variables": {"name": {"value": "sae"}}}
    state = {"values": {"root_module": {"child_modules": [{"resources": [{"type": "aws_vpc", "mode": "managed"}]}]}}}
    for name, content in (("plan", plan), ("state", state), ("outputs", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "main.tf").touch()
    (tmp_path / "terraform.py").write_text(TERRAFORM)

    def start(command, **how):
        return subprocess.Popen([sys.executable, str(tmp_path / "terraform.py"), *command[1:]], **how)

    return Terraform(folder=tmp_path, start=start)


def test_who_says_no_gets_nothing(root):
    assert run_up(root, lambda _: False, Console(file=io.StringIO()), as_json=False) == 1
    assert "apply" not in (root.folder / "calls").read_text()


def test_an_apply_that_fails_says_what_is_there_and_how_it_is_removed(root):
    lines = [
        {"type": "apply_complete", "@message": "aws_vpc.this: Creation complete after 1s"},
        diagnostic("creating Subnet", "limit exceeded"),
    ]
    (root.folder / "apply.json").write_text(json.dumps(lines))
    said = io.StringIO()
    with pytest.raises(RefusedError, match=r"^creating Subnet: limit exceeded$"):
        up(root, lambda _: True, Console(file=said))
    assert said.getvalue().startswith("planning ")
    assert "aws_vpc.this: Creation complete after 1s\n" in said.getvalue(), "Terraform's own words"
    assert "there now, and some of it costs money: 1: 1 vpc" in said.getvalue()
    assert f"`lexray down {root.folder}` removes it" in said.getvalue()


def test_who_interrupts_waits_until_terraform_has_saved_its_state(root):
    (root.folder / "apply.json").write_text(json.dumps([{"wait": True}]))

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        root.apply(root.folder / "plan", interrupt)
    assert (root.folder / "saved").read_text() == "state"


def test_bad_calls_are_one_line_and_exit_code_2(lexray, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "root").mkdir()
    for arguments, words in [
        (["up", tmp_path / "root", "--yes"], "no Terraform files and no hosts.yaml there; give infra/aws-ec2"),
        (["up", "infra/aws-ec2"], "--yes: lexray up asks before it makes anything, and there is no terminal"),
        (["down", "infra/aws-ec2"], "--yes: lexray down asks before it removes anything"),
        (["down", "infra/aws-ec2", "--yes", "--var-file", tmp_path / "none"], "--var-file"),
    ]:
        code, out, err = lexray(*arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert "Traceback" not in err
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = lexray("up", "infra/aws-ec2", "--yes")
    assert code == 2
    assert "terraform: not found on PATH; install it (https://developer.hashicorp.com/terraform/install)" in err


def test_a_forced_down_ends_the_jobs_that_run_and_goes_on_where_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("lexray.cluster.follow.stop.JOB_PATIENCE_S", 1.0)
    dashboard = ADashboard()
    file = described(tmp_path, dashboard.url)
    stopped = "/api/jobs/lexray-a/stop"

    def job() -> dict:
        status = "STOPPED" if stopped in [path for _, path, _ in dashboard.seen] else "RUNNING"
        return {"submission_id": "lexray-a", "status": status, "metadata": {"lexray_output": str(tmp_path / "sweep")}}

    dashboard.routes["/api/jobs/"] = lambda: (200, json.dumps([job()]))
    dashboard.routes["/api/jobs/lexray-a"] = lambda: (200, json.dumps(job()))
    dashboard.routes[stopped] = lambda: (200, "{}")
    said = io.StringIO()
    drain(file, Console(file=said, width=500))
    assert ("POST", stopped) in [(method, path) for method, path, _ in dashboard.seen]
    assert f"`lexray resume {tmp_path / 'sweep'}` goes on elsewhere" in said.getvalue()
    refuse_running(file)
    dashboard.close()
    drain(file, Console(file=said, width=500))
    assert "not drained, the cluster cannot be asked" in said.getvalue()
