"""Calls `kubectl` for a cluster with the credentials that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lexray.cluster.provisioned.description import Kubectl
from lexray.cluster.provisioned.programs import output_of


@dataclass(frozen=True, kw_only=True)
class KubectlCall:
    """Common options of kubectl calls."""

    namespace: str
    context: str | None = None
    kubeconfig: str | None = None
    """Path of the kubeconfig; None: the user's own."""

    def command(self, *arguments: str) -> list[str]:
        context = ["--context", self.context] if self.context is not None else []
        config = ["--kubeconfig", self.kubeconfig] if self.kubeconfig is not None else []
        return ["kubectl", *config, *context, "--namespace", self.namespace, *arguments]

    def forward(self, service: str, port: int, local_port: int) -> list[str]:
        """Return the command of a port-forward from loopback."""
        return self.command("port-forward", "--address", "127.0.0.1", f"service/{service}", f"{local_port}:{port}")


@contextmanager
def kubectl_call(access: Kubectl, region: str | None) -> Iterator[KubectlCall]:
    """Yield the options of kubectl calls, with temporary credentials for a cluster of EKS."""
    if access.eks_cluster is None:
        yield KubectlCall(namespace=access.namespace, context=access.context)
        return
    with TemporaryDirectory(prefix="lexray-kube-") as folder:
        config = str(Path(folder) / "config")
        place = ["--region", region] if region is not None else []
        output_of(["aws", "eks", "update-kubeconfig", "--name", access.eks_cluster, *place, "--kubeconfig", config])
        yield KubectlCall(namespace=access.namespace, context=access.context, kubeconfig=config)
