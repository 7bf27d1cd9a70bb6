"""Crawls of a job in this process, in which something goes wrong until it is mended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from inspect import isawaitable
from pathlib import Path
from typing import Any

import scrapy
from scrapy.http import Request, Response
from twisted.python.failure import Failure

from scrapy_deferkit._outline import Outline

from ..crawls.tracing import Trace, crawl
from ..itemprocessor.crawling import numbered, numbers
from .running import rows, until

ITEMS = [0, 1, 2]
"""The numbers of the items of a page."""


def url(name: str) -> str:
    return f"https://shop.example/{name}"


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


class Pages(scrapy.Spider):
    """Crawls the start page, whose items have the numbers 0 to 2."""

    name = "pages"

    def __init__(
        self,
        folder: Path,
        is_mended: bool = False,
        error: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.is_mended = is_mended
        self.error = error
        self.asked: list[str] = []
        self.failures: list[Failure] = []

    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("start"))

    def parse(self, response: Any) -> Any:
        return numbered(3)

    def answer(self, request: Request) -> Any:
        """Return the response to *request*, or a coroutine; or raise."""
        return Response(request.url)

    def note(self, failure: Failure) -> None:
        self.failures.append(failure)

    def trouble(self) -> None:
        if not self.is_mended and self.error is not None:
            raise self.error

    async def written(self) -> None:
        """Have something written, and wait until all that has happened is in the file."""
        engine = self.crawler.engine
        assert engine is not None
        engine.crawl(Request(url("mark"), self.parse_mark, dont_filter=True))
        scheduler: Any = engine._slot.scheduler  # type: ignore[union-attr]
        await until(lambda: scheduler._timer is None and scheduler._writing is None)

    def parse_mark(self, response: Any) -> None:
        """Bring nothing."""


class Component:
    """A component that knows its crawler."""

    def __init__(self, crawler: Any) -> None:
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        return cls(crawler)


class Answering(Component):
    """Answers in the place of the downloader, as the spider says."""

    async def process_request(self, request: Request) -> Any:
        self.crawler.spider.asked.append(name_of(request.url))
        answer = self.crawler.spider.answer(request)
        return await answer if isawaitable(answer) else answer


def waiting(folder: Path) -> list[str]:
    """Return the names of the pages whose requests are in the file of the job in *folder*."""
    return [
        name_of(str(Outline.of(data).url)) for data in rows(folder, "SELECT data FROM requests")
    ]


class Job:
    """The runs of one job."""

    def __init__(self, path: Path) -> None:
        self.folder = path / "job"
        self.letters = path / "letters.sqlite"

    async def run(
        self, spider: type[Pages], *pipelines: Any, kwargs: Any = (), **settings: Any
    ) -> Trace:
        settings = {
            "ADDONS": {"scrapy_deferkit.Addon": 500},
            "JOBDIR": str(self.folder),
            "DEFERKIT_DEAD_LETTERS_URL": f"sqlite:///{self.letters}",
            "ITEM_PIPELINES": {pipeline: at for at, pipeline in enumerate(pipelines)},
            **settings,
        }
        settings["DOWNLOADER_MIDDLEWARES"] = {
            Answering: 1000,
            **settings.get("DOWNLOADER_MIDDLEWARES", {}),
        }
        return await crawl(settings=settings, spider=spider, folder=self.folder, **dict(kwargs))

    @property
    def waiting(self) -> list[str]:
        return waiting(self.folder)

    async def stays(
        self,
        spider: type[Pages],
        *pipelines: Any,
        error: BaseException | None = None,
        mend: Callable[[], object] = lambda: None,
        items: Iterable[int] = ITEMS,
        **settings: Any,
    ) -> Trace:
        """Check that the start page is crawled again once the trouble is mended.

        Returns what happened in the run with the trouble.
        """
        trace = await self.run(spider, *pipelines, kwargs={"error": error}, **settings)
        assert "start" in self.waiting, trace.messages
        mend()
        mended = await self.run(spider, *pipelines, kwargs={"is_mended": True}, **settings)
        assert numbers(mended.scraped) == sorted(items), mended.messages
        assert mended.reason == "finished"
        assert self.waiting == []
        return trace

    async def goes(
        self,
        spider: type[Pages],
        *pipelines: Any,
        error: BaseException | None = None,
        **settings: Any,
    ) -> Trace:
        """Check that nothing is crawled again in the next run; return what happened in the first.

        Each page is asked for again: its fingerprint is what keeps it away.
        """
        trace = await self.run(spider, *pipelines, kwargs={"error": error}, **settings)
        assert self.waiting == [], trace.messages
        again = await self.run(spider, *pipelines, kwargs={"error": error}, **settings)
        assert again.spider.asked == []
        assert self.waiting == []
        return trace
