"""An MLmodel file is bounded before it is expanded: bytes, depth, aliases, columns, shapes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.documents import DEEPEST, LONGEST
from registry.errors import InvalidModel, RegistryUnavailable
from registry.mlflow_registry import MlflowRegistry
from registry.mlmodel import COLUMNS, LONGEST_EXAMPLE, read_mlmodel
from registry.policies import Fixed
from serving.schema import LARGEST_ROW, compile_schema


def write(folder: Path, **said: Any) -> Path:
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {}, "model_id": "m-1", **said}))
    return folder


def laughs(levels: int, width: int = 9) -> str:
    """A list of lists of … of one word, each by an alias: a few bytes that come to `width ** levels` words."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


BOMBS = {
    "aliases": "flavors: {}\nmetadata:\n" + "\n".join(f"  {line}" for line in laughs(9).splitlines()),
    "a long text by aliases": f"flavors: {{}}\nlong: &long {'x' * 100_000}\nmetadata: [{', '.join(['*long'] * 300)}]",
    "merged maps": "flavors: {}\n"
    + laughs(9).replace("[lol]", "{x: 1}").replace(": [", ": [")
    + "\nmetadata: {<<: *a9}",
    "depth": "flavors: {}\nmetadata: " + "[" * 5000 + "]" * 5000,
    "length": "flavors: {}\nmetadata: " + "x" * LONGEST,
    "nodes": "flavors: {}\nmetadata: [" + "1," * 25_000 + "]",
    "a list that holds itself": "flavors: {}\nmetadata: &a [*a]",
    "a number to the base of sixty": "flavors: {}\nmetadata: {a: 1" + ":1" * 2_000_000 + "}",
    "a text that is called a number": "flavors: {}\nmetadata: {a: !!int '1" + ":1" * 2_000_000 + "'}",
    "a fraction to the base of sixty": "flavors: {}\nmetadata: {a: 1" + ":1" * 200 + ".5}",
}


@pytest.mark.audit("26")
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_document_that_would_expand_is_refused_before_it_does(tmp_path: Path, text: str) -> None:
    """Wherever it is read: as a version's MLmodel file, and to name a folder's version."""
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidModel, match="MLmodel"):
        read_mlmodel(tmp_path)
    with pytest.raises(RegistryUnavailable, match="cannot be read"):
        MlflowRegistry().catalogue(Fixed(str(tmp_path)))


def test_an_honest_document_with_aliases_and_some_depth_is_read(tmp_path: Path) -> None:
    """MLflow's writer makes an alias of a value that stands in two places."""
    names = ["a", "b"]
    deep: Any = "bottom"
    for _ in range(DEEPEST - 10):
        deep = [deep]
    write(tmp_path, metadata={"one": names, "other": names, "deep": deep})
    assert "&id001" in (tmp_path / "MLmodel").read_text()
    assert read_mlmodel(tmp_path).metadata["other"] == '["a", "b"]'


@pytest.mark.audit("26")
@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_signature_nested_by_the_thousand_is_not_understood(tmp_path: Path, field: str) -> None:
    """It is JSON in YAML, with a parser that calls itself."""
    signature = {"inputs": "[]", field: "[" * 100_000 + "]" * 100_000}
    write(tmp_path, signature={"inputs": json.dumps([{"type": "double"}]), **signature})
    with pytest.raises(InvalidModel, match="cannot be understood"):
        read_mlmodel(tmp_path)


@pytest.mark.audit("26")
def test_an_example_nested_by_the_thousand_or_too_long_is_no_harm(tmp_path: Path) -> None:
    """The first makes the version invalid, as any example that is no JSON; the second is not read."""
    write(tmp_path, saved_input_example_info={"serving_input_path": "example.json"})
    (tmp_path / "example.json").write_text("[" * 100_000)
    with pytest.raises(InvalidModel, match="cannot be understood"):
        read_mlmodel(tmp_path)
    (tmp_path / "example.json").write_text("[" + "1," * (LONGEST_EXAMPLE // 2) + "1]")
    assert read_mlmodel(tmp_path).example is None


def tensor(shape: Any, dtype: str = "float32", count: int = 1) -> dict[str, str]:
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
    return {"inputs": json.dumps([{**spec, "name": f"t{i}"} for i in range(count)])}


@pytest.mark.audit("26")
@pytest.mark.parametrize(
    ("signature", "why"),
    [
        (tensor([-1, 100_000_000]), "one row of the signature"),
        (tensor([-1, LARGEST_ROW // 4 // 10], count=11), "one row of the signature"),
        (tensor([-1, 2**62, 2**62]), "one row of the signature"),
        (tensor([-1, -5]), "shape is none"),
        (tensor([-1, "2"]), "shape is none"),
        (tensor([-1] * 33), "shape is none"),
        (tensor([-1, 2], "V1000000000"), "type is none"),
        (tensor([-1, 2], "S64"), "type is none"),
        (tensor([-1, 2], "nonsense"), "type is none"),
        (tensor([-1, 2], "i4,(2,2)f8"), "type is none"),
        ({"inputs": json.dumps([{"type": "double"}] * (COLUMNS + 1))}, "more than"),
    ],
)
def test_a_signature_of_too_much_is_refused_before_it_is_allocated(
    tmp_path: Path, signature: dict[str, str], why: str
) -> None:
    """Columns, shapes and types; a shape of many dimensions, or of large ones."""
    write(tmp_path, signature=signature)
    with pytest.raises(InvalidModel, match=why):
        compile_schema(read_mlmodel(tmp_path).signature)


@pytest.mark.parametrize(
    "signature",
    [tensor([-1, 3, 1024, 1024]), tensor([-1, -1, -1]), tensor([-1], "str"), tensor([-1, 2], "object"),
     {"inputs": json.dumps([{"type": "double", "name": f"c{i}"} for i in range(50_000)])}],
    ids=["a large image", "open sizes", "texts", "objects", "fifty thousand columns"],
)  # fmt: skip
def test_honest_signatures_are_within_bounds(tmp_path: Path, signature: dict[str, str]) -> None:
    """Large ones, too."""
    write(tmp_path, signature=signature)
    assert compile_schema(read_mlmodel(tmp_path).signature).names
