"""What a replay holds of its letters while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scrapy_deferkit.deadletters import ALL, DeadLetters
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
        letters=SimpleNamespace(owner="me", patiently=patiently), is_own=lambda _: False
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
