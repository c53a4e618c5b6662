"""One retry policy for every call to a store: retryable errors, pauses, and limits.

Pauses grow exponentially with full jitter: each is uniform between zero and a ceiling that doubles, so that many
clients of a throttled store do not retry in sync. The layers below (botocore, s3fs) are configured not to retry; the
only exception is one silent replacement of a dead keep-alive connection (aiohttp).
"""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from lexray.storage.errors import one_line

log = logging.getLogger("lexray")

T = TypeVar("T")

LOG_EVERY_S = 30.0
"""Seconds over which retries are combined into one log line."""
_STATUSES = {408, 425, 429, 500, 502, 503, 504, 509}
_CODES = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted", "TooManyRequests",
    "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded", "BandwidthLimitExceeded",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
}  # fmt: skip
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
# Errors of Python, botocore (its own ConnectionError), aiohttp and urllib3, by the name of a base class.
_TRANSPORT = {
    "ConnectionError", "HTTPClientError", "IncompleteReadError", "IncompleteRead", "ResponseParserError",
    "FlexibleChecksumError", "ChecksumMismatch", "ClientPayloadError", "ClientConnectionError",
}  # fmt: skip
_CREDENTIALS = {"CredentialRetrievalError", "MetadataRetrievalError"}
_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.ENETRESET, errno.ESTALE, errno.EINTR,
}  # fmt: skip


class StoreUnavailableError(OSError):
    """A call failed until its retry budget was spent. One line: file, attempts, seconds, last reason."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits on the attempts and pauses of a call."""

    attempts: int = 30
    """Maximum number of calls, including the first one."""
    budget_s: float = 120.0
    """Seconds from the first call after which no retry starts; 0 never retries."""
    first_ceiling_s: float = 0.2
    """Seconds: maximum pause after the first failure."""
    ceiling_s: float = 15.0
    """Seconds: maximum pause after any failure."""


class Verdict(Enum):
    """Classification of a failed call."""

    FINAL = "final"
    AGAIN = "again"
    AGAIN_WITH_NEW_CREDENTIALS = "again with new credentials"


def next_delay(policy: RetryPolicy, *, attempt: int, elapsed_s: float, fraction: float) -> float | None:
    """Return the seconds to pause after failed call number `attempt` (from 1); None when no retry may follow.

    `fraction` in [0, 1) is the jitter.
    """
    left_s = policy.budget_s - elapsed_s
    if attempt >= policy.attempts or left_s <= 0:
        return None
    ceiling_s = min(policy.ceiling_s, policy.first_ceiling_s * 2.0 ** min(attempt - 1, 60))
    return min(fraction * ceiling_s, left_s)


def judge(error: BaseException) -> Verdict:
    """Classify an error. Errors not known to be transient are final: not found, not allowed, disk full, invalid."""
    code, status = s3_answer(error)
    if code in _EXPIRED_CODES or (code == "400" and status == 400):
        # A HEAD response has no body with a code: for an expired token S3 returns only 400.
        return Verdict.AGAIN_WITH_NEW_CREDENTIALS
    if code is not None:
        return Verdict.AGAIN if code in _CODES or status in _STATUSES else Verdict.FINAL
    if "certificate verify failed" in str(error).lower():
        return Verdict.FINAL
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _CREDENTIALS or (isinstance(error, RuntimeError) and "credentials are still expired" in str(error)):
        return Verdict.AGAIN_WITH_NEW_CREDENTIALS
    if names & _TRANSPORT or isinstance(error, TimeoutError) or _http_status(error) in _STATUSES:
        return Verdict.AGAIN
    return Verdict.AGAIN if isinstance(error, OSError) and error.errno in _ERRNOS else Verdict.FINAL


def s3_answer(error: BaseException) -> tuple[str | None, int | None]:
    """Return error code and HTTP status of S3's response, if the error has one."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code")), response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        cause = cause.__cause__
    return None, None


@dataclass(frozen=True, kw_only=True)
class Retrier:
    """Runs calls under a retry policy."""

    policy: RetryPolicy = RetryPolicy()
    clock: Callable[[], float] = time.monotonic
    """Clock in seconds."""
    sleep: Callable[[float], None] = time.sleep
    fraction: Callable[[], float] = random.SystemRandom().random
    """Source of jitter in [0, 1), independent of generators that training seeds."""
    tell: Callable[[str, str, float], None] = field(default_factory=lambda: _HISTORY.add)
    """Called for each retry with the file, the reason and the clock's seconds."""

    def call(
        self,
        name: str,
        action: Callable[[], T],
        *,
        judge: Callable[[BaseException], Verdict] = judge,
        renew: Callable[[], None] = lambda: None,
    ) -> T:
        """Return the result of `action`; `name` is the file in messages, `renew` refreshes credentials before a retry.

        Raises the exception of `action` where it is final, else StoreUnavailableError when the budget is spent.
        """
        began, attempt = self.clock(), 0
        while True:
            attempt += 1
            try:
                return action()
            except Exception as error:
                verdict = judge(error)
                if verdict is Verdict.FINAL:
                    raise
                elapsed_s = self.clock() - began
                pause_s = next_delay(self.policy, attempt=attempt, elapsed_s=elapsed_s, fraction=self.fraction())
                if pause_s is None:
                    tries = "1 attempt" if attempt == 1 else f"{attempt} attempts"
                    raise StoreUnavailableError(
                        f"{name}: given up after {tries} in {elapsed_s:.0f} s; {one_line(error)}"
                    ) from error
                self.tell(name, one_line(error), self.clock())
            self.sleep(pause_s)
            if verdict is Verdict.AGAIN_WITH_NEW_CREDENTIALS:
                renew()


def is_of_botocore(error: BaseException) -> bool:
    """Return whether an error is botocore's (connection, credentials, profile); these are not OSErrors."""
    return any(kind.__module__ == "botocore.exceptions" for kind in type(error).__mro__)


def retried_calls() -> int:
    """Return the number of retries of this process."""
    return _HISTORY.retries


class _History:
    """Counts and logs the retries of a process."""

    def __init__(self) -> None:
        self.retries = 0
        self._logged_at = -float("inf")
        self._lock = threading.Lock()

    def add(self, name: str, why: str, now: float) -> None:
        with self._lock:
            self.retries += 1
            retries, news = self.retries, now - self._logged_at >= LOG_EVERY_S
            if news:
                self._logged_at = now
        if news:
            log.warning("%s: %s; trying again (retry %d of this process)", name, why, retries)


_HISTORY: _History = _History()
# A lock that another thread holds when a process forks is never released in the child.
os.register_at_fork(after_in_child=_HISTORY.__init__)  # type: ignore[misc]


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of another store's library."""
    values = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    return next((value for value in values if isinstance(value, int)), None)
