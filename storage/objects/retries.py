"""One retry policy for every call to a store: what is worth another try, after which pause, and until when.

Pauses grow exponentially with full jitter: each is drawn evenly between nothing and a ceiling that doubles, so that
many clients of a throttled store do not come back together. The layers below (botocore, s3fs) are told not to retry;
what is left to them is one silent replacement of a kept-alive connection that turns out to be dead (aiohttp).
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
"""A burst of retries is one line."""
_STATUSES = {408, 425, 429, 500, 502, 503, 504, 509}
_CODES = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted", "TooManyRequests",
    "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded", "BandwidthLimitExceeded",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
}  # fmt: skip
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
# What Python, botocore (its own ConnectionError), aiohttp and urllib3 raise, by the name of a class it derives from.
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
    """A call failed again and again until its budget was spent. One line: file, attempts, seconds, last reason."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long a call goes on."""

    attempts: int = 30
    """Calls in all, the first one included."""
    budget_s: float = 120.0
    """Seconds from the first call after which no other begins; 0 never retries."""
    first_ceiling_s: float = 0.2
    """Longest pause after the first failure."""
    ceiling_s: float = 15.0
    """Longest pause after any."""


class Verdict(Enum):
    """What a failed call means."""

    FINAL = "final"
    AGAIN = "again"
    AGAIN_WITH_NEW_CREDENTIALS = "again with new credentials"


def next_delay(policy: RetryPolicy, *, attempt: int, elapsed_s: float, fraction: float) -> float | None:
    """Seconds to pause after failed call number `attempt` (from 1); None when no other may follow.

    `fraction` in [0, 1) is the jitter.
    """
    left_s = policy.budget_s - elapsed_s
    if attempt >= policy.attempts or left_s <= 0:
        return None
    ceiling_s = min(policy.ceiling_s, policy.first_ceiling_s * 2.0 ** min(attempt - 1, 60))
    return min(fraction * ceiling_s, left_s)


def judge(error: BaseException) -> Verdict:
    """Whether another try can help. What is not known to pass is final: not there, not allowed, disk full, wrong."""
    code, status = s3_answer(error)
    if code in _EXPIRED_CODES or (code == "400" and status == 400):
        # A HEAD has no body for the code: 400 is all that S3 says there of an expired token.
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
    """Error code and HTTP status of S3's answer, if the error was made from one."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code")), response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        cause = cause.__cause__
    return None, None


@dataclass(frozen=True, kw_only=True)
class Retrier:
    """Calls under a policy."""

    policy: RetryPolicy = RetryPolicy()
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    sleep: Callable[[float], None] = time.sleep
    fraction: Callable[[], float] = random.SystemRandom().random
    """Jitter in [0, 1); never the generator that a training seeds."""
    tell: Callable[[str, str, float], None] = field(default_factory=lambda: _HISTORY.add)
    """Hears of each call that is made again: the file, the reason, the clock's seconds."""

    def call(
        self,
        name: str,
        action: Callable[[], T],
        *,
        judge: Callable[[BaseException], Verdict] = judge,
        renew: Callable[[], None] = lambda: None,
    ) -> T:
        """What `action` returns. `name` is the file, for people; `renew` is called before a try with new credentials.

        Raises what `action` raised where no other try can help, else StoreUnavailableError when the budget is spent.
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
    """No connection, no credentials, no such profile: none of them an OSError."""
    return any(kind.__module__ == "botocore.exceptions" for kind in type(error).__mro__)


def retried_calls() -> int:
    """Calls that this process made again since it began."""
    return _HISTORY.retries


class _History:
    """The retries of a process, counted and logged."""

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
    """The status that errors of other stores' libraries carry."""
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    return None
