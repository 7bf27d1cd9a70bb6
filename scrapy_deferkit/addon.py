"""One line in ``ADDONS`` for all that this package does around a crawl."""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING

from scrapy.extensions.spiderstate import SpiderState
from scrapy.settings import SETTINGS_PRIORITIES, default_settings
from scrapy.utils.misc import load_object

from ._config import SETTINGS, Config
from .gate import ItemGate
from .itemprocessor import DeferKitItemProcessor
from .report import Report
from .scheduler import Scheduler

if TYPE_CHECKING:
    from scrapy.settings import BaseSettings

logger = logging.getLogger(__name__)

_NEXT_TO_THE_ENGINE = -1_000_000

_SET = {
    "ITEM_PROCESSOR": "scrapy_deferkit.DeferKitItemProcessor",
    "DEFERKIT_DEAD_LETTERS": True,
    "DEFERKIT_REPORT": True,
}


class Addon:
    """Switch on the gate, the item processor, the dead letters and the report.

    With a ``JOBDIR``, the scheduler whose crawl survives the death of its process, too.
    What the user has set always wins:

    ``ADDONS = {"scrapy_deferkit.Addon": 500}``
    """

    def update_settings(self, settings: BaseSettings) -> None:
        """Set what is not set, and say in the log what is switched on.

        Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where a setting is wrong.
        """
        _warn_of_unknown(settings)
        for name, value in _SET.items():
            if (settings.getpriority(name) or 0) < SETTINGS_PRIORITIES["addon"]:
                settings.set(name, value, "addon")
        # Next to the engine: behind it, no middleware changes which items there are.
        settings.setdefault_in_component_priority_dict(
            "SPIDER_MIDDLEWARES", ItemGate, _NEXT_TO_THE_ENGINE
        )
        settings.setdefault_in_component_priority_dict("EXTENSIONS", Report, 0)
        config = Config.from_settings(settings)
        processor = load_object(settings["ITEM_PROCESSOR"])
        switched_on = []
        if isinstance(processor, type) and issubclass(processor, DeferKitItemProcessor):
            bound = config.concurrent_items or "any number of"
            timeout = f"{config.item_timeout:g} s" if config.item_timeout else "any time"
            switched_on.append(f"the item processor ({bound} items at once, {timeout} each)")
            if config.dead_letters:
                switched_on.append("the dead letters")
        else:
            logger.warning(
                "ITEM_PROCESSOR is %s, which was set in this project: items are neither timed nor "
                "kept. Take it out, or derive it from DeferKitItemProcessor.",
                settings["ITEM_PROCESSOR"],
            )
        if settings["JOBDIR"]:
            switched_on += _keep_the_job(settings)
        if config.report:
            switched_on.append("the report")
        logger.info("scrapy-deferkit has switched on %s", ", ".join(switched_on) or "nothing")


def _keep_the_job(settings: BaseSettings) -> list[str]:
    """Let a crawl with a ``JOBDIR`` survive the death of its process, unless it has a scheduler."""
    if settings["SCHEDULER"] == default_settings.SCHEDULER:
        settings.set("SCHEDULER", "scrapy_deferkit.Scheduler", "addon")
    scheduler = load_object(settings["SCHEDULER"])
    # Not issubclass(): Scrapy's BaseScheduler says yes to whatever has the methods.
    if Scheduler not in getattr(scheduler, "__mro__", ()):
        logger.info(
            "SCHEDULER is %s, which was set in this project: what is in work when the process dies "
            "is that scheduler's to keep. Dead letters are kept all the same",
            settings["SCHEDULER"],
        )
        return []
    # It would write spider.state at a clean end alone.
    settings.setdefault_in_component_priority_dict("EXTENSIONS", SpiderState, None)
    return ["the scheduler that survives a crash"]


def _warn_of_unknown(settings: BaseSettings) -> None:
    for name in settings:
        if isinstance(name, str) and name.startswith("DEFERKIT_") and name not in SETTINGS:
            nearest = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            logger.warning("There is no setting %s%s", name, hint)
