"""The verdict on a version's files: every reason why they must not be loaded, found before anything is imported or loaded.

It reads the MLmodel file as data, sums and signatures as bytes, and archives record by record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel, read_mlmodel
from registry.signatures import Signed, check_signature
from registry.versions import ModelVersion
from serving.configuration import ModelOptions, resolve
from serving.prefixes import comes_from
from serving.schema import compile_schema
from serving.trust import format_of, trust_reasons


class Tree(Protocol):
    """A version's files, and their sum."""

    @property
    def path(self) -> Path:
        """Their folder."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over the tree, in hexadecimal."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found. `reasons` is empty if the version may be loaded; `model` is None if its MLmodel is unreadable."""

    format: str
    signature: Signed
    reasons: tuple[str, ...]
    model: MLmodel | None

    @property
    def accepted(self) -> MLmodel:
        """What the version says of itself. Raises InvalidModel with every reason if it must not be loaded."""
        if self.reasons or self.model is None:
            raise InvalidModel("; ".join(self.reasons))
        return self.model


def judge(version: ModelVersion, tree: Tree, options: ModelOptions) -> Verdict:
    """Reads the files and decides. What cannot be understood is a reason; blocks while it sums and scans."""
    reasons = list(_pin(tree.digest, options.digest))
    signature, problem = check_signature(tree.path, options.signature)
    reasons += [problem] if problem else []
    model = None
    try:
        model = read_mlmodel(tree.path)
        reasons += _of_model(version, model, options)
    except InvalidModel as error:
        reasons.append(str(error))
    return Verdict(format_of(model), signature, tuple(_printable(reason) for reason in reasons), model)


def _pin(found: str, pinned: str | None) -> Iterator[str]:
    if pinned is not None and pinned.removeprefix("sha256:") != found:
        yield f"the files are sha256:{found}, and digest pins another sum: they are not the ones that were approved"


def _of_model(version: ModelVersion, model: MLmodel, options: ModelOptions) -> Iterator[str]:
    allow_code = options.allow_code or comes_from(version, options.allow_code_from)
    allow_pickle = allow_code or options.allow_pickle or comes_from(version, options.allow_pickle_from)
    yield from trust_reasons(model, allow_pickle=allow_pickle, allow_code=allow_code)
    yield from _raised(lambda: resolve(options, version.tags, model.metadata))
    yield from _raised(lambda: compile_schema(model.signature, ignore_extra=options.ignore_extra_columns))


def _raised(work: Callable[[], object]) -> Iterator[str]:
    try:
        work()
    except InvalidModel as error:
        yield str(error)


def _printable(reason: str) -> str:
    """Names from the MLmodel file end up in logs and terminals."""
    return "".join(c if c.isprintable() else "?" for c in reason)
