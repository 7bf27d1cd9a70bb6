"""The stacks that settings.py names: made of processors, of policies, and of each other."""

from __future__ import annotations

from tenacity import wait_exponential, wait_random

from scrapy_deferkit import (
    Chain,
    CircuitBreaker,
    Parallel,
    Retry,
    Route,
    StepTimeout,
    Tap,
    Timeout,
    Tolerant,
)

from .errors import ServiceBusy
from .items import Book, Ebook
from .pages import drop_withdrawn, require_product, resolve_links
from .prices import NotePrice
from .processors import (
    band_price,
    choose_shelf,
    file_under,
    nothing_to_read,
    our_own_offer,
    read_file,
    time_reading,
    without_reviews,
)
from .services import FetchOffers, FetchReviews, offers_host, reviews_host

# In the spider middleware: one after the other, each with the response at hand.
page = Chain(require_product, drop_withdrawn, resolve_links, name="page")

# The two branches of ParallelPipeline. A branch that fails would fail the book, so each has an
# errback of its own.
#
# The review service is slow, and busy now and then. Read from the inside: each call has 2 seconds;
# a book has three calls; and when half of the books got nothing all the same, the service is down
# and is left alone for a while. The breaker stands outside the retries to count books, not calls.
reviews = Tolerant(
    (
        CircuitBreaker(
            Retry(
                Timeout(FetchReviews, 2),
                on=(ServiceBusy, StepTimeout),
                attempts=3,
                wait=wait_exponential(multiplier=0.1, max=1) + wait_random(0, 0.1),
            ),
            key=reviews_host,
            open_for=10,
        ),
        without_reviews,
    ),
    name="reviews",
)
offers = Tolerant(
    (CircuitBreaker(FetchOffers, key=offers_host, open_for=10), our_own_offer), name="offers"
)

# Stacks nest; the Route is a pipeline of its own (bookshop.pipelines.PlacePipeline). An Ebook is a
# Book too: the nearest class decides.
shelf = Chain(
    file_under,
    Parallel(band_price, Tolerant((time_reading, nothing_to_read), name="reading"), name="facts"),
    choose_shelf,
    name="shelf",
)
download = Chain(file_under, read_file, name="download")
place = Route({Book: shelf, Ebook: download}, name="place")

# On the side: a history that cannot be written loses no book.
price_history = Tap(NotePrice, name="price_history")
