"""Checks a cluster's head: whether its dashboard answers, with and without a token, and where its ports listen."""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import ray

from lexray.cluster.doctor.findings import DashboardFacts, Listening, Unknown
from lexray.cluster.provisioned.http import NoRedirect
from lexray.cluster.ray_backend.internals import auth_headers, dashboard_address

ASK_TIMEOUT_S = 6
_LISTEN = "0A"
_PATH = "/api/version"
NO_PROXIES: dict[str, str] = {}


def dashboard_url() -> str | Unknown:
    """Return the dashboard url that the connected cluster reports."""
    address = dashboard_address()
    if address is None:
        return Unknown("this Ray runs without its dashboard")
    return address if "://" in address else f"http://{address}"


def look_at_dashboard() -> DashboardFacts | Unknown:
    """Run on the head: query the dashboard with and without a token, and list the addresses that it listens on."""
    url = dashboard_url()
    if isinstance(url, Unknown):
        return url
    gcs_port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    return DashboardFacts(
        url=url,
        with_token=ask_dashboard(url),
        without_token=http_status(url + _PATH, {}),
        listening=_listening(urlsplit(url).port or 80, gcs_port),
    )


def ask_dashboard(url: str) -> int | Unknown:
    """Return the HTTP status of a request made as Ray's own clients make it."""
    return http_status(url + _PATH, auth_headers())


def http_status(
    url: str, headers: Mapping[str, str], *, data: bytes | None = None, proxies: dict[str, str] | None = NO_PROXIES
) -> int | Unknown:
    """Return the response status, even of an error; Unknown without a response.

    No redirect is followed, and no proxy used unless `proxies` is None (the environment's): either may take a token
    elsewhere.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), NoRedirect)
    request = urllib.request.Request(url, data=data, headers=dict(headers))
    try:
        with opener.open(request, timeout=ASK_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:
        return Unknown(f"no answer ({getattr(error, 'reason', error)})")


def _listening(dashboard_port: int, gcs_port: int) -> Listening | Unknown:
    rows: list[str] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows += Path(table).read_text().splitlines()[1:]
        except OSError as error:
            if table.endswith("tcp"):
                return Unknown(f"listening ports cannot be read on this system ({error.strerror})")
    interfaces = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    return Listening(
        dashboard=listening_addresses(rows, dashboard_port),
        gcs=listening_addresses(rows, gcs_port),
        public=public_addresses(one.address for one in interfaces if one.family in (socket.AF_INET, socket.AF_INET6)),
    )


def listening_addresses(rows: Iterable[str], port: int) -> tuple[str, ...]:
    """Return the addresses on which a port listens, from rows of /proc/net/tcp and tcp6."""
    found = set()
    for row in rows:
        _, local, _, state = row.split()[:4]
        address, _, local_port = local.partition(":")
        if state == _LISTEN and int(local_port, 16) == port:
            found.add(_address(address))
    return tuple(sorted(found))


def _address(text: str) -> str:
    """Parse an address of /proc/net/tcp: 32-bit words in the machine's byte order."""
    words = b"".join(struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    address = ipaddress.ip_address(words)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def public_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the globally routable addresses."""
    return tuple(sorted(address for address in addresses if ipaddress.ip_address(address).is_global))
