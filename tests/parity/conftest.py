"""Held against other libraries, run for real; `make parity` gives them an environment of their own.

Elsewhere nothing here is collected. A table of the largest differences is printed at the end.
"""

import importlib.util
import os
import sys
import types

import pytest

HERE = importlib.util.find_spec("sae_lens") is not None
collect_ignore_glob = [] if HERE else ["test_*.py"]

ROWS: dict[tuple[str, str], dict[str, float]] = {}
"""(library, what) to largest relative differences by name."""


def _import_parts_of_overcomplete() -> None:
    """Its front door loads vision models, which need a torchvision that may not fit this torch; the rest does not."""
    spec = importlib.util.find_spec("overcomplete")
    assert spec is not None
    package = types.ModuleType("overcomplete")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["overcomplete"] = package


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: everything here is small
if HERE:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _import_parts_of_overcomplete()


class Against:
    """Checks that two results are the same and remembers by how much they differ."""

    def __init__(self, library: str, what: str) -> None:
        self.row = ROWS.setdefault((library, what), {})

    def __call__(self, name: str, found, expected, tolerance: float = 1e-5) -> None:
        """Largest difference, relative to the largest expected value (which is not zero), within the tolerance."""
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        size = float(expected.detach().abs().max())
        assert size > 0, f"{name} is all zero, which says nothing"
        difference = float((found.detach() - expected.detach()).abs().max()) / size
        self.row[name] = max(difference, self.row.get(name, 0.0))
        assert difference <= tolerance, f"{name}: relative difference {difference:.2e} above {tolerance:g}"

    def gradients(self, found: dict, expected: dict, tolerance: float = 1e-4) -> None:
        assert found.keys() == expected.keys()
        for name in expected:
            try:
                self("gradients", found[name], expected[name], tolerance)
            except AssertionError as error:
                raise AssertionError(f"gradient of {name}: {error}") from None


@pytest.fixture
def against():
    return Against


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    terminalreporter.section("largest relative differences")
    for (library, what), row in sorted(ROWS.items()):
        numbers = "  ".join(f"{name} {value:.0e}" for name, value in row.items())
        terminalreporter.write_line(f"{library:34} {what:38} {numbers}")
