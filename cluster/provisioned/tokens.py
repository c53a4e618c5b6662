"""Reads the token of a cluster from where its description says; never writes or prints it."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from dataclasses import dataclass, field

from lexray.cluster.provisioned import aws
from lexray.cluster.provisioned.description import (
    ClusterDescription,
    Kubectl,
    KubernetesSecret,
    SecretsManager,
    Ssh,
    SshFile,
    TokenFile,
)
from lexray.cluster.provisioned.kubernetes import KubectlCall
from lexray.cluster.provisioned.programs import output_at, output_of
from lexray.storage.errors import UserError

MAX_BYTES = 4096
"""Size limit of a token; Ray's have 36 to 64 characters."""


@dataclass(frozen=True)
class Secret:
    """A token that prints as stars."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "***"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that authenticate a request to the dashboard."""
        return {"Authorization": f"Bearer {self.value}"}


def token_of_file(path: str) -> Secret:
    """Return the token in a regular file. Raises UserError naming the file."""
    try:
        text = _content(os.path.expanduser(path)).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"token file {path}: holds bytes instead of text") from error
    except (OSError, ValueError) as error:
        raise UserError(f"token file {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return _checked(text, f"token file {path}")


def _content(path: str) -> bytes:
    """Return at most `MAX_BYTES + 1` bytes of a regular file. Raises OSError for a pipe, a device or a folder."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(None, "not a regular file")
        return file.read(MAX_BYTES + 1)


def token_of(description: ClusterDescription, kubectl: KubectlCall | None) -> Secret | None:
    """Return the token of a described cluster, None if it has none; `kubectl` holds the tunnel's options."""
    where = description.token
    if where is None:
        return None
    if isinstance(where, TokenFile):
        return token_of_file(where.path)
    if isinstance(where, SecretsManager):
        return _checked(aws.secret(where.arn, description.region), f"secret {where.arn}")
    if isinstance(where, SshFile):
        if not isinstance(description.access, Ssh):
            raise UserError("token: an ssh_file is read by ssh, but access.kind is not ssh")
        text = output_at(description.access, ["head", "-c", str(MAX_BYTES + 1), where.path])
        return _checked(text, f"token file {where.path} on {description.access.host}")
    assert isinstance(where, KubernetesSecret)
    if kubectl is None:
        raise UserError("token: a kubernetes_secret is read by kubectl, but access.kind is not kubectl")
    return _of_kubernetes(where, description.access, kubectl)


def _of_kubernetes(where: KubernetesSecret, access: object, kubectl: KubectlCall) -> Secret:
    assert isinstance(access, Kubectl)
    path = where.key.replace(".", "\\.")
    coded = output_of(kubectl.command("get", "secret", where.name, "-o", f"jsonpath={{.data.{path}}}"))
    try:
        text = base64.b64decode(coded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UserError(f"token: secret {where.name}, key {where.key}: not base64 text") from error
    return _checked(text, f"secret {where.name}, key {where.key}")


def _checked(text: str, where: str) -> Secret:
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise UserError(f"{where}: more than {MAX_BYTES} bytes; it must hold the cluster's token and nothing else")
    token = text.strip()
    if not token:
        raise UserError(f"{where}: empty; it must hold the cluster's token")
    if len(token.split()) > 1 or not token.isascii() or not token.isprintable():
        raise UserError(f"{where}: more than one word; it must hold the cluster's token and nothing else")
    return Secret(token)
