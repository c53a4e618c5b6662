"""The host list of `infra/ssh` (`hosts.yaml`) and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lexray.cluster.provisioned.description import (
    DASHBOARD_PORT,
    ClusterDescription,
    Liveness,
    Name,
    Port,
    Ssh,
    SshFile,
    SshName,
)
from lexray.storage.config_file import FileModel, read_config_file
from lexray.storage.errors import UserError

HOSTS_FILE = "hosts.yaml"
GCS_PORT = 6379
RESERVED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class Host(FileModel):
    """A machine that ssh reaches without prompting."""

    host: SshName
    """Host for `ssh`: a name, an address, or an alias of your ssh configuration."""
    address: str | None = Field(default=None, pattern=r"^[0-9a-fA-F.:]+$")
    """IP address at which the other hosts reach it; None: the one that ssh used."""
    cpus: int | None = Field(default=None, ge=0)
    """CPUs that Ray may use; None: all."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs that Ray may use; None: all."""


class HostList(FileModel):
    """A cluster of existing machines that ssh reaches."""

    name: Name = "lab"
    hosts: tuple[Host, ...]
    head: SshName | None = None
    """Host that runs Ray's head and the drivers of sweeps, besides trials; None: the first."""
    user: SshName | None = None
    """User on all hosts; None: as your ssh configuration says."""
    key: str | None = None
    """File of the private key; None: as your ssh configuration or agent has it."""
    python: str = "python3"
    """Python interpreter on every host; all must have the same versions of Python and Ray."""
    python_environment: Literal["image", "uv"] = "image"
    """`image`: `python` has lexray's dependencies. `uv`: it has Ray alone, and each host installs the rest by uv."""
    port: Port = GCS_PORT
    """Port of Ray's head (GCS)."""
    dashboard_port: Port = DASHBOARD_PORT
    temp_dir: str = Field(default="/tmp", pattern=r"^/.{0,25}$")
    """Folder on each host for Ray's sockets, logs and spilled objects; its path has at most 26 bytes."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every Ray process, such as NCCL_SOCKET_IFNAME or AWS_PROFILE."""
    liveness: Liveness = Liveness()
    data_url: str | None = None
    """Url prefix that all hosts can read, such as file:///shared/data."""
    runs_url: str | None = None
    """Url prefix that all hosts can write."""

    @field_validator("hosts", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        """Accept a plain name as a host without further settings."""
        return [{"host": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given

    @model_validator(mode="after")
    def _fits_together(self) -> HostList:
        names = [one.host for one in self.hosts]
        if not names:
            raise ValueError("hosts: empty; name at least one")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"hosts: {twice} is listed {names.count(twice)} times; list each host once")
        if self.head is not None and self.head not in names:
            raise ValueError(f"head: {self.head} is not among the {len(names)} hosts; add it there")
        if reserved := next((name for name in RESERVED if name in self.env), None):
            raise ValueError(f"env.{reserved}: the head makes the token; leave it out")
        return self

    @property
    def head_host(self) -> Host:
        return next((one for one in self.hosts if one.host == self.head), self.hosts[0])

    def access(self, host: Host, address: str = "127.0.0.1") -> Ssh:
        """Return the ssh access to a host whose dashboard listens at `address`."""
        return Ssh(host=host.host, user=self.user, key=self.key, address=address, port=self.dashboard_port)


def read_hosts(folder: Path) -> HostList:
    """Read the host list of a folder. Raises UserError naming the file and the first wrong field."""
    return read_config_file(str(folder / HOSTS_FILE), HostList)


def check_hosts(hosts: HostList, found: Mapping[str, dict[str, Any]]) -> None:
    """Raise UserError in one line unless the hosts, as `found` by name, can be one cluster."""
    head = hosts.head_host.host
    first: dict[str, str] = {}
    ray, python = (found[head][what] for what in ("ray", "python"))
    if ray is None:
        raise UserError(f"hosts: {head}: {hosts.python} has no Ray; set `python` to one with lexray's dependencies")
    for name, one in found.items():
        other = first.setdefault(one["address"], name)
        if other != name:
            raise UserError(f"hosts: {other} and {name} are one machine ({one['address']}); list it once")
        for what, own, heads in (("Ray", one["ray"] or "none", ray), ("Python", one["python"], python)):
            if own != heads:
                raise UserError(
                    f"hosts: {name}: {what} {own}, but {heads} on the head {head}; install {what} {heads} there"
                )
    for port in found[head]["taken"]:
        field = "port" if port == hosts.port else "dashboard_port"
        raise UserError(f"{field}: {port} is in use on {head}, by another Ray?; set {field} to a free one")


def described(hosts: HostList, address: str, token_file: str, ray_version: str) -> dict[str, Any]:
    """Return the `cluster` object, as JSON has it, of a head at `address`."""
    head = hosts.head_host
    description = ClusterDescription(
        schema=1,
        name=hosts.name,
        provider="ray",
        access=hosts.access(head, address),
        token=SshFile(path=token_file),
        ray_version=ray_version,
        python_environment=hosts.python_environment,
        data_url=hosts.data_url,
        runs_url=hosts.runs_url,
        liveness=hosts.liveness,
    )
    return description.model_dump(mode="json", by_alias=True, exclude_none=True)
