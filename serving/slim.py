"""Libraries that import far more than they need, imported without it."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

#: What scikit-learn imports where it is installed: adapters of other array libraries, each of which imports its library for
#: seconds; what its own tests need; and progress bars for `fit`.
_NOT_NEEDED = (
    *(f"sklearn.externals.array_api_compat.{library}" for library in ("cupy", "dask", "torch")),
    "pytest",
    "rich",
)
_lock = threading.Lock()


def skops_io() -> ModuleType:
    """`skops.io`. It lists every estimator of scikit-learn by importing all of it, and that would bring PyTorch, Dask, pytest
    and rich in, where they are installed, for a model that has nothing to do with them. A later use imports them."""
    with _lock:
        # Only for its first import: meanwhile nobody else can import these.
        absent = [] if "skops.io" in sys.modules else [name for name in _NOT_NEEDED if name not in sys.modules]
        sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: "there is no such module"
        try:
            import skops.io
        finally:
            for name in absent:
                del sys.modules[name]
    return skops.io  # type: ignore[no-any-return]
