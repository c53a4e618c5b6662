"""Settings of the training floor's tests."""

import hypothesis
import pytest

from lexray.training.loop.build import ensure_process_group

# The first example of a test often pays for a lazy import or a thread pool: a deadline says nothing here.
# Explaining a failure traces every line: minutes where many architectures fail alike.
phases = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
hypothesis.settings.register_profile("no deadline", deadline=None, phases=phases)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def process_group() -> None:
    """The group of one that DeepSpeed wants."""
    ensure_process_group()
