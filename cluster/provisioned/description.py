"""The `cluster` object: what `infra/` prints and `lexray` reads. Terraform, manifests and Python agree on it.

`terraform output -json cluster > cluster.json` of either root prints it; for a cluster of your own write one by hand,
JSON or YAML. It holds no secret: only the token's location.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lexray.storage.config_file import FileModel

SCHEMA = 1
"""Version of the schema, incremented when a field changes its meaning; other versions are refused."""
DASHBOARD_PORT = 8265
SETUP_TIMEOUT_S = 1800
"""Seconds that a node may take to install a job's requirements by uv: torch and its CUDA libraries are 3 GB to fetch.
"""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,30}$")]
# Arguments of `kubectl` and `aws`: a leading dash would make one an option, such as `--server=http://...`.
KubeName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
KubeKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9._][A-Za-z0-9._-]{0,252}$")]
KubeLabel = Annotated[
    str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
]
KubeLabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]
KubeContext = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,252}$")]
AwsName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
Region = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
# An argument of `ssh`, behind `-l` or at the end.
SshName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Direct(FileModel):
    """A dashboard that is reachable directly."""

    kind: Literal["direct"] = "direct"
    address: str
    """`http://HOST:PORT` of the dashboard, where jobs are submitted."""


class Ssm(FileModel):
    """A head on EC2 without a public address: a tunnel by AWS Systems Manager."""

    kind: Literal["ssm"] = "ssm"
    autoscaling_group: str
    """Autoscaling group of size one with the head; its instance is looked up when the tunnel opens."""
    port: Port = DASHBOARD_PORT


class Kubectl(FileModel):
    """A head in Kubernetes: a tunnel by `kubectl port-forward`."""

    kind: Literal["kubectl"] = "kubectl"
    namespace: KubeName
    service: KubeName
    """Service of the head that KubeRay made."""
    port: Port = DASHBOARD_PORT
    context: KubeContext | None = None
    """Context of the kubeconfig; None: its current one."""
    eks_cluster: AwsName | None = None
    """Its credentials are fetched by `aws eks update-kubeconfig` into a file that lasts as long as the tunnel."""


class Ssh(FileModel):
    """A head that ssh reaches: a tunnel by `ssh -L`."""

    kind: Literal["ssh"] = "ssh"
    host: SshName
    """Host for `ssh`, with the settings of your ssh configuration."""
    user: SshName | None = None
    key: str | None = None
    """File of the private key; None: as your ssh configuration or agent has it."""
    address: str = Field(default="127.0.0.1", pattern=r"^[0-9a-fA-F.:]+$")
    """IP address at which the dashboard listens on that host."""
    port: Port = DASHBOARD_PORT


Access = Annotated[Direct | Ssm | Kubectl | Ssh, Field(discriminator="kind")]


class TokenFile(FileModel):
    kind: Literal["file"] = "file"
    path: str


class SecretsManager(FileModel):
    kind: Literal["secrets_manager"] = "secrets_manager"
    arn: str


class KubernetesSecret(FileModel):
    """The secret that KubeRay makes with `authOptions.mode: token`, or another in the head's namespace."""

    kind: Literal["kubernetes_secret"] = "kubernetes_secret"
    name: KubeName
    key: KubeKey = "auth_token"


class SshFile(FileModel):
    """A file on the head, read by ssh."""

    kind: Literal["ssh_file"] = "ssh_file"
    path: str = Field(pattern="^/")


Token = Annotated[TokenFile | SecretsManager | KubernetesSecret | SshFile, Field(discriminator="kind")]


class Toleration(FileModel):
    """A Kubernetes toleration of a taint of the pool's nodes."""

    key: KubeLabel | None = None
    """None tolerates every taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None tolerates every effect."""

    @model_validator(mode="after")
    def _value_goes_with_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None) or (self.operator == "Equal" and self.key is None):
            raise ValueError(
                f"Equal needs a key and a value, Exists takes no value; got {self.operator}, key {self.key!r}, "
                f"value {self.value!r}"
            )
        return self


class Pool(FileModel):
    """Nodes of one kind, from `min_nodes` to `max_nodes` of them."""

    name: Name
    instance_types: tuple[str, ...] = ()
    """Instance types in order of preference; empty if unknown."""
    cpus: float = Field(gt=0)
    """Cores of a node that Ray may use."""
    memory_gib: float = Field(gt=0)
    """Memory of a node that Ray may use."""
    gpus: int = Field(default=0, ge=0)
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of one GPU."""
    capacity: Literal["SPOT", "ON_DEMAND", "RESERVED", "CAPACITY_BLOCK"] = "SPOT"
    min_nodes: int = Field(default=0, ge=0)
    max_nodes: int = Field(ge=1)
    zone: str | None = None
    """Zone of all its nodes; None if they may be in several."""
    efa_interfaces: int = Field(default=0, ge=0)
    """EFA cards of a node. On Kubernetes a pod requests all of them, and huge pages for libfabric."""
    node_selector: dict[KubeLabel, KubeLabelValue] = Field(default_factory=dict)
    """Further labels that a node must have, on Kubernetes."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of the nodes beyond those that lexray knows, on Kubernetes."""
    labels: dict[KubeLabel, KubeLabelValue] = Field(default_factory=dict)
    """Labels of the pool's pods, on Kubernetes."""
    runtime_class: KubeName | None = None
    """`runtimeClassName` of the pods, such as nvidia where the nodes' default runtime shows no GPU."""
    price_usd_hour: float | None = Field(default=None, ge=0)
    """Hourly price of a node as the operator states it; None if unknown."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Pool:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes ({self.min_nodes}) must be at most max_nodes ({self.max_nodes})")
        return self


class Liveness(FileModel):
    """Detection of nodes that vanish silently. Ray's own defaults take minutes."""

    keepalive_s: float = Field(default=10.0, gt=0)
    """Silence in seconds before a keep-alive ping, and the time limit of its answer."""
    health_check_period_s: float = Field(default=5.0, gt=0)
    health_check_timeout_s: float = Field(default=10.0, gt=0)
    health_check_failures: int = Field(default=5, ge=1)
    """Consecutive failed checks before a node counts as dead."""

    @property
    def ray_env(self) -> dict[str, str]:
        """Environment variables of every Ray process, with Ray's names and units (milliseconds)."""
        keepalive_ms = _ms(self.keepalive_s)
        return {
            "RAY_grpc_client_keepalive_time_ms": keepalive_ms,
            "RAY_grpc_client_keepalive_timeout_ms": keepalive_ms,
            "RAY_grpc_keepalive_time_ms": keepalive_ms,
            "RAY_grpc_keepalive_timeout_ms": keepalive_ms,
            "RAY_health_check_initial_delay_ms": _ms(self.health_check_period_s),
            "RAY_health_check_period_ms": _ms(self.health_check_period_s),
            "RAY_health_check_timeout_ms": _ms(self.health_check_timeout_s),
            "RAY_health_check_failure_threshold": str(self.health_check_failures),
        }


class ClusterDescription(FileModel):
    """Description of a cluster, however it was created."""

    schema_: Literal[1] = Field(alias="schema")
    name: Name
    provider: Literal["aws-ec2", "aws-eks", "kubernetes", "ray"]
    region: Region | None = None
    access: Access
    token: Token | None = None
    """Location of the token; None: the cluster has none, which `lexray doctor` fails unless only this machine reaches
    it."""
    ray_version: str | None = None
    image: str | None = None
    """Container image, or machine image, of all nodes. Each job brings lexray's own code."""
    python_environment: Literal["image", "uv"] = "image"
    """`image`: the image has lexray's requirements (infra/image builds one). `uv`: it has Ray alone, like the public
    rayproject/ray:VERSION-py311-gpu; each node installs a job's requirements by uv before the first process of the job.
    """
    image_pull_secrets: tuple[KubeName, ...] = ()
    """Secrets of the namespace with which Kubernetes pulls `image` from a private registry."""
    data_url: str | None = None
    """Url prefix that its workers can read."""
    runs_url: str | None = None
    """Url prefix that its workers can write."""
    scratch_url: str | None = None
    """Url prefix whose objects are deleted after `scratch_days`."""
    scratch_days: int | None = Field(default=None, ge=1)
    wandb_secret_arn: str | None = None
    pools: tuple[Pool, ...] = ()
    liveness: Liveness = Liveness()
    idle_timeout_minutes: float | None = Field(default=None, gt=0)
    """Minutes after which an idle node is released."""
    max_cluster_hours: float | None = Field(default=None, gt=0)
    max_hourly_cost_usd: float | None = Field(default=None, ge=0)
    """Maximum hourly cost of the cluster with every pool at its largest, as computed by Terraform."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of all resources that the templates created; used to find what a destroy left."""


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))
