"""What glibc does with freed memory: kept for the next request, and given back when that is asked for.

By itself it gives a few megabytes back at once, as large requests free them, and has them zeroed page by page for the
next: up to half of the time that 1000 rows of JSON took.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping

#: Blocks of this size and above are mappings of their own, which go back when they are freed.
OWN_MAPPING_BYTES = 8 << 20
#: So much free memory at the end of the heap stays.
KEPT_BYTES = 32 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
#: What the operator sets these by.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed(environ: Mapping[str, str]) -> None:
    """Keeps freed memory for the next request, within bounds, unless the operator says how. glibc alone can be told."""
    if not any(name in environ for name in _VARIABLES):
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
            libc.mallopt(_MMAP_THRESHOLD, OWN_MAPPING_BYTES)


def give_back() -> None:
    """Gives all freed memory back to the system. Blocks: a tenth of a second for a gigabyte.

    In a thread it leaves the others alone but for those who allocate from the heap that it is at; models are loaded in
    threads, whose heaps are not the event loop's.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
