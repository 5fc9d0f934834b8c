"""The MLmodel file: what a version says of itself, read without importing or loading any of its code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from registry.documents import read_yaml
from registry.errors import InvalidModel

#: What a signature may list, and how long the example beside it may be, in bytes; a longer one is not read.
COLUMNS, LONGEST_EXAMPLE = 100_000, 16 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """One named column of a signature; `type` is MLflow's word (double, long, string, datetime, …)."""

    name: str
    type: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a signature; -1 in `shape` is any size. `name` is None for the single unnamed one."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs, each a tuple of columns or of tensors."""

    inputs: tuple[Column, ...] | tuple[Tensor, ...]
    outputs: tuple[Column, ...] | tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class MLmodel:
    """The parsed MLmodel file of one version."""

    path: Path
    flavors: Mapping[str, Mapping[str, Any]]
    signature: Signature | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    example: Mapping[str, Any] | None = None

    def flavor(self, name: str) -> Mapping[str, Any]:
        """The configuration of one flavour; empty if the model has not got it."""
        return self.flavors.get(name, {})


def read_mlmodel(path: Path) -> MLmodel:
    """Parses `<path>/MLmodel` and the input example beside it. Raises InvalidModel, saying what is wrong."""
    try:
        document = read_yaml(path / "MLmodel")
        flavors = {str(name): dict(conf or {}) for name, conf in document["flavors"].items()}
        return MLmodel(
            path=path,
            flavors=flavors,
            signature=_signature(document.get("signature")),
            metadata={
                str(k): v if isinstance(v, str) else json.dumps(v) for k, v in (document.get("metadata") or {}).items()
            },
            example=_example(path, document.get("saved_input_example_info")),
        )
    except InvalidModel:
        raise
    except OSError as error:
        raise InvalidModel(f"the version has no readable MLmodel file ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"the MLmodel file cannot be understood ({type(error).__name__})") from error


def _signature(text: Mapping[str, str] | None) -> Signature | None:
    if not text or not text.get("inputs"):
        return None
    return Signature(_specs(text["inputs"]), _specs(text.get("outputs")))


def _specs(text: str | None) -> tuple[Column, ...] | tuple[Tensor, ...]:
    specs = json.loads(text) if text else []
    if len(specs) > COLUMNS:
        raise InvalidModel(f"the signature has more than {COLUMNS} columns")
    if any(spec["type"] == "tensor" for spec in specs):
        return tuple(
            Tensor(_text(spec.get("name")), str(spec["tensor-spec"]["dtype"]), _shape(spec["tensor-spec"]["shape"]))
            for spec in specs
        )
    return tuple(
        Column(str(spec.get("name", i)), str(spec["type"]), bool(spec.get("required", True)))
        for i, spec in enumerate(specs)
    )


def _text(name: Any) -> str | None:
    return None if name is None else str(name)


def _shape(sizes: Any) -> tuple[int, ...]:
    if len(sizes) > 32 or not all(type(size) is int and size >= -1 for size in sizes):
        raise InvalidModel("the signature has a tensor whose shape is none")
    return tuple(sizes)


def _example(path: Path, info: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The example as MLflow wrote it for serving (`dataframe_split` or `inputs`), else None."""
    name = (info or {}).get("serving_input_path")
    file = path / str(name)
    if not name or file.parent != path or not file.is_file() or file.stat().st_size > LONGEST_EXAMPLE:
        return None
    loaded = json.loads(file.read_text("utf-8"))
    return loaded if isinstance(loaded, dict) else None
