"""Workers of several nodes find each other, at an address of their network alone."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.util
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.ray_backend.meeting import join_meeting, open_meeting
from lexray.tuning.ray_backend.node_interface import interface_of, use_interface_of_the_node
from lexray.tuning.sweep_plan import plan_sweep


def test_an_address_belongs_to_the_interface_that_has_it() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for address in (found.address for found in addresses if found.family == socket.AF_INET):
            assert interface_of(address) == name
    assert interface_of("192.0.2.255") is None


def test_ranks_meet_at_the_given_address_and_at_no_other() -> None:
    meeting = open_meeting("127.0.0.1")
    served = join_meeting(meeting, rank=0, size=1, timeout_s=10)
    served.set("step", "7")
    assert join_meeting(meeting, rank=1, size=1, timeout_s=10).get("step") == b"7"
    listening = [c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"]
    assert [address.ip for address in listening if address.port == meeting.port] == ["127.0.0.1"]


def test_gloo_and_nccl_meet_at_the_address_that_ray_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "chosen")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    use_interface_of_the_node()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "chosen")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    use_interface_of_the_node()
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo", "NCCL takes a bare name for the beginning of one"


def failing_once(marker: Path) -> Callable[[dict[str, Any]], None]:
    """Return what runs a trial whose first process group cannot be made. It is sent to Ray by value."""

    def work(config: dict[str, Any]) -> None:
        from lexray.tuning.ray_backend import process_groups, trial

        join = process_groups.join_process_group

        def failing(**group: Any) -> None:
            if group["number"] == 0 and not marker.exists():
                marker.touch()
                raise RuntimeError("no route to host")
            join(**group)

        process_groups.join_process_group = failing
        trial.run_trial(config)

    return work


@pytest.mark.slow
@pytest.mark.ray
def test_a_trial_whose_ranks_do_not_meet_gives_its_node_back_and_is_tried_again(
    ray_session: str, tmp_path: Path
) -> None:
    content = sweep_content(
        write_dataset(tmp_path / "data"),
        str(tmp_path / "out"),
        axes={"architecture": ["topk"], "width": [64], "target_l0": [4]},
        resources={"workers": 3},  # of four CPUs
    )
    file = write_sweep(tmp_path / "sweep.yaml", content)
    plan = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
    table = run_sweep(plan, [], work=failing_once(tmp_path / "failed"))
    assert (tmp_path / "failed").exists()
    assert list(table["status"]) == ["done"], list(table["reason"])
