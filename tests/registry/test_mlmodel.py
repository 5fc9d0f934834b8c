"""The MLmodel file is read as data, and what cannot be understood is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.errors import InvalidModel
from registry.mlmodel import Column, Signature, Tensor, read_mlmodel
from registry.versions import ModelVersion, configuring

COLUMNS = [{"type": "double", "name": "a", "required": True}, {"type": "string", "name": "b", "required": False}]
TENSORS = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]


def write(path: Path, **document: Any) -> Path:
    (path / "MLmodel").write_text(yaml.safe_dump({"flavors": {"sklearn": {"pickled_model": "m"}}, **document}))
    return path


def test_columns_are_read_in_order(tmp_path: Path) -> None:
    """With type, and whether they may be missing; a file from before `required` means required."""
    inputs = [*COLUMNS, {"type": "long", "name": "c"}]
    outputs = [{"type": "long"}]
    model = read_mlmodel(write(tmp_path, signature={"inputs": json.dumps(inputs), "outputs": json.dumps(outputs)}))
    assert model.signature == Signature(
        (Column("a", "double"), Column("b", "string", False), Column("c", "long")), (Column("0", "long"),)
    )


def test_tensors_are_read_with_shape_and_name(tmp_path: Path) -> None:
    """The single unnamed one has none."""
    named = [{**TENSORS[0], "name": "x"}]
    model = read_mlmodel(write(tmp_path, signature={"inputs": json.dumps(named), "outputs": json.dumps(TENSORS)}))
    assert model.signature == Signature((Tensor("x", "float32", (-1, 3)),), (Tensor(None, "float32", (-1, 3)),))


def test_metadata_are_words(tmp_path: Path) -> None:
    """As tags are: what is no string is its JSON."""
    model = read_mlmodel(write(tmp_path, metadata={"headway.classes": ["ok", "failure"], "headway.task": "regression"}))
    assert model.metadata == {"headway.classes": '["ok", "failure"]', "headway.task": "regression"}
    assert read_mlmodel(write(tmp_path)).metadata == {}


def test_a_flavour_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """Nobody has to ask twice."""
    model = read_mlmodel(write(tmp_path))
    assert model.flavor("sklearn") == {"pickled_model": "m"}
    assert model.flavor("pytorch") == {}
    assert model.signature is None


@pytest.mark.parametrize("name", ["example.json", "../example.json", "/example.json", "nothing.json", "list.json"])
def test_the_example_is_read_from_the_version_only(tmp_path: Path, name: str) -> None:
    """A path that leads elsewhere brings nothing; neither does one that is no object."""
    path = tmp_path / "version"
    path.mkdir()
    (path / "example.json").write_text('{"inputs": [[1]]}')
    (path / "list.json").write_text("[1]")
    (tmp_path / "example.json").write_text('{"inputs": [["elsewhere"]]}')
    model = read_mlmodel(write(path, saved_input_example_info={"serving_input_path": name}))
    assert model.example == ({"inputs": [[1]]} if name == "example.json" else None)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "flavors: [", "flavors: 5", "name: x", "flavors: {}\nsignature: {inputs: 'not JSON'}",
     "flavors: {}\nsignature: {inputs: '[{}]'}", "flavors: {}\nsignature: {inputs: '[5]'}",
     "flavors: {}\nsignature: {inputs: '[{\"type\": \"tensor\"}]'}", "flavors: {}\nmetadata: 5",
     "flavors: !!python/name:os.system", "flavors: {}\nsaved_input_example_info: 5"],
)  # fmt: skip
def test_a_file_that_cannot_be_understood_is_an_invalid_model(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with it; the server is not."""
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidModel, match="cannot be understood"):
        read_mlmodel(tmp_path)


def test_a_version_without_the_file_is_an_invalid_model(tmp_path: Path) -> None:
    """It says that the file is not there."""
    with pytest.raises(InvalidModel, match="No such file"):
        read_mlmodel(tmp_path)


def test_only_configuring_tags_are_part_of_a_version() -> None:
    """In one order, whatever order the registry has them in."""
    tags = {"headway.max_rows": "8", "owner": "team", "headway.task": "regression", "feast.feature_service": "f"}
    found = configuring(tags)
    assert found == configuring(dict(reversed(tags.items())))
    assert dict(found) == {k: v for k, v in tags.items() if k != "owner"}
    assert ModelVersion("m", "1", configuration=found).tags == dict(found)
