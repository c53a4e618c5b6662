"""Find a Ray cluster: join the one at an address, or start one on this machine for as long as the command runs."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import ray

from lexray.cluster.provisioned.description import Pool
from lexray.cluster.ray_backend.internals import announce_node_groups, on_loopback, wants_another_token
from lexray.cluster.ray_backend.local_ray import LocalFolder, is_on_loopback_alone, local_folder, started
from lexray.cluster.ray_backend.package import code_package
from lexray.storage.errors import UserError, one_line
from lexray.storage.objects.options import insecure_env

CONNECT_TIMEOUT_S = 10

# Read by the processes that Ray starts for this command.
PROCESS_ENV = {
    "PYTHONSAFEPATH": "1",  # Ray's dashboard forks servers by `python -c`, which import from the working directory
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end or death of a worker is noticed
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # workers that hang say no goodbye; they are killed after it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the placer tells trials whose node leaves
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # More processes than cores is normal here: most of them wait. Ray would warn of it.
    "RAY_worker_maximum_startup_concurrency": "8",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the command; what is unfinished continues next time
    "TUNE_GLOBAL_CHECKPOINT_S": "60",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # the placer says how many: Tune alone would start one process after another
}


@contextmanager
def connected(address: str | None, *, is_job: bool = False, pools: Sequence[Pool] = ()) -> Iterator[None]:
    """Inside, Ray is connected. Raises UserError when there is no cluster at `address`.

    Workers import the very lexray of this process, whatever their nodes have installed, and never from a working
    directory. A job of the cluster (`is_job`) ships no code: it arrived with the job, or the cluster has it. `pools`
    are nodes that the cluster's autoscaler may start.
    """
    if address is None:
        with local_ray():
            yield
        return
    _set_process_env()
    with TemporaryDirectory(prefix="lexray-code-") as folder:
        _join(address, {} if is_job else shipped_code(Path(folder)))
    if pools:
        announce_node_groups(pools)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def local_ray() -> Iterator[LocalFolder]:
    """Inside, a Ray on this machine is connected, for this user alone. Raises RayStartError."""
    from lexray.training.mesh.device import usable_gpus

    _set_process_env()
    with ExitStack() as stack:
        folder = stack.enter_context(local_folder())
        runtime_env = {"env_vars": PROCESS_ENV | insecure_env(), **shipped_code(folder.path)}
        stack.enter_context(started(folder, runtime_env=runtime_env, num_gpus=usable_gpus()))
        yield folder


def _set_process_env() -> None:
    os.environ.update({name: value for name, value in PROCESS_ENV.items() if name not in os.environ})


def _join(address: str, code: dict[str, str]) -> None:
    _check_answers(address)
    try:
        with on_loopback() if is_on_loopback_alone(address) else nullcontext():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": PROCESS_ENV | insecure_env() | _known(address), **code},
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(f"--address {address}: no Ray cluster answers there ({reason})") from error


def _known(address: str) -> dict[str, str]:
    """Tell workers the address of their cluster: Ray's own libraries may find another Ray on the machine."""
    found = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    is_told = bool(re.fullmatch(r"[^/\s]+:\d+", found)) and not found.startswith(("127.", "localhost:", "[::1]:"))
    return {"RAY_ADDRESS": found} if is_told else {}


def shipped_code(folder: Path) -> dict[str, str]:
    """Write lexray's package into `folder`; return what a runtime environment says of it.

    It becomes the workers' working directory and the first entry of their PYTHONPATH. Ray then adds neither the
    directory of this process nor that of its script to their paths.
    """
    path = folder / "lexray.zip"
    path.write_bytes(code_package().content)
    return {"working_dir": str(path)}


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes to reach an address where nobody listens."""
    if "@" in address:
        raise UserError("--address: a Ray cluster takes no user and password; leave out what is before the @")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray knows where to look
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(f"--address {address}: nobody answers there ({error.strerror or error})") from error
    if not address.startswith("ray://"):
        _check_token(address)


def _check_token(address: str) -> None:
    """Without the right token Ray itself would try for 20 s, and not say why it failed."""
    if wants_another_token(address, CONNECT_TIMEOUT_S):
        raise UserError(
            f"--address {address}: this cluster wants another token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file that holds its token"
        )
