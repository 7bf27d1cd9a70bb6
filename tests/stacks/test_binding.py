"""A stack is a description; what runs is bound to a crawler, opened and closed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from scrapy import Spider
from scrapy.exceptions import NotConfigured
from scrapy.settings import Settings

from scrapy_deferkit import (
    Chain,
    ClosingError,
    DeferKitError,
    Each,
    Parallel,
    StackConfigError,
    StackPipeline,
    Tolerant,
    step_of,
)
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..steps import Broken, wait

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


def make_pipeline(name: str, *, fails: str = "", is_async: bool = False) -> type:
    """Make the class of a pipeline that logs what is done to it, and may fail to do it."""

    def act(method: str) -> None:
        log.append(f"{method} {name}")
        if fails == method:
            raise Broken(name)

    class Pipeline:
        def open_spider(self) -> Any:
            return self.later("open") if is_async else act("open")

        def close_spider(self) -> Any:
            return self.later("close") if is_async else act("close")

        async def later(self, method: str) -> None:
            await turn()
            act(method)

        def process_item(self, item: Any) -> Any:
            act("process")
            return item

    Pipeline.__name__ = name
    return Pipeline


both = pytest.mark.parametrize("is_async", [False, True])


@both
async def test_components_open_in_order_and_close_in_reverse_order(is_async: bool) -> None:
    a, b, c = (make_pipeline(name, is_async=is_async) for name in "abc")
    stack = Chain(a, Parallel(b, Tolerant((c, lambda failure, item: item))))
    run = await run_stack(stack, [{}])
    assert run.scraped == [{}]
    opened, closed = log[:3], log[-3:]
    assert opened == ["open a", "open b", "open c"]
    assert closed == ["close c", "close b", "close a"]


@both
async def test_every_component_is_closed_whatever_the_others_do(is_async: bool) -> None:
    classes = [
        make_pipeline(name, fails="close" if name in "bc" else "", is_async=is_async)
        for name in "abcd"
    ]
    bound = Chain(classes[0], Chain(*classes[1:3], name="inner"), classes[3]).bind(mock_crawler())
    await bound.open()
    with pytest.raises(ClosingError, match=r"Chain: 2 failed to close: Broken: c; Broken: b") as it:
        await bound.close()
    assert [error.args for error in it.value.errors] == [("c",), ("b",)]
    assert log[-4:] == ["close d", "close c", "close b", "close a"]


@both
async def test_when_one_cannot_be_opened_those_that_are_open_are_closed(is_async: bool) -> None:
    classes = [make_pipeline("a"), make_pipeline("b", fails="open", is_async=is_async)]
    bound = Chain(*classes, make_pipeline("c"), name="shop").bind(mock_crawler())
    with pytest.raises(Broken) as caught:
        await bound.open()
    assert step_of(caught.value) == "shop/b"
    assert log == ["open a", "open b", "close a"]


async def test_a_stack_used_twice_is_one_and_opens_and_closes_once() -> None:
    shared = Chain(make_pipeline("a", is_async=True))
    crawler = mock_crawler()
    one, other = Chain(shared).bind(crawler), Parallel(shared, shared).bind(crawler)
    assert one.steps[0].source is other.steps[0].source is shared.bind(crawler)
    opening = [to_deferred(one.open()), to_deferred(other.open())]
    for deferred in opening:
        await wait(deferred)
    await one.close()
    assert log == ["open a"]
    await other.close()
    assert log == ["open a", "close a"]
    await other.close()
    assert log == ["open a", "close a"], "closing once more does nothing"


@pytest.mark.no_runtime
def test_two_crawlers_share_no_component() -> None:
    stack = Chain(make_pipeline("a"))
    one, other = (stack.bind(mock_crawler()) for _ in range(2))
    assert one.steps[0].source is not other.steps[0].source
    assert one.bind(one._crawler) is one


@pytest.mark.no_runtime
def test_a_stack_in_settings_is_the_same_stack() -> None:
    stack = Chain(len)
    assert Settings({"DEFERKIT_STACK": stack}).copy()["DEFERKIT_STACK"] is stack


async def test_a_pipeline_instance_serves_one_crawler_at_a_time() -> None:
    instance = make_pipeline("a")()
    stack = Chain(instance)
    first = mock_crawler()
    bound = stack.bind(first)
    with pytest.raises(StackConfigError, match=r"a instance.*another crawler.*import path"):
        stack.bind(mock_crawler())
    await bound.open()
    await bound.close()
    assert (await run_stack(stack, [{}])).scraped == [{}]


@pytest.mark.no_runtime
def test_a_pipeline_instance_is_free_again_when_its_crawler_is_gone() -> None:
    stack = Chain(make_pipeline("a")())
    stack.bind(mock_crawler())
    gc.collect()
    stack.bind(mock_crawler())


async def test_pipelines_are_built_by_from_crawler_and_get_the_item_only() -> None:
    class Pipeline:
        def __init__(self, name: str) -> None:
            self.name = name

        @classmethod
        def from_crawler(cls, crawler: Any) -> Any:
            return cls(crawler.settings["BOT_NAME"])

        def process_item(self, item: Any) -> Any:
            return {**item, "by": self.name}

    run = await run_stack(
        Chain(Pipeline), [{}], "response", crawler=mock_crawler({"BOT_NAME": "shop"})
    )
    assert run.scraped == [{"by": "shop"}]


async def test_the_path_of_a_step_goes_into_a_stack_pipeline() -> None:
    def fail(item: Any) -> Any:
        raise Broken

    class Inner(StackPipeline):
        stack = Chain(Chain(fail, name="deep"), name="inner")

    run = await run_stack(Chain(Inner, name="outer"), [{}])
    assert [failed.step for failed in run.failed] == ["outer/Inner/deep/fail"]


async def test_a_component_without_process_item_is_called() -> None:
    class Currency:
        @classmethod
        def from_crawler(cls, crawler: Any) -> Any:
            self = cls()
            self.code = crawler.settings["CURRENCY"]
            return self

        def __call__(self, item: Any, response: Any) -> Any:
            return {**item, "currency": self.code, "url": response}

    run = await run_stack(Chain(Currency), [{}], "r", crawler=mock_crawler({"CURRENCY": "GBP"}))
    assert run.scraped == [{"currency": "GBP", "url": "r"}]


async def test_the_spider_argument_of_old_pipelines_is_served() -> None:
    class OldPipeline:
        def open_spider(self, spider: Spider) -> None:
            log.append(f"open {spider.name}")

        def close_spider(self, spider: Spider) -> None:
            log.append(f"close {spider.name}")

        def process_item(self, item: Any, spider: Spider, /) -> Any:
            return {**item, "spider": spider.name}

    class Shop(Spider):
        name = "shop"

    run = await run_stack(Chain(OldPipeline), [{}], crawler=mock_crawler(spider=Shop))
    assert run.scraped == [{"spider": "shop"}]
    assert log == ["open shop", "close shop"]


async def test_import_paths_are_loaded_when_the_stack_is_bound() -> None:
    stack = Chain(
        "scrapy_deferkit.copy_item",
        Each("tags", "builtins.str"),
        Parallel("scrapy_deferkit.merge.copy_item"),
    )
    assert (await run_stack(stack, [{"tags": [1]}])).scraped == [{"tags": ["1"]}]


class Unconfigured:
    """A component that says that it is not configured."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        raise NotConfigured("no bucket")


class Useless:
    """A component that cannot process anything."""

    def open_spider(self) -> None:
        log.append("open useless")


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            "scrapy_deferkit.merg.copy_item",
            "no module 'scrapy_deferkit.merg'; did you mean 'merge'",
        ),
        ("scrapy_deferkit.merge.copy_itm", "has no 'copy_itm'; did you mean 'copy_item'"),
        ("scrapyy.Item", "no module 'scrapyy'; did you mean 'scrapy'"),
        ("scrapy_deferkit.__version_info__.major", "no module 'scrapy_deferkit.__version_info__'"),
        ("scrapy_deferkit.stacks.PASSING", r"'scrapy_deferkit.stacks.PASSING'.*is not a processor"),
        (Unconfigured, "Unconfigured is in a stack and says that it is not configured .no bucket"),
        (Useless, r"Useless: a component needs process_item\(\) or __call__\(\)"),
    ],
)
def test_what_cannot_be_bound_says_why(processor: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        Chain(processor).bind(mock_crawler())


@pytest.mark.no_runtime
def test_an_import_that_fails_inside_says_what_failed(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "broken_shop.py").write_text("import not_there_at_all\n")
    (tmp_path / "worse_shop.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StackConfigError, match=r"importing 'broken_shop.f' failed.*not_there_at_a"):
        Chain("broken_shop.f").bind(mock_crawler())
    with pytest.raises(StackConfigError, match=r"'worse_shop.f' failed: ZeroDivisionError"):
        Chain("worse_shop.f").bind(mock_crawler())


async def test_only_a_bound_stack_can_be_opened_and_closed() -> None:
    for method in ("open", "close"):
        with pytest.raises(DeferKitError, match=r"Chain is not bound: .* stack.bind\(crawler\)"):
            await getattr(Chain(len), method)()


def two(item: Any, response: Any) -> Any:
    """Take what processors of the spider middleware take."""


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    "stack",
    [
        Chain(lambda item: item, name="shop"),
        Tolerant((two, lambda failure, item: item), name="shop"),
        Chain(Parallel(two, lambda item: item, name="shop")),
        Each("n", two, on_error=lambda failure, item: item, name="shop"),
    ],
)
def test_processors_that_cannot_take_the_arguments_are_refused(stack: Any) -> None:
    with pytest.raises(StackConfigError, match=r"shop/lambda .*, response\).*lambda\("):
        stack.bind(mock_crawler()).refuse_unless_taking("item", "response")


@pytest.mark.no_runtime
def test_processors_that_can_take_the_arguments_are_not_refused() -> None:
    stack = Chain(
        two,
        make_pipeline("a"),
        Tolerant((two, lambda *args: args[1])),
        Each("n", two, on_error=lambda failure, item, response: item),
        max,
    )
    stack.bind(mock_crawler()).refuse_unless_taking("item", "response")
