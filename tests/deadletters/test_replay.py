"""What a replay holds of its letters while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scrapy_deferkit._config import Config
from scrapy_deferkit.deadletters import ALL, DeadLetters
from scrapy_deferkit.delivery import Delivery
from scrapy_deferkit.replay import Replay, ReplayOrder
from scrapy_deferkit.testing import mock_crawler

from .failures import failed

pytestmark = pytest.mark.no_runtime


def test_letters_that_have_ended_are_forgotten_at_each_page(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrapy_deferkit.replay._PAGE", 2)
    monkeypatch.setattr("scrapy_deferkit.replay.is_closing", lambda _: False)
    store = DeadLetters(sqlite_url)
    store.put([failed(f"{number}", number) for number in range(10)])

    async def patiently(function: Any) -> Any:
        return function(store)

    delivery: Any = SimpleNamespace(
        letters=SimpleNamespace(owner="me", patiently=patiently),
        is_own=lambda _: False,
        leave=lambda ids: None,
    )
    replay = Replay(mock_crawler(), delivery, ReplayOrder(ALL))

    async def most_held() -> int:
        held = []
        async for letter in replay._letters():
            replay._held[letter.id] = SimpleNamespace(has_left=True)  # type: ignore[assignment]
            held.append(len(replay._held))
        assert len(held) == 10
        return max(held)

    with pytest.raises(StopIteration) as ended:
        most_held().send(None)
    assert ended.value.value <= 4


def test_a_letter_that_is_replaced_while_it_is_in_work_is_left_to_the_next_replay(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrapy_deferkit.replay.is_closing", lambda _: False)
    store = DeadLetters(sqlite_url)
    store.put([failed("a")])

    async def patiently(function: Any) -> Any:
        return function(store)

    crawler = mock_crawler({"DEFERKIT_REPLAY": ReplayOrder(ALL)})
    delivery = Delivery(crawler, Config.from_settings(crawler.settings))
    removed: list[str] = []
    letters = SimpleNamespace(owner="me", patiently=patiently, delivered=removed.append)
    delivery.letters = letters  # type: ignore[assignment]
    replay = Replay(crawler, delivery, ReplayOrder(ALL))

    async def run() -> None:
        visits = []
        async for letter in replay._letters():
            visit: Any = SimpleNamespace(has_left=False, letter=letter)
            visits.append(visit)
            replay._held[letter.id] = visit
            if letter.id == "a":
                store.put([failed("a", 1, replaces=True), failed("b")])
                continue
            for visit in visits:
                visit.has_left = True
                delivery.delivered(visit.letter, "delivered")

    with pytest.raises(StopIteration):
        run().send(None)
    assert removed == ["b"]
    assert crawler.stats.get_value("deferkit/replay/delivered") == 2
