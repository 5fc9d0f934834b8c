"""The texts of an exported program. PyTorch makes Python code of them: it evaluates sizes and guards, looks operators up by
name, and writes names, keys and messages into functions that it compiles. So each text has a rule by the key that it stands
under; one without a rule is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from serving.pt2.operators import is_operator
from serving.pt2.sizes import KEY, POWER, is_guard, is_size

_DEEPEST, LARGEST_DEGREE = 200, 64
_PATH = re.compile(r"[\w .:/-]{0,512}")
#: A message may quote names; nothing that could end the text that it is written into.
_MESSAGE = re.compile(r"[\w .:/<>=!+*%(),'\[\]-]{0,1000}")
_DEVICE, _DIALECT, _RELEASE = re.compile(r"[a-z]{1,16}"), re.compile(r"[A-Z]{1,16}"), re.compile(r"[\w.+<=-]{1,64}")
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
#: What an operator is told in words: a mode, an equation of einsum.
_WORD = re.compile(r"[\w .,:/>+*-]{0,200}")
#: Mappings whose keys are names of values, not of fields.
_NAMED = frozenset(
    {
        "tensor_values",
        "sym_int_values",
        "sym_float_values",
        "sym_bool_values",
        "custom_obj_values",
        "as_string_to_argument",
    }
)


def _is_name(text: str) -> bool:
    return text == "" or (text.isidentifier() and len(text) <= 512)


def _is_tree(text: str) -> bool:
    """Whether it is a structure of tuples, lists and dicts with plain keys: PyTorch imports what other types name."""
    try:
        version, tree = json.loads(text)
        return version == 1 and all(map(_is_branch, _branches(tree)))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _branches(tree: Any) -> Iterator[dict[str, Any]]:
    left = [tree]
    while left:
        branch = left.pop()
        yield branch
        left += branch["children_spec"]


def _is_branch(branch: dict[str, Any]) -> bool:
    kind, context = branch["type"], branch["context"]
    if kind is None:
        return context is None
    keys = json.loads(context)
    plain = keys is None or (isinstance(keys, list) and all(isinstance(k, str) and KEY.fullmatch(k) for k in keys))
    return kind in _TREES and plain


#: What each text must be, by the key that it stands under.
RULES: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names"), _is_name),
    **dict.fromkeys(("target", "as_operator"), is_operator),
    **dict.fromkeys(("in_spec", "out_spec"), _is_tree),
    **dict.fromkeys(("fqn", "parameter_name", "buffer_name", "tensor_constant_name"), _PATH.fullmatch),
    **dict.fromkeys(("as_string", "as_strings"), _WORD.fullmatch),
    **dict.fromkeys(("as_float", "as_floats", "as_float_lists"), ("Infinity", "-Infinity", "NaN").__contains__),
    "assert_msg": _MESSAGE.fullmatch,
    "expr_str": is_size,
    "guards_code": is_guard,
    "type": _DEVICE.fullmatch,
    "verifiers": _DIALECT.fullmatch,
    "torch_version": _RELEASE.fullmatch,
    "field_names": _is_name,
}
#: Notes for people and for passes that are not run. They are kept as text.
_NOTES = frozenset({"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "custom"})


def texts_refused(program: Any) -> Iterator[str]:
    """Each kind of text of a parsed `model.json` that is not what PyTorch's exporter writes there, once, by its key."""
    seen: set[str] = set()
    left: list[tuple[str, Any, int]] = [("", program, 0)]
    while left:
        key, value, depth = left.pop()
        wrong = "depth" if depth > _DEEPEST else _wrong(key, value)
        if wrong is not None and wrong not in seen:
            seen.add(wrong)
            yield wrong
        if depth <= _DEEPEST:
            left += ((name, part, depth + 1) for name, part in _parts(key, value))


def _wrong(key: str, value: Any) -> str | None:
    """The key under which a text, or a name in a mapping, breaks its rule."""
    if isinstance(value, str):
        rule = RULES.get(key)
        return None if rule is not None and rule(value) else key
    if isinstance(value, dict):
        if key in RULES:
            return key
        if key in _NAMED and not all(map(_is_name, value)):
            return key
        if key == "range_constraints" and not all(map(is_size, value)):
            return key
        if key == "metadata" and not (value.keys() <= _NOTES and all(isinstance(note, str) for note in value.values())):
            return key
    if key == "nodes" and isinstance(value, list) and not _modest(value):
        return "nodes"
    return None


def _modest(nodes: list[Any]) -> bool:
    """Whether no size is multiplied with itself without end: a product of a million digits holds up the whole process."""
    degrees: dict[str, int] = {}
    for node in nodes:
        try:
            degree, made = _degree(node, degrees), _sizes(node["outputs"])
        except (KeyError, TypeError, AttributeError):
            return False
        if degree > LARGEST_DEGREE or (made and node["target"].startswith("torch.ops.higher_order.")):
            return False
        degrees.update(dict.fromkeys(made, degree))
    return True


def _degree(node: dict[str, Any], degrees: dict[str, int]) -> int:
    """Of how many sizes and numbers a node's result is the product."""
    given = [entry["arg"] for entry in node["inputs"]]
    named = [degrees.get(name, 1) for name in _sizes(given)]
    if node["target"] == "_operator.mul":
        return sum(named) + len(given) - len(named)
    if node["target"] == "_operator.pow":
        exponent = given[1].get("as_int")
        return (
            max(named, default=1) * exponent if type(exponent) is int and 0 <= exponent <= POWER else LARGEST_DEGREE + 1
        )
    return max(named, default=1)


def _sizes(arguments: list[dict[str, Any]]) -> list[str]:
    """The names of the sizes among arguments, alone or in lists."""
    found = []
    for argument in arguments:
        single = argument.get("as_sym_int")
        found += [part["as_name"] for part in (single, *argument.get("as_sym_ints", ())) if part and "as_name" in part]
    return found


def _parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each under the key that its texts are judged by."""
    if isinstance(value, list):
        yield from ((key, part) for part in value)
    elif isinstance(value, dict) and key != "metadata":
        inside = (
            None
            if key not in _NAMED | {"range_constraints", "opset_version", "treespec_namedtuple_fields"}
            else f"<{key}>"
        )
        message = value.get("name") == "assert_msg" and isinstance(value.get("arg"), dict)
        for name, part in value.items():
            if message and name == "arg":
                yield from (("assert_msg" if k == "as_string" else k, text) for k, text in part.items())
            else:
                yield inside or name, part
