"""Whoever starts a command should not wait a whole retry budget for a server that is not there.

Inside `answers_within` a store that never answered this process is asked for seconds only. Whatever it answers, be it
that it is busy or that we may not, it is there: from then on calls are as patient as ever. Processes that others start
(workers, window servers) are patient from the beginning, since the command that started them had an answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lexray.storage.objects.retries import Retrier, RetryPolicy, StoreUnavailableError, Verdict, judge, s3_answer

T = TypeVar("T")


class NoAnswerError(StoreUnavailableError):
    """A store that nobody found yet: more likely a wrong address than a fault that passes."""


@contextmanager
def answers_within(budget_s: float) -> Iterator[None]:
    """Give up stores that do not answer for the first time within so many seconds."""
    before, _FIRST.budget_s = _FIRST.budget_s, budget_s
    try:
        yield
    finally:
        _FIRST.budget_s = before


def first_answer(store: Hashable, name: str, action: Callable[[], T], patient: Callable[[], T], budget_s: float) -> T:
    """What `action` returns, or `patient`, which makes the same call under the policy, where the store is known.

    `name` is the file, for people; `budget_s` is the policy's. Raises NoAnswerError.
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
    """Another try only where nothing came back; what renews credentials is patient."""
    nothing_came = judge(error) is Verdict.AGAIN and s3_answer(error)[0] is None
    return Verdict.AGAIN if nothing_came else Verdict.FINAL


def _nobody(name: str, why: str, now: float) -> None:
    """These seconds end in one line either way."""


class _First:
    def __init__(self) -> None:
        self.budget_s: float | None = None
        self.answered: set[Hashable] = set()


_FIRST = _First()
os.register_at_fork(after_in_child=_FIRST.__init__)  # type: ignore[misc]
