"""What odd processors, items and arguments do to a stack."""

from __future__ import annotations

import dataclasses
import pickle
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from scrapy.exceptions import CloseSpider, DropItem
from scrapy.pipelines.media import MediaPipeline

from scrapy_deferkit import (
    Chain,
    CircuitBreaker,
    CircuitOpen,
    ClosingError,
    DeferKitError,
    Each,
    Fallback,
    Parallel,
    Retry,
    Route,
    StackConfigError,
    StepTimeout,
    Tap,
    Timeout,
    Tolerant,
    merge_changes,
    step_of,
)
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.defer import process_chain
from scrapy_deferkit.merge import set_fields
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..steps import Broken, wait


class Media(MediaPipeline):
    """A media pipeline that has nothing to do with media; only its base counts."""

    media_to_download = get_media_requests = media_downloaded = None  # type: ignore[assignment]
    media_failed = item_completed = file_path = None  # type: ignore[assignment]

    def process_item(self, item: Any) -> Any:  # type: ignore[override]
        return {**item, "plain": True}


class OldMedia(Media):
    def process_item(self, item: Any, spider: Any) -> Any:  # type: ignore[override]
        return {**item, "spider": spider.name}


async def test_a_media_pipeline_may_have_a_plain_process_item_and_an_old_one() -> None:
    run = await run_stack(Chain(Media), [{}])
    assert run.scraped == [{"plain": True}]
    run = await run_stack(Chain(OldMedia), [{}])
    assert list(run.scraped[0]) == ["spider"]


async def test_one_instance_in_two_places_opens_and_closes_once() -> None:
    log: list[str] = []

    class Pipeline:
        def open_spider(self) -> None:
            log.append("open")

        def close_spider(self) -> None:
            log.append("close")

        def process_item(self, item: Any) -> Any:
            return item

    instance = Pipeline()
    await run_stack(Chain(instance, Tap(instance)), [{}])
    assert log == ["open", "close"]


async def test_an_instance_is_free_after_a_start_that_failed() -> None:
    class Pipeline:
        fails = False

        def open_spider(self) -> None:
            if self.fails:
                raise Broken

        def process_item(self, item: Any) -> Any:
            return item

    instance, crawlers = Pipeline(), [mock_crawler() for _ in range(3)]
    with pytest.raises(StackConfigError, match="no module"):
        Chain(Chain(instance), "nowhere.to_be_found").bind(crawlers[0])
    instance.fails = True
    with pytest.raises(Broken):
        await Chain(instance).bind(crawlers[1]).open()
    instance.fails = False
    assert (await run_stack(Chain(instance), [{}], crawler=crawlers[2])).scraped == [{}]


async def test_cancelling_one_that_waits_to_open_leaves_the_stack_usable() -> None:
    class Slow:
        async def open_spider(self) -> None:
            await turn()

        def process_item(self, item: Any) -> Any:
            return item

    bound = Chain(Slow).bind(mock_crawler())
    first, second = to_deferred(bound.open()), to_deferred(bound.open())
    second.addErrback(lambda _: None)
    for _ in range(6):
        await turn()
        second.cancel()
    await wait(first)
    assert await bound({"a": 1}) == {"a": 1}
    for _ in range(2):  # the second may have been open before it was cancelled
        await bound.close()
    assert bound._opened == 0


@pytest.mark.no_runtime
def test_a_stack_that_contains_itself_is_refused() -> None:
    with pytest.raises(StackConfigError, match="contains itself"):
        LOOP.bind(mock_crawler())


LOOP = Chain(f"{__name__}.LOOP")


@pytest.mark.parametrize(
    "wrap",
    [Chain, Parallel, Timeout, Tap, Retry, Tolerant, Fallback, Each, Route, CircuitBreaker],
)
async def test_stop_iteration_is_a_failure_with_a_step(wrap: Any) -> None:
    def exhausted(item: Any) -> Any:
        return next(iter(()))

    arguments: dict[Any, Any] = {
        Timeout: lambda: Timeout(exhausted, 5),
        Retry: lambda: Retry(exhausted, on=OSError),
        Fallback: lambda: Fallback(exhausted, exhausted),
        Each: lambda: Each("n", exhausted),
        Route: lambda: Route({dict: exhausted}),
    }
    stack = arguments.get(wrap, lambda: wrap(exhausted))()
    run = await run_stack(Chain(stack, name="shop"), [{"n": [1]}])
    if wrap is Tap:
        assert run.scraped == [{"n": [1]}]
        return
    (failed,) = run.failed
    assert isinstance(failed.exception, RuntimeError)
    assert str(failed.step).startswith("shop/")
    assert "exhausted" in str(failed.step)


@pytest.mark.no_runtime
def test_stop_iteration_keeps_its_type_in_a_deferred() -> None:
    failures: list[Any] = []
    process_chain([lambda _: next(iter(()))], 1).addErrback(failures.append)
    assert failures[0].type is StopIteration


def fail(*_: Any) -> Any:
    raise Broken


@pytest.mark.parametrize(
    ("stack", "step"),
    [
        (CircuitBreaker(len, key=fail), "shop/CircuitBreaker/key"),
        (CircuitBreaker(len, key=lambda item: []), "shop/CircuitBreaker/key"),
        (Route({fail: len}), "shop/Route/fail"),
        (Retry(len, on=OSError, copy=fail), "shop/Retry/copy"),
        (Tolerant((len, fail), copy=fail), "shop/Tolerant/copy"),
        (Parallel(len, copy=fail), "shop/Parallel/copy"),
        (Fallback(len, len, copy=fail), "shop/Fallback/copy"),
        (Tap(len, copy=fail), "shop/Tap/copy"),
    ],
    ids=str,
)
async def test_what_a_function_of_the_stack_itself_raises_has_a_path(stack: Any, step: str) -> None:
    with pytest.raises((Broken, TypeError)) as caught:
        await Chain(stack, name="shop")({})
    assert step_of(caught.value) == step


async def test_a_predicate_of_retry_that_fails_hides_no_failure() -> None:
    with pytest.raises(Broken) as caught:
        await Retry(fail, on=lambda error: error.missing)({})  # type: ignore[attr-defined]
    assert any("the function on= failed" in note for note in caught.value.__notes__)


async def test_an_element_that_cannot_be_copied_is_given_to_its_errback_as_it_is() -> None:
    class Uncopied(dict[str, Any]):
        def __copy__(self) -> Any:
            raise Broken

    element = Uncopied()
    given: list[Any] = []

    def note(failure: Any, element: Any) -> Any:
        given.append(element)
        return "done"

    item = await Each("n", fail, on_error=note, concurrency=1)({"n": [1, element, 3]})
    assert item == {"n": ["done", "done", "done"]}
    assert given[1] is element


@pytest.mark.parametrize("on_error", ["drop", lambda failure, element: element])
async def test_an_interrupt_is_no_failure_of_an_element(on_error: Any) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(element: Any) -> Any:
        raise Interrupt

    with pytest.raises(Interrupt):
        await Each("n", interrupt, on_error=on_error)({"n": [1]})


async def test_extra_arguments_may_have_any_name() -> None:
    def take(item: Any, *args: Any, **kwargs: Any) -> Any:
        return item

    def handle(failure: Any, item: Any, **kwargs: Any) -> Any:
        return item

    names = dict.fromkeys(("item", "step", "before", "running", "failed", "failure"), 1)
    for stack in (
        Tolerant((take, handle)),
        Parallel(take),
        Timeout(take, 5),
        Tap(take),
        Fallback(take, take),
        CircuitBreaker(take),
        Retry(take, on=OSError),
    ):
        taken = {name: 1 for name in names if name != "item"}
        assert await stack({"n": [1]}, **taken) == {"n": [1]}
    assert await Each("n", take, on_error=handle)({"n": [1]}, step=1, before=2) == {"n": [1]}


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    "error",
    [
        StepTimeout("shop/fetch", 5.0),
        CircuitOpen("shop/fetch", "key", 3.0),
        ClosingError("shop", [Broken("x")]),
    ],
)
def test_exceptions_can_be_pickled(error: Any) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


async def test_while_a_probe_is_under_way_no_time_is_promised() -> None:
    assert "a probe is under way" in str(CircuitOpen("shop/fetch", None, None))


@pytest.mark.no_runtime
def test_nested_items_that_nobody_changed_do_not_conflict() -> None:
    @dataclasses.dataclass(eq=False)
    class Offer:
        price: float

    from scrapy_deferkit import copy_item

    item = {"offers": [Offer(float("nan"))], "n": 0}
    one, other = copy_item(item), copy_item(item)
    one["n"] = 1
    assert merge_changes(item, [one, other])["n"] == 1


@pytest.mark.no_runtime
def test_what_is_no_item_cannot_be_merged_and_says_so() -> None:
    with pytest.raises(DeferKitError, match="'text' .str.: give the Parallel merge="):
        merge_changes("text", ["other"])


@pytest.mark.no_runtime
def test_frozen_items_whose_constructor_lacks_a_field_are_rebuilt_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        n: int
        double: int = dataclasses.field(init=False, default=0)

    assert set_fields(Odd(1), {"double": 4}).double == 4


async def test_a_named_tuple_of_elements_stays_one() -> None:
    class Pair(NamedTuple):
        left: int
        right: int

    assert await Each("n", lambda n: n + 1)({"n": Pair(1, 2)}) == {"n": Pair(2, 3)}


async def test_a_route_knows_abstract_classes() -> None:
    assert await Route({Mapping: lambda item: "mapping"}, default="pass")({}) == "mapping"


async def test_a_generator_based_coroutine_is_a_coroutine() -> None:
    @types.coroutine
    def old_style(item: Any) -> Any:
        yield from turn().__await__()
        return {**item, "old": True}

    assert await Chain(old_style)({}) == {"old": True}


async def asynchronous(*_: Any) -> Any:
    return True


class AsynchronousObject:
    async def __call__(self, item: Any) -> bool:
        return True


def generating(item: Any) -> Any:
    yield item


async def generating_async(item: Any) -> Any:
    yield item


class Generating:
    def __call__(self, item: Any) -> Any:
        yield item


class GeneratingPipeline:
    async def process_item(self, item: Any) -> Any:
        yield item


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain(generating), "generating is a generator function"),
        (lambda: Chain(Generating()), "Generating is a generator function"),
        (lambda: Chain(GeneratingPipeline), "GeneratingPipeline is a generator function"),
        (lambda: Chain(GeneratingPipeline()), "GeneratingPipeline is a generator function"),
        (lambda: Chain(generating_async), "generating_async is a generator function"),
        (lambda: Chain(Retry), r"Retry is the class of a stack; call it, as in Retry\(...\)"),
        (lambda: Chain(len, name=5), "name=5.*text without a slash"),
        (lambda: Retry(len, on=DropItem), "on=DropItem.*passes through every stack"),
        (lambda: Tolerant(len, on=(OSError, CloseSpider)), "on=CloseSpider"),
        (lambda: Retry(len, on=asynchronous), "asynchronous is a coroutine function"),
        (lambda: Route({AsynchronousObject(): len}), "is a coroutine function"),
        (lambda: Route({dict[str, int]: len}), r"dict\[str, int\] is no class.*give dict"),
        (lambda: CircuitBreaker(len, key=asynchronous), "asynchronous is a coroutine function"),
        (lambda: Parallel(len, copy=5), "copy=5"),
        (lambda: Tolerant(len, copy=None), "copy=None"),
        (lambda: Tap(len, copy="deep"), "copy='deep'"),
    ],
)
def test_what_cannot_work_is_refused_when_the_stack_is_built(make: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        make()
