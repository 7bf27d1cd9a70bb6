"""The books of the local site, and which trouble each of them is in, from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from .words import CATEGORIES, PRAISE, SELLERS, make_description, make_title, slug

DEFAULT_TROUBLES: Mapping[str, float] = {
    # The page of the book.
    "withdrawn": 0.02,  # no longer for sale, and says so
    "cut_short": 0.01,  # ends before the book begins
    "no_upc": 0.02,
    "never_answers": 0.01,  # unless it is asked past the cache, with ?fresh=1
    "price_text": 0.08,  # the price is no number; the table below has it
    "no_price": 0.03,  # the table has none either
    "no_description": 0.05,
    "no_rating": 0.04,
    "no_stock": 0.03,
    "untidy_title": 0.06,
    # The review service, which is slow for all.
    "reviews_missing": 0.05,  # 404
    "reviews_flaky": 0.10,  # 503 every other time
    "reviews_stuck": 0.02,  # no answer every other time
    "reviews_down": 0.04,  # 503 always
    "reviews_broken": 0.04,  # no JSON
    "review_spam": 0.08,
    "review_stars": 0.06,  # stars that are no number
    # The offers of other sellers.
    "offers_broken": 0.05,  # no JSON
    "unknown_seller": 0.05,
    # The tax register.
    "tax_down": 0.04,  # 503 for as long as the site is served
}
"""Each trouble, and the part of the books that is in it: at least one book, unless it is 0."""

# A book is in at most one trouble of a group. The first group hides all others.
_GROUPS = (
    ("withdrawn", "cut_short", "no_upc"),
    ("never_answers",),
    ("price_text", "no_price"),
    ("no_description",),
    ("no_rating", "no_stock"),
    ("untidy_title",),
    (
        "reviews_missing",
        "reviews_flaky",
        "reviews_down",
        "reviews_broken",
        "review_spam",
        "review_stars",
        "reviews_stuck",
    ),
    ("offers_broken", "unknown_seller"),
    ("tax_down",),
)

_EBOOK_EVERY = 6  # books, one is an e-book


@dataclass(frozen=True)
class Volume:
    """A book as the site has it."""

    number: int
    title: str
    category: str
    price: str
    rating: int
    stock: int
    upc: str
    description: str
    file: str = ""  # of an e-book: its format and size
    reviews: tuple[Mapping[str, Any], ...] = ()
    offers: tuple[Mapping[str, Any], ...] = ()
    troubles: frozenset[str] = field(default_factory=frozenset)

    @property
    def folder(self) -> str:
        """The folder of the book's page, below ``catalogue/``."""
        return f"{slug(self.title)}_{self.number}"


@dataclass(frozen=True)
class Catalogue:
    """All the books, and the sellers who offer them as well."""

    volumes: tuple[Volume, ...]
    sellers: Mapping[str, Mapping[str, str]]

    def categories(self) -> list[str]:
        """Give the categories that have books, in the order of the site's menu."""
        used = {volume.category for volume in self.volumes}
        return [category for category in CATEGORIES if category in used]


def make_catalogue(
    books: int = 100, seed: int = 1, troubles: Mapping[str, float] | None = None
) -> Catalogue:
    """Make up *books* books; the same arguments give the same books.

    *troubles* changes some of :data:`DEFAULT_TROUBLES`. Raises :exc:`ValueError` for one that is
    not known, a part that is not between 0 and 1, and fewer books than one.
    """
    if books < 1:
        raise ValueError(f"books={books}: a site has 1 book or more")
    for name, part in (troubles or {}).items():
        if name not in DEFAULT_TROUBLES:
            raise ValueError(f"unknown trouble {name!r}; known are {', '.join(DEFAULT_TROUBLES)}")
        if not 0 <= part <= 1:
            raise ValueError(f"trouble {name}={part}: the part of the books, from 0 to 1")
    shares = {**DEFAULT_TROUBLES, **(troubles or {})}
    volumes = [_make_volume(seed, number) for number in range(1, books + 1)]
    afflicted = _share_out(shares, books, Random(f"{seed}:troubles"))
    sellers = {key: {"name": name, "city": city} for key, name, city in SELLERS}
    return Catalogue(
        tuple(
            _afflict(volume, frozenset(names)) if names else volume
            for volume, names in zip(volumes, afflicted, strict=True)
        ),
        sellers,
    )


def _make_volume(seed: int, number: int) -> Volume:
    random = Random(f"{seed}:book:{number}")
    return Volume(
        number=number,
        title=make_title(random),
        category=random.choice(CATEGORIES),
        price=f"{random.randint(1000, 5999) / 100:.2f}",
        rating=random.randint(1, 5),
        stock=random.randint(1, 22),
        upc=f"{random.getrandbits(64):016x}",
        description=make_description(random),
        reviews=tuple(
            {"reader": f"reader {number}-{i}", "stars": random.randint(1, 5), "text": text}
            for i, text in enumerate(random.sample(PRAISE, random.randint(1, 3)), start=1)
        ),
        offers=tuple(
            {"seller": key, "price": f"£{random.randint(800, 6500) / 100:.2f}"}
            for key, _, _ in random.sample(SELLERS, random.randint(1, 3))
        ),
        file="" if number % _EBOOK_EVERY else f"EPUB, {random.randint(5, 90) / 10} MB",
    )


def _share_out(shares: Mapping[str, float], books: int, random: Random) -> list[set[str]]:
    afflicted: list[set[str]] = [set() for _ in range(books)]
    hidden: set[int] = set()
    for group in _GROUPS:
        order = [index for index in range(books) if index not in hidden]
        random.shuffle(order)
        for name in group:
            count = max(1, round(shares[name] * books)) if shares[name] else 0
            for index in order[:count]:
                afflicted[index].add(name)
                if group is _GROUPS[0]:
                    hidden.add(index)
            del order[:count]
    return afflicted


def _afflict(volume: Volume, troubles: frozenset[str]) -> Volume:
    """Put the troubles that are in the data there; the others are the server's to make."""
    reviews, offers = list(volume.reviews), list(volume.offers)
    if "review_spam" in troubles:
        reviews.append(
            {"reader": "best-deals", "stars": 5, "text": "Cheap watches at http://x.invalid"}
        )
    if "review_stars" in troubles:
        reviews[0] = {**reviews[0], "stars": "lots"}
    if "unknown_seller" in troubles:
        offers[0] = {**offers[0], "seller": "gone"}
    return replace(volume, reviews=tuple(reviews), offers=tuple(offers), troubles=troubles)
