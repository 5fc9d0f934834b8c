"""Encoders and vectorizers: what they write into is a sparse matrix, at the columns that their state says; and what a text
parameter may make of them: readers of files, callers of functions, patterns that never end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

#: One token is a run of characters of one class, at most with some before it: what cannot be read in two ways is read in
#: linear time. A `(a+)+$` would hold the interpreter for ever.
_CLASS = r"(?:\\[wdsWDS]|\[\^?(?:[^\]\[\\]|\\.)+\]|[A-Za-z0-9_ @#'-])"
_TOKEN = re.compile(
    rf"(?:\(\?u\))?(?:\\b)?\(?{_CLASS}{{0,4}}(?:\\w(?:\+|\{{\d{{1,2}},\}})(?:\\b)?|{_CLASS}(?:\+|\{{\d{{1,2}},\}}))\)?"
)
MOST_WORDS = 50
MOST_COLUMNS = 2**31 - 1


def text(estimator: Any) -> Iterator[str]:
    """Vectorizers of texts. `input` makes the rows names of files, which they would read."""
    held = vars(estimator)
    if held.get("input", "content") != "content":
        yield f'{type(estimator).__name__} reads files: its input must be "content"'
    if held.get("analyzer") not in (None, "word", "char", "char_wb"):
        yield f"the analyzer of {type(estimator).__name__} is none of scikit-learn's"
    for key in ("tokenizer", "preprocessor"):
        if held.get(key) is not None:
            yield f"{type(estimator).__name__} has a {key}"
    pattern = held.get("token_pattern")
    if not (pattern is None or (isinstance(pattern, str) and _TOKEN.fullmatch(pattern))):
        yield f"the token_pattern of {type(estimator).__name__} may never end"
    yield from _ngrams(held.get("ngram_range", (1, 1)))
    if "vocabulary_" in held:
        yield from _vocabulary(held["vocabulary_"])


def _ngrams(said: Any) -> Iterator[str]:
    ok = isinstance(said, tuple | list) and len(said) == 2 and all(isinstance(n, int) for n in said)
    if not ok or not 0 < said[0] <= said[1] <= MOST_WORDS:
        yield f"an ngram_range goes beyond {MOST_WORDS}"


def _vocabulary(words: Any) -> Iterator[str]:
    """Each word has a column of its own."""
    if not isinstance(words, dict) or not all(isinstance(place, int | np.integer) for place in words.values()):
        yield "a vocabulary is none"
    elif not np.array_equal(np.sort(np.fromiter(words.values(), np.int64, len(words))), np.arange(len(words))):
        yield "a vocabulary names columns that are not there"


def dictionary(estimator: Any) -> Iterator[str]:
    """Names of columns, as a vocabulary has words."""
    if "vocabulary_" in vars(estimator):
        yield from _vocabulary(vars(estimator)["vocabulary_"])


def hashing(estimator: Any) -> Iterator[str]:
    """Compiled code divides by the number of columns."""
    columns = vars(estimator).get("n_features", 1)
    if not isinstance(columns, int) or not 0 < columns <= MOST_COLUMNS:
        yield f"{type(estimator).__name__} has no number of columns"


def hashing_text(estimator: Any) -> Iterator[str]:
    """Words without a vocabulary."""
    yield from text(estimator)
    yield from hashing(estimator)


def one_hot(estimator: Any) -> Iterator[str]:
    """Each category has a column of its own, but for rare ones, which share one, and one that is dropped."""
    held = vars(estimator)
    if "categories_" not in held:
        return
    categories, columns = held["categories_"], held.get("_n_features_outs")
    if (
        not isinstance(categories, list)
        or not isinstance(columns, list)
        or held.get("n_features_in_") != len(categories)
    ):
        yield "an encoder does not say what it encodes"
        return
    try:
        expected = [_columns_of(held, i, found) for i, found in enumerate(categories)]
    except (IndexError, KeyError, TypeError, AttributeError, ValueError):
        expected = None
    if expected != columns:
        yield "an encoder has other columns than categories"


def _columns_of(held: dict[str, Any], i: int, categories: np.ndarray) -> int:
    """The columns of one encoded column. Raises ValueError for an order or a place that is none."""
    count = len(categories)
    if not (isinstance(categories, np.ndarray) and categories.ndim == 1 and count and _sorted(categories)):
        raise ValueError
    if held.get("_infrequent_enabled") and (mapping := held["_default_to_infrequent_mappings"][i]) is not None:
        rare = held["_infrequent_indices"][i]
        count = int(mapping.max()) + 1
        ok = mapping.shape == categories.shape and mapping.dtype.kind in "iu" and mapping.min() >= 0
        if not ok or not (rare.min() >= 0 and rare.max() < len(categories)) or len(categories) - rare.size + 1 != count:
            raise ValueError
    elif held.get("_infrequent_enabled") and held["_infrequent_indices"][i] is not None:
        raise ValueError
    dropped = held.get("_drop_idx_after_grouping")
    if dropped is None or dropped[i] is None:
        return count
    if not 0 <= int(dropped[i]) < count:
        raise ValueError
    return count - 1


def _sorted(categories: np.ndarray) -> bool:
    """Numbers are found by bisection, which needs them in order, a missing one last; texts by a table."""
    if categories.dtype.kind in "OUS":
        return True
    missing = categories.dtype.kind in "fcmM" and bool(np.isnan(categories[-1]))
    known = categories[:-1] if missing else categories
    return bool((known[1:] > known[:-1]).all())


def several_labels(estimator: Any) -> Iterator[str]:
    """It keeps its own table from label to column."""
    if "_cached_dict" in vars(estimator):
        estimator._cached_dict = None
    return iter(())


def one_versus_rest(estimator: Any) -> Iterator[str]:
    """With several labels a row, it writes one number for each row that an estimator says; one with more would not fit."""
    kind = getattr(vars(estimator).get("label_binarizer_"), "y_type_", "")
    for inner in vars(estimator).get("estimators_", ()) if str(kind).startswith("multilabel") else ():
        name, weights = type(inner).__name__, vars(inner).get("coef_")
        one = isinstance(weights, np.ndarray) and weights.ndim == 2 and len(weights) == 1
        constant = name == "_ConstantPredictor" and np.size(vars(inner).get("y_")) == 1
        if not (one or constant or not hasattr(type(inner), "decision_function")):
            yield f"several labels a row of a {name[:40]} cannot be checked"
            return
