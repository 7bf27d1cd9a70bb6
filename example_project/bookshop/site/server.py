"""The server of the local site: the pages, the services, and the troubles of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from .catalogue import Catalogue, make_catalogue
from .pages import make_pages

PORT = 8017
READER_CARD = "bookshop"
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"


class Site:
    """A site that is being served, until it is closed; a context manager as well.

    ``url`` is its root, with a slash at the end. *delay* is what the review service takes for an
    answer, in seconds.
    """

    def __init__(
        self, catalogue: Catalogue, *, delay: float = 0.3, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.catalogue = catalogue
        self._server = _Server((host, port), _Handler)
        self._server.prepare(catalogue, delay)
        self.url = f"http://{host}:{self._server.server_port}/"
        self._thread = Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop at once: a page that never answers does not keep the site open."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve(
    books: int = 100,
    seed: int = 1,
    *,
    delay: float = 0.3,
    troubles: Mapping[str, float] | None = None,
    port: int | None = None,
) -> Site:
    """Serve a site of *books* made-up books.

    Without a *port* it takes the usual one, so that one crawl's addresses are the next one's, or
    any that is free. Raises :exc:`OSError` when the *port* that was asked for is taken.
    """
    catalogue = make_catalogue(books, seed, troubles)
    if port is not None:
        return Site(catalogue, delay=delay, port=port)
    try:
        return Site(catalogue, delay=delay, port=PORT)
    except OSError:
        return Site(catalogue, delay=delay)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def prepare(self, catalogue: Catalogue, delay: float) -> None:
        self.closing = Event()
        self.delay = delay
        self.sellers = catalogue.sellers
        self.by_upc = {volume.upc: volume for volume in catalogue.volumes}
        self.pages = {path: page.encode() for path, page in make_pages(catalogue).items()}
        self.silent = {
            f"catalogue/{volume.folder}/index.html"
            for volume in catalogue.volumes
            if "never_answers" in volume.troubles
        }
        self._asked: Counter[str] = Counter()
        self._lock = Lock()

    def times_asked(self, path: str) -> int:
        """Count one more request of *path*, and give the count."""
        with self._lock:
            self._asked[path] += 1
            return self._asked[path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has hung up."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = address.path.strip("/") or "index.html"
        if path in self.server.silent and address.query != "fresh=1":
            self.server.closing.wait()
        elif path in self.server.pages:
            self._answer(HTTPStatus.OK, _HTML, self.server.pages[path])
        elif path == "robots.txt":
            self._answer(HTTPStatus.OK, "text/plain", b"User-agent: *\nDisallow: /basket/\n")
        elif path.startswith("api/") and path.endswith(".json"):
            _, kind, key = path[: -len(".json")].split("/", 2)
            self._serve(kind, key)
        else:
            self._answer(HTTPStatus.NOT_FOUND, _HTML, b"<h1>Not found</h1>")

    def _serve(self, kind: str, key: str) -> None:
        if kind == "sellers" and key in self.server.sellers:
            self._answer_json(self.server.sellers[key])
        elif kind == "offers" and key in self.server.by_upc:
            volume = self.server.by_upc[key]
            if "offers_broken" in volume.troubles:
                self._answer(HTTPStatus.OK, _HTML, b"<h1>Back soon</h1>")
            else:
                self._answer_json(volume.offers)
        elif kind == "tax" and key in self.server.by_upc:
            volume = self.server.by_upc[key]
            if "tax_down" in volume.troubles:
                self._answer_json({"error": "closed"}, HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                self._answer_json({"percent": 20 if volume.file else 0})
        elif kind == "reviews" and key in self.server.by_upc:
            self._serve_reviews(key)
        else:
            self._answer_json({"error": "not found"}, HTTPStatus.NOT_FOUND)

    def _serve_reviews(self, upc: str) -> None:
        volume = self.server.by_upc[upc]
        if self.headers.get("X-Reader-Card") != READER_CARD:
            self._answer_json({"error": "show your card"}, HTTPStatus.UNAUTHORIZED)
            return
        # The service is slow; whoever closes the site does not wait for it.
        self.server.closing.wait(self.server.delay)
        is_odd = self.server.times_asked(upc) % 2 == 1
        if "reviews_stuck" in volume.troubles and is_odd:
            self.server.closing.wait()
        elif "reviews_missing" in volume.troubles:
            self._answer_json({"error": "no reviews"}, HTTPStatus.NOT_FOUND)
        elif "reviews_down" in volume.troubles or ("reviews_flaky" in volume.troubles and is_odd):
            self._answer_json({"error": "busy"}, HTTPStatus.SERVICE_UNAVAILABLE)
        elif "reviews_broken" in volume.troubles:
            self._answer(HTTPStatus.OK, _JSON, b'[{"reader": "')
        else:
            self._answer_json(volume.reviews)

    def _answer_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer(status, _JSON, json.dumps(value).encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep no log of requests."""
