"""One Ray for the whole test session, as `lexray` itself starts it."""

import logging
import os

import pytest
import ray

from cluster.connect import PROCESS_ENV


@pytest.fixture(scope="session")
def ray_session():
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
