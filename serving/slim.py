"""Libraries that import far more than they need, imported without it."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

#: Adapters of other array libraries inside scikit-learn; importing one imports its library, for seconds.
_ADAPTERS = tuple(f"sklearn.externals.array_api_compat.{library}" for library in ("cupy", "dask", "torch"))
_lock = threading.Lock()


def skops_io() -> ModuleType:
    """`skops.io`. It lists every estimator of scikit-learn by importing all of it, and that would bring PyTorch and Dask
    in, where they are installed, for a model that has nothing to do with them. A later use of an adapter imports it."""
    with _lock:
        # Only for its first import: meanwhile nobody else can import an adapter.
        absent = [] if "skops.io" in sys.modules else [name for name in _ADAPTERS if name not in sys.modules]
        sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: "there is no such module"
        try:
            import skops.io
        finally:
            for name in absent:
                del sys.modules[name]
    return skops.io  # type: ignore[no-any-return]
