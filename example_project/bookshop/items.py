"""The items: a book or an e-book, and the reviews and offers that it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal


@dataclass
class Review:
    """What a reader says; ``stars`` is ``None`` where that was no number."""

    reader: str
    text: str
    stars: int | None


@dataclass
class Offer:
    """The same book from another seller; ``name`` and ``city`` are looked up by ``seller``."""

    seller: str
    price: Decimal
    name: str = ""
    city: str = ""


@dataclass
class Book:
    """A book: first as its page has it, in the page's words, then as the stacks make it.

    The fields that end in ``_from`` say where a value came from, so that what is a fallback can
    be seen in the data, and branches that run in parallel change no field of each other's.
    """

    url: str
    title: str = ""
    upc: str | None = None
    category: str = ""
    description: str | None = None
    image_url: str = ""
    page_from: str = "page"

    # As the page has them.
    price_text: str = ""
    table_price_text: str = ""
    rating_text: str = ""
    stock_text: str = ""
    reviews_url: str = ""
    offers_url: str = ""
    tax_url: str = ""

    # Made of the texts.
    price: Decimal | None = None
    currency: str = "GBP"
    price_from: str = ""
    rating: int = 0
    rating_from: str = ""
    stock: int = 0
    stock_from: str = ""

    # Asked of the services.
    tax_percent: int | None = None
    reviews: list[Review] = field(default_factory=list)
    reviews_from: str = ""
    offers: list[Offer] = field(default_factory=list)
    offers_from: str = ""

    # For the place it has in the shop.
    sort_title: str = ""
    place: str = ""
    price_band: str = ""
    reading_minutes: int | None = None
    label: str = ""

    def fallbacks(self) -> list[str]:
        """Say what did not come from where it should have.

        >>> Book("http://shop.example/1", price_from="table", rating_from="page").fallbacks()
        ['price: table']
        """
        found = [
            f"{name}: {source}"
            for name, source, is_regular in (
                ("page", self.page_from, self.page_from == "page"),
                ("price", self.price_from, self.price_from in {"", "page"}),
                ("rating", self.rating_from, self.rating_from in {"", "page"}),
                ("stock", self.stock_from, self.stock_from in {"", "page"}),
                ("reviews", self.reviews_from, self.reviews_from in {"", "service", "none"}),
                ("offers", self.offers_from, self.offers_from in {"", "service", "none"}),
            )
            if not is_regular
        ]
        if any(review.stars is None for review in self.reviews):
            found.append("stars: unknown")
        if any(offer.name == UNKNOWN_SELLER for offer in self.offers):
            found.append("seller: unknown")
        return found


@dataclass
class Ebook(Book):
    """A book that is a file, and stands on no shelf."""

    file_text: str = ""  # as the page has it


UNKNOWN_SELLER = "unknown seller"
