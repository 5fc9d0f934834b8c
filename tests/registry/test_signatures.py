"""Signatures are checked with the operator's key or certificates, without a network, and whatever is odd is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.cache import ArtifactCache
from registry.signatures import SignatureRule, Signed, check_signature
from registry.versions import ModelVersion
from tests.signing import make_certificate, make_key, sign, sign_with_certificate

pytest.importorskip("model_signing")
pytest.importorskip("OpenSSL")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys, `model` and `other`, and two authorities, `ca` and `else`."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("model", "other"):
        make_key(folder, name)
    for name in ("ca", "else"):
        make_certificate(folder, name)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "data" / "weights").write_bytes(b"weights")
    return folder


@pytest.fixture
def signed(model: Path, pki: Path) -> Path:
    sign(model, pki / "model.pub")
    return model


def by_key(pki: Path, name: str = "model", *, required: bool = True) -> SignatureRule:
    return SignatureRule(required, public_key=pki / f"{name}.pub")


def test_a_signed_model_is_valid_wherever_it_lies(signed: Path, pki: Path, tmp_path: Path) -> None:
    """The folder's name, MLflow's own note beside the files, and the signature itself are no part of what is signed."""

    def download(version: ModelVersion, into: Path) -> None:
        for path in signed.rglob("*"):
            if path.is_file():
                (into / path.relative_to(signed)).parent.mkdir(exist_ok=True)
                (into / path.relative_to(signed)).write_bytes(path.read_bytes())
        (into / "registered_model_meta").write_text("model_name: m")

    cache = ArtifactCache(tmp_path / "cache", 2**40, "", download)
    artifact = cache.fetch(ModelVersion("m", "1", "somewhere"))
    assert check_signature(artifact.path, by_key(pki)) == (Signed.VALID, None)
    artifact.release()


def altered(model: Path) -> None:
    (model / "data" / "weights").write_bytes(b"wEights")


def added(model: Path) -> None:
    (model / "data" / "more").write_bytes(b"")


def removed(model: Path) -> None:
    (model / "data" / "weights").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [(altered, "mismatch for 'data/weights'"), (added, "Extra files.*data/more"), (removed, "Missing.*data/weights")],
)
def test_a_changed_tree_is_wrong_and_the_file_is_named(
    signed: Path, pki: Path, change: Callable[[Path], None], says: str
) -> None:
    """One byte, one file more, one file less."""
    change(signed)
    state, problem = check_signature(signed, by_key(pki))
    assert state is Signed.WRONG
    assert pytest.raises(ValueError, match=says).matches(ValueError(problem))


def test_a_signature_of_another_key_is_wrong(signed: Path, pki: Path) -> None:
    """Also where none is required: one that is there and wrong is a bad sign."""
    for required in (True, False):
        state, problem = check_signature(signed, by_key(pki, "other", required=required))
        assert (state, "not by a key" in str(problem)) == (Signed.WRONG, True)


def test_a_missing_signature_matters_where_one_is_required(model: Path, pki: Path) -> None:
    """The reason names the file that was looked for."""
    assert check_signature(model, by_key(pki)) == (Signed.MISSING, "the version has no signature file model.sig")
    assert check_signature(model, by_key(pki, required=False)) == (Signed.MISSING, None)


def test_without_anything_to_check_with_nothing_passes_as_signed(signed: Path) -> None:
    """A signature that nobody can check is not looked at; where one is required it is a reason."""
    assert check_signature(signed, SignatureRule()) == (Signed.UNCHECKED, None)
    state, problem = check_signature(signed, SignatureRule(required=True))
    assert (state, "signature.public_key" in str(problem)) == (Signed.UNCHECKED, True)


def test_a_certificate_counts_below_its_own_authority_alone(model: Path, pki: Path) -> None:
    """The authorities of the web do not count, nor does a key where certificates are trusted."""
    sign_with_certificate(model, pki / "ca.pem")
    assert check_signature(model, SignatureRule(True, certificates=(pki / "ca.pem",))) == (Signed.VALID, None)
    for rule in (SignatureRule(True, certificates=(pki / "else.pem",)), by_key(pki)):
        assert check_signature(model, rule)[0] is Signed.WRONG
    sign(model, pki / "model.pub")
    assert check_signature(model, SignatureRule(True, certificates=(pki / "ca.pem",)))[0] is Signed.WRONG


def test_a_key_and_certificates_are_alternatives(model: Path, pki: Path) -> None:
    """So that a team can move from one to the other."""
    both = SignatureRule(True, public_key=pki / "model.pub", certificates=(pki / "ca.pem",))
    sign(model, pki / "model.pub")
    assert check_signature(model, both)[0] is Signed.VALID
    sign_with_certificate(model, pki / "ca.pem")
    assert check_signature(model, both)[0] is Signed.VALID
    sign(model, pki / "other.pub")
    assert check_signature(model, both)[0] is Signed.WRONG


@pytest.mark.parametrize("name", [".github/run.py", ".gitignore", "code/planted.py"])
def test_what_the_signer_left_out_may_not_be_there(model: Path, pki: Path, name: str) -> None:
    """The library verifies a tree with files that its signature says to ignore; anybody could have put them there."""
    (model / "code").mkdir()
    sign(model, pki / "model.pub", "--ignore-paths", model / "code")
    assert check_signature(model, by_key(pki)) == (Signed.VALID, None)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("import os")
    assert check_signature(model, by_key(pki)) == (Signed.WRONG, f"the signature does not cover {name!r}")


@pytest.mark.parametrize("text", ["", "{}", "[]", "\x00", "[" * 100_000, '{"verificationMaterial": {}}'])
def test_a_crafted_signature_file_is_wrong(model: Path, pki: Path, text: str) -> None:
    """Whatever it makes the library raise."""
    (model / "model.sig").write_text(text)
    assert check_signature(model, by_key(pki))[0] is Signed.WRONG


def test_a_payload_that_was_altered_is_wrong(signed: Path, pki: Path) -> None:
    """The sums in it are what is signed."""
    bundle = json.loads((signed / "model.sig").read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    (signed / "model.sig").write_text(json.dumps(bundle))
    assert check_signature(signed, by_key(pki))[0] is Signed.WRONG


def test_a_key_that_cannot_be_read_is_named_by_its_setting(signed: Path, pki: Path, tmp_path: Path) -> None:
    """Not by its path: the reason is shown to whoever asks for the status."""
    for rule, says in (
        (SignatureRule(True, public_key=tmp_path / "none.pub"), "signature.public_key cannot be read"),
        (SignatureRule(True, public_key=signed / "MLmodel"), "signature.public_key is no PEM file"),
        (SignatureRule(True, certificates=(tmp_path / "none.pem",)), "signature.certificate_chain cannot be read"),
    ):
        state, problem = check_signature(signed, rule)
        assert state is Signed.UNCHECKED
        assert str(problem).startswith(says)
        assert str(tmp_path) not in str(problem)


def test_without_the_library_a_signature_is_not_believed(signed: Path, pki: Path) -> None:
    """A process that cannot import it says what to install; one without a signature to check never needs it."""
    program = f"""
import sys; sys.modules["model_signing"] = None
from pathlib import Path
from registry.signatures import SignatureRule, check_signature
model, key = Path({str(signed)!r}), Path({str(pki / "model.pub")!r})
print(*check_signature(model, SignatureRule(True, public_key=key)))
print(*check_signature(model, SignatureRule()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("not checked signatures are checked by packages that are not installed here: pip install")
    assert second == "not checked None"
