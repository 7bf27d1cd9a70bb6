"""A pipeline of the project that returns None has forgotten its item."""

from __future__ import annotations

from typing import Any

import pytest

from scrapy_deferkit import DeferKitItemProcessor, NoItemReturned, step_of
from scrapy_deferkit._runtime import turn
from scrapy_deferkit.stats import step_stats
from scrapy_deferkit.testing import mock_crawler


class First:
    def process_item(self, item: Any) -> Any:
        return item


class AtOnce:
    def process_item(self, item: Any) -> None:
        item["seen"] = True


class Later:
    async def process_item(self, item: Any) -> None:
        await turn()


class Last:
    def process_item(self, item: Any) -> Any:
        return "last" if item is None else item


def processor_of(*pipelines: Any, **settings: Any) -> Any:
    numbered = {pipeline: number for number, pipeline in enumerate(pipelines)}
    crawler = mock_crawler({"ITEM_PIPELINES": numbered, **settings})
    return DeferKitItemProcessor.from_crawler(crawler)


every_one = pytest.mark.parametrize("forgetful", [AtOnce, Later])


@every_one
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("behind", [(), (Last,)])
async def test_it_fails_with_its_name_and_the_setting(
    forgetful: Any, counted: bool, behind: tuple[Any, ...]
) -> None:
    processor = processor_of(First, forgetful, *behind, DEFERKIT_STEP_STATS=counted)
    with pytest.raises(NoItemReturned) as failure:
        await processor.process_item_async({})
    assert str(failure.value).startswith(f"{forgetful.__name__} returned None; ")
    assert "DEFERKIT_NONE_IS_FAILURE = False" in str(failure.value)
    assert step_of(failure.value) == forgetful.__name__
    if counted:
        failed = {figures.path: figures.failed for figures in step_stats(processor.crawler)}
        assert [name for name, number in failed.items() if number] == [forgetful.__name__]


@every_one
async def test_it_is_passed_on_where_the_project_wants_that(forgetful: Any) -> None:
    processor = processor_of(First, forgetful, Last, DEFERKIT_NONE_IS_FAILURE=False)
    assert await processor.process_item_async({}) == "last"
    processor = processor_of(First, forgetful, DEFERKIT_NONE_IS_FAILURE=False)
    assert await processor.process_item_async({}) is None


async def test_no_pipelines_return_what_came() -> None:
    assert await processor_of().process_item_async({"n": 1}) == {"n": 1}
