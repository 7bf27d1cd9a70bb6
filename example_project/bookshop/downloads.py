"""The processors of requests and responses."""

from __future__ import annotations

from scrapy.exceptions import IgnoreRequest
from scrapy.http import Request, Response, TextResponse
from twisted.python.failure import Failure

from .errors import ServiceBusy

SERVICE = "bookshop_service"
"""The key in ``request.meta`` that tells a request of a service from one of a page."""

UNAVAILABLE = "unavailable"
"""The flag of a response that stands in for a service's."""

FRESH = "?fresh=1"
"""What an address ends in when a page is asked for past the cache."""


def show_reader_card(request: Request) -> Request:
    """Show the services the card that they ask for."""
    if SERVICE in request.meta:
        request.headers["X-Reader-Card"] = "bookshop"
    return request


def refuse_outage(response: Response, request: Request) -> Response:
    """Make a failure of what a service answers when it is down."""
    if SERVICE in request.meta and response.status >= 500:
        raise ServiceBusy(f"{request.meta[SERVICE]} answered {response.status}")
    return response


def forget_second_try(response: Response, request: Request) -> Response:
    """Give a page that was asked for twice the address it has for everybody else."""
    if request.meta.get("second_try"):
        return response.replace(url=response.url.removesuffix(FRESH))
    return response


def try_otherwise(failure: Failure, request: Request) -> Response | Request | Failure:
    """Ask once more, past the cache, for a page that does not come; do without a service."""
    if failure.check(IgnoreRequest):
        return failure
    if SERVICE in request.meta:
        return TextResponse(request.url, flags=[UNAVAILABLE], request=request)
    if request.callback is None or "?" in request.url or request.meta.get("second_try"):
        return failure
    meta = {key: value for key, value in request.meta.items() if key != "retry_times"}
    return request.replace(
        url=request.url + FRESH, meta={**meta, "second_try": True}, dont_filter=True
    )
