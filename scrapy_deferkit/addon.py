"""One line in ``ADDONS`` for all that this package does around a crawl."""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.exceptions import NotConfigured
from scrapy.extensions.spiderstate import SpiderState
from scrapy.settings import SETTINGS_PRIORITIES, default_settings
from scrapy.utils.misc import load_object

from ._config import SETTINGS, Config, refuse_elsewhere
from ._crawl import crawl_of
from .exceptions import counted
from .gate import ItemGate
from .itemprocessor import DeferKitItemProcessor
from .report import Report
from .scheduler import Scheduler

if TYPE_CHECKING:
    from scrapy.crawler import Crawler
    from scrapy.settings import BaseSettings
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_NEXT_TO_THE_ENGINE = -1_000_000

_SET = {
    "ITEM_PROCESSOR": "scrapy_deferkit.DeferKitItemProcessor",
    "DEFERKIT_DEAD_LETTERS": True,
    "DEFERKIT_REPORT": True,
}
_FALLBACK = "DEFERKIT_FALLBACK_ITEM_PROCESSOR"


class Addon:
    """Switch on the gate, the item processor, the dead letters and the report.

    With a ``JOBDIR``, the scheduler whose crawl survives the death of its process, too.
    What the user has set always wins; ``DEFERKIT_ENABLED = False`` switches all of it off:

    ``ADDONS = {"scrapy_deferkit.Addon": 500}``
    """

    def __init__(self, crawler: Crawler | None = None) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the add-on of *crawler*."""
        refuse_elsewhere(crawler.settings, cls, "ADDONS")
        return cls(crawler)

    def update_settings(self, settings: BaseSettings) -> None:
        """Set what is not set, and say in the log what is switched on.

        Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where a setting is wrong, and
        :exc:`~scrapy.exceptions.NotConfigured` if ``DEFERKIT_ENABLED`` is false.
        """
        _warn_of_unknown(settings)
        if not Config.from_settings(settings).enabled:
            logger.info("scrapy-deferkit is switched off (DEFERKIT_ENABLED)")
            raise NotConfigured
        _keep_fallback(settings)
        for name, value in _SET.items():
            if (settings.getpriority(name) or 0) < SETTINGS_PRIORITIES["addon"]:
                settings.set(name, value, "addon")
        # Next to the engine: behind it, no middleware changes which items there are.
        settings.setdefault_in_component_priority_dict(
            "SPIDER_MIDDLEWARES", ItemGate, _NEXT_TO_THE_ENGINE
        )
        settings.setdefault_in_component_priority_dict("EXTENSIONS", Report, 0)
        config = Config.from_settings(settings)
        switched_on = []
        if _is_ours(settings["ITEM_PROCESSOR"]):
            most = config.concurrent_items
            bound = counted(most, "item") if most else "any number of items"
            timeout = f"{config.item_timeout:g} s" if config.item_timeout else "any time"
            switched_on.append(f"the item processor ({bound} at once, {timeout} each)")
            if config.dead_letters:
                switched_on.append("the dead letters")
        if settings["JOBDIR"] and _keep_the_job(settings):
            switched_on.append("the scheduler that survives a crash")
        if config.report:
            switched_on.append("the report")
        logger.info("scrapy-deferkit has switched on %s", ", ".join(switched_on) or "nothing")
        if self._crawler is not None:
            self._crawler.signals.connect(self._warn_of_replaced, signals.spider_opened)

    def _warn_of_replaced(self) -> None:
        """Warn of what the project, the spider or a later add-on has put in the place of ours."""
        crawler = self._crawler
        assert crawler is not None
        settings = crawler.settings
        extra = {"spider": crawler.spider}
        if crawl_of(crawler).on_failed is None:  # no item processor of ours was built
            logger.warning(
                "ITEM_PROCESSOR is %s, set with the priority %s: items are neither timed nor kept. "
                "Set %s to it, and not ITEM_PROCESSOR, derive it from DeferKitItemProcessor, or "
                "take it out",
                *(settings["ITEM_PROCESSOR"], _priority_of(settings, "ITEM_PROCESSOR"), _FALLBACK),
                extra=extra,
            )
        # One that was set to None is switched off on purpose.
        if not any(load_object(it) is ItemGate for it in settings["SPIDER_MIDDLEWARES"]):
            logger.warning(
                "SPIDER_MIDDLEWARES, set with the priority %s, no longer holds the ItemGate that "
                "the add-on has put there: items have no bound across the crawl, and dead letters "
                "no page. Let what sets it keep the middlewares that are there",
                _priority_of(settings, "SPIDER_MIDDLEWARES"),
                extra=extra,
            )
        if settings["JOBDIR"] and not _is_our_scheduler(settings):
            priority = _priority_of(settings, "SCHEDULER")
            logger.log(
                logging.WARNING if priority == "addon" else logging.INFO,
                "SCHEDULER is %s, set with the priority %s: what is in work when the process dies "
                "is that scheduler's to keep. Dead letters are kept all the same",
                settings["SCHEDULER"],
                priority,
                extra=extra,
            )


def _keep_fallback(settings: BaseSettings) -> None:
    """Run the item processor of another add-on in ours, as Scrapy advises add-ons to do."""
    processor = settings["ITEM_PROCESSOR"]
    of_addon = settings.getpriority("ITEM_PROCESSOR") == SETTINGS_PRIORITIES["addon"]
    if of_addon and not _is_ours(processor) and settings[_FALLBACK] is None:
        settings.set(_FALLBACK, processor, "addon")
        settings.set("ITEM_PROCESSOR", _SET["ITEM_PROCESSOR"], "addon")


def _is_ours(path: Any) -> bool:
    processor = load_object(path)
    return isinstance(processor, type) and issubclass(processor, DeferKitItemProcessor)


def _priority_of(settings: BaseSettings, name: str) -> str:
    number = settings.getpriority(name)
    return next((it for it, value in SETTINGS_PRIORITIES.items() if value == number), f"{number}")


def _keep_the_job(settings: BaseSettings) -> bool:
    """Let a crawl with a ``JOBDIR`` survive the death of its process, unless it has a scheduler."""
    if settings["SCHEDULER"] == default_settings.SCHEDULER:
        settings.set("SCHEDULER", "scrapy_deferkit.Scheduler", "addon")
    if not _is_our_scheduler(settings):
        return False
    # It would write spider.state at a clean end alone.
    settings.setdefault_in_component_priority_dict("EXTENSIONS", SpiderState, None)
    return True


def _is_our_scheduler(settings: BaseSettings) -> bool:
    # Not issubclass(): Scrapy's BaseScheduler says yes to whatever has the methods.
    return Scheduler in getattr(load_object(settings["SCHEDULER"]), "__mro__", ())


def _warn_of_unknown(settings: BaseSettings) -> None:
    for name in settings:
        if isinstance(name, str) and name.startswith("DEFERKIT_") and name not in SETTINGS:
            nearest = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            logger.warning("There is no setting %s%s", name, hint)
