"""When a call is made again: a pure decision, tested on a clock of its own."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexray.storage.objects import retries
from lexray.storage.objects.retries import (
    Retrier,
    RetryPolicy,
    StoreUnavailableError,
    Verdict,
    judge,
    next_delay,
    retried_calls,
)

FRACTIONS = st.floats(0, 1, exclude_max=True)


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s

    def retrier(self, fraction: float = 0.99, **policy: float) -> Retrier:
        return Retrier(
            policy=RetryPolicy(**policy),  # type: ignore[arg-type]
            clock=self,
            sleep=self.sleep,
            fraction=lambda: fraction,
        )


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = iter(range(times))

    def action() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return action


@given(attempt=st.integers(1, 10**6), elapsed_s=st.floats(0, 1e6), fraction=FRACTIONS)
def test_a_pause_is_below_its_ceiling_and_within_the_budget(attempt: int, elapsed_s: float, fraction: float) -> None:
    policy = RetryPolicy(attempts=20, budget_s=60)
    pause_s = next_delay(policy, attempt=attempt, elapsed_s=elapsed_s, fraction=fraction)
    if attempt >= 20 or elapsed_s >= 60:
        assert pause_s is None
    else:
        assert pause_s is not None
        assert 0 <= pause_s <= min(policy.ceiling_s, policy.first_ceiling_s * 2 ** (attempt - 1))
        assert elapsed_s + pause_s <= 60


def test_ceilings_double_up_to_the_longest() -> None:
    policy = RetryPolicy(attempts=99, budget_s=1e9, first_ceiling_s=1, ceiling_s=10)
    pauses = [next_delay(policy, attempt=n, elapsed_s=0, fraction=0.5) for n in range(1, 8)]
    assert pauses == [0.5, 1, 2, 4, 5, 5, 5]


def test_a_call_goes_on_until_it_succeeds_and_each_retry_is_counted() -> None:
    clock, before = Clock(), retried_calls()
    assert clock.retrier().call("file", failing(5, ConnectionResetError())) == "done"
    assert len(clock.pauses) == 5
    assert clock.pauses == sorted(clock.pauses)
    assert retried_calls() == before + 5


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [({"attempts": 4}, 4), ({"budget_s": 10.0, "first_ceiling_s": 1.0}, 5), ({"budget_s": 0}, 1)],
)
def test_a_spent_budget_is_one_line_of_file_attempts_seconds_and_reason(
    policy: dict[str, float], attempts: int
) -> None:
    clock, calls = Clock(), []

    def action() -> None:
        calls.append(1)
        raise ConnectionResetError(errno.ECONNRESET, "reset\nby peer")

    with pytest.raises(StoreUnavailableError) as caught:
        clock.retrier(**policy).call("s3://bucket/file", action)
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    assert str(caught.value) == f"s3://bucket/file: given up after {tries} in {clock.now:.0f} s; reset"
    assert len(calls) == attempts
    assert clock.now <= policy.get("budget_s", RetryPolicy().budget_s)


def test_a_store_that_is_given_up_is_not_taken_up_again_by_an_outer_retry() -> None:
    assert judge(StoreUnavailableError("file: given up")) is Verdict.FINAL


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_stays_wrong_is_raised_as_it_was(number: int) -> None:
    clock, error = Clock(), OSError(number, "stays")
    with pytest.raises(OSError, match="stays") as caught:
        clock.retrier().call("file", failing(1, error))
    assert caught.value is error
    assert not clock.pauses


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (TimeoutError(), Verdict.AGAIN),
        (ConnectionRefusedError(), Verdict.AGAIN),
        (OSError(errno.ESTALE, "stale file handle"), Verdict.AGAIN),
        (ValueError("wrong argument"), Verdict.FINAL),
        (KeyError("x"), Verdict.FINAL),
        (
            RuntimeError("refreshed, but the refreshed credentials are still expired."),
            Verdict.AGAIN_WITH_NEW_CREDENTIALS,
        ),
        (ConnectionError("SSL: CERTIFICATE_VERIFY_FAILED certificate verify failed"), Verdict.FINAL),
    ],
)
def test_errors_without_an_answer_are_judged_by_their_kind(error: Exception, verdict: Verdict) -> None:
    assert judge(error) is verdict


def test_statuses_of_other_stores_libraries_are_understood() -> None:
    class HttpError(Exception):
        def __init__(self, code: int) -> None:
            self.code = code

    assert judge(HttpError(503)) is Verdict.AGAIN
    assert judge(HttpError(404)) is Verdict.FINAL


def test_a_burst_of_retries_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clock, quiet_s = Clock(), retries.LOG_EVERY_S
    clock.now = 1e12  # later than whatever this process has logged
    with caplog.at_level(logging.WARNING, "lexray"):
        for name in ("one", "two"):
            clock.retrier().call(name, failing(3, ConnectionResetError("gone")))
        clock.now += quiet_s
        clock.retrier().call("three", failing(1, ConnectionResetError("gone")))
    lines = [record.getMessage() for record in caplog.records if record.name == "lexray"]
    assert [line.split(" (")[0] for line in lines] == ["one: gone; trying again", "three: gone; trying again"]
    retries._HISTORY._logged_at = -float("inf")
