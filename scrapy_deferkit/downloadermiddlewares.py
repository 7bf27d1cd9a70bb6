"""A downloader middleware that runs requests, responses and download failures through chains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from scrapy.exceptions import CloseSpider, IgnoreRequest, NotConfigured
from scrapy.http import Request, Response
from twisted.python.failure import Failure

from ._config import Config, blaming, refuse_elsewhere
from ._lifecycle import Lifecycle, heed_close_spider
from ._stack import PASSING, Stack, StepCalls, pair_of
from .defer import process_chain_both_async
from .exceptions import DeferKitError
from .stacks import Chain

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from scrapy.crawler import Crawler
    from typing_extensions import Self

_REPLACEMENT = "deferkit_replacement"
_NO_FAILURES: tuple[type[BaseException], ...] = (IgnoreRequest, *PASSING)


class StackDownloaderMiddleware:
    """Run requests and responses through the chains of the settings.

    ``DEFERKIT_REQUEST_CHAIN`` and ``DEFERKIT_RESPONSE_CHAIN`` hold them.

    A processor of requests is called with ``(request)``. The same Request back, changed in place
    or not, goes on to the download; another Request goes through the rest of the chain and is
    then scheduled in its place, and the chain does not run on it again; a Response ends the chain
    and stands for the download.

    The response chain is :func:`~scrapy_deferkit.defer.process_chain_both` over
    ``(response, request)``, with errbacks called as ``errback(failure, request)``: a failed
    download enters on the errback side, and an errback may recover with a Response or a new
    Request. A Request ends the chain and is scheduled.
    """

    def __init__(
        self, crawler: Crawler, requests: RequestChain | None, responses: ResponseChain | None
    ) -> None:
        self._crawler = crawler
        self._requests = requests
        self._responses = responses
        self._recovered: WeakSet[Request] = WeakSet()
        self._lifecycle = Lifecycle(crawler, [it for it in (requests, responses) if it is not None])

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the middleware and bind its chains to *crawler*.

        Raises :exc:`~scrapy.exceptions.NotConfigured` when neither setting is set, and
        :exc:`~scrapy_deferkit.exceptions.StackConfigError` for a processor that cannot be called.
        """
        refuse_elsewhere(crawler.settings, cls, "DOWNLOADER_MIDDLEWARES")
        config = Config.from_settings(crawler.settings)
        if not config.request_chain and not config.response_chain:
            raise NotConfigured(
                f"{cls.__name__} needs the setting DEFERKIT_REQUEST_CHAIN or "
                "DEFERKIT_RESPONSE_CHAIN"
            )
        requests = responses = None
        if config.request_chain:
            with blaming("DEFERKIT_REQUEST_CHAIN"):
                requests = RequestChain(*config.request_chain).bind(crawler)
                requests.refuse_unless_taking("request")
        if config.response_chain:
            with blaming("DEFERKIT_RESPONSE_CHAIN"):
                responses = ResponseChain(config.response_chain).bind(crawler)
                responses.refuse_unless_taking("response", "request")
        return cls(crawler, requests, responses)

    async def process_request(self, request: Request) -> Request | Response | None:
        """Run *request* through the request chain."""
        if self._requests is None or self._is_replacement(request):
            return None
        result: Any = await self._run(self._requests, request)
        if result is request:
            return None
        if isinstance(result, Request):
            self._take_place_of(request, result)
        elif not isinstance(result, Response):
            raise DeferKitError(
                f"DEFERKIT_REQUEST_CHAIN gave {result!r} ({type(result).__name__}); its "
                "processors return a Request or a Response"
            )
        return result  # type: ignore[no-any-return]

    async def _run(self, chain: Stack, value: Any, *args: Any) -> Any:
        try:
            return await chain(value, *args)
        except CloseSpider as error:
            heed_close_spider(self._crawler, error)
            raise

    def _fingerprint(self, request: Request) -> str:
        return self._crawler.request_fingerprinter.fingerprint(request).hex()

    def _is_replacement(self, request: Request) -> bool:
        # The mark is the request's own: meta is copied to retries, which are the same request,
        # and to redirects and by spiders, which are not.
        mark = request.meta.get(_REPLACEMENT)
        return mark is not None and mark == self._fingerprint(request)

    def _take_place_of(self, request: Request, replacement: Request) -> None:
        replacement.meta[_REPLACEMENT] = self._fingerprint(replacement)
        self._let_through_filter(request, replacement)

    def _let_through_filter(self, request: Request, following: Request) -> None:
        if self._fingerprint(following) == self._fingerprint(request):
            # The duplicate filter knows it already, as the request that it follows.
            following.dont_filter = True

    async def process_response(self, request: Request, response: Response) -> Request | Response:
        """Run *response* through the response chain."""
        if self._responses is None:
            return response
        if request in self._recovered:  # an errback made it: it has been through the chain
            self._recovered.discard(request)
            return response
        result = _checked(await self._run(self._responses, response, request))
        if isinstance(result, Request):
            self._let_through_filter(request, result)
        return result

    async def process_exception(
        self, request: Request, exception: Exception
    ) -> Request | Response | None:
        """Run a failed download through the response chain, beginning with its errbacks.

        A request that is ignored on purpose (``IgnoreRequest``) is no failure.
        """
        if self._responses is None or isinstance(exception, _NO_FAILURES):
            return None
        try:
            result = _checked(await self._run(self._responses, Failure(exception), request))
        except Exception as error:
            if error is exception:
                return None  # nothing here handles it: leave it to the other middlewares
            raise
        if isinstance(result, Response):
            self._recovered.add(request)
        else:
            self._let_through_filter(request, result)
        return result


def _checked(result: Any) -> Request | Response:
    if not isinstance(result, (Request, Response)):
        raise DeferKitError(
            f"DEFERKIT_RESPONSE_CHAIN gave {result!r} ({type(result).__name__}); its processors "
            "and errbacks return a Response or a Request"
        )
    return result


class RequestChain(Chain):
    """A chain over a request, which a Response ends."""

    returns = (
        "the Request (is a `return request` missing?), another one in its place or a Response, or "
        "raises IgnoreRequest"
    )

    def _arrange(self) -> None:
        steps = self.steps or ()
        self._calls = StepCalls.of(
            self, [replace(step, call=_unless_ended(Response, step.call)) for step in steps]
        )


def _unless_ended(end: type, call: Callable[..., Any]) -> Callable[..., Any]:
    def call_unless_ended(value: Any) -> Any:
        return value if isinstance(value, end) else call(value)

    return call_unless_ended


class ResponseChain(Stack):
    """Pairs of callbacks and errbacks over a response or a failure, which a Request ends."""

    returns = (
        "a Response (is a `return response` missing?) or a Request, or raises IgnoreRequest; an "
        "errback that does not recover returns its failure"
    )

    def __init__(self, steps: Iterable[Any], name: str | None = None) -> None:
        pairs = [pair_of(step, "ResponseChain") for step in steps]
        # A pair may have None in the first place: it passes a response, its errback recovers.
        self._pairs = [
            (pair[0] is not None, len(pair) > 1 and pair[1] is not None) for pair in pairs
        ]
        self._are_errbacks = [
            is_errback for pair in pairs for is_errback, it in enumerate(pair) if it is not None
        ]
        super().__init__([it for pair in pairs for it in pair if it is not None], name)

    def _arguments_of(self, position: int, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return ("failure", *arguments[1:]) if self._are_errbacks[position] else arguments

    def _arrange(self) -> None:
        steps = iter(self.steps or ())
        self._callbacks: list[Callable[..., Any] | None] = []
        self._errbacks: list[Callable[..., Any] | None] = []
        for has_callback, has_errback in self._pairs:
            self._callbacks.append(self._callback(next(steps)) if has_callback else None)
            self._errbacks.append(self._errback(next(steps)) if has_errback else None)

    def _callback(self, step: Any) -> Callable[..., Any]:
        run = self._runner(step)

        def callback(response: Any, request: Request) -> Any:
            return response if isinstance(response, Request) else run(response, request)

        return callback

    def _errback(self, step: Any) -> Callable[..., Any]:
        def errback(failure: Failure, request: Request) -> Any:
            if failure.check(*_NO_FAILURES):
                return failure
            return self._handle(step, failure, request)

        return errback

    def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        if self.steps is None:
            raise self._not_ready()
        return process_chain_both_async(self._callbacks, self._errbacks, item, *args, **kwargs)
