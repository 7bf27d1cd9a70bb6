"""What a processor may be: loading, adapting and naming it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from scrapy.exceptions import NotConfigured
from scrapy.pipelines.media import MediaPipeline
from scrapy.utils.misc import build_from_crawler

from ._engine import is_pending, resolve, shield
from .exceptions import StackConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scrapy.crawler import Crawler

_COMPONENT_METHODS = ("from_crawler", "open_spider", "process_item")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One processor of a stack, ready to be called."""

    name: str
    call: Callable[..., Any]
    source: Any
    """What is opened and closed with the spider: a component, a stack, or a plain callable."""
    takes_item_only: bool = False

    def refuse_unless_taking(self, arguments: tuple[str, ...], path: str) -> None:
        """Raise :exc:`StackConfigError` if the step at *path* cannot be called with *arguments*.

        They are given by their names; a pipeline is called with the first of them, the item.
        """
        source = self.source
        if not self.takes_item_only:
            refuse_unless_taking(source, arguments, path)
        elif arguments[0] == "failure":
            raise StackConfigError(
                f"{path} is an errback, called with ({', '.join(arguments)}), and a pipeline's "
                "process_item() takes an item: give a function"
            )
        else:
            refuse_method_unless_taking(source.process_item, arguments[:1], path)
        for hook in ("open_spider", "close_spider"):
            if is_component(source) and (method := getattr(source, hook, None)) is not None:
                refuse_method_unless_taking(method, (), path)

    async def open(self, crawler: Crawler) -> None:
        """Open what the step holds, as Scrapy opens a pipeline."""
        if is_stack(self.source):
            await self.source.open()
        else:
            claim(self.source, crawler)
            if begin_serving(self.source):
                try:
                    await self._call_hook("open_spider", crawler)
                except BaseException:
                    end_serving(self.source)
                    raise

    async def close(self, crawler: Crawler) -> None:
        """Close what the step holds, as Scrapy closes a pipeline."""
        if is_stack(self.source):
            await self.source.close()
            return
        if not end_serving(self.source):
            return
        try:
            await self._call_hook("close_spider", crawler)
        finally:
            release(self.source)

    async def _call_hook(self, hook: str, crawler: Crawler) -> None:
        method = getattr(self.source, hook, None) if is_component(self.source) else None
        if method is not None:
            await resolve(method(crawler.spider) if wants_spider(method) else method())


def is_stack(processor: Any) -> bool:
    """Tell whether *processor* is a stack: a processor made of processors."""
    return hasattr(type(processor), "bind") and hasattr(type(processor), "steps")


def is_component(processor: Any) -> bool:
    """Tell whether *processor* is a Scrapy component, or the class of one."""
    if is_stack(processor):
        return False
    cls = processor if inspect.isclass(processor) else type(processor)
    return any(hasattr(cls, method) for method in _COMPONENT_METHODS)


def needs_crawler(processor: Any) -> bool:
    """Tell whether *processor* can only be called in a stack that was bound to a crawler."""
    if is_stack(processor):
        return processor.steps is None
    return isinstance(processor, str) or is_component(processor)


def check(processor: Any, owner: str) -> None:
    """Raise :exc:`StackConfigError` where *processor* cannot be one, naming its *owner*."""
    if isinstance(processor, str):
        if not all(part.isidentifier() for part in processor.split(".")) or "." not in processor:
            raise StackConfigError(
                f"{owner}: {processor!r} is not an import path; "
                'write it in full, as in "bookshop.processors.tidy_title"'
            )
    elif isinstance(processor, (tuple, list)):
        raise StackConfigError(
            f"{owner}: {shown(processor)} ({type(processor).__name__}) is not a processor; a pair "
            "(processor, errback) is a step of Tolerant and its setting DEFERKIT_TOLERANT, or of "
            "DEFERKIT_RESPONSE_CHAIN"
        )
    elif not callable(processor) and not is_component(processor):
        raise StackConfigError(
            f"{owner}: {processor!r} ({type(processor).__name__}) is not a processor; allowed are "
            "a callable, its import path, a Scrapy pipeline (class or instance), and a stack"
        )
    elif inspect.isclass(processor) and hasattr(processor, "bind") and hasattr(processor, "steps"):
        raise StackConfigError(
            f"{owner}: {processor.__name__} is the class of a stack; call it, as in "
            f"{processor.__name__}(...)"
        )
    elif _is_generating(processor):
        raise StackConfigError(
            f"{owner}: {name_of(processor)} is a generator function, and calling it would run "
            "none of it; a processor returns one item (several are a spider middleware's work)"
        )


def _is_generating(processor: Any) -> bool:
    cls = processor if inspect.isclass(processor) else type(processor)
    methods = (getattr(type(processor), "__call__", None), getattr(cls, "process_item", None))  # noqa: B004
    return any(map(_is_generator_function, (processor, *methods)))


def _is_generator_function(function: Any) -> bool:
    if not inspect.isgeneratorfunction(function):
        return inspect.isasyncgenfunction(function)
    # types.coroutine makes a coroutine function of a generator function.
    code = getattr(function, "__code__", None)
    return code is None or not code.co_flags & inspect.CO_ITERABLE_COROUTINE


def make_step(processor: Any, crawler: Crawler | None) -> Step:
    """Load, build and adapt *processor*; without a *crawler*, only what :func:`needs_crawler` not.

    Raises :exc:`StackConfigError` when an import path leads nowhere or to no processor, and when
    a component cannot be built.
    """
    name = name_of(processor)
    if isinstance(processor, str):
        path, processor = processor, load(processor)
        check(processor, f"import path {path!r}")
    if is_stack(processor):
        bound = processor if crawler is None else processor.bind(crawler)
        return Step(bound.name, bound, bound)
    if crawler is None or not is_component(processor):
        return Step(name, processor, processor)
    if inspect.isclass(processor):
        processor = _build(processor, crawler)
    else:
        claim(processor, crawler)
    return _component_step(name, processor, crawler)


def _component_step(name: str, component: Any, crawler: Crawler) -> Step:
    process = getattr(component, "process_item", None)
    if process is None:
        if not callable(component):
            raise StackConfigError(
                f"{name}: a component needs process_item() or __call__() to be a processor; "
                f"{type(component).__name__} has neither"
            )
        return Step(name, component, component)

    def call(item: Any, *_: Any, **__: Any) -> Any:
        return process(item)

    def call_with_spider(item: Any, *_: Any, **__: Any) -> Any:
        return process(item, crawler.spider)  # as Scrapy does

    serve: Callable[..., Any] = call_with_spider if wants_spider(process) else call

    def call_shielded(item: Any, *_: Any, **__: Any) -> Any:
        # Media pipelines share a download between items: cancelled with one of them, it would
        # leave the others waiting for ever.
        result = serve(item)
        return shield(result) if is_pending(result) else result

    adapted = call_shielded if isinstance(component, MediaPipeline) else serve
    return Step(name, adapted, component, takes_item_only=True)


def refuse_unless_taking(call: Callable[..., Any], arguments: tuple[str, ...], path: str) -> None:
    """Raise :exc:`StackConfigError` if *call*, at *path*, cannot be called with *arguments*.

    They are given by their names.
    """
    try:
        # Not that of what it wraps: a decorator may have arguments of its own, and give others.
        signature = inspect.signature(call, follow_wrapped=False)
    except Exception:  # nobody can tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        name = name_of(call)
        fix = "let it take these arguments" if arguments else "give each of its arguments a default"
        raise StackConfigError(
            f"{path} is called with ({', '.join(arguments)}), which its signature "
            f"{name}{signature} does not allow ({error}): {fix}"
        ) from error


def refuse_method_unless_taking(
    method: Callable[..., Any], arguments: tuple[str, ...], path: str
) -> None:
    """Do as :func:`refuse_unless_taking` for a *method* that may want the ``spider``."""
    spider = ("spider",) if wants_spider(method) else ()
    refuse_unless_taking(method, (*arguments, *spider), path)


def _build(component: type, crawler: Crawler) -> Any:
    name = component.__name__
    if hasattr(component, "from_crawler"):
        refuse_unless_taking(component.from_crawler, ("crawler",), f"{name}.from_crawler")
    else:
        refuse_unless_taking(component, (), f"{name}, which has no from_crawler(),")
    try:
        return build_from_crawler(component, crawler)
    except NotConfigured as error:
        raise StackConfigError(
            f"{name} is in a stack and says that it is not configured "
            f"({str(error) or 'without a reason'}): configure it, or take it out of the stack"
        ) from error


def load(path: str) -> Any:
    """Import the object at *path*; where there is none, say what has the nearest name.

    Raises :exc:`StackConfigError`, with the cause.
    """
    module_path, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_path != missing and not module_path.startswith(f"{missing}."):
            raise StackConfigError(f"importing {path!r} failed: {error}") from error
        parent, _, last = missing.rpartition(".")
        hint = _nearest(last, _module_names(parent))
        raise StackConfigError(
            f"cannot import {path!r}: there is no module {missing!r}{hint}"
        ) from error
    except Exception as error:
        raise StackConfigError(
            f"importing {path!r} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        hint = _nearest(name, vars(module))
        raise StackConfigError(
            f"cannot import {path!r}: the module {module_path!r} has no {name!r}{hint}"
        ) from error


def stack_at(stack: Any) -> Any:
    """Give *stack*, or what is at the import path *stack*.

    Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where that is no stack.
    """
    found = load(stack) if isinstance(stack, str) else stack
    if not is_stack(found) or isinstance(found, type):
        raise StackConfigError(
            f"{shown(stack)} ({type(found).__name__}) is not a stack; give a stack such as "
            "Chain(clean, store), or its import path"
        )
    return found


def _module_names(package: str) -> list[str]:
    where = list(importlib.import_module(package).__path__) if package else None
    return [module.name for module in pkgutil.iter_modules(where)]


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def name_of(processor: Any) -> str:
    """Give the name of *processor*: a stack's own, else that of the callable or the class."""
    if isinstance(processor, str):
        return processor.rpartition(".")[2]
    if is_stack(processor):
        return str(processor.name)
    if isinstance(processor, partial):
        return name_of(processor.func)
    name = getattr(processor, "__name__", None) or type(processor).__name__
    return "lambda" if name == "<lambda>" else str(name)


def shown(value: Any) -> str:
    """Return how *value* is shown in messages: a function by its name, not by its address."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(shown, value))})"
    return repr(value) if is_stack(value) or not callable(value) else name_of(value)


def wants_spider(method: Callable[..., Any]) -> bool:
    """Tell whether *method* requires the ``spider`` argument of older Scrapy versions."""
    try:
        parameter = inspect.signature(method).parameters.get("spider")
    except Exception:  # a callable without a readable signature
        return False
    return parameter is not None and parameter.default is parameter.empty


def is_coroutine_function(function: Any) -> bool:
    """Tell whether *function* is a coroutine function, or an object that is called as one."""
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method itself is asked
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


@dataclass(slots=True)
class _Serving:
    component: Any
    crawler: weakref.ref[Crawler]
    opened: int = 0


_serving: dict[int, _Serving] = {}


def claim(component: Any, crawler: Crawler) -> None:
    """Let *component*, an instance that a user made, serve *crawler* until it is released.

    Raises :exc:`StackConfigError` while it serves another crawler: what it holds, a file or a
    connection, would be shared without either knowing.
    """
    if not is_component(component):
        return
    claimed = _serving.get(id(component))
    other = None if claimed is None else claimed.crawler()
    if other is crawler:
        return
    if other is not None:
        raise StackConfigError(
            f"the {type(component).__name__} instance in this stack serves another crawler; put "
            "its class or its import path into the stack, and each crawler gets its own"
        )
    _serving[id(component)] = _Serving(component, weakref.ref(crawler))


def begin_serving(component: Any) -> bool:
    """Count that *component* is opened; tell whether it is the first time, and to be done."""
    serving = _serving.get(id(component))
    if serving is None:
        return True
    serving.opened += 1
    return serving.opened == 1


def end_serving(component: Any) -> bool:
    """Count that *component* is closed; tell whether nothing else has it open."""
    serving = _serving.get(id(component))
    if serving is None:
        return True
    serving.opened -= 1
    return serving.opened <= 0


def release(component: Any) -> None:
    """End what :func:`claim` began, unless the component is open elsewhere."""
    serving = _serving.get(id(component))
    if serving is not None and serving.opened <= 0:
        del _serving[id(component)]
