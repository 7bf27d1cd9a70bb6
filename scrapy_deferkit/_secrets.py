"""What is neither stored nor shown: passwords in URLs, and arguments that look like secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRETS = "pass|pwd|secret|token|credential|cookie|session|auth(?!or)|key(?!word)"
"""What a name has that looks like one of a secret, in any case."""

_LONGEST_ARGUMENT = 500

_LOGIN = re.compile(r"(//[^/?#\s:@]*):[^/?#\s]*@")
_PARAMETER = re.compile(
    rf"(?is)((?:{SECRETS})\w*\s*=\s*)('[^']*'|[^&\s]*)"  # of a query, or of libpq's own form
)
_MALFORMED_LOGIN = re.compile(r"(?s)^([\w+.-]*:?/+)?.*@")


def without_password(url: str) -> str:
    """Return *url* without the password in it.

    >>> without_password("http://me:secret@proxy:3128/")
    'http://me:***@proxy:3128/'
    """
    return _LOGIN.sub(r"\1:***@", url)


def without_secrets(url: str) -> str:
    """Return *url*, which is malformed, without all that may be a password or a part of it.

    >>> without_secrets("postgresql:/me:sec/r@t@host/name?sslpassword=secret")
    'postgresql:/***@host/name?sslpassword=***'
    """
    return _MALFORMED_LOGIN.sub(r"\1***@", _PARAMETER.sub(r"\1***", url))


def shown_arguments(given: Mapping[str, object], secrets: re.Pattern[str]) -> dict[str, str]:
    """Return those arguments of a spider that may be stored: no *secrets*, no objects, none long.

    >>> shown_arguments({"shop": "uk", "api_token": "x1", "pages": 3}, re.compile(SECRETS))
    {'shop': 'uk', 'pages': '3'}
    """
    return {
        name: without_password(str(value))
        for name, value in given.items()
        if type(value) in (str, int, float, bool)
        and len(str(value)) <= _LONGEST_ARGUMENT
        and not name.startswith("_")
        and not secrets.search(name)
    }
