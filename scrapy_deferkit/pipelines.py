"""Item pipelines that run a stack."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from scrapy.exceptions import CloseSpider, NotConfigured

from ._config import Config, blaming, refuse_elsewhere
from ._lifecycle import heed_close_spider
from ._runtime import CANCELLED, is_asked_for
from ._stack import cancelled_from_within
from .exceptions import StackConfigError
from .processor import stack_at
from .stacks import Chain, Each, Parallel, Tolerant

if TYPE_CHECKING:
    from scrapy.crawler import Crawler
    from typing_extensions import Self

    from ._stack import Stack


class StackPipeline:
    """Run items through a stack: the class attribute ``stack`` of a subclass, or a setting.

    The setting is ``DEFERKIT_STACK``. Both hold a stack, or the import path of one.
    """

    stack: Stack | str | None = None
    setting = "DEFERKIT_STACK"

    def __init__(self, bound: Stack) -> None:
        """Take the stack that runs in the crawler; a failure's path goes on into it."""
        self.bound = bound

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the pipeline and bind its stack to *crawler*.

        Raises :exc:`~scrapy.exceptions.NotConfigured` without a stack, and
        :exc:`~scrapy_deferkit.exceptions.StackConfigError` with one that cannot run.
        """
        refuse_elsewhere(crawler.settings, cls, "ITEM_PIPELINES")
        config = Config.from_settings(crawler.settings)
        owner = cls.setting if cls.stack is None else f"{cls.__name__}.stack"
        with blaming(owner):
            stack = cls._make_stack(config) if cls.stack is None else stack_at(cls.stack)
            if stack is None:
                raise NotConfigured(f"{cls.__name__} needs the setting {cls.setting}")
            bound = stack.bind(crawler)
            bound.refuse_unless_taking("item")
            return cls(bound)

    @classmethod
    def _make_stack(cls, config: Config) -> Stack | None:
        """Make the stack of the settings; ``None`` where there is none."""
        return None if config.stack is None else stack_at(config.stack)

    async def open_spider(self) -> None:
        """Open the components in the stack."""
        await self.bound.open()

    async def process_item(self, item: Any) -> Any:
        """Give the item that the stack makes of *item*."""
        try:
            return await self.bound(item)
        except CANCELLED as error:
            if is_asked_for(error):
                raise
            # Scrapy would take it for its own, and lose the item unheard.
            raise cancelled_from_within(error) from error
        except CloseSpider as error:
            if self.bound._crawler is not None:
                heed_close_spider(self.bound._crawler, error)
            raise

    async def close_spider(self) -> None:
        """Close the components in the stack."""
        await self.bound.close()


class ChainPipeline(StackPipeline):
    """Run the processors of ``DEFERKIT_CHAIN`` one after the other."""

    setting = "DEFERKIT_CHAIN"

    @classmethod
    def _make_stack(cls, config: Config) -> Stack | None:
        return Chain(*config.chain) if config.chain else None


class TolerantPipeline(StackPipeline):
    """Run the steps of ``DEFERKIT_TOLERANT``, processors or pairs ``(processor, errback)``."""

    setting = "DEFERKIT_TOLERANT"

    @classmethod
    def _make_stack(cls, config: Config) -> Stack | None:
        return Tolerant(*config.tolerant) if config.tolerant else None


class ParallelPipeline(StackPipeline):
    """Run the branches of ``DEFERKIT_PARALLEL`` together, and merge what they change."""

    setting = "DEFERKIT_PARALLEL"

    @classmethod
    def _make_stack(cls, config: Config) -> Stack | None:
        return Parallel(*config.parallel) if config.parallel else None


class EachPipeline(StackPipeline):
    """Run a processor over the elements of a field, as ``DEFERKIT_EACH`` says.

    The setting is a dict of the arguments of :class:`~scrapy_deferkit.Each`, or a list of dicts.
    """

    setting = "DEFERKIT_EACH"

    @classmethod
    def _make_stack(cls, config: Config) -> Stack | None:
        if not config.each:
            return None
        stacks = [_each(entry) for entry in config.each]
        return stacks[0] if len(stacks) == 1 else Chain(*stacks, name="Each")


_EACH_KEYS = ("field", "processor", "concurrency", "on_error", "name")


def _each(entry: dict[str, Any]) -> Each:
    for key in entry:
        if key not in _EACH_KEYS:
            nearest = difflib.get_close_matches(str(key), _EACH_KEYS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise StackConfigError(f"unknown key {key!r}; known are {', '.join(_EACH_KEYS)}{hint}")
    for key in ("field", "processor"):
        if key not in entry:
            raise StackConfigError(f"the key {key!r} is missing in {entry!r}")
    return Each(**entry)
