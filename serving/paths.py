"""What callers are told of the server's own files: names, never where they lie. The log has whole paths."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_PATH = re.compile(r"(?<![\w:/.@-])(?:file://)?/(?:[^\s/'\"<>|;:,()]+/)+([^\s/'\"<>|;:,()]*)")


def without_folders(text: str) -> str:
    """The text with each absolute path cut down to its last part."""
    return _PATH.sub(r"\1", text) if "/" in text else text


def shown_reference(uri: str) -> str:
    """A reference as it may be shown: of a folder only its own name."""
    return uri if uri.startswith(("models:", "runs:")) else PurePosixPath(uri).name
