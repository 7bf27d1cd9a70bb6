"""What a stored request asks for, read without the classes of the project that stored it."""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

from ._secrets import without_password


class Outline(NamedTuple):
    """The method of a request and its URL without a password; ``None`` if they cannot be read."""

    method: str | None
    url: str | None

    @classmethod
    def of(cls, data: bytes) -> Outline:
        """Return the outline of the pickled request *data*; imports nothing for it."""
        try:
            stored = _Reader(io.BytesIO(data)).load()
            method, url = stored["method"], stored["url"]
        except Exception:  # what is damaged may raise anything
            return cls(None, None)
        return cls(
            method if isinstance(method, str) else None,
            without_password(url) if isinstance(url, str) else None,
        )

    def __str__(self) -> str:
        return f"{self.method or 'a request'} {self.url or 'that cannot be read'}"


class _Unknown:
    """Stands for any class or function of the project, and for what these return."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, value: Any) -> None: ...
    def extend(self, values: Any) -> None: ...
    def add(self, value: Any) -> None: ...


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Unknown
