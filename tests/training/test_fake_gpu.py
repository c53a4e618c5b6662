"""Every architecture trains, restarts dead latents, is evaluated and measured with each tensor on the device it needs.

A pretended GPU says so, see `fake_gpu`; no real one was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from training_cases import CASES, Case

QUICK = ("topk", "jumprelu", "mp", "pca")
"""One of each way to a code and to learn; all others are slow."""


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process of its own: the fake GPU changes torch for good."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def trained(case: Case, options: dict[str, Any]) -> dict[str, Any]:
    from fake_gpu import train_on_gpu

    return {name: noted._asdict() for name, noted in train_on_gpu(case, options).items()}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=str(c), marks=() if str(c) in QUICK else pytest.mark.slow) for c in CASES]
)
def test_every_tensor_lies_where_it_is_needed(case: Case, on_gpu: Callable[..., Any]) -> None:
    restarts = hasattr(case.cls.Config, "resample_every_rows") and "archetypal" not in case.architecture
    noted = on_gpu(trained, case, {"resample_every_rows": 24} if restarts else {})
    assert set(noted) == {"start", "step", "evaluation", "measures"}
    assert not {name: found["mixes"] for name, found in noted.items() if found["mixes"]}
    assert noted["evaluation"]["waits"], "numbers came to the host, so the pretended device was used"


# What it would find -----------------------------------------------------------------------------------------------


def buffer_left_on_the_host(x_BD: Any) -> Any:
    return x_BD - torch.zeros(x_BD.shape[1])


def parameter_left_on_the_host(x_BD: Any) -> Any:
    return x_BD @ torch.zeros(x_BD.shape[1], 3, requires_grad=True)


def numbers_made_on_the_host(x_BD: Any) -> Any:
    return torch.where(x_BD > 0, torch.arange(x_BD.shape[1]), x_BD)


def rows_chosen_by_the_host(x_BD: Any) -> Any:
    return x_BD.index_select(0, torch.tensor([0, 1]))


def added_on_the_host(x_BD: Any) -> Any:
    return torch.zeros(2, x_BD.shape[1]).index_add_(0, torch.zeros(len(x_BD), dtype=torch.int64), x_BD)


def a_number_of_the_host(x_BD: Any) -> Any:
    """Allowed: a tensor without dimensions is a number."""
    return x_BD * torch.tensor(2.0) + 1


def moved(x_BD: Any) -> Any:
    """Allowed, and the host waits."""
    return x_BD.sum().item() + float(x_BD.cpu().sum())


MIXES = [
    buffer_left_on_the_host,
    parameter_left_on_the_host,
    numbers_made_on_the_host,
    rows_chosen_by_the_host,
    added_on_the_host,
]


def noted_of(function: Callable[[Any], Any]) -> dict[str, Any]:
    from fake_gpu import GPU, Device

    with torch.autograd.set_multithreading_enabled(False), Device() as device:
        function(torch.ones(4, 5).to(GPU))
    return device.noted._asdict()


@pytest.mark.parametrize("planted", MIXES)
def test_a_planted_mix_is_seen_with_its_line(planted: Callable[[Any], Any], on_gpu: Callable[..., Any]) -> None:
    mixes = on_gpu(noted_of, planted)["mixes"]
    assert mixes
    first = planted.__code__.co_firstlineno
    assert {place for place, _ in mixes} == {f"test_fake_gpu.py:{first + 1}"}


def test_what_is_allowed_is_not_a_mix_and_waits_are_counted(on_gpu: Callable[..., Any]) -> None:
    assert not any(on_gpu(noted_of, a_number_of_the_host)["mixes"])
    noted = on_gpu(noted_of, moved)
    assert not noted["mixes"]
    assert sum(noted["waits"].values()) >= 2
