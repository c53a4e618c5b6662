"""A second front door to the session's S3 server, which counts what goes out of it: the stream's word is not needed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


class Traffic:
    """Bytes of answers to GETs of shards, by key and range."""

    def __init__(self) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def total(self, dataset: str) -> int:
        """Bytes of the shards of the dataset with this path."""
        with self._lock:
            return sum(size for (path, _), size in self.bytes.items() if path.startswith(f"/{dataset}/shards/"))

    def forget(self) -> None:
        """Count from here."""
        with self._lock:
            self.bytes.clear()

    def counted(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """The WSGI application, counted."""

        def counting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                size = dict(headers).get("Content-Length", dict(headers).get("content-length", "0"))
                if environ["REQUEST_METHOD"] == "GET" and status.startswith("2"):
                    name = environ["PATH_INFO"], environ.get("HTTP_RANGE", "")
                    with self._lock:
                        self.bytes[name] += int(size)
                return start_response(status, headers, *rest)

            return app(environ, start)

        return counting


@contextmanager
def counting_server() -> Iterator[tuple[str, Traffic]]:
    """Address and traffic of a server on loopback; it shows the buckets of every moto server of this process."""
    traffic = Traffic()
    app = traffic.counted(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", traffic
    finally:
        server.shutdown()
        thread.join()
