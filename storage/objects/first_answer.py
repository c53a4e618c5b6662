"""Fail fast for a store that does not exist, so that a command does not spend a whole retry budget on a wrong address.

Inside `answers_within` a store that never responded to this process is retried for seconds only. Any response, even an
error, shows that it exists: afterwards calls have the full retry budget. Child processes (workers, window servers) have
the full budget from the start, since the command that started them had a response.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lexray.storage.objects.retries import Retrier, RetryPolicy, StoreUnavailableError, Verdict, judge, s3_answer

T = TypeVar("T")


class NoAnswerError(StoreUnavailableError):
    """A store never responded: more likely a wrong address than a transient fault."""


@contextmanager
def answers_within(budget_s: float) -> Iterator[None]:
    """Give up on stores whose first response takes longer than `budget_s` seconds."""
    before, _FIRST.budget_s = _FIRST.budget_s, budget_s
    try:
        yield
    finally:
        _FIRST.budget_s = before


def first_answer(store: Hashable, name: str, action: Callable[[], T], patient: Callable[[], T], budget_s: float) -> T:
    """Return the result of `action`, or of `patient`, the same call under the full policy, for a known store.

    `name` is the file, for messages; `budget_s` is the policy's. Raises NoAnswerError.
    """
    if _FIRST.budget_s is None or store in _FIRST.answered:
        return patient()
    retrier = Retrier(policy=RetryPolicy(budget_s=min(_FIRST.budget_s, budget_s)), tell=_nobody)
    try:
        found = retrier.call(name, action, judge=_unanswered)
    except StoreUnavailableError as error:
        raise NoAnswerError(str(error)) from error.__cause__
    except Exception:
        _FIRST.answered.add(store)
        return patient()
    _FIRST.answered.add(store)
    return found


def _unanswered(error: BaseException) -> Verdict:
    """Retry only where there was no response; renewal of credentials takes the full policy."""
    nothing_came = judge(error) is Verdict.AGAIN and s3_answer(error)[0] is None
    return Verdict.AGAIN if nothing_came else Verdict.FINAL


def _nobody(name: str, why: str, now: float) -> None:
    """Log nothing: the attempt ends in one line either way."""


class _First:
    def __init__(self) -> None:
        self.budget_s: float | None = None
        self.answered: set[Hashable] = set()


_FIRST = _First()
os.register_at_fork(after_in_child=_FIRST.__init__)  # type: ignore[misc]
