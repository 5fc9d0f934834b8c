"""What a version may be called: whatever stands in headers, logs and metrics is checked where it comes from."""

from pathlib import Path

import pytest
import yaml

from registry.errors import InvalidReference, RegistryUnavailable
from registry.mlflow_registry import MlflowRegistry
from registry.policies import Fixed, parse_reference
from registry.versions import ModelVersion, is_name, is_word, usable_aliases

SPLIT = "m-1\r\nset-cookie: evil=1"


@pytest.mark.audit("2")
@pytest.mark.parametrize("said", [{"model_id": SPLIT}, {"model_id": "m-1", "run_id": SPLIT}, {"model_uuid": "a b"}])
def test_a_folder_whose_id_could_not_stand_in_a_header_is_no_version(tmp_path: Path, said: dict[str, str]) -> None:
    """Its MLmodel file says the id, and every answer would carry it."""
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {}, **said}))
    with pytest.raises(RegistryUnavailable, match="cannot be read"):
        MlflowRegistry().catalogue(Fixed(str(tmp_path)))


def test_a_folder_keeps_its_honest_id(tmp_path: Path) -> None:
    """Numbers, hexadecimal, dots, dashes."""
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {}, "model_id": "m-0f", "run_id": "r_1.2"}))
    (found,) = MlflowRegistry().catalogue(Fixed(str(tmp_path)))
    assert (found.version, found.run_id) == ("m-0f", "r_1.2")


@pytest.mark.audit("2")
@pytest.mark.parametrize(
    "fields",
    [("m", SPLIT), ("m\n", "1"), ("m", ""), ("a/b", "1"), ("a:b", "1"), ("n" * 257, "1"), ("m", "1" * 256), ("m", "٣")],
)
def test_a_version_with_such_a_name_or_number_cannot_exist(fields: tuple[str, str]) -> None:
    """Wherever it is made: from a catalogue, a folder, or a file of the cache."""
    with pytest.raises(ValueError, match="is none"):
        ModelVersion(*fields)


@pytest.mark.audit("2")
def test_one_pattern_for_words_and_one_for_names() -> None:
    """A name may be of any language; an alias that no reference can name is not listed."""
    assert all(map(is_word, ("1", "m-0f", "_prod", "-x", "champion", "v1.2")))
    assert not any(map(is_word, ("", "a b", "a\n", "é", "a/b", "²")))
    assert all(map(is_name, ("fraud", "Betrug in Zürich", "価格")))
    assert not any(map(is_name, ("", "a\r\nb", "a\x00", "a\u2028b", "a/b", "a:b")))
    assert usable_aliases(["b", "a\nb", "a"]) == ("a", "b")


@pytest.mark.audit("2")
@pytest.mark.parametrize("uri", ["models:/a\r\nb@champion", "models:/a@b\n", "models:/a@²", "models:/a\x00/3"])
def test_a_reference_with_such_a_word_is_none(uri: str) -> None:
    """What a person writes is held to the same patterns."""
    with pytest.raises(InvalidReference):
        parse_reference(uri)
