"""A wrong setting is refused at start-up, with a message that reads like help."""

from __future__ import annotations

import logging
from functools import partial, wraps
from typing import Any
from unittest.mock import Mock

import pytest
import scrapy
from scrapy.core.downloader.middleware import DownloaderMiddlewareManager
from scrapy.core.spidermw import SpiderMiddlewareManager
from scrapy.exceptions import NotConfigured
from scrapy.pipelines import ItemPipelineManager
from scrapy.utils.misc import load_object

from scrapy_deferkit import (
    Addon,
    Chain,
    ChainPipeline,
    CircuitBreaker,
    DeferKitItemProcessor,
    EachPipeline,
    Fallback,
    Limit,
    Parallel,
    ParallelPipeline,
    Retry,
    Route,
    StackConfigError,
    StackDownloaderMiddleware,
    StackPipeline,
    StackSpiderMiddleware,
    Tolerant,
    TolerantPipeline,
)
from scrapy_deferkit.codec import Codec
from scrapy_deferkit.stats import StepStats
from scrapy_deferkit.testing import mock_crawler

pytestmark = pytest.mark.no_runtime


def clean_title(item: Any) -> Any:
    return item


def takes_both(item: Any, response: Any) -> Any:
    return item


class Wanting:
    """A component that is not configured."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        raise NotConfigured("WANTING_URL is missing")

    def process_item(self, item: Any) -> Any:
        return item


A_STACK = Chain(clean_title, name="shop")

LISTS = {
    "DEFERKIT_CHAIN": ChainPipeline,
    "DEFERKIT_TOLERANT": TolerantPipeline,
    "DEFERKIT_PARALLEL": ParallelPipeline,
    "DEFERKIT_REQUEST_CHAIN": StackDownloaderMiddleware,
    "DEFERKIT_RESPONSE_CHAIN": StackDownloaderMiddleware,
}
STACKS = {"DEFERKIT_STACK": StackPipeline, "DEFERKIT_SPIDER_STACK": StackSpiderMiddleware}
PAIRS = {
    name: it
    for name, it in LISTS.items()
    if name in ("DEFERKIT_TOLERANT", "DEFERKIT_RESPONSE_CHAIN")
}

every_list = pytest.mark.parametrize(("setting", "component"), LISTS.items(), ids=LISTS)
every_stack = pytest.mark.parametrize(("setting", "component"), STACKS.items(), ids=STACKS)
every_pair = pytest.mark.parametrize(("setting", "component"), PAIRS.items(), ids=PAIRS)


def refusal(component: Any, **settings: Any) -> str:
    """Give the message with which *component* refuses *settings*."""
    with pytest.raises(StackConfigError) as error:
        component.from_crawler(mock_crawler(settings))
    message = str(error.value)
    assert message.startswith(tuple(settings))
    return message


@every_list
def test_a_path_to_no_such_name_gets_the_nearest(setting: str, component: Any) -> None:
    message = refusal(component, **{setting: [f"{__name__}.clean_titel"]})
    assert f"'{__name__}.clean_titel'" in message
    assert f"the module '{__name__}' has no 'clean_titel'" in message
    assert "did you mean 'clean_title'?" in message


@every_list
def test_a_path_to_no_such_module_gets_the_nearest(setting: str, component: Any) -> None:
    message = refusal(component, **{setting: ["scrapy.pipelines.flies.FilesPipeline"]})
    assert "there is no module 'scrapy.pipelines.flies'" in message
    assert "did you mean 'files'?" in message


def test_a_path_to_no_such_package_says_so() -> None:
    message = refusal(ChainPipeline, DEFERKIT_CHAIN=["bookshopp.processors.clean"])
    assert "cannot import 'bookshopp.processors.clean'" in message
    assert "there is no module 'bookshopp'" in message


def test_a_name_without_a_module_is_no_path() -> None:
    message = refusal(ChainPipeline, DEFERKIT_CHAIN=["clean_title"])
    assert "'clean_title' is not an import path" in message
    assert "in full" in message


@every_stack
def test_a_path_to_no_stack_says_what_is_there(setting: str, component: Any) -> None:
    assert "did you mean 'A_STACK'?" in refusal(component, **{setting: f"{__name__}.A_STAKC"})
    message = refusal(component, **{setting: f"{__name__}.clean_title"})
    assert f"'{__name__}.clean_title' (function) is not a stack" in message
    assert "clean_title (function) is not a stack" in refusal(component, **{setting: clean_title})
    assert "Chain(" in message


@every_list
def test_what_cannot_be_called_is_no_processor(setting: str, component: Any) -> None:
    message = refusal(component, **{setting: [clean_title, 42]})
    assert "42 (int) is not a processor" in message
    assert "a callable" in message


def test_a_path_to_what_cannot_be_called_is_no_processor() -> None:
    message = refusal(ChainPipeline, DEFERKIT_CHAIN=[f"{__name__}.LISTS"])
    assert f"'{__name__}.LISTS'" in message
    assert "(dict) is not a processor" in message


@every_pair
def test_two_in_a_tuple_may_be_a_pair_or_two_steps(setting: str, component: Any) -> None:
    paths = (f"{__name__}.clean_title", f"{__name__}.takes_both")
    message = refusal(component, **{setting: paths})
    assert "[(processor, errback)]" in message
    assert "[processor, processor]" in message
    if setting == "DEFERKIT_TOLERANT":
        component.from_crawler(mock_crawler({setting: (paths, paths)}))


TITLE = f"{__name__}.clean_title"

FROM_THE_COMMAND_LINE = {
    f"{TITLE}, {TITLE}": ["clean_title", "clean_title#2"],
    f'["{TITLE}"]': ["clean_title"],
    f' ["{TITLE}", "{TITLE}"]': ["clean_title", "clean_title#2"],
}


@pytest.mark.parametrize(("text", "names"), FROM_THE_COMMAND_LINE.items())
@pytest.mark.parametrize("setting", ["DEFERKIT_CHAIN", "DEFERKIT_TOLERANT", "DEFERKIT_PARALLEL"])
def test_a_list_from_the_command_line_is_json_or_paths(
    setting: str, text: str, names: list[str]
) -> None:
    stack = LISTS[setting].from_crawler(mock_crawler({setting: text})).bound
    assert [step.name for step in stack.steps] == names


def test_pairs_from_the_command_line_are_json() -> None:
    text = f'["{TITLE}", ["{TITLE}", "{__name__}.takes_both"]]'
    stack = TolerantPipeline.from_crawler(mock_crawler({"DEFERKIT_TOLERANT": text})).bound
    assert [step.name for step in stack.steps] == ["clean_title", "clean_title#2", "takes_both"]
    pairs = f'[[null, "{__name__}.takes_both"]]'
    StackDownloaderMiddleware.from_crawler(mock_crawler({"DEFERKIT_RESPONSE_CHAIN": pairs}))


@pytest.mark.parametrize("several", [True, False])
def test_the_elements_from_the_command_line_are_json(several: bool) -> None:
    text = f'{{"field": "offers", "processor": "{TITLE}"}}'
    text = f"[{text}, {text}]" if several else text
    stack = EachPipeline.from_crawler(mock_crawler({"DEFERKIT_EACH": text})).bound
    names = [step.name for step in stack.steps]
    assert names == (["Each", "Each#2"] if several else ["clean_title"])


@pytest.mark.parametrize("setting", [*LISTS, "DEFERKIT_EACH"])
def test_what_is_no_list_is_shown_by_its_name(setting: str) -> None:
    message = refusal(LISTS.get(setting, EachPipeline), **{setting: clean_title})
    assert message.startswith(f"{setting} = clean_title (function): ")


@pytest.mark.parametrize("setting", [*LISTS, "DEFERKIT_EACH"])
def test_what_is_no_json_says_where(setting: str) -> None:
    component = LISTS.get(setting, EachPipeline)
    message = refusal(component, **{setting: "['shop.clean']"})
    assert message.startswith(f"{setting} = \"['shop.clean']\": this is not JSON: ")
    assert "column 2" in message


@pytest.mark.parametrize(
    ("setting", "component"), {**LISTS, **STACKS, "DEFERKIT_EACH": EachPipeline}.items()
)
@pytest.mark.parametrize("nothing", ["", " ", None])
def test_a_setting_that_is_emptied_is_not_set(setting: str, component: Any, nothing: Any) -> None:
    with pytest.raises(NotConfigured):
        component.from_crawler(mock_crawler({setting: nothing}))


def test_classes_of_items_from_the_command_line_may_be_json() -> None:
    crawler = mock_crawler({"DEFERKIT_ITEM_CLASSES": '["scrapy.Item"]'})
    assert Codec.from_settings(crawler.settings)._classes["scrapy.Item"] is scrapy.Item


@every_pair
@pytest.mark.parametrize("size", [1, 3])
def test_a_pair_has_two_parts(setting: str, component: Any, size: int) -> None:
    message = refusal(component, **{setting: [(clean_title,) * size]})
    assert "a pair (processor, errback)" in message
    assert f"which has {size} part" in message


def test_a_pair_where_none_belongs_is_refused() -> None:
    message = refusal(ChainPipeline, DEFERKIT_CHAIN=[(clean_title, clean_title)])
    assert "(clean_title, clean_title) (tuple) is not a processor" in message
    assert "a step of Tolerant and its setting DEFERKIT_TOLERANT" in message
    assert "a step of Tolerant" in refusal(ChainPipeline, DEFERKIT_CHAIN='[["a.b", "a.c"]]')


@every_list
@pytest.mark.parametrize(
    "value", [A_STACK, clean_title, {"a": 1}], ids=["stack", "callable", "dict"]
)
def test_what_is_no_list_is_refused(setting: str, component: Any, value: Any) -> None:
    message = refusal(component, **{setting: value})
    assert type(value).__name__ in message
    assert "a list of processors is expected" in message
    assert f"{setting} = [" in message


def test_a_stack_where_a_list_belongs_is_told_where_stacks_go() -> None:
    message = refusal(ChainPipeline, DEFERKIT_CHAIN=A_STACK)
    assert "DEFERKIT_STACK" in message
    assert "StackPipeline" in message


@every_stack
@pytest.mark.parametrize(
    "value", [[clean_title], clean_title, Chain], ids=["list", "callable", "class"]
)
def test_what_is_no_stack_is_refused(setting: str, component: Any, value: Any) -> None:
    message = refusal(component, **{setting: value})
    assert "is not a stack" in message
    assert f"({type(value).__name__})" in message
    assert "Chain(clean, store)" in message


def test_the_stack_of_a_subclass_is_blamed_by_name() -> None:
    class Shop(StackPipeline):
        stack = "nowhere.at_all"

    with pytest.raises(StackConfigError, match=r"^Shop\.stack: cannot import 'nowhere\.at_all'"):
        Shop.from_crawler(mock_crawler())


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "many"])
def test_the_concurrency_of_elements_is_at_least_one(value: Any) -> None:
    entry = {"field": "offers", "processor": clean_title, "concurrency": value}
    message = refusal(EachPipeline, DEFERKIT_EACH=entry)
    assert f"concurrency={value!r}" in message
    assert "1 or more" in message


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "many", [4]])
def test_the_concurrency_of_the_spider_stack_is_at_least_one(value: Any) -> None:
    with pytest.raises(StackConfigError) as error:
        StackSpiderMiddleware.from_crawler(
            mock_crawler({"DEFERKIT_SPIDER_STACK": A_STACK, "DEFERKIT_SPIDER_CONCURRENCY": value})
        )
    assert str(error.value).startswith(f"DEFERKIT_SPIDER_CONCURRENCY = {value!r}: ")
    assert "1 or more" in str(error.value)


def test_an_unknown_key_gets_the_nearest() -> None:
    entry = {"field": "offers", "procesor": clean_title}
    message = refusal(EachPipeline, DEFERKIT_EACH=[entry])
    assert "unknown key 'procesor'" in message
    assert "did you mean 'processor'?" in message
    assert "field, processor, concurrency, on_error" in message


@pytest.mark.parametrize("missing", ["field", "processor"])
def test_a_missing_key_is_named(missing: str) -> None:
    entry = {"field": "offers", "processor": clean_title}
    del entry[missing]
    assert f"the key {missing!r} is missing" in refusal(EachPipeline, DEFERKIT_EACH=entry)


@pytest.mark.parametrize("value", ["offers", [["offers", clean_title]], 3])
def test_the_elements_are_described_by_a_dict(value: Any) -> None:
    message = refusal(EachPipeline, DEFERKIT_EACH=value)
    assert "a dict is expected" in message
    assert '"field"' in message


def test_how_failing_elements_are_handled_is_checked() -> None:
    entry = {"field": "offers", "processor": clean_title, "on_error": "ignore"}
    message = refusal(EachPipeline, DEFERKIT_EACH=entry)
    assert "on_error='ignore'" in message
    assert "'raise', 'drop'" in message


def test_a_component_that_is_not_configured_is_named_with_its_reason() -> None:
    message = refusal(ChainPipeline, DEFERKIT_CHAIN=[Wanting])
    assert "Wanting" in message
    assert "WANTING_URL is missing" in message


def test_a_processor_of_items_that_takes_no_response_is_shown_with_its_arguments() -> None:
    message = refusal(StackSpiderMiddleware, DEFERKIT_SPIDER_STACK=Chain(takes_both, A_STACK))
    assert "shop/clean_title" in message
    assert "(item, response)" in message
    assert "clean_title(item: 'Any')" in message


def test_a_processor_of_requests_takes_the_request_alone() -> None:
    message = refusal(StackDownloaderMiddleware, DEFERKIT_REQUEST_CHAIN=[takes_both])
    assert "takes_both" in message
    assert "called with (request)" in message


def test_a_processor_of_responses_takes_the_request_too() -> None:
    message = refusal(StackDownloaderMiddleware, DEFERKIT_RESPONSE_CHAIN=[clean_title])
    assert "called with (response, request)" in message


def takes_nothing() -> Any:
    """Take nothing."""


def takes_three(item: Any, session: Any, attempt: int) -> Any:
    return item


def counted(function: Any) -> Any:
    """Give *function* more arguments, as decorators may that open a session."""

    @wraps(function)
    def call(item: Any, *_: Any) -> Any:
        return function(item, 1, 2)

    return call


class Misnamed:
    """A pipeline whose method has another name."""

    def process(self, item: Any) -> Any:
        return item


class Argued:
    """A pipeline that is told where to write."""

    def __init__(self, path: str) -> None:
        self.path = path

    def process_item(self, item: Any) -> Any:
        return item


class Ungiven:
    """A pipeline whose ``from_crawler`` lacks the crawler."""

    @classmethod
    def from_crawler(cls) -> Any:
        return cls()

    def process_item(self, item: Any) -> Any:
        return item


class Asking:
    """A pipeline that asks for the response."""

    def process_item(self, item: Any, response: Any) -> Any:
        return item


class Reasoned:
    """A pipeline that asks why the spider is closed."""

    def process_item(self, item: Any) -> Any:
        return item

    def close_spider(self, spider: Any, reason: str) -> None:
        """Close."""


class Component:
    """A pipeline that has all its methods."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        return cls()

    async def open_spider(self) -> None:
        """Open."""

    async def process_item(self, item: Any) -> Any:
        return item

    async def close_spider(self) -> None:
        """Close."""


class OfOldTimes:
    """A pipeline with the ``spider`` of older versions."""

    def open_spider(self, spider: Any) -> None:
        """Open."""

    def process_item(self, item: Any, spider: Any) -> Any:
        return item

    def close_spider(self, spider: Any = None) -> None:
        """Close."""


class OfPositions:
    """A pipeline with the ``spider`` of older versions, which has no name to be called with."""

    def open_spider(self, spider: Any, /) -> None:
        """Open."""

    def process_item(self, item: Any, spider: Any, /) -> Any:
        return item


class Unbound:
    """A proxy of something that is not there yet, which it says to whoever asks."""

    @property
    def __signature__(self) -> Any:
        raise RuntimeError("unbound")

    def __call__(self, *args: Any) -> Any:
        """Be a step."""


UNCALLABLE = {
    takes_both: r"takes_both(item: 'Any', response: 'Any') -> 'Any'",
    takes_nothing: r"takes_nothing() -> 'Any'",
    Misnamed: "Misnamed()",
    Argued: "Argued(path: 'str')",
    Argued("a"): None,
    Ungiven: "from_crawler() -> 'Any'",
    Asking: "process_item(item: 'Any', response: 'Any') -> 'Any'",
    Reasoned: "close_spider(spider: 'Any', reason: 'str')",
}


@pytest.mark.parametrize(
    ("processor", "signature"), UNCALLABLE.items(), ids=[str(it) for it in UNCALLABLE.values()]
)
@pytest.mark.parametrize(
    ("setting", "component", "value", "path"),
    [
        ("DEFERKIT_CHAIN", ChainPipeline, lambda it: [it], "Chain/{}"),
        ("DEFERKIT_TOLERANT", TolerantPipeline, lambda it: [(it, takes_both)], "Tolerant/{}"),
        ("DEFERKIT_PARALLEL", ParallelPipeline, lambda it: [it], "Parallel/{}"),
        ("DEFERKIT_EACH", EachPipeline, lambda it: {"field": "n", "processor": it}, "Each/{}"),
        (
            "DEFERKIT_STACK",
            StackPipeline,
            lambda it: Chain(Limit(Fallback(it, clean_title), 1), name="shop"),
            "shop/Limit/Fallback/{}",
        ),
        ("DEFERKIT_REQUEST_CHAIN", StackDownloaderMiddleware, lambda it: [it], "RequestChain/{}"),
    ],
    ids=["chain", "tolerant", "parallel", "each", "stack", "requests"],
)
def test_what_cannot_be_called_is_refused_with_its_signature(
    setting: str, component: Any, value: Any, path: str, processor: Any, signature: str | None
) -> None:
    if signature is None:  # it can be
        component.from_crawler(mock_crawler({setting: value(processor)}))
        return
    message = refusal(component, **{setting: value(processor)})
    assert signature in message
    assert path.format(processor.__name__) in message or f": {processor.__name__}" in message
    is_built = processor in (Misnamed, Argued)
    fix = "give each of its arguments a default" if is_built else "let it take these arguments"
    assert processor is Misnamed or message.endswith(fix)


@pytest.mark.parametrize(
    ("setting", "component", "steps", "called"),
    [
        ("DEFERKIT_TOLERANT", TolerantPipeline, [(clean_title, clean_title)], "(failure, item)"),
        (
            "DEFERKIT_EACH",
            EachPipeline,
            {"field": "n", "processor": clean_title, "on_error": clean_title},
            "(failure, element)",
        ),
        (
            "DEFERKIT_RESPONSE_CHAIN",
            StackDownloaderMiddleware,
            [(None, clean_title)],
            "(failure, request)",
        ),
        (
            "DEFERKIT_SPIDER_STACK",
            StackSpiderMiddleware,
            Tolerant((takes_both, takes_both)),
            "(failure, item, response)",
        ),
        (
            "DEFERKIT_STACK",
            StackPipeline,
            Tolerant((clean_title, Fallback(clean_title, takes_both))),
            "(failure, item)",
        ),
        (
            "DEFERKIT_STACK",
            StackPipeline,
            Tolerant((clean_title, OfOldTimes)),
            "(failure, item)",
        ),
    ],
)
def test_an_errback_that_cannot_be_called_is_refused(
    setting: str, component: Any, steps: Any, called: str
) -> None:
    assert called in refusal(component, **{setting: steps})


@every_list
def test_what_can_be_called_is_not_refused(setting: str, component: Any) -> None:
    several = [
        Component,
        counted(takes_three),
        OfOldTimes,
        OfOldTimes(),
        OfPositions,
        Unbound(),
        max,
        dict,
        Mock(),
        partial(max, 1),
    ]
    component.from_crawler(mock_crawler({setting: several}))


def test_steps_that_are_counted_are_looked_at_all_the_same() -> None:
    crawler = mock_crawler({"DEFERKIT_CHAIN": [takes_both]})
    StepStats.of(crawler)
    with pytest.raises(StackConfigError, match="DEFERKIT_CHAIN: Chain/takes_both"):
        ChainPipeline.from_crawler(crawler)


def test_a_pipeline_of_the_project_that_takes_no_item_is_refused_by_our_item_processor() -> None:
    pipelines = {Component: 1, Asking: 2}
    with pytest.raises(StackConfigError, match=r"ITEM_PIPELINES: Asking .*process_item\(item: "):
        DeferKitItemProcessor.from_crawler(mock_crawler({"ITEM_PIPELINES": pipelines}))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda it: Tolerant(len, copy=it), "Tolerant: copy"),
        (lambda it: Parallel(len, copy=it), "Parallel: copy"),
        (lambda it: Parallel(len, merge=it), "Parallel: merge"),
        (lambda it: Retry(len, on=it), "Retry: on"),
        (lambda it: Retry(len, on=OSError, wait=it), "Retry: wait"),
        (lambda it: Route({it: len}), "Route: predicate"),
        (lambda it: CircuitBreaker(len, key=it), "CircuitBreaker: key"),
    ],
)
def test_a_function_that_a_stack_cannot_call_is_refused(make: Any, argument: str) -> None:
    with pytest.raises(StackConfigError, match=rf"{argument} is called with \("):
        make(takes_nothing)


MANAGERS = {
    "ITEM_PIPELINES": ItemPipelineManager,
    "SPIDER_MIDDLEWARES": SpiderMiddlewareManager,
    "DOWNLOADER_MIDDLEWARES": DownloaderMiddlewareManager,
}


@pytest.mark.parametrize(
    ("component", "group", "setting"),
    [
        (ChainPipeline, "ITEM_PIPELINES", "DEFERKIT_CHAIN"),
        (TolerantPipeline, "ITEM_PIPELINES", "DEFERKIT_TOLERANT"),
        (ParallelPipeline, "ITEM_PIPELINES", "DEFERKIT_PARALLEL"),
        (EachPipeline, "ITEM_PIPELINES", "DEFERKIT_EACH"),
        (StackPipeline, "ITEM_PIPELINES", "DEFERKIT_STACK"),
        (StackSpiderMiddleware, "SPIDER_MIDDLEWARES", "DEFERKIT_SPIDER_STACK"),
        (StackDownloaderMiddleware, "DOWNLOADER_MIDDLEWARES", "DEFERKIT_REQUEST_CHAIN"),
    ],
)
def test_a_component_without_its_setting_is_off_and_says_why(
    component: Any, group: str, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    crawler = mock_crawler({group: {component: 500}})
    with caplog.at_level(logging.WARNING):
        manager = MANAGERS[group].from_crawler(crawler)
    assert component not in [type(it) for it in manager.middlewares]
    (record,) = caplog.records
    assert component.__name__ in record.getMessage()
    assert f"needs the setting {setting}" in record.getMessage()


class OwnPipeline(StackPipeline):
    stack = A_STACK


@pytest.mark.parametrize(
    ("wrong", "component", "right"),
    [
        ("EXTENSIONS", Addon, "ADDONS"),
        ("ITEM_PIPELINES", "scrapy_deferkit.DeferKitItemProcessor", "ITEM_PROCESSOR"),
        ("EXTENSIONS", DeferKitItemProcessor, "ITEM_PROCESSOR"),
        ("SPIDER_MIDDLEWARES", OwnPipeline, "ITEM_PIPELINES"),
        ("DOWNLOADER_MIDDLEWARES", StackSpiderMiddleware, "SPIDER_MIDDLEWARES"),
        ("SPIDER_MIDDLEWARES", StackDownloaderMiddleware, "DOWNLOADER_MIDDLEWARES"),
    ],
)
def test_a_component_in_another_setting_than_its_own_is_refused(
    wrong: str, component: Any, right: str
) -> None:
    cls = load_object(component)
    with pytest.raises(StackConfigError) as error:
        cls.from_crawler(mock_crawler({wrong: {component: 5}}))
    assert str(error.value).startswith(f"{wrong} holds {cls.__name__}, ")
    assert str(error.value).endswith(f"it belongs into {right}")


def test_one_that_is_switched_off_there_is_not() -> None:
    assert Addon.from_crawler(mock_crawler({"EXTENSIONS": {Addon: None}}))
    settings = {"SPIDER_MIDDLEWARES": {"scrapy_deferkit.StackPipeline": None}}
    assert OwnPipeline.from_crawler(mock_crawler(settings))


@pytest.mark.parametrize("stack", [A_STACK, f"{__name__}.A_STACK", Chain, Retry(len, on=OSError)])
def test_a_stack_that_stands_for_a_pipeline_is_refused(stack: Any) -> None:
    crawler = mock_crawler({"ITEM_PIPELINES": {stack: 100}})
    with pytest.raises(StackConfigError, match="put scrapy_deferkit.StackPipeline into ITEM"):
        ItemPipelineManager.from_crawler(crawler)
