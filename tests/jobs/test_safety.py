"""A request leaves its job when all that it brought is safe, and not before."""

from __future__ import annotations

import asyncio
import csv
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scrapy.dupefilters import RFPDupeFilter
from scrapy.exceptions import CloseSpider, DropItem, IgnoreRequest
from scrapy.exporters import JsonLinesItemExporter
from scrapy.http import Request, Response
from scrapy.utils.request import RequestFingerprinter
from twisted.internet.defer import CancelledError, Deferred

from scrapy_deferkit import Chain, StackSpiderMiddleware, scheduler
from scrapy_deferkit._feeds import Feeds
from scrapy_deferkit._jobfile import Batch, JobFile
from scrapy_deferkit._lifecycle import close_spider
from scrapy_deferkit._outline import Outline
from scrapy_deferkit._runtime import sleep, to_awaitable, turn
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.exceptions import DeadLettersError
from scrapy_deferkit.gate import ItemGate

from ..itemprocessor.crawling import numbered, numbers
from ..itemprocessor.test_cancellation import only_asyncio
from .running import OURS, rows, until
from .shop import ITEMS, Component, Job, Pages, name_of, url, waiting


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


# ----------------------------------------------------------------------------- what a callback does


class Function(Pages):
    def parse(self, response: Any) -> Any:
        self.trouble()
        return numbered(3)


class Generator(Pages):
    def parse(self, response: Any) -> Iterator[Any]:
        yield {"number": 0}
        yield {"number": 1}
        self.trouble()
        yield {"number": 2}


class AsyncFunction(Pages):
    async def parse(self, response: Any) -> Any:
        await turn()
        self.trouble()
        return numbered(3)


class AsyncGenerator(Pages):
    async def parse(self, response: Any) -> AsyncIterator[Any]:
        yield {"number": 0}
        await turn()
        yield {"number": 1}
        self.trouble()
        yield {"number": 2}


class Failing(Pages):
    """Fails to download its page."""

    def fail(self, failure: Any) -> Any:
        return numbered(3)

    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("start"), errback=self.fail)

    def answer(self, request: Request) -> Any:
        raise OSError("away")


class Errback(Failing):
    def fail(self, failure: Any) -> Any:
        self.trouble()
        return numbered(3)


class ErrbackGenerator(Failing):
    def fail(self, failure: Any) -> Iterator[Any]:
        yield {"number": 0}
        yield {"number": 1}
        self.trouble()
        yield {"number": 2}


class Swallowing(Failing):
    """Has an errback that takes note of any failure."""

    def fail(self, failure: Any) -> None:
        self.note(failure)

    def answer(self, request: Request) -> Any:
        self.trouble()
        return Response(request.url)


SPIDERS: list[type[Pages]] = [
    Function,
    Generator,
    AsyncFunction,
    AsyncGenerator,
    Errback,
    ErrbackGenerator,
]
NO_ENDS = [CloseSpider("enough"), MemoryError("much"), CancelledError()]


def named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


class Slow:
    async def process_item(self, item: Any) -> Any:
        for _ in range(5):
            await turn()
        return item


@pytest.mark.parametrize("error", NO_ENDS, ids=named)
@pytest.mark.parametrize("spider", SPIDERS, ids=named)
async def test_a_page_whose_output_is_cut_short_is_crawled_again(
    job: Job, spider: type[Pages], error: BaseException
) -> None:
    trace = await job.stays(spider, Slow, error=error)
    is_generator = "Generator" in spider.__name__
    assert numbers(trace.scraped) == ([0, 1] if is_generator else [])
    assert trace.reason == ("enough" if isinstance(error, CloseSpider) else "finished")


@pytest.mark.parametrize("spider", SPIDERS, ids=named)
async def test_without_the_addon_too_a_page_that_is_cut_short_is_crawled_again(
    job: Job, spider: type[Pages]
) -> None:
    await job.stays(spider, Slow, error=MemoryError(), ADDONS={}, SCHEDULER=OURS)


@pytest.mark.parametrize("spider", SPIDERS, ids=named)
async def test_a_page_whose_callback_fails_is_not_crawled_again(
    job: Job, spider: type[Pages]
) -> None:
    trace = await job.goes(spider, Slow, error=ValueError("bad"))
    assert len(trace.of("spider_error")) == 1
    assert numbers(trace.scraped) == ([0, 1] if "Generator" in spider.__name__ else [])


@pytest.mark.parametrize("spider", SPIDERS, ids=named)
async def test_a_page_that_is_done_is_not_crawled_again(job: Job, spider: type[Pages]) -> None:
    trace = await job.goes(spider, Slow)
    assert numbers(trace.scraped) == ITEMS


# ------------------------------------------------------------------------- what its download does


class WithoutErrback(Swallowing):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("start"))


class Waited(Swallowing):
    async def answer(self, request: Request) -> Any:
        await turn()
        self.trouble()
        return Response(request.url)


@pytest.mark.parametrize("error", NO_ENDS, ids=named)
@pytest.mark.parametrize("spider", [Swallowing, WithoutErrback, Waited], ids=named)
async def test_a_page_whose_download_is_cut_short_is_crawled_again(
    job: Job, spider: type[Pages], error: BaseException
) -> None:
    trace = await job.stays(spider, error=error)
    assert trace.scraped == []


class CancelledInTheLoop(Swallowing):
    async def answer(self, request: Request) -> Any:
        if not self.is_mended:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await sleep(0)
        return Response(request.url)


async def test_a_page_whose_download_the_loop_has_cancelled_is_crawled_again(
    job: Job, runtime: str
) -> None:
    if runtime == "twisted":
        pytest.skip("there are no tasks")
    trace = await job.stays(CancelledInTheLoop)
    (failure,) = trace.spider.failures
    assert failure.check(asyncio.CancelledError)


@pytest.mark.parametrize("error", [OSError("away"), IgnoreRequest("unwanted")], ids=named)
@pytest.mark.parametrize("spider", [Swallowing, WithoutErrback], ids=named)
async def test_a_page_that_cannot_be_had_or_is_not_wanted_is_not_crawled_again(
    job: Job, spider: type[Pages], error: BaseException
) -> None:
    trace = await job.goes(spider, error=error)
    assert len(trace.spider.failures) == (spider is Swallowing)


class Missing(Pages):
    def answer(self, request: Request) -> Any:
        return Response(request.url, status=404)


class Down(Pages):
    def answer(self, request: Request) -> Any:
        return Response(request.url, status=503)


class Moved(Pages):
    """Has been moved, once and again."""

    def answer(self, request: Request) -> Any:
        moved = {"start": "moved", "moved": "there"}.get(name_of(request.url))
        if moved is None:
            return Response(request.url)
        return Response(request.url, status=302, headers={"Location": url(moved)})


class MovedToSeen(Moved):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("there"))
        yield Request(url("start"), priority=-1)


async def test_a_page_that_is_not_there_is_not_crawled_again(job: Job) -> None:
    trace = await job.goes(Missing)
    assert trace.scraped == []


async def test_a_page_that_is_given_up_is_not_crawled_again(job: Job) -> None:
    trace = await job.goes(Down, RETRY_ENABLED=True, RETRY_TIMES=2)
    assert trace.spider.asked == ["start"] * 3


async def test_a_page_that_has_moved_is_not_crawled_again(job: Job) -> None:
    trace = await job.goes(Moved)
    assert trace.spider.asked == ["start", "moved", "there"]
    assert numbers(trace.scraped) == ITEMS


async def test_a_page_that_has_moved_to_one_that_was_seen_is_not_crawled_again(job: Job) -> None:
    trace = await job.goes(MovedToSeen)
    assert trace.spider.asked == ["there", "start", "moved"]
    assert numbers(trace.scraped) == ITEMS


class MovedToTrouble(Moved):
    def parse(self, response: Any) -> Any:
        self.trouble()
        return numbered(3)


async def test_where_a_page_has_moved_to_is_crawled_again(job: Job) -> None:
    kwargs = {"error": MemoryError()}
    await job.run(MovedToTrouble, kwargs=kwargs)
    assert job.waiting == ["there"]
    trace = await job.run(MovedToTrouble)
    assert trace.spider.asked == ["there"]
    assert numbers(trace.scraped) == ITEMS
    assert job.waiting == []


# ----------------------------------------------------------------------------- what its items do


class Bad(Component):
    """Raises at the second item, until it is mended."""

    async def process_item(self, item: Any) -> Any:
        await turn()
        if item["number"] == 1:
            self.crawler.spider.trouble()
        return item


@pytest.mark.parametrize(
    "error", [ValueError("bad"), DropItem("bad"), CloseSpider("enough"), MemoryError()], ids=named
)
@pytest.mark.parametrize("spider", [Pages, Failing], ids=named)
async def test_a_page_whose_item_was_dropped_or_is_a_dead_letter_is_not_crawled_again(
    job: Job, spider: type[Pages], error: Exception
) -> None:
    trace = await job.goes(spider, Bad, error=error)
    assert numbers(trace.scraped) == [0, 2]
    is_dropped = isinstance(error, DropItem)
    assert len(trace.dropped) == is_dropped
    assert letters_of(job) == ([] if is_dropped else [1])
    assert trace.reason == ("enough" if isinstance(error, CloseSpider) else "finished")


def letters_of(job: Job) -> list[int]:
    """Return the numbers of the items that are dead letters."""
    if not job.letters.exists():
        return []
    with closing(sqlite3.connect(job.letters)) as connection:
        try:
            found = connection.execute("SELECT item FROM deferkit_dead_letters").fetchall()
        except sqlite3.OperationalError:  # the tables are not there yet
            return []
    return [json.loads(item)["number"] for (item,) in found]


class Submitting(Component):
    """Has another item processed in the place of the second one."""

    async def process_item(self, item: Any) -> Any:
        if item.pop("is_to_submit", False):
            scraper = self.crawler.engine.scraper
            await scraper.start_itemproc_async({"number": 1}, response=None)
            raise DropItem("another one stands for it")
        return item


class Submitted(Pages):
    def parse(self, response: Any) -> Any:
        yield {"number": 0}
        yield {"number": 5, "is_to_submit": True}
        yield {"number": 2}


async def fail_second(item: Any, response: Any) -> Any:
    await turn()
    if item["number"] == 1 and not has_been_mended:
        raise ValueError("bad")
    return item


has_been_mended = False


@pytest.fixture
def lost_letters(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the store refuse dead letters until what is given is called."""
    put = DeadLetters.put
    monkeypatch.setattr(f"{__name__}.has_been_mended", False)

    def refuse(self: Any, failures: Any) -> None:
        raise DeadLettersError("refused")

    def mend() -> None:
        monkeypatch.setattr(DeadLetters, "put", put)
        monkeypatch.setattr(f"{__name__}.has_been_mended", True)

    monkeypatch.setattr(DeadLetters, "put", refuse)
    return mend


@pytest.mark.parametrize("spider", [Pages, Submitted], ids=named)
async def test_a_page_whose_dead_letter_is_lost_is_crawled_again(
    job: Job, lost_letters: Callable[[], None], spider: type[Pages]
) -> None:
    pipelines = (Submitting, Bad)
    trace = await job.stays(spider, *pipelines, error=ValueError("bad"), mend=lost_letters)
    assert numbers(trace.scraped) == [0, 2]
    (said,) = [it.getMessage() for it in trace.log if it.levelname == "CRITICAL"]
    assert "Its page is crawled again in the next run of the job: {" in said


async def test_a_page_whose_dead_letter_of_an_errbacks_item_is_lost_is_crawled_again(
    job: Job, lost_letters: Callable[[], None]
) -> None:
    trace = await job.stays(Failing, Bad, error=ValueError("bad"), mend=lost_letters)
    assert numbers(trace.scraped) == [0, 2]


async def test_a_page_whose_dead_letter_of_the_spider_stack_is_lost_is_crawled_again(
    job: Job, lost_letters: Callable[[], None]
) -> None:
    trace = await job.stays(
        Pages,
        mend=lost_letters,
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 500},
        DEFERKIT_SPIDER_STACK=Chain(fail_second),
    )
    assert numbers(trace.scraped) == [0, 2]


async def test_a_page_whose_item_has_no_stored_form_at_all_is_crawled_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scrapy_deferkit.codec import Codec

    encode = Codec.encode

    def fail(self: Any, value: Any) -> Any:
        raise MemoryError

    def mend() -> None:
        monkeypatch.setattr(Codec, "encode", encode)

    monkeypatch.setattr(Codec, "encode", fail)
    trace = await job.stays(Pages, Bad, error=ValueError("bad"), mend=mend)
    assert numbers(trace.scraped) == [0, 2]


class FromElsewhere(Pages):
    """Has a middleware that gives it the response to another request."""

    def answer(self, request: Request) -> Any:
        return Response(request.url, request=Request(url("elsewhere")))


async def test_if_it_is_not_known_whose_dead_letter_is_lost_all_is_crawled_again(
    job: Job, lost_letters: Callable[[], None]
) -> None:
    error = ValueError("bad")
    trace = await job.stays(FromElsewhere, Bad, error=error, mend=lost_letters)
    assert numbers(trace.scraped) == [0, 2]


class CancelledItem(Component):
    async def process_item(self, item: Any) -> Any:
        if item["number"] == 1 and not self.crawler.spider.is_mended:
            raise asyncio.CancelledError
        return item


@only_asyncio
async def test_a_page_whose_item_is_cancelled_under_another_processor_is_crawled_again(
    job: Job, runtime: str
) -> None:
    if runtime == "twisted":
        pytest.skip("there are no tasks")
    processor = "scrapy.pipelines.ItemPipelineManager"
    trace = await job.stays(Pages, CancelledItem, ITEM_PROCESSOR=processor)
    assert numbers(trace.scraped) == [0, 2]


class Hanging:
    async def process_item(self, item: Any) -> Any:
        if item["number"] == 1:
            await to_awaitable(Deferred())
        return item


async def test_a_page_whose_item_has_timed_out_is_not_crawled_again(job: Job) -> None:
    trace = await job.goes(Pages, Hanging, DEFERKIT_ITEM_TIMEOUT=0.1)
    assert numbers(trace.scraped) == [0, 2]
    assert letters_of(job) == [1]


class Stopped(Component):
    """Holds the only slot, and cancels who waits for it, as a forced stop does."""

    async def process_item(self, item: Any) -> Any:
        if item["number"] == 0 and not self.crawler.spider.is_mended:
            middlewares = self.crawler.engine.scraper.spidermw.middlewares
            (gate,) = (it for it in middlewares if isinstance(it, ItemGate))
            await until(lambda: gate._slots._waiting)
            gate._slots._waiting[0].cancel()
        return item


async def test_a_page_whose_item_is_refused_is_crawled_again(job: Job) -> None:
    trace = await job.stays(Pages, Stopped, DEFERKIT_CONCURRENT_ITEMS=1)
    assert [error for *_, error in trace.failed] == ["StepCancelled"]
    assert letters_of(job) == [1]


class OnlyTheFirst(Component):
    """Takes no more than one item of a page, until it is mended."""

    async def process_spider_output(
        self, response: Any, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        async for output in result:
            yield output
            if not self.crawler.spider.is_mended:
                return


async def go_through(item: Any, response: Any) -> Any:
    await turn()
    return item


async def test_a_page_whose_items_are_cut_off_in_the_spider_middlewares_is_crawled_again(
    job: Job,
) -> None:
    trace = await job.stays(
        Pages,
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 500, OnlyTheFirst: 400},
        DEFERKIT_SPIDER_STACK=Chain(go_through),
    )
    assert numbers(trace.scraped) == [0]


# ---------------------------------------------------------------- what its spider middlewares do


class RaisingAtInput(Component):
    def process_spider_input(self, response: Any) -> None:
        self.crawler.spider.trouble()


class RaisingAtOutput(Component):
    async def process_spider_output(
        self, response: Any, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        async for output in result:
            if output["number"] == 2:
                self.crawler.spider.trouble()
            yield output


class Recovering(Component):
    def process_spider_exception(self, response: Any, exception: Exception) -> Any:
        return [{"number": 7}]


class ItselfInTrouble(Component):
    def process_spider_exception(self, response: Any, exception: Exception) -> Any:
        self.crawler.spider.trouble()


class HasBadCallback(Pages):
    def parse(self, response: Any) -> Any:
        if not self.is_mended:
            raise ValueError("bad")
        return numbered(3)


@pytest.mark.parametrize("error", NO_ENDS, ids=named)
@pytest.mark.parametrize("middleware", [RaisingAtInput, RaisingAtOutput], ids=named)
async def test_a_page_that_a_spider_middleware_cuts_short_is_crawled_again(
    job: Job, middleware: type, error: BaseException
) -> None:
    await job.stays(Pages, error=error, SPIDER_MIDDLEWARES={middleware: 500})


class WithErrback(Pages):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("start"), errback=self.note)


@pytest.mark.parametrize("error", NO_ENDS, ids=named)
async def test_a_page_that_is_cut_short_before_its_callback_is_crawled_again(
    job: Job, error: BaseException
) -> None:
    trace = await job.stays(WithErrback, error=error, SPIDER_MIDDLEWARES={RaisingAtInput: 500})
    assert len(trace.spider.failures) == 1


async def test_a_page_whose_exception_is_handled_badly_is_crawled_again(job: Job) -> None:
    middlewares = {ItselfInTrouble: 500}
    await job.stays(HasBadCallback, error=MemoryError(), SPIDER_MIDDLEWARES=middlewares)


async def test_a_page_whose_exception_a_middleware_has_mended_is_not_crawled_again(
    job: Job,
) -> None:
    middlewares = {Recovering: 500}
    trace = await job.goes(HasBadCallback, SPIDER_MIDDLEWARES=middlewares)
    assert numbers(trace.scraped) == [7]


# --------------------------------------------------------------------------- what its requests do


class Linking(Pages):
    """Links the start page to three others, of one item each."""

    def parse(self, response: Any) -> Any:
        if name_of(response.url) == "start":
            yield from (Request(url(name)) for name in ("0", "1", "2"))
        else:
            yield {"number": int(name_of(response.url))}


class FingerprintsBadly(RequestFingerprinter):
    def __init__(self, crawler: Any) -> None:
        super().__init__(crawler)
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        return cls(crawler)

    def fingerprint(self, request: Request) -> bytes:
        if name_of(request.url) == "1":
            self.crawler.spider.trouble()
        return super().fingerprint(request)


class FiltersBadly(RFPDupeFilter):
    crawler: Any

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = super().from_crawler(crawler)
        self.crawler = crawler
        return self

    def request_seen(self, request: Request) -> bool:
        if name_of(request.url) == "1":
            self.crawler.spider.trouble()
        return super().request_seen(request)


@pytest.mark.parametrize(
    ("setting", "component"),
    [
        ("REQUEST_FINGERPRINTER_CLASS", FingerprintsBadly),
        ("DUPEFILTER_CLASS", FiltersBadly),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError("bad"), MemoryError()], ids=named)
async def test_a_page_whose_request_cannot_be_scheduled_is_crawled_again(
    job: Job, setting: str, component: type, error: Exception
) -> None:
    settings: dict[str, Any] = {setting: component}
    trace = await job.run(Linking, kwargs={"error": error}, **settings)
    assert numbers(trace.scraped) == [0, 2]
    assert "start" in job.waiting
    mended = await job.run(Linking, kwargs={"is_mended": True}, **settings)
    assert 1 in numbers(mended.scraped)
    assert job.waiting == []


class MovedAndOneItem(Linking):
    def answer(self, request: Request) -> Any:
        if request.url == url("start"):
            return Response(request.url, status=302, headers={"Location": url("1")})
        return Response(request.url)


async def test_a_page_that_has_moved_to_what_cannot_be_scheduled_is_crawled_again(
    job: Job,
) -> None:
    error = RuntimeError("bad")
    settings: dict[str, Any] = {"REQUEST_FINGERPRINTER_CLASS": FingerprintsBadly}
    trace = await job.stays(MovedAndOneItem, error=error, items=[1], **settings)
    assert trace.scraped == []


class Unpicklable:
    """Cannot be pickled, for a reason that pickle does not have."""

    def __reduce__(self) -> Any:
        raise OSError("away")


class LinkingOddly(Linking):
    def parse(self, response: Any) -> Any:
        for output in super().parse(response):
            if isinstance(output, Request) and not self.is_mended and output.url == url("1"):
                output.meta["odd"] = Unpicklable()
            yield output


async def test_a_page_whose_request_breaks_what_stores_it_is_crawled_again(job: Job) -> None:
    trace = await job.run(LinkingOddly)
    assert numbers(trace.scraped) == [0, 2]
    assert job.waiting == ["start"]
    mended = await job.run(LinkingOddly, kwargs={"is_mended": True})
    assert numbers(mended.scraped) == [1]
    assert job.waiting == []


class LinkingAndClosing(Linking):
    def parse(self, response: Any) -> Any:
        yield from super().parse(response)
        self.trouble()


async def test_requests_that_wait_when_the_crawl_is_closed_are_crawled_later(job: Job) -> None:
    trace = await job.run(LinkingAndClosing, kwargs={"error": CloseSpider("enough")})
    before = numbers(trace.scraped)  # what the engine has given before it was asked to close
    assert {"start", *(str(it) for it in ITEMS if it not in before)} <= {*job.waiting}
    mended = await job.run(LinkingAndClosing)
    assert sorted({*before, *numbers(mended.scraped)}) == ITEMS
    assert job.waiting == []


class Repeating(Pages):
    """Asks for its page again and again, in a new request or in the very same."""

    times = 4
    is_same = False

    def parse(self, response: Any) -> Any:
        if (turn := self.asked.count("start")) < self.times:
            request = response.request
            if self.is_same:
                request.dont_filter = True
                yield request
            else:
                yield request.replace(dont_filter=True)
        yield {"number": turn}


class RepeatingTheSame(Repeating):
    is_same = True


class RepeatingTwice(Repeating):
    """Asks for it twice at once."""

    def parse(self, response: Any) -> Any:
        if len(self.asked) == 1:
            response.request.dont_filter = True
            yield response.request
            yield response.request
            yield response.request
        yield {"number": len(self.asked)}


@pytest.mark.parametrize("spider", [Repeating, RepeatingTheSame, RepeatingTwice], ids=named)
async def test_a_page_that_asks_for_itself_is_crawled_as_often_and_not_again(
    job: Job, spider: type[Pages]
) -> None:
    trace = await job.goes(spider, Slow)
    assert len(trace.scraped) == len(trace.spider.asked) == 4


# --------------------------------------------------------------- while it brings what it brings


class Looking(Pages):
    """Looks at the file while its pages are in work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[bool] = []

    async def look(self) -> None:
        """Look whether the start page is there when all that has happened is written."""
        await self.written()
        self.seen.append("start" in waiting(self.folder))


class LookingWhileItDownloads(Looking):
    async def answer(self, request: Request) -> Any:
        if request.url == url("start"):
            await self.look()
        return Response(request.url)


class LookingInItsCallback(Looking):
    async def parse(self, response: Any) -> Any:
        await self.look()
        return numbered(3)


class DownloadingItselfAgain(Looking):
    async def parse(self, response: Any) -> Any:
        await self.crawler.engine.download_async(response.request)
        await self.look()
        return numbered(3)


class DownloadingItselfInItsErrback(Looking):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("start"), errback=self.fail)

    def answer(self, request: Request) -> Any:
        if self.asked == ["start"]:
            raise OSError("away")
        return Response(request.url)

    async def fail(self, failure: Any) -> Any:
        await self.crawler.engine.download_async(failure.request)
        await self.look()
        return numbered(3)


class LookingPipeline(Component):
    async def process_item(self, item: Any) -> Any:
        await self.crawler.spider.look()
        return item


@pytest.mark.parametrize(
    ("spider", "pipelines"),
    [
        (LookingWhileItDownloads, []),
        (LookingInItsCallback, []),
        (DownloadingItselfAgain, []),
        (DownloadingItselfInItsErrback, []),
        (Looking, [LookingPipeline]),
    ],
)
async def test_a_page_is_in_the_file_while_it_is_in_work(
    job: Job, spider: type[Looking], pipelines: list[Any]
) -> None:
    trace = await job.goes(spider, *pipelines)
    assert trace.spider.seen
    assert all(trace.spider.seen)
    assert numbers(trace.scraped) == ITEMS


class Downloaded(Looking):
    """Is cut short after it has downloaded its page again."""

    async def parse(self, response: Any) -> Any:
        await self.crawler.engine.download_async(response.request)
        await self.look()
        self.trouble()
        return numbered(3)


@pytest.mark.parametrize("error", NO_ENDS, ids=named)
async def test_a_page_that_was_downloaded_in_its_callback_is_crawled_again(
    job: Job, error: BaseException
) -> None:
    await job.stays(Downloaded, error=error)


class Pausing(Linking):
    def parse(self, response: Any) -> Any:
        yield from super().parse(response)
        if not self.is_mended:
            self.crawler.engine.pause()
            close_spider(self.crawler, "enough")


async def test_a_crawl_that_is_closed_while_it_is_paused_goes_on_later(job: Job) -> None:
    trace = await job.run(Pausing)
    assert trace.reason == "enough"
    assert sorted(job.waiting) == ["0", "1", "2"]
    mended = await job.run(Pausing, kwargs={"is_mended": True})
    assert numbers(mended.scraped) == ITEMS
    assert job.waiting == []


# -------------------------------------------------------------------------- what is not in the file


class InMemory(Pages):
    """Has a callback that cannot be stored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[int] = []

    async def start(self) -> AsyncIterator[Any]:
        async def look(response: Any) -> Any:
            return await self.look()

        yield Request(url("start"), look)

    async def look(self) -> Any:
        await self.written()
        self.counts.append(rows(self.folder, "SELECT count(*) FROM seen")[0])
        self.trouble()
        return numbered(3)


class InMemoryAndMoved(InMemory):
    answer = Moved.answer


@pytest.mark.parametrize("spider", [InMemory, InMemoryAndMoved], ids=named)
async def test_what_is_in_memory_alone_has_been_seen_when_it_has_ended(
    job: Job, spider: type[InMemory]
) -> None:
    trace = await job.goes(spider)
    assert trace.spider.counts == [0]
    assert numbers(trace.scraped) == ITEMS


@pytest.mark.parametrize("error", NO_ENDS, ids=named)
@pytest.mark.parametrize("spider", [InMemory, InMemoryAndMoved], ids=named)
async def test_what_is_in_memory_alone_and_is_cut_short_is_crawled_again(
    job: Job, spider: type[InMemory], error: BaseException
) -> None:
    await job.run(spider, kwargs={"error": error})
    assert job.waiting == []
    mended = await job.run(spider, kwargs={"is_mended": True})
    assert numbers(mended.scraped) == ITEMS


class InMemoryBesideOthers(Linking):
    def parse(self, response: Any) -> Any:
        def parse_it(response: Any) -> Any:
            return numbered(1, 9)

        yield Request(url("9"), parse_it)
        yield from super().parse(response)


async def test_what_is_in_memory_alone_does_not_keep_others_in_the_file(job: Job) -> None:
    trace = await job.goes(InMemoryBesideOthers)
    assert numbers(trace.scraped) == [*ITEMS, 9]


# ------------------------------------------------------------------------------------------- feeds


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return tmp_path / "feed.jsonl"


def lines_of(feed: Path) -> list[int]:
    return numbers(map(json.loads, feed.read_text().splitlines()))


async def test_a_page_whose_feed_cannot_be_flushed_is_crawled_again(
    job: Job, feed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = Feeds.flushed

    def fail(self: Any, files: list[int]) -> Any:
        raise OSError("no space left")

    def mend() -> None:
        monkeypatch.setattr(Feeds, "flushed", flushed)

    monkeypatch.setattr(Feeds, "flushed", fail)
    trace = await job.stays(Pages, mend=mend, FEEDS={str(feed): {"format": "jsonlines"}})
    assert any("a feed could not be written: no space left" in it for it in trace.messages)
    assert lines_of(feed) == ITEMS


async def test_a_page_of_which_an_item_cannot_be_written_to_a_feed_is_crawled_again(
    job: Job, feed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = JsonLinesItemExporter.export_item

    def fail(self: Any, item: Any) -> None:
        if item["number"] == 1:
            raise OSError("no space left")
        export(self, item)

    def mend() -> None:
        monkeypatch.setattr(JsonLinesItemExporter, "export_item", export)

    monkeypatch.setattr(JsonLinesItemExporter, "export_item", fail)
    trace = await job.stays(Pages, mend=mend, FEEDS={str(feed): {"format": "jsonlines"}})
    assert any("a feed could not be written: no space left" in it for it in trace.messages)
    assert lines_of(feed) == ITEMS


@pytest.mark.parametrize("spider", [InMemory, InMemoryAndMoved], ids=named)
async def test_the_next_run_leaves_in_the_feed_what_pages_in_memory_alone_have_brought(
    job: Job, feed: Path, spider: type[Pages]
) -> None:
    await job.goes(spider, FEEDS={str(feed): {"format": "jsonlines"}})
    assert lines_of(feed) == ITEMS


async def test_a_feed_with_the_name_of_its_spider_in_its_path_is_cut_to_whole_records(
    job: Job, tmp_path: Path
) -> None:
    feeds = {f"{tmp_path}/%(name)s.jsonl": {"format": "jsonlines"}}
    await job.run(Pages, FEEDS=feeds)
    feed = tmp_path / "pages.jsonl"
    with feed.open("a") as file:
        file.write('{"numb')
    with closing(sqlite3.connect(job.folder / "deferkit.sqlite")) as connection, connection:
        connection.execute("DELETE FROM meta WHERE name = 'reason'")  # as if it had died
    trace = await job.run(Pages, FEEDS=feeds)
    assert lines_of(feed) == ITEMS
    assert not any("is not covered" in it for it in trace.messages)


class Later(Pages):
    """Crawls another page than the run before."""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("later"))

    def parse(self, response: Any) -> Any:
        return [{"name": "a;b\tc", "number": number} for number in ITEMS]


class Sooner(Later):
    start = Pages.start


@pytest.mark.parametrize(
    "dialect",
    [
        {},
        {"dialect": "excel-tab"},
        {"delimiter": ";", "quotechar": "'"},
        {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
    ],
    ids=str,
)
async def test_a_csv_feed_goes_on_in_the_dialect_that_it_was_begun_in(
    job: Job, feed: Path, dialect: dict[str, Any]
) -> None:
    feeds = {str(feed): {"format": "csv", "item_export_kwargs": dialect}}
    await job.run(Sooner, FEEDS=feeds)
    await job.run(Later, FEEDS=feeds)
    with feed.open(newline="") as file:
        lines = list(csv.DictReader(file, **dialect))
    assert [int(line["number"]) for line in lines] == [*ITEMS, *ITEMS]
    assert {line["name"] for line in lines} == {"a;b\tc"}


async def test_what_another_crawl_has_written_to_the_feed_of_a_closed_job_stays(
    job: Job, tmp_path: Path, feed: Path
) -> None:
    feeds = {str(feed): {"format": "jsonlines"}}
    await job.run(Pages, FEEDS=feeds)
    await Job(tmp_path / "other").run(Pages, FEEDS=feeds)
    await job.run(Pages, FEEDS=feeds)
    assert lines_of(feed) == sorted([*ITEMS, *ITEMS])


# --------------------------------------------------------------------------------- order of things


PAGES = 60


class Tree(Pages):
    """Has pages n with links to 3n + 1 to 3n + 3, and one item each."""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(url("0"))

    async def parse(self, response: Any) -> AsyncIterator[Any]:
        page = int(name_of(response.url))
        links = [Request(url(str(child))) for child in children(page)]
        for link in links[:1]:
            yield link
        yield {"number": page}
        await turn()
        for link in links[1:]:
            yield link


def children(page: int) -> list[int]:
    return [child for child in range(3 * page + 1, 3 * page + 4) if child < PAGES]


class FailingLeaves:
    async def process_item(self, item: Any) -> Any:
        await sleep(0.002)
        if not children(item["number"]):
            raise ValueError("a leaf")
        return item


class Written(NamedTuple):
    """What one transaction writes, by the names of pages."""

    came: set[str]
    gone: set[str]
    lettered: set[int]
    """The items that were dead letters before."""


@pytest.fixture
def written(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[Written]:
    """What is written to the file, in small pieces."""
    transactions: list[Written] = []
    names: dict[int, str] = {}
    write = JobFile.write

    def note(self: JobFile, batch: Batch, files: list[int]) -> None:
        lettered = set(letters_of(job))
        came = {number: name_of(str(Outline.of(data).url)) for number, _, data in batch.requests}
        names.update(came)
        gone = {names[number] for (number,) in batch.gone}
        write(self, batch, files)
        transactions.append(Written(set(came.values()), gone, lettered))

    monkeypatch.setattr(JobFile, "write", note)
    monkeypatch.setattr(scheduler, "_WRITE_EVERY", 0.001)
    monkeypatch.setattr(scheduler, "_STATE_SHARE", 0)
    return transactions


async def test_no_page_goes_before_its_links_are_there_and_its_dead_letter_is_safe(
    job: Job, written: list[Written]
) -> None:
    await job.run(Tree, FailingLeaves, CONCURRENT_REQUESTS=2)
    came: set[str] = set()
    gone: list[str] = []
    for transaction in written:
        came |= transaction.came
        for name in transaction.gone:
            links = children(int(name))
            assert came.issuperset(map(str, links))
            assert links or int(name) in transaction.lettered
        gone += transaction.gone
    assert len(written) >= 3
    assert sorted(gone, key=int) == [str(page) for page in range(PAGES)]
