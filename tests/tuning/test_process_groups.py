"""Workers of several nodes find each other, at an address of their network alone."""

import socket

import psutil

from lexray.tuning.meeting import join_meeting, open_meeting
from lexray.tuning.process_groups import interface_of


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
