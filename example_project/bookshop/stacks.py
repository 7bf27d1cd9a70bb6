"""The stacks that settings.py names: made of processors, and of each other."""

from __future__ import annotations

from scrapy_deferkit import Chain, Parallel, Tolerant

from .pages import drop_withdrawn, require_product, resolve_links
from .processors import (
    band_price,
    file_under,
    nothing_to_read,
    our_own_offer,
    time_reading,
    without_reviews,
)
from .services import FetchOffers, FetchReviews

# In the spider middleware: one after the other, each with the response at hand.
page = Chain(require_product, drop_withdrawn, resolve_links, name="page")

# The two branches of ParallelPipeline. A branch that fails would fail the book, so each has an
# errback of its own.
reviews = Tolerant((FetchReviews, without_reviews), name="reviews")
offers = Tolerant((FetchOffers, our_own_offer), name="offers")

# Stacks nest; this one is a pipeline of its own (bookshop.pipelines.ShelfPipeline).
shelf = Chain(
    file_under,
    Parallel(band_price, Tolerant((time_reading, nothing_to_read), name="reading"), name="facts"),
    name="shelf",
)
