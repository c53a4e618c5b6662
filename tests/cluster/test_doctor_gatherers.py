"""What the doctor asks on a node is asked of real parts: files, sockets, an S3 server, a W&B server."""

from __future__ import annotations

import base64
import json
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import boto3
import pytest
from faulty_server import Refusal, faulty_server
from synthetic import write_rows
from wandb_server import KEY, wandb_server

from lexray.cluster.doctor import traffic
from lexray.cluster.doctor.dashboard import http_status, listening_addresses, public_addresses
from lexray.cluster.doctor.findings import Device, Efa, StoreFault, StoreSpeed, Unknown
from lexray.cluster.doctor.machine import code_hash, efa, look_at_machine, system_config
from lexray.cluster.doctor.stores import (
    leave_marker,
    missing_folders,
    read_one_chunk,
    region_of,
    remove_empty,
    remove_marker,
    sees_marker,
    who_am_i,
    write_one_key,
)
from lexray.cluster.doctor.traffic import Ring, knock, open_door, sum_over_nodes, transport_of
from lexray.cluster.doctor.wandb_host import look_at_wandb
from lexray.cluster.provisioned.tunnel import free_port
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store
from lexray.tuning.ray_backend.meeting import Endpoint, open_meeting


@pytest.fixture
def settings(s3_server: str) -> StorageSettings:
    return StorageSettings(endpoint_url=s3_server)


def bucket_at(server: str, name: str, region: str = "us-east-1") -> str:
    """A new bucket's url."""
    client = boto3.client("s3", endpoint_url=server, region_name=region)
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    client.create_bucket(Bucket=name, **where)
    return f"s3://{name}"


def keys_in(url: str, settings: StorageSettings) -> list[str]:
    return Store.at(url, settings).list_files()


def test_a_chunk_is_read_and_its_checksum_checked(tmp_path: Path) -> None:
    written = write_rows(tmp_path / "data")
    assert isinstance(read_one_chunk(written.store.url, StorageSettings(), 3), StoreSpeed)
    shard = tmp_path / "data" / written.manifest.shards[0].file
    shard.write_bytes(bytes(shard.stat().st_size))
    found = read_one_chunk(written.store.url, StorageSettings(), 3)
    assert isinstance(found, StoreFault)
    assert (found.step, "checksum" in found.reason) == ("read", True)


def test_data_that_is_not_there_is_told_in_one_line(settings: StorageSettings, s3_server: str) -> None:
    url = bucket_at(s3_server, "doctor-empty")
    found = read_one_chunk(f"{url}/data", settings, 0)
    assert isinstance(found, StoreFault)
    assert (found.step, "no manifest.json there" in found.reason) == ("manifest", True)


def test_a_bucket_that_does_not_exist_has_its_code(settings: StorageSettings) -> None:
    found = write_one_key("s3://doctor-nowhere/output", settings, "key")
    assert isinstance(found, StoreFault)
    assert (found.step, found.code) == ("write", "NoSuchBucket")


def test_an_endpoint_where_nobody_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexray.cluster.doctor.stores.RETRY_BUDGET_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    found = write_one_key("s3://bucket/output", StorageSettings(endpoint_url=nobody), "key")
    assert isinstance(found, StoreFault)
    assert nobody in found.reason


def test_a_key_is_written_read_and_deleted(settings: StorageSettings, s3_server: str) -> None:
    url = bucket_at(s3_server, "doctor-writes")
    assert isinstance(write_one_key(url, settings, "key"), StoreSpeed)
    assert keys_in(url, settings) == []


@pytest.mark.parametrize(("method", "step"), [("PUT", "write"), ("DELETE", "delete")])
def test_what_a_prefix_does_not_allow_is_named(s3_server: str, method: str, step: str) -> None:
    url = bucket_at(s3_server, f"doctor-no-{method.lower()}")
    deleting = {"DELETE": ("DELETE", "POST")}.get(method, (method,))  # s3fs deletes by a POST of many keys
    refusal = Refusal(403, "AccessDenied", "Access Denied")
    with faulty_server(s3_server, lambda request: refusal if request.method in deleting else None) as server:
        found = write_one_key(url, StorageSettings(endpoint_url=server.url), "key")
    assert isinstance(found, StoreFault)
    assert (found.step, found.code) == (step, "AccessDenied")


def test_a_local_output_is_left_as_it_was(tmp_path: Path) -> None:
    url = str(tmp_path / "new" / "output")
    made = missing_folders(url)
    assert isinstance(write_one_key(url, StorageSettings(), "key"), StoreSpeed)
    remove_empty(made)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_each_machine_is_told_from_a_shared_one(tmp_path: Path) -> None:
    mine, yours = str(tmp_path / "mine"), str(tmp_path / "yours")
    leave_marker(mine, StorageSettings(), "marker")
    assert sees_marker(mine, StorageSettings(), "marker") is None
    unseen = sees_marker(yours, StorageSettings(), "marker")
    assert unseen is not None
    assert unseen.step == "share"
    remove_marker(mine, StorageSettings(), "marker")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_bucket_tells_its_region(settings: StorageSettings, s3_server: str) -> None:
    url = bucket_at(s3_server, "doctor-far", "eu-west-1")
    found = region_of(f"{url}/data", settings, nodes=None)
    assert (found.bucket, found.asked, found.nodes) == ("eu-west-1", "us-east-1", "us-east-1")
    missing = region_of("s3://doctor-none/data", settings, nodes="eu-west-1")
    assert isinstance(missing.bucket, Unknown)
    assert missing.nodes == "eu-west-1"


def test_the_identity_is_asked_of_aws_alone(
    settings: StorageSettings, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert who_am_i(settings) == Unknown("not asked for", is_asked=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server)
    assert str(who_am_i(settings)).startswith("arn:aws:sts::")


def test_the_hash_of_the_code_is_of_names_and_contents(tmp_path: Path) -> None:
    def tree(name: str, **files: str) -> str:
        for package in ("cluster", "tuning", "training", "storage"):
            (tmp_path / name / package / "__pycache__").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / "storage" / f"{file}.py").write_text(text)
        (tmp_path / name / "storage" / "__pycache__" / "x.pyc").write_text(name)
        return code_hash(tmp_path / name)

    first = tree("first", a="1", b="2")
    assert tree("second", a="1", b="2") == first
    assert len({first, tree("renamed", a="1", c="2"), tree("changed", a="1", b="3"), tree("less", a="1")}) == 4


def test_this_machine_tells_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "cached").write_bytes(bytes(1000))
    found = look_at_machine(is_head=True, cache_dir=str(tmp_path))
    assert set(found.versions) == {"python", "ray", "torch", "deepspeed", "lexray"}
    assert 0 < found.used_bytes < found.memory_bytes
    assert not isinstance(found.cache, Unknown)
    assert found.cache.held_bytes == 1000
    assert isinstance(found.temp, Unknown)  # whoever runs the tests is no raylet


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(script: str) -> object:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return look_at_machine(is_head=False, cache_dir=None).devices

    listed = devices("echo 'NVIDIA H100 80GB HBM3, 570.86.15'; echo 'NVIDIA H100 80GB HBM3, 570.86.15'")
    assert listed == (Device(name="NVIDIA H100 80GB HBM3", driver="570.86.15"),) * 2
    broken = devices("echo 'could not communicate with the driver'; exit 9")
    assert isinstance(broken, Unknown)
    assert "could not communicate with the driver" in broken.reason


def test_settings_of_lost_nodes_are_found_in_a_system_config() -> None:
    given = base64.b64encode(json.dumps({"health_check_period_ms": 5000, "other": True}).encode()).decode()
    assert system_config(given) == {"RAY_health_check_period_ms": "5000"}
    assert system_config("") == {}


def test_addresses_where_a_port_is_open_are_read_from_the_kernel() -> None:
    tables = ("/proc/net/tcp", "/proc/net/tcp6")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        rows = [row for table in tables for row in Path(table).read_text().splitlines()[1:]]
        assert listening_addresses(rows, one.getsockname()[1]) == ("127.0.0.1",)
        assert listening_addresses(rows, six.getsockname()[1]) == ("::1",)
    everywhere = f"  0: {'0' * 8}:2049 00000000:0000 0A", f"  0: {'0' * 32}:2049 {'0' * 32}:0000 0A"
    assert listening_addresses(everywhere, 0x2049) == ("0.0.0.0", "::")
    assert listening_addresses(["  0: 0100007F:2049 0100007F:1111 01"], 0x2049) == ()  # a connection, no door


def test_only_addresses_of_the_internet_are_public() -> None:
    addresses = ("127.0.0.1", "10.0.0.1", "172.31.4.5", "169.254.1.1", "::1", "fe80::1", "52.1.2.3", "2600:1f14::1")
    assert public_addresses(addresses) == ("2600:1f14::1", "52.1.2.3")


def test_a_door_that_is_shut_is_named_beside_one_that_is_open() -> None:
    shut = Endpoint("127.0.0.1", free_port())
    assert set(knock({"open": open_door("127.0.0.1"), "shut": shut})) == {"shut"}


def test_an_address_that_gives_no_answer_is_unknown() -> None:
    shut = Endpoint("127.0.0.1", free_port())
    assert isinstance(http_status(f"http://{shut.host}:{shut.port}/", {}), Unknown)


def summed(ring: Ring, timeout_s: float) -> float:
    """Seconds of a sum; in a process of its own, as a node's probe has."""
    traffic.SUM_TIMEOUT_S = timeout_s
    meeting = open_meeting("127.0.0.1")
    with pytest.raises(OSError, match="in use"):
        socket.create_server(meeting)
    return sum_over_nodes(ring._replace(meeting=meeting)).seconds


def test_a_sum_of_one_rank_runs_and_one_whose_others_do_not_come_ends() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as process:
        alone, missed = (Ring(0, ranks, Endpoint("", 0), "gloo") for ranks in (1, 2))
        assert process.submit(summed, alone, 30.0).result(timeout=120) > 0
        with pytest.raises(Exception, match=r"[Tt]ime"):
            process.submit(summed, missed, 0.2).result(timeout=120)


def test_the_transport_is_what_nccl_says() -> None:
    lines = ["node:1:1 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>", "node:1:1 [0] NCCL INFO Using network Socket"]
    assert transport_of(lines) == "Socket"
    assert transport_of(lines[:1]) is None


def test_wandb_is_asked_with_the_key_and_only_where_a_run_would_go_online(monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert look_at_wandb("offline").status == Unknown("not asked", is_asked=False)
        assert sum(server.asked.values()) == 0
        assert look_at_wandb("online").status == 200
        server.mood = "limiting"
        assert look_at_wandb("auto").status == 429
    assert isinstance(look_at_wandb("online").status, Unknown)


def test_a_missing_wandb_key_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert not look_at_wandb("online").has_key


def test_efa_cards_are_counted_by_their_driver_and_opened_by_their_device_files(tmp_path: Path) -> None:
    for number, (card, driver) in enumerate({"rdmap16s27": "efa", "rdmap32s27": "efa", "mlx5_0": "mlx5_core"}.items()):
        (tmp_path / f"pci/{card}/infiniband_verbs/uverbs{number}").mkdir(parents=True)
        (tmp_path / f"drivers/{driver}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"pci/{card}/driver").symlink_to(tmp_path / f"drivers/{driver}")
        (tmp_path / f"class/{card}").mkdir(parents=True)
        (tmp_path / f"class/{card}/device").symlink_to(tmp_path / f"pci/{card}")
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "uverbs0").touch()
    found = efa(str(tmp_path / "class"), str(devices), plugin="libc.so.6")
    assert found == Efa(cards=2, openable=1)
    lacking = efa(str(tmp_path / "class"), str(devices), plugin="libnccl-net-of-nobody.so")
    assert lacking is not None
    assert "libnccl-net-of-nobody.so" in lacking.plugin_fault
    assert efa(str(devices), str(devices)) is None
