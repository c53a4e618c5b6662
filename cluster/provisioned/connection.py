"""Connects to the head of a cluster: resolves address and token, and opens a tunnel where needed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lexray.cluster.provisioned import aws
from lexray.cluster.provisioned.description import DASHBOARD_PORT, ClusterDescription, Direct, Kubectl, Ssh, Ssm
from lexray.cluster.provisioned.http import Dashboard, refuse_clear_text
from lexray.cluster.provisioned.kubernetes import KubectlCall, kubectl_call
from lexray.cluster.provisioned.programs import forward_command
from lexray.cluster.provisioned.tokens import Secret, token_of, token_of_file
from lexray.cluster.provisioned.trust import Ask, asked_on_terminal, check_trust, token_use
from lexray.cluster.provisioned.tunnel import Tunnel, opened
from lexray.storage.config_file import checked_content, read_mapping
from lexray.storage.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Target:
    """Cluster as selected by the user's options."""

    address: str | None = None
    """`http://HOST:PORT` of a dashboard, or `HOST:PORT`."""
    cluster: str | None = None
    """File with a ClusterDescription."""
    token_file: str | None = None
    """Token file; overrides the description's token."""
    is_trusted: bool = False
    """The user agrees that the token is sent to this cluster (`--trust`)."""
    is_insecure: bool = False
    """The token may cross a network unencrypted (`--insecure`)."""

    def __bool__(self) -> bool:
        return self.address is not None or self.cluster is not None

    @property
    def options(self) -> str:
        """The target as command-line options."""
        given = {"--address": self.address, "--cluster": self.cluster, "--token-file": self.token_file}
        words = [f"{option} {value}" for option, value in given.items() if value is not None]
        return " ".join([*words, *(["--insecure"] if self.is_insecure else [])])


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An open connection to a cluster's dashboard."""

    dashboard: Dashboard
    target: Target
    description: ClusterDescription | None
    """Description of the cluster; None if only an address was given."""
    is_tunnelled: bool
    ray_version: str

    @property
    def name(self) -> str:
        """Name of the cluster in messages."""
        return self.description.name if self.description is not None else self.dashboard.url


def read_description(path: str) -> ClusterDescription:
    """Read a cluster's file: the object itself, or the output of `terraform output -json` around it.

    Raises UserError naming the file and the field.
    """
    content = read_mapping(path)
    printed = content.get("cluster")
    if isinstance(printed, dict) and "value" in printed:
        content = printed["value"]
        if not isinstance(content, dict):
            raise UserError(f"{path}: cluster.value: no object; was `terraform apply` run?")
    return checked_content(path, content, ClusterDescription)


@contextmanager
def connect(target: Target, ask: Ask | None = None) -> Iterator[Connection]:
    """Yield a connection to a cluster that answers.

    `ask` requests the user's consent to send a token to a described cluster for the first time; None asks on the
    terminal, if there is one. Raises UserError in one line when the cluster is unreachable, requires another token, or
    may not receive this one.
    """
    if target.address is not None and target.cluster is not None:
        raise UserError("--address and --cluster: both name a cluster; give one of the two")
    if not target:
        raise UserError("which cluster? give --address http://HOST:8265, or --cluster FILE")
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        dashboard, description, tunnel = _reach(target, stack, ask or asked_on_terminal())
        version = dashboard.check()["ray_version"]
        yield Connection(
            dashboard=dashboard,
            target=target,
            description=description,
            is_tunnelled=tunnel is not None,
            ray_version=version,
        )


def _reach(
    target: Target, stack: ExitStack, ask: Ask | None
) -> tuple[Dashboard, ClusterDescription | None, Tunnel | None]:
    if target.address is not None:
        return _at_address(target, target.address), None, None
    assert target.cluster is not None
    description = read_description(target.cluster)
    access, what = description.access, f"cluster {description.name}"
    url = dashboard_url(access.address, "access.address") if isinstance(access, Direct) else None
    use = token_use(description, url, target.token_file)
    if use is not None:
        if url is not None and not target.is_insecure:
            refuse_clear_text(url, what)
        check_trust(use, is_given=target.is_trusted, ask=ask)
    given = token_of_file(target.token_file) if target.token_file is not None else None
    kubectl = None
    if isinstance(access, Kubectl):
        kubectl = stack.enter_context(kubectl_call(access, description.region))
    token = given or token_of(description, kubectl)
    if url is not None:
        return Dashboard(url=url, what=what, token=token, is_insecure=target.is_insecure), description, None
    tunnel = stack.enter_context(opened(_tunnel(description, kubectl)))
    return _through(tunnel, what, token), description, tunnel


def _at_address(target: Target, address: str) -> Dashboard:
    """Return the dashboard at an address; giving address and token explicitly is consent to send it there."""
    url, what = dashboard_url(address, "--address"), f"--address {address}"
    if target.token_file is None:
        return Dashboard(url=url, what=what)
    if not target.is_insecure:
        refuse_clear_text(url, what)
    token = token_of_file(target.token_file)
    return Dashboard(url=url, what=what, token=token, is_insecure=target.is_insecure)


def _through(tunnel: Tunnel, what: str, token: Secret | None) -> Dashboard:
    return Dashboard(
        url=f"http://127.0.0.1:{tunnel.port}", what=what, token=token, renew=tunnel.renew, is_ours=tunnel.has_accepted
    )


def _tunnel(description: ClusterDescription, kubectl: KubectlCall | None) -> Tunnel:
    access = description.access

    def command(local_port: int) -> list[str]:
        if isinstance(access, Ssm):
            return _ssm(aws.head_instance(access.autoscaling_group, description.region), access.port, local_port,
                        description.region)  # fmt: skip
        if isinstance(access, Ssh):
            return forward_command(access, local_port)
        assert isinstance(access, Kubectl)
        assert kubectl is not None
        return kubectl.forward(access.service, access.port, local_port)

    return Tunnel(command=command, what=f"cluster {description.name}")


def _ssm(instance: str, port: int, local_port: int, region: str | None) -> list[str]:
    place = ["--region", region] if region is not None else []
    ports = f"portNumber={port},localPortNumber={local_port}"
    document = "AWS-StartPortForwardingSession"
    session = ["--target", instance, "--document-name", document, "--parameters", ports]
    return ["aws", "ssm", "start-session", *place, *session]


def dashboard_url(address: str, field: str) -> str:
    """Return `http://HOST:PORT` for what a user wrote. Raises UserError naming the field."""
    written = address if "://" in address else f"http://{address}"
    if not written.isascii() or not written.isprintable() or any(char in written for char in " \\"):
        raise UserError(f"{field} {address!a}: write it in ASCII without spaces (xn--... for other letters)")
    if "@" in written:
        raise UserError(f"{field}: a dashboard takes no user and password; leave out what is before the @")
    try:
        parts = urlsplit(written)
        port = parts.port or (DASHBOARD_PORT if parts.scheme == "http" else None)
    except ValueError as error:
        raise UserError(f"{field} {address}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UserError(f"{field} {address}: jobs are submitted to a dashboard, as in http://HOST:{DASHBOARD_PORT}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "") + parts.path.rstrip("/")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that the tunnel is closed first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
