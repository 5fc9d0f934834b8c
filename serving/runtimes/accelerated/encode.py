"""Encoders of categories as tables: what the fitted encoder itself answers for each category, looked up by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from serving.runtimes.accelerated.layout import Layout, Levels
from serving.runtimes.accelerated.program import Beyond, NotCompiled, Transform

#: Cells that the tables of one encoder may have: a one-hot table is as wide as it is long.
MOST_CELLS = 4_000_000
Lookup = Callable[[np.ndarray], np.ndarray]


def encoder(step: Any, layout: Layout) -> Transform:
    """The encoder as arithmetic. Raises NotCompiled.

    A column with a category that the encoder raises for goes to the library, with the batch: Beyond.
    """
    categories = step.categories_
    widths = _widths(step)
    if sum(len(known) * width for known, width in zip(categories, widths, strict=True)) > MOST_CELLS:
        raise NotCompiled(f"{type(step).__name__} has tables of more than {MOST_CELLS} cells")
    rows = _ask(step, [np.resize(known, max(map(len, categories))) for known in categories])
    stranger = _strangers(step)
    ends = np.cumsum(widths)
    lookups = []
    for i, (known, end, width) in enumerate(zip(categories, ends, widths, strict=True)):
        levels = layout.sources[i].levels if layout.sources is not None else Levels(strings=False)
        table = rows[: len(known), end - width : end]
        lookups.append(_lookup(known, levels, table, None if stranger is None else stranger[end - width : end]))
    return lambda x: np.hstack([lookup(x[:, i]) for i, lookup in enumerate(lookups)])


def _widths(step: Any) -> list[int]:
    if type(step) is OneHotEncoder:
        return [int(width) for width in step._n_features_outs]
    if type(step) is TargetEncoder and step.target_type_ == "multiclass":
        raise NotCompiled("a TargetEncoder of more than two classes is not compiled")
    return [1] * len(step.categories_)


def _ask(step: Any, columns: list[np.ndarray]) -> np.ndarray:
    """What the encoder makes of these columns, as an array `[n, m]` of its own type."""
    names = getattr(step, "feature_names_in_", range(len(columns)))
    frame = pd.DataFrame(dict(zip(names, columns, strict=True)))
    encoded = step.transform(frame if hasattr(step, "feature_names_in_") else frame.to_numpy())
    whole: np.ndarray = encoded.toarray() if hasattr(encoded, "toarray") else np.asarray(encoded)
    if whole.dtype != np.float64:
        raise NotCompiled(f"{type(step).__name__} is compiled if it answers doubles")
    return whole


def _strangers(step: Any) -> np.ndarray | None:
    """What it makes of categories that it does not know, or None if it raises for them."""
    if type(step) is not TargetEncoder and step.handle_unknown == "error":
        return None
    unknown = [np.array([_unlike(known)], known.dtype) for known in step.categories_]
    row: np.ndarray = _ask(step, unknown)[0]
    return row


def _unlike(known: np.ndarray) -> Any:
    if known.dtype.kind not in "OU":
        return np.nan_to_num(known.astype(np.float64)).max() + 1
    return "?" * (1 + max((len(value) for value in known if isinstance(value, str)), default=0))


def _lookup(known: np.ndarray, levels: Levels, table: np.ndarray, stranger: np.ndarray | None) -> Lookup:
    """From a column `[n]` to the rows of the table. The last one is for what is not known."""
    if not levels.strings and known.dtype.kind not in "fiub":
        raise NotCompiled("categories that are no numbers, of a column that is no string, are not compiled")
    keys = levels.keys(known.tolist())
    levels.open &= stranger is not None
    nans, order = np.flatnonzero(np.isnan(keys)), np.argsort(keys)[: int((~np.isnan(keys)).sum())]
    ordered, last = keys[order], len(keys)
    missing = int(nans[0]) if len(nans) else last
    rows = np.vstack([table, np.zeros(table.shape[1]) if stranger is None else stranger])
    if not len(order):
        raise NotCompiled("a column without a category is not compiled")

    def look(x: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(ordered, x), len(ordered) - 1)
        place = np.where(ordered[at] == x, order[at], np.where(np.isnan(x), missing, last))
        if stranger is None and (place == last).any():
            raise Beyond
        found: np.ndarray = rows[place]
        return found

    return look


ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder)
