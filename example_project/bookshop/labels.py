"""What the label on the shelf is made of, as plain functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from twisted.python.failure import Failure

from .errors import UnreadableText
from .items import Book, Review

_WIDTH = 100


def average_stars(book: Book) -> str:
    """Say what readers think of the book, on the average."""
    stars = [review.stars for review in book.reviews if review.stars is not None]
    return f"{sum(stars) / len(stars):.1f} of 5" if stars else "not reviewed"


async def cheapest_elsewhere(book: Book) -> str:
    """Say where the book is to be had for less, if it is."""
    cheaper = [offer for offer in book.offers if book.price is None or offer.price < book.price]
    if not cheaper:
        return ""
    best = min(cheaper, key=lambda offer: offer.price)
    return f"£{best.price} at {best.name or best.seller}"


async def count_words(review: Review, words: Counter[str]) -> None:
    """Count the long words of a review into *words*."""
    words.update(re.findall(r"\w{5,}", review.text.lower()))


def price_in_words(book: Book) -> str:
    """Give the price as the label has it."""
    if book.price is None:
        raise UnreadableText("there is no price")
    return f"£{book.price}"


def ask_at_the_desk(failure: Failure) -> str:
    """Say what stands on the label where the price is not known."""
    return "ask at the desk"


def join_parts(parts: Sequence[str]) -> str:
    """Put the parts of a label side by side, without the empty ones."""
    return " | ".join(part for part in parts if part)


def shorten(label: str) -> str:
    """Cut a label at what fits on the shelf."""
    return label if len(label) <= _WIDTH else f"{label[: _WIDTH - 1]}…"
