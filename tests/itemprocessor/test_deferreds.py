"""What returns a Deferred works, without a warning: it goes on working here."""

from __future__ import annotations

import warnings
from typing import Any

from scrapy.exceptions import ScrapyDeprecationWarning
from twisted.internet.defer import Deferred

from scrapy_deferkit import DeferKitItemProcessor
from scrapy_deferkit._runtime import to_deferred
from scrapy_deferkit.testing import mock_crawler

from ..steps import until


class ByDeferred:
    """Returns one from every method, which the test fires."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.later: Deferred[Any] = Deferred()

    def _begin(self, name: str) -> Deferred[Any]:
        self.begun.append(name)
        self.later = Deferred()
        return self.later

    def open_spider(self) -> Deferred[Any]:
        return self._begin("open")

    def process_item(self, item: Any) -> Deferred[Any]:
        return self._begin("process")

    def close_spider(self) -> Deferred[Any]:
        return self._begin("close")


class Plain:
    def open_spider(self, spider: Any) -> None:
        self.spider = spider

    def process_item(self, item: Any) -> Any:
        return item


async def test_a_deferred_of_any_method_is_awaited_without_a_warning() -> None:
    crawler = mock_crawler({"ITEM_PIPELINES": {ByDeferred: 1, Plain: 2}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScrapyDeprecationWarning)  # of the spider argument
        processor = DeferKitItemProcessor.from_crawler(crawler)
    pipeline, plain = processor.middlewares
    for name, call, result in (
        ("open", processor.open_spider_async, None),
        ("process", lambda: processor.process_item_async({"a": 1}), {"b": 2}),
        ("close", processor.close_spider_async, None),
    ):
        done = to_deferred(call())
        await until(lambda: pipeline.begun[-1:] == [name])  # noqa: B023
        assert not done.called
        pipeline.later.callback(result)
        await until(lambda: done.called)  # noqa: B023
        assert done.result == result
    assert plain.spider is crawler.spider
