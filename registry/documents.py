"""YAML files that somebody else wrote, read as data and within bounds: bytes, depth, and what aliases would make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from registry.errors import InvalidModel

#: Bytes of a file, and what its values may come to when each alias is written out.
LONGEST, EXPANDED = 8 << 20, 16 << 20
DEEPEST, NODES = 64, 20_000
#: Of a number or a date. YAML also knows numbers to the base of sixty, `1:30:00`, which take as long as their length squared.
LONGEST_NUMBER = 128
_NUMBERS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


def read_yaml(path: Path) -> Any:
    """The document in a file. Raises InvalidModel for one that is over a bound, OSError, or what the parser raises."""
    if path.stat().st_size > LONGEST:
        raise InvalidModel(f"the {path.name} file is longer than {LONGEST} bytes")
    loader = _Bounded(path.read_text("utf-8"))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Bounded(yaml.SafeLoader):
    """Counts while it composes, before anything is built: an alias counts as all that it stands for, a text as its length."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = self._came = 0
        self._cost: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node and what is below it. Raises InvalidModel when a bound is reached."""
        alias, before = self.check_event(yaml.AliasEvent), (self._nodes, self._came)
        self._depth += 1
        self._count(1, 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            self._count(*self._cost.get(id(node), (NODES, 0)))  # none is known of a node that holds itself
        elif isinstance(node, yaml.ScalarNode):
            self._count(0, len(node.value))
            if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
                raise InvalidModel(f"the MLmodel file has a number of more than {LONGEST_NUMBER} digits")
        if not alias:
            self._cost[id(node)] = (self._nodes - before[0], self._came - before[1])
        return node

    def _count(self, nodes: int, size: int) -> None:
        self._nodes, self._came = self._nodes + nodes, self._came + size
        if self._depth > DEEPEST or self._nodes > NODES or self._came > EXPANDED:
            raise InvalidModel(
                "the MLmodel file is nested too deeply, or comes to too much when its aliases are written out"
            )
