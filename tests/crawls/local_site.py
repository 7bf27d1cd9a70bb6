"""A small local web site whose pages, and whose troubles, a test sets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["_Handler"], None]


def page(*outputs: Any, status: int = 200) -> Answer:
    """Answer with what the spider is to yield: items, and the paths of requests."""
    return body(json.dumps(outputs).encode(), status)


def body(content: bytes, status: int = 200) -> Answer:
    """Answer with *content*."""

    def answer(handler: _Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def broken_off(handler: _Handler) -> None:
    """Announce more than is sent, and drop the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"[")


def silence(handler: _Handler) -> None:
    """Answer nothing as long as the site stands."""
    handler.site.closing.wait()


class Site:
    """Answers with what ``site[path]`` was set to, one answer or a list of them in turn."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._answers: dict[str, list[Answer]] = {}
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def __setitem__(self, path: str, answers: Answer | list[Answer]) -> None:
        self._answers[path] = [*answers] if isinstance(answers, list) else [answers]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [path for path, _ in self.requests]

    def answer_to(self, path: str) -> Answer:
        answers = self._answers.get(path, [page(status=404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def held(self, content: bytes) -> tuple[Answer, threading.Event]:
        """Give an answer of *content* that waits for the event."""
        event = threading.Event()

        def answer(handler: _Handler) -> None:
            event.wait(timeout=30)
            body(content)(handler)

        return answer, event

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        self.site.requests.append((self.path, dict(self.headers)))
        with suppress(ConnectionError):  # the crawler may have hung up
            self.site.answer_to(self.path)(self)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
