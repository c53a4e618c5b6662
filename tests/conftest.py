"""One Ray and one S3 server for the whole test session."""

import gc
import os
import time

import pytest
import ray
from hypothesis import settings
from moto.server import ThreadedMotoServer

from lexray.cluster.ray_backend.connect import PROCESS_ENV
from lexray.cluster.ray_backend.local_ray import local_folder, started

settings.register_profile("search", max_examples=1000, deadline=None, print_blob=True)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
"""The same examples in every run, so that a run fails for what was changed; `make properties` searches for others."""

LAST = ("test_mesh.py", "test_target_l0.py", "test_mesh_checkpoints.py")
"""Matrices of which any part says something: what time is left is theirs."""


def pytest_addoption(parser):
    parser.addoption("--budget-s", type=float, help="begin no test after so many seconds; what was not run is listed")
    parser.addoption("--fuzz-s", type=float, default=600, help="seconds of fuzzing, shared by all readers")
    parser.addoption("--fuzz-seed", type=int, help="repeat the documents of a run that failed")
    parser.addoption("--turn", type=int, default=0, help="which file comes first when there is a budget")


def pytest_collection_modifyitems(config, items):
    """Within a budget the files take turns at being first, so that runs one after another cover all of them."""
    if config.getoption("--budget-s") is None:
        return
    files = list(dict.fromkeys(item.path for item in items))
    turn = config.getoption("--turn") % max(1, len(files))
    order = {path: number for number, path in enumerate(files[turn:] + files[:turn])}
    items.sort(key=lambda item: (item.path.name in LAST, order[item.path]))


def pytest_runtest_setup(item):
    budget_s = item.config.getoption("--budget-s")
    if budget_s is not None and time.monotonic() - item.session.config.began_s > budget_s:
        pytest.skip(f"not run: the budget of {budget_s:g} s is spent")


def pytest_configure(config):
    config.began_s = time.monotonic()


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
    with local_folder() as folder, started(folder, num_cpus=4, runtime_env={"env_vars": PROCESS_ENV}):
        yield ray.get_runtime_context().gcs_address
