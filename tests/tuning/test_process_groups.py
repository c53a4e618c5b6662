"""Workers of several nodes find each other."""

import socket

import psutil

from lexray.tuning.process_groups import interface_of


def test_an_address_belongs_to_the_interface_that_has_it() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for address in (found.address for found in addresses if found.family == socket.AF_INET):
            assert interface_of(address) == name
    assert interface_of("192.0.2.255") is None
