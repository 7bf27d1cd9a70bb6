"""CloseSpider closes the crawl with its reason, in whatever component it is raised."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy.exceptions import CloseSpider
from scrapy.http import Response
from twisted.python.failure import Failure

from scrapy_deferkit import (
    Chain,
    ChainPipeline,
    StackDownloaderMiddleware,
    StackSpiderMiddleware,
)

from ..itemprocessor.crawling import page
from ..steps import Broken
from .tracing import crawl


def enough(value: Any, *_: Any) -> Any:
    raise CloseSpider("enough")


def fail(value: Any, *_: Any) -> Any:
    raise Broken


def recover(failure: Failure, request: Any) -> Any:
    return Response(request.url)


class Unopened:
    def open_spider(self) -> None:
        raise CloseSpider("enough")

    def __call__(self, value: Any, *_: Any) -> Any:
        return value

    from_crawler = classmethod(lambda cls, crawler: cls())


def downloading(**chains: Any) -> dict[str, Any]:
    return {"DOWNLOADER_MIDDLEWARES": {StackDownloaderMiddleware: 543}, **chains}


def in_spider_stack(*steps: Any) -> dict[str, Any]:
    return {
        "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 100},
        "DEFERKIT_SPIDER_STACK": Chain(*steps),
    }


RECOVERING = [(None, recover)]

WAYS = {
    "pipeline": {"ITEM_PIPELINES": {ChainPipeline: 1}, "DEFERKIT_CHAIN": [enough]},
    "spider stack": in_spider_stack(enough),
    "opening a spider stack": in_spider_stack(Unopened),
    "request chain": downloading(DEFERKIT_REQUEST_CHAIN=[enough]),
    "request chain, with errbacks behind it": downloading(
        DEFERKIT_REQUEST_CHAIN=[enough], DEFERKIT_RESPONSE_CHAIN=RECOVERING
    ),
    "response chain": downloading(DEFERKIT_RESPONSE_CHAIN=[(enough, recover), *RECOVERING]),
    "errback": downloading(DEFERKIT_RESPONSE_CHAIN=[fail, (None, enough)]),
    "errback of a download": downloading(
        DEFERKIT_REQUEST_CHAIN=[fail], DEFERKIT_RESPONSE_CHAIN=[(None, enough)]
    ),
    "opening a response chain": downloading(DEFERKIT_RESPONSE_CHAIN=[Unopened]),
}


@pytest.mark.parametrize("way", WAYS)
async def test_close_spider_closes_the_crawl_with_its_reason(way: str) -> None:
    pages = [page({"number": number}) for number in range(20)]
    trace = await crawl(
        *pages, settings={"URLLENGTH_LIMIT": 0, "CONCURRENT_REQUESTS": 1, **WAYS[way]}
    )
    assert trace.reason == "enough"
    assert trace.scraped == []
    assert len(trace.spider.failures) < 20
    assert not any("Broken" in (it.exc_text or "") for it in trace.log)
