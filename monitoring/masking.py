"""A password in an address stays with who asks there: no line shows it."""

from __future__ import annotations

import re
from typing import Any

#: What stands before the host of an address. A password may hold an `@` by mistake, but no `/`.
_LOGIN = re.compile(r"(?<=://)[^\s/]*@")


def masked(value: Any) -> Any:
    """The same without the user and the password of any address; of mappings and lists each part, of an error its text."""
    if isinstance(value, BaseException):
        value = str(value)
    if isinstance(value, str):
        return _LOGIN.sub("***@", value) if "@" in value else value
    if isinstance(value, dict):
        return {masked(key): masked(each) for key, each in value.items()}
    return [masked(each) for each in value] if isinstance(value, list | tuple) else value
