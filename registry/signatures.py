"""OpenSSF model signatures: a file in the tree that says who made the others. Checked with what the operator trusts, and
without any network; `model-signing` is imported only when there is a signature to check.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from registry.errors import InvalidModel
from registry.trees import NOT_CONTENT, files

DEFAULT_FILE = "model.sig"
#: What the library leaves out of every signature. A model has none of these.
_GIT = (".git", ".gitattributes", ".github", ".gitignore")

Verifier = Any


class Signed(StrEnum):
    """What is known of a version's signature."""

    VALID = "valid"
    MISSING = "missing"
    WRONG = "wrong"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class SignatureRule:
    """Whose signatures count: who holds this key, or a certificate below one of these. Both given: either will do.

    One that is there and wrong is refused even where none is required.
    """

    required: bool = False
    file: str = DEFAULT_FILE
    public_key: Path | None = None
    certificates: tuple[Path, ...] = ()

    @property
    def trusts(self) -> bool:
        """Whether there is anything to check a signature with."""
        return self.public_key is not None or bool(self.certificates)


def check_signature(root: Path, rule: SignatureRule) -> tuple[Signed, str | None]:
    """What the signature of the files below `root` is, and why they must not be loaded, or None if they may."""
    if not rule.trusts:
        why = "a signature is required, and neither signature.public_key nor signature.certificate_chain is set"
        return Signed.UNCHECKED, why if rule.required else None
    if not (root / rule.file).is_file():
        return Signed.MISSING, f"the version has no signature file {rule.file}" if rule.required else None
    try:
        verifiers = list(_verifiers(rule))
    except InvalidModel as error:
        return Signed.UNCHECKED, str(error)
    problem = _verified_by_any(verifiers, root, rule.file) or _not_covered(root, rule.file)
    return (Signed.WRONG if problem else Signed.VALID), problem


def _verifiers(rule: SignatureRule) -> Iterator[Verifier]:
    """One for the key, one for the certificates. Raises InvalidModel if the library or a file is not there."""
    try:
        from model_signing.verifying import Config
    except ImportError as error:
        raise InvalidModel(
            "signatures are checked by packages that are not installed here: pip install model-signing pyOpenSSL"
        ) from error
    if rule.public_key is not None:
        key = rule.public_key
        yield _prepared("public_key", lambda: Config().use_elliptic_key_verifier(public_key=key))
    if rule.certificates:  # never without any: the library would then trust every authority of the web
        chain = rule.certificates
        yield _prepared("certificate_chain", lambda: Config().use_certificate_verifier(certificate_chain=chain))


def _prepared(setting: str, make: Callable[[], Verifier]) -> Verifier:
    try:
        return make()
    except OSError as error:
        raise InvalidModel(f"signature.{setting} cannot be read ({error.strerror})") from error
    except Exception as error:  # the library raises whatever its parsers raise
        raise InvalidModel(f"signature.{setting} is no PEM file of the kind that is needed") from error


def _verified_by_any(verifiers: list[Verifier], root: Path, file: str) -> str | None:
    """None if one of them accepts the signature, else why the last one does not."""
    problem: str | None = None
    for verifier in verifiers:
        try:
            verifier.verify(root, root / file)
        except ValueError as error:
            problem = _in_words(str(error))
        except Exception:  # noqa: BLE001  a crafted signature may make the library fail in any way
            problem = "the signature is not by a key or certificate that signature.* names"
        else:
            return None
    return problem


def _in_words(error: str) -> str:
    """The library names the files; a broken file or chain it reports in its parsers' words, which help nobody."""
    if error.startswith("Signature mismatch"):
        hint = f" (sign a folder without MLflow's {NOT_CONTENT})" if NOT_CONTENT in error else ""
        return f"the files are not the ones that were signed{hint}: {error.partition(': ')[2][:300]}"
    return "the signature is not by a key or certificate that signature.* names"


def _not_covered(root: Path, file: str) -> str | None:
    """Whether a verified signature leaves files out. Who signs may have had them ignored, and whoever can write to the
    artifact store could put there what they like."""
    payload = json.loads(base64.b64decode(json.loads((root / file).read_text("utf-8"))["dsseEnvelope"]["payload"]))
    serialization = payload.get("predicate", {}).get("serialization", {})
    ignored = [PurePosixPath(path) for path in (*serialization.get("ignore_paths", ()), *_GIT)]
    for name, _ in files(root):
        path = PurePosixPath(name)
        if name != file and any(path.is_relative_to(left_out) for left_out in ignored):
            return f"the signature does not cover {name[:64]!r}"
    return None
