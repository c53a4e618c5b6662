"""Every fault that can be planted in what the doctor found is named by its own check, and by no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lexray.cluster.doctor.findings import (
    AllReduce,
    BucketRegion,
    ClockReading,
    DashboardFacts,
    DeadNode,
    Device,
    Disk,
    Efa,
    Findings,
    Listening,
    MachineFacts,
    NodeReport,
    StoreFault,
    StoreSpeed,
    Unknown,
    WandbFacts,
)
from lexray.cluster.doctor.run import examine
from lexray.cluster.doctor.verdict import GIB, Check, Limits, Status, as_document, as_table, checks_of, is_healthy
from lexray.cluster.provisioned.description import Liveness
from lexray.storage.objects.settings import StorageSettings

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "deepspeed": "0.19.8", "lexray": "0123abc"}
SPEED = StoreSpeed(bytes=1000, seconds=0.1)


def machine(**changes: Any) -> MachineFacts:
    disk = Disk(path="/tmp/ray", total_bytes=100 * GIB, free_bytes=60 * GIB)
    return MachineFacts(
        **{
            "versions": VERSIONS,
            "devices": (Device(name="H100", driver="570"),),
            "efa": Efa(cards=4, openable=4),
            "shared": Disk(path="/dev/shm", total_bytes=32 * GIB, free_bytes=32 * GIB),
            "plasma_dir": "/dev/shm",
            "temp": disk,
            "memory_bytes": 64 * GIB,
            "used_bytes": 8 * GIB,
            "liveness": Liveness().ray_env,
            **changes,
        }
    )


def node(name: str, *, of: MachineFacts | Unknown | None = None, **changes: Any) -> NodeReport:
    settled = {
        "gpus": 1.0,
        "object_store_bytes": 16 * GIB,
        "clock": ClockReading(ahead_s=5.0, error_s=0.01),
        "dashboard": 200,
        "data": SPEED,
        "output": SPEED,
        "identity": f"arn:aws:sts::1:assumed-role/lexray/{name}",
    }
    return NodeReport(name=name, machine=of or machine(), **{**settled, **changes})


def head(**changes: Any) -> NodeReport:
    return node("10.0.0.1", of=machine(gcs_liveness=Liveness().ray_env), is_head=True, **changes)


def listening(**changes: Any) -> Listening:
    return Listening(**{"dashboard": ("10.0.0.1",), "gcs": ("::",), "public": (), **changes})


def dashboard(**changes: Any) -> DashboardFacts:
    settled = {"with_token": 200, "without_token": 401, "listening": listening()}
    return DashboardFacts(url="http://10.0.0.1:8265", **{**settled, **changes})


def healthy(*workers: NodeReport, **changes: Any) -> Findings:
    settled = {
        "client_versions": VERSIONS,
        "start_notes": (),
        "nodes": (head(), *(workers or (node("10.0.0.2"),))),
        "dashboard": dashboard(),
        "regions": (BucketRegion(url="s3://b/d", bucket="eu-west-1", asked="eu-west-1", nodes="eu-west-1"),),
        "data_url": "s3://b/d",
        "output_url": "s3://b/o",
        "gloo": AllReduce(backend="gloo", nodes=2, bytes=8_000_000, seconds=0.008),
        "nccl": AllReduce(backend="nccl", nodes=2, bytes=8_000_000, seconds=0.0008, transport="AWS Libfabric"),
        "wandb": WandbFacts(mode="online", has_key=True, host="https://api.wandb.ai", status=200),
    }
    return Findings(**{**settled, **changes})


def verdicts(found: Findings, limits: Limits | None = None) -> dict[str, Check]:
    return {check.name: check for check in examine(found, limits)}


def test_a_healthy_cluster_passes_every_check() -> None:
    checks = examine(healthy())
    assert [check.name for check in checks if check.status is not Status.OK] == []
    assert is_healthy(checks)


def denied(step: str, code: str = "AccessDenied", reason: str = "Access Denied") -> StoreFault:
    return StoreFault(step=step, reason=reason, code=code)


def elsewhere(**changes: Any) -> Findings:
    region = BucketRegion(url="s3://b/d", bucket="eu-west-1", asked="eu-west-1", nodes="eu-west-1")
    return healthy(regions=(replace(region, **changes),))


def with_dashboard(**changes: Any) -> Findings:
    return healthy(dashboard=dashboard(**changes))


def with_wandb(**changes: Any) -> Findings:
    return healthy(wandb=replace(WandbFacts(mode="online", has_key=True, host="https://w", status=200), **changes))


def with_machine(**changes: Any) -> Findings:
    return healthy(node("10.0.0.2", of=machine(**changes)))


def with_node(**changes: Any) -> Findings:
    return healthy(node("10.0.0.2", **changes))


SMALL_SHM = Disk(path="/dev/shm", total_bytes=GIB // 16, free_bytes=GIB // 16)
FULL = Disk(path="/tmp/ray", total_bytes=100 * GIB, free_bytes=3 * GIB)
NO_TOKEN = {"without_token": 200}
PUBLIC = {"listening": listening(dashboard=("0.0.0.0",), public=("52.1.2.3",))}
SKEWED = {**VERSIONS, "torch": "2.12.0"}
STALE = {**VERSIONS, "lexray": "fffffff"}
FEW = {name: value for name, value in Liveness().ray_env.items() if "health" not in name}

FAULTS: dict[str, tuple[Findings, str, Status, str]] = {
    "a node that does not answer": (
        healthy(node("10.0.0.2", of=Unknown("no answer in 10 s"))), "nodes", Status.FAIL, "10.0.0.2: no answer in 10"),
    "nodes that cannot be launched": (
        healthy(launch_failures=("pool gpu: no node can be launched: quota 0",)), "launches", Status.FAIL, "quota 0"),
    "a node that died": (
        healthy(dead=(DeadNode(name="10.0.0.3", reason="health check failed"),)), "nodes", Status.WARN, "10.0.0.3"),
    "a Ray without dashboard": (
        healthy(dashboard=Unknown("this Ray runs without its dashboard")), "dashboard", Status.FAIL, "without"),
    "a dashboard that is silent": (
        with_dashboard(with_token=Unknown("no answer")), "dashboard", Status.FAIL, "no answer"),
    "a wrong token": (with_dashboard(with_token=403), "dashboard", Status.FAIL, "403"),
    "a dashboard that only the head reaches": (
        with_node(dashboard=Unknown("refused")), "dashboard", Status.FAIL, "10.0.0.2: refused"),
    "no token": (with_dashboard(**NO_TOKEN), "token", Status.FAIL, "run code on every node"),
    "no token on loopback": (
        with_dashboard(**NO_TOKEN, listening=listening(dashboard=("127.0.0.1",))), "token", Status.WARN, "loopback"),
    "a public head": (with_dashboard(**PUBLIC), "exposure", Status.WARN, "52.1.2.3"),
    "another torch": (with_machine(versions=SKEWED), "versions", Status.FAIL, "10.0.0.2: torch 2.12.0"),
    "another lexray": (with_machine(versions=STALE), "code", Status.FAIL, "10.0.0.2: lexray fffffff"),
    "a GPU without driver": (
        with_machine(devices=Unknown("nvidia-smi is not installed")), "devices", Status.FAIL, "Ray counts 1 GPUs"),
    "a GPU that is gone": (with_machine(devices=()), "devices", Status.FAIL, "nvidia-smi lists 0"),
    "EFA cards that the container may not open": (
        with_machine(efa=Efa(cards=32, openable=0)), "efa", Status.WARN, "10.0.0.2: 0 of 32 cards can be opened"),
    "an image without NCCL's plugin": (
        with_machine(efa=Efa(cards=4, openable=4, plugin_fault="no such file")), "efa", Status.WARN,
        "10.0.0.2: NCCL's plugin does not load (no such file)"),
    "a small /dev/shm": (with_machine(shared=SMALL_SHM), "shm", Status.FAIL, "0.1 GiB for an object store of 16.0 GiB"),
    "an object store on a disk": (with_machine(plasma_dir="/tmp"), "shm", Status.FAIL, "/tmp"),
    "a full disk": (with_machine(temp=FULL), "disk", Status.FAIL, "3.0 GiB free at /tmp/ray, 10.0 GiB wanted"),
    "no room for the cache": (
        replace(with_machine(cache=replace(FULL, path="/nvme")), cache_bytes=5 * GIB), "disk", Status.FAIL, "/nvme"),
    "memory that others use": (with_machine(used_bytes=60 * GIB), "memory", Status.WARN, "60.0 GiB of 64.0 GiB"),
    "a clock minutes off": (
        with_node(clock=ClockReading(ahead_s=125.0, error_s=0.01)), "clock", Status.FAIL, "10.0.0.2: +120.0 s"),
    "a clock seconds off": (
        with_node(clock=ClockReading(ahead_s=1.0, error_s=0.01)), "clock", Status.WARN, "10.0.0.2: -4.0 s"),
    "Ray's own time-outs": (with_machine(liveness={}), "liveness", Status.WARN, "its raylet lacks all 8"),
    "half of the time-outs": (with_machine(liveness=FEW), "liveness", Status.WARN, "RAY_health_check_period_ms"),
    "data that may not be read": (with_node(data=denied("manifest")), "data", Status.FAIL, "10.0.0.2: manifest failed"),
    "a store that hangs": (with_node(data=Unknown("no answer in 10 s")), "data", Status.FAIL, "no answer in 10 s"),
    "a read-only prefix": (with_node(output=denied("write")), "output", Status.FAIL, "10.0.0.2: write failed"),
    "keys that cannot be deleted": (with_node(output=denied("delete")), "output", Status.FAIL, "delete failed"),
    "a bucket elsewhere": (
        elsewhere(asked="us-east-1"), "region", Status.FAIL, "s3://b/d lies in eu-west-1"),
    "nodes elsewhere": (elsewhere(nodes="us-east-1"), "region", Status.FAIL, "the nodes run in us-east-1"),
    "two identities": (
        with_node(identity="arn:aws:sts::1:assumed-role/node/i-1"), "identity", Status.WARN, "assumed-role/node"),
    "a node without credentials": (
        with_node(identity=Unknown("has no credentials")), "identity", Status.WARN, "10.0.0.2: has no credentials"),
    "two nodes apart": (
        with_node(unreached={"10.0.0.1": "timed out"}), "network", Status.FAIL, "10.0.0.2 cannot reach 10.0.0.1"),
    "a sum that fails": (healthy(nccl=Unknown("no device")), "network", Status.FAIL, "all-reduce with nccl: no device"),
    "NCCL over TCP beside a fabric": (
        replace(with_machine(fabrics=("rdmap0",)),
                nccl=AllReduce(backend="nccl", nodes=2, bytes=8, seconds=1.0, transport="Socket")),
        "network", Status.WARN, "rdmap0"),
    "no W&B key": (with_wandb(has_key=False), "wandb", Status.FAIL, "no API key"),
    "a W&B that is silent": (with_wandb(status=Unknown("no answer")), "wandb", Status.FAIL, "no answer"),
    "a W&B key that is refused": (with_wandb(status=401), "wandb", Status.FAIL, "refuses the API key"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_what_to_do(fault: str) -> None:
    found, name, status, shown = FAULTS[fault]
    check = verdicts(found)[name]
    assert (check.status, shown in check.found) == (status, True), check
    assert check.advice


@pytest.mark.parametrize("fault", FAULTS)
def test_no_other_check_fails_for_it(fault: str) -> None:
    found, name, _, _ = FAULTS[fault]
    assert {check.name for check in examine(found) if check.status is Status.FAIL} <= {name}


def test_a_public_dashboard_without_a_token_fails_as_exposed_too() -> None:
    assert verdicts(with_dashboard(**NO_TOKEN, **PUBLIC))["exposure"].status is Status.FAIL


def test_launches_that_nobody_reports_are_not_judged() -> None:
    check = verdicts(healthy(launch_failures=Unknown("the GCS does not answer")))["launches"]
    assert (check.status, check.found) == (Status.SKIPPED, "the GCS does not answer")


def test_what_the_asker_cannot_be_sure_of_is_no_skew() -> None:
    """A slow answer says little about a clock."""
    assert verdicts(with_node(clock=ClockReading(ahead_s=9.0, error_s=4.0)))["clock"].status is Status.OK


def test_the_advice_for_a_store_follows_what_it_said() -> None:
    def advice(fault: StoreFault) -> str:
        found = replace(with_node(output=fault), storage=StorageSettings(endpoint_url="http://store:9000"))
        return verdicts(found)["output"].advice

    assert advice(denied("write")) == "allow the nodes' role s3:PutObject on s3://b/o/*"
    assert advice(denied("delete")) == "allow the nodes' role s3:DeleteObject on s3://b/o/*"
    assert "storage.region" in advice(denied("write", "PermanentRedirect", "use the endpoint of eu-west-1"))
    assert "no bucket b at http://store:9000" in advice(denied("write", "NoSuchBucket", "none"))
    assert "not this store's, or expired" in advice(denied("write", "InvalidAccessKeyId", "unknown key"))
    assert "storage.endpoint_url" in advice(StoreFault(step="write", reason="Could not connect to the endpoint"))


def test_an_all_reduce_below_the_floor_fails_only_where_a_floor_was_set() -> None:
    slow = healthy(nccl=AllReduce(backend="nccl", nodes=2, bytes=8_000_000, seconds=0.008))
    assert verdicts(slow)["network"].status is Status.OK
    wanted = verdicts(slow, Limits(all_reduce_gb_s=50))["network"]
    assert wanted.status is Status.FAIL
    assert "50 GB/s wanted" in wanted.found


def test_wandb_that_is_not_asked_for_needs_no_key() -> None:
    for mode in ("offline", "disabled"):
        assert verdicts(with_wandb(mode=mode, has_key=False))["wandb"].status is Status.SKIPPED
    told = verdicts(with_wandb(mode="auto", has_key=False))["wandb"]
    assert (told.status, "offline" in told.found) == (Status.SKIPPED, True)


def test_a_check_without_findings_says_why_it_was_skipped() -> None:
    alone = Findings(client_versions=VERSIONS, nodes=(head(),))
    for name in ("data", "output", "region", "network", "wandb"):
        check = verdicts(alone)[name]
        assert check.status is Status.SKIPPED
        assert check.found


def test_nodes_that_all_keep_silent_leave_nothing_to_praise() -> None:
    silent = Findings(client_versions=VERSIONS, nodes=(node("10.0.0.1", of=Unknown("no answer"), is_head=True),))
    statuses = {check.status for check in examine(silent)}
    assert Status.OK not in {verdicts(silent)[name].status for name in ("versions", "code", "shm", "disk", "memory")}
    assert Status.FAIL in statuses


def test_many_faulty_nodes_are_one_line() -> None:
    many = healthy(*(node(f"10.0.1.{i}", of=machine(temp=FULL)) for i in range(40)))
    found = verdicts(many)["disk"].found
    assert "and 36 more" in found
    assert len(found) < 400


def test_the_document_gives_the_same_checks_back() -> None:
    checks = examine(with_machine(temp=FULL))
    document = as_document(checks, "auto", 1.234)
    assert checks_of(document) == checks
    assert (document["healthy"], document["address"], document["took_s"]) == (False, "auto", 1.2)
    assert as_table(checks).row_count == len(checks)
