"""Sends requests to a head's dashboard with the token and a time limit; every failure is one line."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lexray.cluster.provisioned.errors import ClusterLostError, NotFoundError, RefusedError
from lexray.cluster.provisioned.tokens import Secret
from lexray.storage.errors import UserError, last_line

TIMEOUT_S = 20.0
PATIENCE_S = 20.0
"""Seconds during which a request is retried on a dashboard that answered before: a tunnel may have to be reopened."""
PAUSE_S = 1.0
MAX_ANSWER_BYTES = 256 * 2**20
"""Size limit of a response; the longest are logs of jobs."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, SERVER_ERROR = 401, 403, 404, 500


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would carry the token elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Checked(urllib.request.HTTPHandler):
    """Plain http that verifies its peer before it sends anything."""

    def __init__(self, is_ours: Callable[[int], bool]) -> None:
        super().__init__()
        self._is_ours = is_ours

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, **options)
            made.connect()
            if not self._is_ours(made.sock.getsockname()[1]):
                made.close()
                raise ConnectionError("another program listens at the tunnel's port")
            return made

        return self.do_open(connection, req)


@dataclass(kw_only=True)
class Dashboard:
    """The dashboard of a head at `url`, as `http://HOST:PORT`."""

    url: str
    what: str
    """The cluster as the user named it, for messages."""
    token: Secret | None = None
    is_insecure: bool = False
    """Allow sending the token unencrypted over a network."""
    is_ours: Callable[[int], bool] = lambda port: True
    """Whether the peer that accepted a connection from this local port may receive the token; checked before sending.
    """
    renew: Callable[[], None] = lambda: None
    """Called when no response arrives: the tunnel may be dead."""
    timeout_s: float = TIMEOUT_S
    patience_s: float = PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.token is not None and not self.is_insecure:
            refuse_clear_text(self.url, self.what)

    def check(self) -> dict[str, Any]:
        """Return the dashboard's versions. Raises UserError if nothing answers, it is no dashboard, or the token is
        refused.
        """
        try:
            status, body = self._once("GET", "/api/version", None)
        except OSError as error:
            raise UserError(f"{self.what}: nothing answers there ({_why(error)})") from error
        self._refuse_token(status)
        try:
            found = json.loads(body)
            return {"ray_version": found["ray_version"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.what}: what answers there is no dashboard of Ray (HTTP {status})") from error

    def get(self, path: str) -> Any:
        """Return the JSON response; retried for `patience_s` without one. Raises NotFoundError, RefusedError,
        ClusterLostError.
        """
        until_s = self.clock() + self.patience_s
        while True:
            try:
                return self.ask("GET", path)
            except (ClusterLostError, RefusedError) as error:
                if self.clock() >= until_s:
                    raise
                if isinstance(error, ClusterLostError):
                    self.renew()
                self.sleep(PAUSE_S)

    def ask(self, method: str, path: str, *, document: Any = None, content: bytes | None = None) -> Any:
        """Return the JSON response, None if empty, without retries. Raises NotFoundError, RefusedError,
        ClusterLostError.
        """
        body = json.dumps(document).encode() if document is not None else content
        try:
            status, answer = self._once(method, path, body)
        except OSError as error:
            raise ClusterLostError(f"{self.what} does not answer any more ({_why(error)})") from error
        self._refuse_token(status)
        text = answer.decode(errors="replace")
        if status == NOT_FOUND:
            raise NotFoundError(last_line(text))
        if status >= http.client.BAD_REQUEST:
            is_busy = status >= SERVER_ERROR
            raise RefusedError(f"{self.what} refused (HTTP {status}): {last_line(text)}", is_busy=is_busy)
        try:
            return json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            return None

    def _refuse_token(self, status: int) -> None:
        if status == UNAUTHORIZED:
            raise UserError(
                f"{self.what}: the cluster wants a token; give --token-file FILE, or say in the file of --cluster "
                "where it lies"
            )
        if status == FORBIDDEN:
            raise UserError(f"{self.what}: the cluster refuses this token; give the one that its head was started with")

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and body. Raises OSError when there is no response."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        headers |= self.token.headers if self.token is not None else {}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        try:
            with self._opener().open(request, timeout=self.timeout_s) as answer:
                return answer.status, self._content(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, self._content(error)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: an answer broke off") from error

    def _content(self, answer: Any) -> bytes:
        content: bytes = answer.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise UserError(
                f"{self.what}: an answer has more than {MAX_ANSWER_BYTES:,} bytes; is it a dashboard of Ray?"
            )
        return content

    def _opener(self) -> urllib.request.OpenerDirector:
        proxies = urllib.request.ProxyHandler({} if is_loopback(self.url) else None)
        return urllib.request.build_opener(proxies, NoRedirect, _Checked(self.is_ours))


def refuse_clear_text(url: str, what: str) -> None:
    """Raise UserError if the token would cross a network unencrypted."""
    parts = urlsplit(url)
    if parts.scheme == "https" or is_loopback(url):
        return
    tunnel = f"ssh -N -L {parts.port or 80}:127.0.0.1:{parts.port or 80} {parts.hostname}"
    raise UserError(
        f"{what}: {url} would carry the token unencrypted over the network; use https, or a tunnel (`{tunnel}` and "
        "the address http://127.0.0.1), or give --insecure if the network is trusted"
    )


def is_loopback(url: str) -> bool:
    """Return whether the url's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason)
