"""A look at a large message of protobuf before it is parsed, which takes a second for what 14 MB can say of tensors.

Only a ModelInferRequest's tensors, and the outputs that it selects, are looked into. What is malformed is left to the parser.
"""

from __future__ import annotations

from collections.abc import Iterator

from serving.errors import BodyTooLarge

#: Fields that are looked at: tensors, parameters, texts. Each takes a third of a microsecond here, and more in the parser.
MOST_FIELDS = 50_000
#: Bytes of integers and booleans in typed contents, which are as many values at the most.
MOST_TYPED_BYTES = 1_048_576
_INPUTS, _OUTPUTS, _SHAPE, _CONTENTS, _FP32 = 5, 6, 3, 5, 6
_LENGTHS = {1: 8, 5: 4}
_TEXT = 2
#: The brackets of a group, which the parser takes and drops; what stands between them is looked at like the rest.
_GROUPS = (3, 4)


class _Budget:
    """What one message may still have."""

    def __init__(self) -> None:
        self.fields, self.typed = MOST_FIELDS, MOST_TYPED_BYTES

    def spend(self, *, fields: int = 0, typed: int = 0) -> None:
        """Raises BodyTooLarge if that is too much."""
        self.fields -= fields
        self.typed -= typed
        if self.fields < 0 or self.typed < 0:
            raise BodyTooLarge("The message has too many values for typed contents: send them as raw_input_contents.")


def check_message(data: bytes) -> None:
    """Raises BodyTooLarge for a message that would take the parser long."""
    budget = _Budget()
    try:
        for number, start, end in _fields(data, 0, len(data), budget):
            if number == _INPUTS:
                _check_tensor(data, start, end, budget)
            elif number == _OUTPUTS:
                for _ in _fields(data, start, end, budget):
                    pass  # its parameters count
    except IndexError:
        return  # it ends within a field, as the parser will find


def _check_tensor(data: bytes, start: int, end: int, budget: _Budget) -> None:
    for number, first, last in _fields(data, start, end, budget):
        if number == _SHAPE:
            budget.spend(typed=last - first)
        elif number == _CONTENTS:
            for kind, begin, stop in _fields(data, first, last, budget):
                if kind < _FP32:
                    budget.spend(typed=stop - begin)


def _fields(data: bytes, at: int, end: int, budget: _Budget) -> Iterator[tuple[int, int, int]]:
    """The fields between two places: their number, and where what they hold begins and ends."""
    while at < end:
        budget.spend(fields=1)
        tag, at = _varint(data, at)
        kind = tag & 7
        start = at
        if kind == _TEXT:
            length, start = _varint(data, at)
            at = start + length
        elif kind == 0:
            at = _varint(data, at)[1]
        elif kind in _LENGTHS:
            at += _LENGTHS[kind]
        elif kind not in _GROUPS:
            raise IndexError
        yield tag >> 3, start, min(at, end)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins. Raises IndexError at the end of the data, or if it does not end."""
    value = shift = 0
    while (byte := data[at]) > 127 and shift < 63:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1
