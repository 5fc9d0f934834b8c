"""What is known of a matrix before its rows are: the types of its columns, how it lies in memory, what its codes mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: What stands for a string that no encoder knows.
UNKNOWN = -1.0


class Levels:
    """The values of one input column that encoders know. Strings stand in a matrix by their place here, their code."""

    def __init__(self, *, strings: bool) -> None:
        self.strings = strings
        #: whether the model takes other values, too
        self.open = True
        self._values: list[Any] = []
        self._codes: dict[Any, float] = {}

    def keys(self, values: Iterable[Any]) -> np.ndarray:
        """What the values are in a matrix, `[n]`: themselves, or the codes of strings. They are known from here on."""
        found = list(values)
        for value in found:
            if value not in self._codes:
                self._codes[value] = float(len(self._values))
                self._values.append(value)
        return np.array([self._codes[value] if self.strings else value for value in found], np.float64)

    def codes(self, column: np.ndarray) -> np.ndarray:
        """Strings `[n]`, missing ones among them, as codes."""
        return np.array([self._codes.get(value, UNKNOWN) for value in column.tolist()], np.float64)

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """Any numbers `[n]` as values of the column: every known one has its share, and one that is not known if the model
        takes such. NaN is a missing value."""
        count = len(self._values)
        if not count:
            return numbers if not self.strings else np.array([self._stranger()] * len(numbers), object)
        places = np.mod(np.rint(np.nan_to_num(numbers)), count + self.open).astype(int)
        if self.strings:
            words = [*self._values, self._stranger()]
            drawn = np.array([*(words[place] for place in places), None], object)[:-1]
            drawn[np.isnan(numbers)] = None
            return drawn
        known = np.array(self._values, np.float64)
        away = ~np.isnan(numbers) & ~np.isin(numbers, known) & (places < count)
        return np.where(away, known[np.minimum(places, count - 1)], numbers)

    def _stranger(self) -> str:
        return "?" * (1 + max((len(value) for value in self._values if isinstance(value, str)), default=0))


@dataclass(frozen=True, slots=True)
class Source:
    """One column of the request: its type as an array, and its levels."""

    dtype: np.dtype[Any]
    levels: Levels


@dataclass(frozen=True, slots=True)
class Layout:
    """A matrix `[n, k]` of `dtype`.

    `block`: the library is given a DataFrame that is one block of memory, so that columns picked there lie row by row,
    and anywhere else column by column. `sparse`: the library has a sparse matrix in its place. `sources`: the columns of
    the request, as long as the matrix's columns are still those.
    """

    dtype: np.dtype[Any]
    block: bool = False
    sparse: bool = False
    sources: tuple[Source, ...] | None = None

    @property
    def strings(self) -> bool:
        """Whether codes of strings are among the columns."""
        return any(source.levels.strings for source in self.sources or ())

    def of(self, chosen: Iterable[int]) -> Layout:
        """Some of the columns, as the library picks them out of its input: floats if all of them are."""
        if self.sources is None:
            return Layout(self.dtype, self.block)
        picked = tuple(self.sources[i] for i in chosen)
        numbers = np.result_type(*(source.dtype for source in picked)) if picked else self.dtype
        return Layout(numbers if numbers == np.float32 else np.dtype(np.float64), self.block, sources=picked)
