"""Settings of the training floor's tests."""

import hypothesis
import pytest

from training.trainer import ensure_process_group

# The first example of a test often pays for a lazy import or a thread pool: a deadline says nothing here.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def process_group() -> None:
    """The group of one that DeepSpeed wants."""
    ensure_process_group()
