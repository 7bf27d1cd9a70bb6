"""The request chain changes, replaces and answers requests."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from scrapy.exceptions import IgnoreRequest
from scrapy.http import Request, TextResponse

from scrapy_deferkit import (
    Chain,
    DeferKitError,
    Limit,
    NoItemReturned,
    StackDownloaderMiddleware,
    step_of,
)
from scrapy_deferkit._runtime import turn
from scrapy_deferkit.testing import mock_crawler

from .local_site import Site, page
from .tracing import Shop, Trace, crawl


async def crawl_by(site: Site, *chain: Any, spider: Any = Shop, **settings: Any) -> Trace:
    return await crawl(
        site.url("/"),
        settings={
            "DOWNLOADER_MIDDLEWARES": {StackDownloaderMiddleware: 543},
            "DEFERKIT_REQUEST_CHAIN": list(chain),
            **settings,
        },
        spider=spider,
    )


def sign(request: Request) -> Request:
    request.headers["X-Signed"] = "yes"
    return request


def noting(function: Any) -> tuple[Any, list[str]]:
    """Give a processor that does as *function* says, and the paths that it is called with.

    Scrapy copies what it finds in settings; a function is its own copy.
    """
    paths: list[str] = []

    def processor(request: Request) -> Any:
        paths.append(urlsplit(request.url).path)
        return function(request)

    return processor, paths


def to_mirror(request: Request) -> Request:
    path = urlsplit(request.url).path
    return request.replace(url=urljoin(request.url, f"/mirror{path}"))


async def test_a_request_changed_in_place_is_downloaded(site: Site) -> None:
    site["/"] = page({"title": "A"}, "/next")
    site["/next"] = page({"title": "B"})
    trace = await crawl_by(site, sign)
    assert trace.scraped == [{"title": "A"}, {"title": "B"}]
    assert [(path, headers.get("X-Signed")) for path, headers in site.requests] == [
        ("/", "yes"),
        ("/next", "yes"),
    ]
    assert len(trace.of("request_scheduled")) == 2


async def test_a_processor_may_take_its_time(site: Site) -> None:
    async def sign_later(request: Request) -> Request:
        await turn()
        return sign(request)

    site["/"] = page({"title": "A"})
    trace = await crawl_by(site, sign_later)
    assert trace.scraped == [{"title": "A"}]
    assert site.requests[0][1]["X-Signed"] == "yes"


async def test_a_replacement_of_the_same_url_is_not_taken_for_a_duplicate(site: Site) -> None:
    anew, paths = noting(lambda request: request.replace(headers={"X-Signed": "anew"}))
    site["/"] = page({"title": "A"})
    trace = await crawl_by(site, anew)
    assert trace.scraped == [{"title": "A"}]
    assert trace.of("request_dropped") == []
    assert [headers["X-Signed"] for _, headers in site.requests] == ["anew"]
    assert paths == ["/"]


async def test_the_chain_does_not_run_on_a_replacement_again(site: Site) -> None:
    mirror, paths = noting(to_mirror)
    site["/mirror/"] = page({"title": "A"}, "/mirror/next")
    site["/mirror/mirror/next"] = page({"title": "B"})
    trace = await crawl_by(site, mirror)
    assert trace.scraped == [{"title": "A"}, {"title": "B"}]
    assert paths == ["/", "/mirror/next"]


async def test_the_rest_of_the_chain_runs_on_a_replacement(site: Site) -> None:
    site["/mirror/"] = page({"title": "A"})
    trace = await crawl_by(site, to_mirror, sign)
    assert trace.scraped == [{"title": "A"}]
    assert [(path, headers["X-Signed"]) for path, headers in site.requests] == [("/mirror/", "yes")]


async def test_the_chain_does_not_run_on_a_replacement_that_is_tried_again(site: Site) -> None:
    mirror, paths = noting(to_mirror)
    site["/mirror/"] = [page(status=503), page({"title": "A"})]
    trace = await crawl_by(site, mirror, RETRY_ENABLED=True, RETRY_TIMES=1)
    assert trace.scraped == [{"title": "A"}]
    assert site.paths == ["/mirror/", "/mirror/"]
    assert paths == ["/"]


async def test_the_chain_runs_on_requests_that_inherit_the_meta_of_a_replacement(
    site: Site,
) -> None:
    class Copying(Shop):
        def parse(self, response: Any) -> Any:
            yield from response.json()
            if response.url == site.url("/mirror/"):
                yield response.follow("/next", meta=response.meta)

    mirror, paths = noting(to_mirror)
    site["/mirror/"] = page({"title": "A"})
    site["/mirror/next"] = page({"title": "B"})
    trace = await crawl_by(site, mirror, spider=Copying)
    assert trace.scraped == [{"title": "A"}, {"title": "B"}]
    assert paths == ["/", "/next"]


async def test_a_response_stands_for_the_download(site: Site) -> None:
    later, paths = noting(sign)

    def answer(request: Request) -> Any:
        return TextResponse(request.url, body=json.dumps([{"title": "A"}]).encode())

    trace = await crawl_by(site, answer, later)
    assert trace.scraped == [{"title": "A"}]
    assert site.requests == []
    assert paths == []
    assert trace.of("request_reached_downloader") == []


async def test_a_request_that_a_processor_gives_up_is_not_downloaded(site: Site) -> None:
    def refuse(request: Request) -> Any:
        raise IgnoreRequest("not today")

    trace = await crawl_by(site, refuse)
    assert site.requests == []
    assert [repr(it.value) for it in trace.spider.failures] == ["IgnoreRequest('not today')"]
    assert trace.log == []


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_processor_that_fails_is_named_to_the_errback(site: Site, is_async: bool) -> None:
    def fail(request: Request) -> Any:
        raise ValueError("no token")

    async def fail_later(request: Request) -> Any:
        await turn()
        fail(request)

    trace = await crawl_by(site, sign, fail_later if is_async else fail)
    (failure,) = trace.spider.failures
    assert repr(failure.value) == "ValueError('no token')"
    assert step_of(failure.value) == f"RequestChain/{'fail_later' if is_async else 'fail'}"
    assert site.requests == []


async def test_a_processor_that_forgets_its_request_is_named(site: Site) -> None:
    def forget(request: Request) -> None:
        sign(request)

    trace = await crawl_by(site, forget)
    (failure,) = trace.spider.failures
    assert isinstance(failure.value, NoItemReturned)
    assert "RequestChain/forget returned None" in str(failure.value)
    assert site.requests == []


async def test_a_result_that_is_no_request_is_refused(site: Site) -> None:
    trace = await crawl_by(site, lambda request: request.url)
    (failure,) = trace.spider.failures
    assert isinstance(failure.value, DeferKitError)
    assert "DEFERKIT_REQUEST_CHAIN" in str(failure.value)
    assert "'http://127.0.0.1" in str(failure.value)
    assert "Request or a Response" in str(failure.value)
    assert site.requests == []


@pytest.mark.parametrize("wrap", [lambda it: it, Chain, lambda it: Limit(Chain(it), 1)])
async def test_what_returns_nothing_is_told_about_requests(wrap: Any) -> None:
    def forget(request: Request) -> None:
        request.meta["a"] = 1

    crawler = mock_crawler({"DEFERKIT_REQUEST_CHAIN": [wrap(forget)]})
    middleware = StackDownloaderMiddleware.from_crawler(crawler)
    with pytest.raises(NoItemReturned) as failure:
        await middleware.process_request(Request("https://shop.example"))
    assert "`return request`" in str(failure.value)
    assert "IgnoreRequest" in str(failure.value)
    assert "DropItem" not in str(failure.value)
