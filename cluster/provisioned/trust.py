"""Which cluster may receive which token: the user agrees once to each pair, as SSH users agree to a host's key.

A cluster description is a file that anybody may have written. It names both a place and a secret of this machine, so
following it unasked would hand any token file or AWS secret to any server.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import typer

from lexray.cluster.provisioned.description import (
    Access,
    ClusterDescription,
    Direct,
    SecretsManager,
    Ssh,
    SshFile,
    Ssm,
    TokenFile,
)
from lexray.storage.errors import UserError

Ask = Callable[[str], bool]
"""Whether the user agrees."""
FILE = "trusted_clusters.json"
MAX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class TokenUse:
    """A token, by the place where it lies, and the cluster that it would be sent to."""

    cluster: str
    """Url of the dashboard, or the far end of the tunnel: all tunnels share the address 127.0.0.1."""
    token: str

    def __str__(self) -> str:
        return f"{_printable(self.token)} would be sent to {_printable(self.cluster)}"


def token_use(description: ClusterDescription, url: str | None, token_file: str | None) -> TokenUse | None:
    """Return what a connection to this cluster would send; None where it has no token.

    `url` is the dashboard's address where no tunnel leads to it; `token_file` goes before the description's token.
    """
    token = _file(token_file) if token_file is not None else _described_token(description)
    return None if token is None else TokenUse(cluster=url or _far_end(description), token=token)


def check_trust(use: TokenUse, *, is_given: bool, ask: Ask | None) -> None:
    """Return when the user agrees to this use, now (`is_given`, `ask`) or earlier; remember it.

    `ask` is None where nobody can be asked. Raises UserError where the user does not agree.
    """
    if not is_given:
        if use in trusted_uses():
            return
        if ask is None:
            raise UserError(f"{use} for the first time; give --trust if that is right")
        if not ask(f"{use} for the first time. Is that right?"):
            raise UserError(f"{use}: not agreed to; nothing was sent")
    remember(use)


def asked_on_terminal() -> Ask | None:
    """Return a question on the terminal; None where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, err=True)


def trust_file() -> Path | None:
    """Return where agreed uses are kept; None for a user without a home."""
    folder = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(folder) if folder and Path(folder).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return base / "lexray" / FILE


def trusted_uses() -> frozenset[TokenUse]:
    """Return the uses that were agreed to earlier; none where the file is missing, damaged or not the user's alone."""
    path = trust_file()
    if path is None:
        return frozenset()
    try:
        entries = json.loads(_own_content(path))
        return frozenset(TokenUse(**{name: str(entry[name]) for name in ("cluster", "token")}) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return frozenset()


def remember(use: TokenUse) -> None:
    """Add a use to the file, which only this user can read; without effect where it cannot be written."""
    path, known = trust_file(), trusted_uses()
    if path is None or use in known:
        return
    entries = sorted((asdict(one) for one in {*known, use}), key=lambda entry: (entry["cluster"], entry["token"]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with NamedTemporaryFile("w", dir=path.parent, prefix=FILE, delete=False) as new:  # made with mode 0600
            json.dump(entries, new, indent=1)
        os.replace(new.name, path)
    except OSError:
        return


def _own_content(path: Path) -> bytes:
    """Return the content of a regular file that nobody else can write. Raises OSError for any other."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(str(path))
        return file.read(MAX_BYTES)


def _described_token(description: ClusterDescription) -> str | None:
    where = description.token
    if where is None:
        return None
    if isinstance(where, TokenFile):
        return _file(where.path)
    if isinstance(where, SecretsManager):
        return f"AWS secret {where.arn}"
    if isinstance(where, SshFile):
        return f"token file {where.path} on that host"
    return f"Kubernetes secret {where.name}, key {where.key}"


def _file(path: str) -> str:
    return f"token file {os.path.abspath(os.path.expanduser(path))}"


def _far_end(description: ClusterDescription) -> str:
    access: Access = description.access
    assert not isinstance(access, Direct)
    region = f" in {description.region}" if description.region is not None else ""
    if isinstance(access, Ssm):
        return f"port {access.port} of EC2 autoscaling group {access.autoscaling_group}{region}"
    if isinstance(access, Ssh):
        return (
            f"port {access.port} of {access.address}, by ssh to {access.user + '@' if access.user else ''}{access.host}"
        )
    if access.eks_cluster is not None:
        by = f"EKS cluster {access.eks_cluster}{region}"
    else:
        by = f"kubectl context {access.context}" if access.context is not None else "kubectl's current context"
    return f"port {access.port} of service {access.service} in namespace {access.namespace}, {by}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
