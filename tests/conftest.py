"""One Ray and one S3 server for the whole test session."""

import gc
import logging
import os

import pytest
import ray
from moto.server import ThreadedMotoServer

from cluster.connect import PROCESS_ENV


def pytest_collection_finish():
    """What importing and collecting left lives until the end: no collection of garbage has to look at it again.

    DeepSpeed collects twice for each engine that it makes, which took seconds in a session of thousands of tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def aws_credentials():
    """Found by every process of the session, Ray's too; of no use anywhere else."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="session")
def s3_server():
    """Address of a real HTTP S3 server on loopback, empty at first."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def ray_session(aws_credentials):
    """Address of a local Ray of 4 CPUs, started as `lexray` starts one."""
    os.environ.update(PROCESS_ENV)
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": PROCESS_ENV},
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
