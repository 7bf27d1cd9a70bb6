"""The response chain works on responses and recovers failed downloads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scrapy.http import Request, Response, TextResponse
from twisted.python.failure import Failure

from scrapy_deferkit import DeferKitError, NoItemReturned, StackDownloaderMiddleware, step_of
from scrapy_deferkit._runtime import turn
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken
from .local_site import Site, broken_off, page, silence
from .tracing import Trace, crawl


async def crawl_by(site: Site, *chain: Any, **settings: Any) -> Trace:
    return await crawl(
        site.url("/"),
        settings={
            "DOWNLOADER_MIDDLEWARES": {StackDownloaderMiddleware: 543},
            "DEFERKIT_RESPONSE_CHAIN": list(chain),
            **settings,
        },
    )


def noting(function: Any) -> tuple[Any, list[Any]]:
    """Give a processor that does as *function* says, and the values that it is called with."""
    values: list[Any] = []

    def processor(value: Any, request: Request) -> Any:
        values.append(value)
        return function(value, request)

    return processor, values


def stand_in(failure: Failure, request: Request) -> Response:
    return TextResponse(request.url, body=json.dumps([{"title": "stand-in"}]).encode())


def elsewhere(value: Any, request: Request) -> Request:
    return request.replace(url=request.url + "elsewhere")


def keep(value: Any, request: Request) -> Any:
    return value


def fail(value: Any, request: Request) -> Any:
    raise Broken("response chain")


async def test_responses_pass_through_the_chain_in_its_order(site: Site) -> None:
    def number(response: TextResponse, request: Request) -> Response:
        return response.replace(body=json.dumps([*response.json(), {"title": "added"}]).encode())

    async def repeat(response: TextResponse, request: Request) -> Response:
        await turn()
        return response.replace(body=json.dumps(response.json() * 2).encode())

    site["/"] = page({"title": "A"})
    trace = await crawl_by(site, number, (repeat, stand_in))
    assert [item["title"] for item in trace.scraped] == ["A", "added", "A", "added"]


@pytest.mark.parametrize("trouble", [broken_off, silence])
async def test_an_errback_recovers_a_failed_download_into_a_response(
    site: Site, trouble: Any
) -> None:
    first, responses = noting(keep)
    errback, failures = noting(stand_in)
    behind, recovered = noting(keep)
    site["/"] = trouble
    trace = await crawl_by(site, first, (fail, errback), behind, DOWNLOAD_TIMEOUT=0.3)
    assert trace.scraped == [{"title": "stand-in"}]
    assert [type(failure) for failure in failures] == [Failure]
    assert responses == []
    assert [response.json() for response in recovered] == [[{"title": "stand-in"}]]
    assert trace.spider.failures == []
    assert site.paths == ["/"]


async def test_the_chain_does_not_run_twice_on_what_an_errback_made(site: Site) -> None:
    front, responses = noting(keep)
    site["/"] = broken_off
    site["/next"] = page({"title": "A"})

    def link(failure: Failure, request: Request) -> Response:
        return TextResponse(request.url, body=json.dumps(["/next"]).encode())

    trace = await crawl_by(site, (front, link))
    assert trace.scraped == [{"title": "A"}]
    assert [response.url for response in responses] == [site.url("/next")]


async def test_an_errback_recovers_a_failed_download_into_a_request(site: Site) -> None:
    errback, failures = noting(elsewhere)
    behind, responses = noting(keep)
    site["/"] = broken_off
    site["/elsewhere"] = page({"title": "A"})
    trace = await crawl_by(site, (None, errback), behind)
    assert trace.scraped == [{"title": "A"}]
    assert site.paths == ["/", "/elsewhere"]
    assert len(failures) == 1
    assert [response.url for response in responses] == [site.url("/elsewhere")]
    assert trace.spider.failures == []


async def test_an_errback_comes_after_the_retries(site: Site) -> None:
    errback, failures = noting(stand_in)
    site["/"] = broken_off
    trace = await crawl_by(site, (keep, errback), RETRY_ENABLED=True, RETRY_TIMES=2)
    assert trace.scraped == [{"title": "stand-in"}]
    assert site.paths == ["/"] * 3
    assert len(failures) == 1


async def test_an_error_status_is_a_response(site: Site) -> None:
    def excuse(response: TextResponse, request: Request) -> Response:
        assert response.status == 503
        return response.replace(status=200)

    errback, failures = noting(stand_in)
    site["/"] = page({"title": "A"}, status=503)
    trace = await crawl_by(site, (excuse, errback))
    assert trace.scraped == [{"title": "A"}]
    assert failures == []


@pytest.mark.parametrize("style", ["no errback", "returned", "raised"])
async def test_a_failure_that_nobody_handles_keeps_its_own_exception(
    site: Site, style: str
) -> None:
    def give_back(failure: Failure, request: Request) -> Any:
        seen.append(failure.value)
        if style == "raised":
            raise failure.value
        return failure

    seen: list[Any] = []
    site["/"] = broken_off
    step = keep if style == "no errback" else (keep, give_back)
    trace = await crawl_by(site, step)
    (failure,) = trace.spider.failures
    assert not isinstance(failure.value, DeferKitError)
    assert "scrapy_deferkit" not in type(failure.value).__module__
    if seen:
        assert failure.value is seen[0]
        assert step_of(failure.value) is None
    assert trace.spider.parsed == []


async def test_a_failure_that_nobody_handles_is_left_to_the_other_middlewares(site: Site) -> None:
    class Last:
        def process_exception(self, request: Request, exception: Exception) -> Response:
            seen.append(exception)
            return stand_in(Failure(exception), request)

    seen: list[Exception] = []
    errback, failures = noting(keep)
    site["/"] = broken_off
    middlewares = {StackDownloaderMiddleware: 543, Last: 100}
    trace = await crawl_by(site, (keep, errback), DOWNLOADER_MIDDLEWARES=middlewares)
    assert [failure.value for failure in failures] == seen
    assert trace.scraped == [{"title": "stand-in"}]


async def test_a_failing_errback_is_what_the_errback_of_the_request_gets(site: Site) -> None:
    site["/"] = broken_off
    trace = await crawl_by(site, (keep, fail))
    (failure,) = trace.spider.failures
    assert isinstance(failure.value, Broken)
    assert step_of(failure.value) == "ResponseChain/fail"


async def test_a_failing_processor_is_what_the_errback_of_the_request_gets(site: Site) -> None:
    errback, failures = noting(stand_in)
    site["/"] = page({"title": "A"})
    trace = await crawl_by(site, keep, (fail, errback))
    (failure,) = trace.spider.failures
    assert isinstance(failure.value, Broken)
    assert step_of(failure.value) == "ResponseChain/fail"
    assert failures == []  # an errback handles what fails before its own processor
    assert trace.scraped == []


async def test_a_later_errback_recovers_a_failing_processor(site: Site) -> None:
    errback, failures = noting(stand_in)
    site["/"] = page({"title": "A"})
    trace = await crawl_by(site, fail, (keep, errback))
    assert trace.scraped == [{"title": "stand-in"}]
    assert [step_of(failure.value) for failure in failures] == ["ResponseChain/fail"]


async def test_a_request_out_of_a_processor_ends_the_chain(site: Site) -> None:
    def detour(response: Response, request: Request) -> Any:
        return response if request.url.endswith("elsewhere") else elsewhere(response, request)

    behind, responses = noting(keep)
    site["/"] = page({"title": "A"})
    site["/elsewhere"] = page({"title": "B"})
    trace = await crawl_by(site, detour, (behind, fail))
    assert trace.scraped == [{"title": "B"}]
    assert [response.url for response in responses] == [site.url("/elsewhere")]


@pytest.mark.parametrize("trouble", [page(), broken_off], ids=["step", "errback"])
async def test_a_request_for_the_same_page_is_not_taken_for_a_duplicate(
    site: Site, trouble: Any
) -> None:
    def again(value: Any, request: Request) -> Any:
        if "X-Signed" in request.headers:
            return value
        return request.replace(headers={"X-Signed": "anew"})

    site["/"] = [trouble, page({"title": "A"})]
    trace = await crawl_by(site, (again, again))
    assert trace.of("request_dropped") == []
    assert trace.scraped == [{"title": "A"}]


@pytest.mark.parametrize("trouble", [page({"title": "A"}), broken_off], ids=["step", "errback"])
async def test_a_step_that_returns_nothing_is_named(site: Site, trouble: Any) -> None:
    def forget(value: Any, request: Request) -> None:
        pass

    site["/"] = trouble
    trace = await crawl_by(site, (forget, forget))
    (failure,) = trace.spider.failures
    assert isinstance(failure.value, NoItemReturned)
    assert "ResponseChain/forget" in str(failure.value)
    assert trace.scraped == []


@pytest.mark.parametrize("trouble", [page({"title": "A"}), broken_off], ids=["step", "errback"])
async def test_a_result_that_is_no_response_is_refused(site: Site, trouble: Any) -> None:
    site["/"] = trouble
    trace = await crawl_by(site, (lambda *_: "text", lambda *_: "text"))
    (failure,) = trace.spider.failures
    assert isinstance(failure.value, DeferKitError)
    assert "DEFERKIT_RESPONSE_CHAIN" in str(failure.value)
    assert "'text' (str)" in str(failure.value)
    assert "Response or a Request" in str(failure.value)


async def test_what_fails_in_the_request_chain_enters_on_the_errbacks_side(site: Site) -> None:
    def sign(request: Request) -> Any:
        raise Broken("no token")

    errback, failures = noting(stand_in)
    trace = await crawl_by(site, (fail, errback), DEFERKIT_REQUEST_CHAIN=[sign])
    assert trace.scraped == [{"title": "stand-in"}]
    assert [step_of(failure.value) for failure in failures] == ["RequestChain/sign"]


async def test_what_returns_nothing_is_told_about_responses() -> None:
    crawler = mock_crawler({"DEFERKIT_RESPONSE_CHAIN": [(lambda *_: None, lambda *_: None)]})
    middleware = StackDownloaderMiddleware.from_crawler(crawler)
    request = Request("https://shop.example")
    for called in (
        middleware.process_response(request, Response(request.url)),
        middleware.process_exception(request, Broken()),
    ):
        with pytest.raises(NoItemReturned) as failure:
            await called
        assert "`return response`" in str(failure.value)
        assert "DropItem" not in str(failure.value)
