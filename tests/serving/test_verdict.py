"""The verdict: every reason at once, before anything is loaded; digests, signatures and prefixes, each with its attack."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import mlflow
import pytest

from registry.cache import ArtifactCache
from registry.errors import InvalidModel
from registry.signatures import SignatureRule, Signed
from registry.trees import digest
from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.loading import Loaded, Loader
from serving.verdict import Verdict, judge
from tests.crafted import SUMS, Spot, answer, estimator, rewrite
from tests.models import Folder
from tests.signing import make_key, sign

VERSION = ModelVersion("fraud", "3", "s3://trusted/models/3")
PICKLES = ModelOptions(allow_pickle=True)


def through_a_cache(spot: Spot, options: ModelOptions, machine: str = "machine") -> Loaded:
    """Loads the version as a machine does: fetched into its cache, judged there, loaded from there."""

    def download(version: ModelVersion, into: Path) -> None:
        copytree(spot.model, into, symlinks=True, dirs_exist_ok=True)

    cache = ArtifactCache(spot.folder / machine, 2**40, "", download)
    return Loader(cache, options, None).load(VERSION)


def judged(path: Path, options: ModelOptions | None = None, version: ModelVersion = VERSION) -> Verdict:
    return judge(version, Folder(path), options or ModelOptions())


def honest_pickle(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(), serialization_format="pickle")


def plant(spot: Spot) -> None:
    """Whoever can write to the store puts a pickle that attacks in place of the honest one."""
    honest, spot.model = spot.model, spot.folder / "planted"
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")
    (spot.model / "model.pkl").replace(honest / "model.pkl")
    spot.model = honest


def test_the_pinned_files_load_and_no_others(spot: Spot) -> None:
    """A version that was overwritten after the pin is refused by the next machine, which says what the files are."""
    honest_pickle(spot)
    pinned = replace(PICKLES, digest=f"sha256:{digest(spot.model)[0]}")
    assert answer(through_a_cache(spot, pinned)) == SUMS
    plant(spot)
    with pytest.raises(InvalidModel, match=f"the files are sha256:{digest(spot.model)[0]}, and digest pins another"):
        through_a_cache(spot, pinned, "another machine")
    assert not spot.canary.exists()
    through_a_cache(spot, PICKLES, "a third one").dispose()
    assert spot.canary.exists()


def test_a_tag_cannot_pin_or_unpin(spot: Spot) -> None:
    """The digest that counts is the operator's."""
    honest_pickle(spot)
    rewrite(spot.model, lambda document: document.update(metadata={"digest": "0" * 64, "headway.digest": "0" * 64}))
    version = ModelVersion("m", "1", configuration=(("headway.digest", "0" * 64),))
    assert judge(version, Folder(spot.model), PICKLES).reasons == ()


@pytest.fixture
def signing(spot: Spot) -> SignatureRule:
    pytest.importorskip("model_signing")
    pytest.importorskip("OpenSSL")
    return SignatureRule(required=True, public_key=make_key(spot.folder))


def unsigned(spot: Spot) -> None:
    (spot.model / "model.sig").unlink()


@pytest.mark.parametrize(
    ("attack", "says", "state"),
    [
        (lambda spot: None, "the files are not the ones that were signed.*model.pkl", Signed.WRONG),
        (unsigned, "no signature file model.sig", Signed.MISSING),
        (lambda spot: sign(spot.model, make_key(spot.folder, "stranger")), "not by a key", Signed.WRONG),
    ],
    ids=["stale", "removed", "by a stranger"],
)
def test_a_signed_model_loads_and_a_forged_one_does_not(
    spot: Spot, signing: SignatureRule, attack: Callable[[Spot], None], says: str, state: Signed
) -> None:
    """An attacker has the files but not the key: the old signature, none, or one of his own."""
    honest_pickle(spot)
    assert signing.public_key is not None
    sign(spot.model, signing.public_key)
    rule = replace(PICKLES, signature=signing)
    assert answer(through_a_cache(spot, rule)) == SUMS
    plant(spot)
    attack(spot)
    with pytest.raises(InvalidModel, match=says):
        through_a_cache(spot, rule, "another machine")
    assert judged(spot.model, rule).signature is state
    assert not spot.canary.exists()
    through_a_cache(spot, PICKLES, "a third one").dispose()
    assert spot.canary.exists()


def test_a_signature_is_no_permission(spot: Spot, signing: SignatureRule) -> None:
    """It says who made a pickle, not that it is harmless."""
    honest_pickle(spot)
    assert signing.public_key is not None
    sign(spot.model, signing.public_key)
    verdict = judged(spot.model, ModelOptions(signature=signing))
    assert (verdict.signature, len(verdict.reasons)) == (Signed.VALID, 1)
    assert "set allow_pickle" in verdict.reasons[0]


def test_a_link_out_of_the_tree_is_refused_even_where_pickles_are_allowed(spot: Spot) -> None:
    """Its target is no part of what was registered, summed or signed."""
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")
    outside = (spot.model / "model.pkl").rename(spot.folder / "outside.pkl")
    (spot.model / "model.pkl").symlink_to(outside)
    with pytest.raises(InvalidModel, match=r"hold a link or a device: 'model\.pkl'"):
        through_a_cache(spot, PICKLES)
    with pytest.raises(InvalidModel, match="not in the version's folder"):
        Loader(Folder(spot.model), PICKLES, None).load(VERSION)
    assert not spot.canary.exists()


def test_every_reason_is_given_at_once(spot: Spot) -> None:
    """The operator lifts them in one go, or sees that there is no way; the load error is the same, joined."""
    honest_pickle(spot)

    def spoil(document: dict[str, Any]) -> None:
        document["flavors"]["sklearn"]["code"] = "code"
        document["metadata"] = {"headway.task": "ranking"}
        del document["signature"]

    rewrite(spot.model, spoil)
    options = ModelOptions(digest="0" * 64, signature=SignatureRule(required=True))
    reasons = judged(spot.model, options).reasons
    for reason, word in zip(reasons, ("digest", "signature.public_key", "allow_code", "allow_pickle", "headway.task",
                                      "input signature"), strict=True):  # fmt: skip
        assert word in reason
    with pytest.raises(InvalidModel) as error:
        Loader(Folder(spot.model), options, None).load(VERSION)
    assert str(error.value) == "; ".join(reasons)


def test_an_unreadable_mlmodel_file_is_one_reason_among_others(tmp_path: Path) -> None:
    """What can be judged without it is judged."""
    verdict = judged(tmp_path, ModelOptions(digest="0" * 64))
    assert (verdict.format, verdict.model, len(verdict.reasons)) == ("unknown", None, 2)


@pytest.mark.parametrize(
    ("setting", "prefix", "loads"),
    [
        ("allow_pickle_from", "models:/fraud", True),
        ("allow_pickle_from", "s3://trusted/", True),
        ("allow_code_from", "models:/fraud/3", True),
        ("allow_pickle_from", "models:/frau", False),
        ("allow_pickle_from", "models:/fraud/4", False),
        ("allow_code_from", "s3://trust", False),
    ],
)
def test_permission_by_prefix(spot: Spot, setting: str, prefix: str, loads: bool) -> None:
    """Of the version's exact reference or its source; what is not below it stays refused, and nothing of it runs."""
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")
    options = ModelOptions(**{setting: (prefix,)})  # type: ignore[arg-type]  # one of two settings of one type
    if loads:
        assert answer(Loader(Folder(spot.model), options, None).load(VERSION)) == SUMS
    else:
        with pytest.raises(InvalidModel, match="set allow_pickle"):
            Loader(Folder(spot.model), options, None).load(VERSION)
    assert spot.canary.exists() is loads


def test_a_prefix_for_pickles_is_none_for_code(spot: Spot) -> None:
    """A PythonModel needs the other one."""
    spot.save(mlflow.pyfunc, loader_module="planted_loader", data_path=spot.code("planted_loader.py", ""))
    assert "set allow_code" in judged(spot.model, ModelOptions(allow_pickle_from=("models:/",))).reasons[0]
    assert judged(spot.model, ModelOptions(allow_code_from=("models:/",))).reasons == ()
    assert not spot.canary.exists()


@pytest.mark.parametrize(
    ("conf", "refused"),
    [
        ({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}, False),
        ({"providers": "CPUExecutionProvider", "onnx_session_options": {"intra_op_num_threads": 1}}, False),
        ({"providers": [["QNNExecutionProvider", {"backend_path": "data/planted.so"}]]}, True),
        ({"onnx_session_options": {"extra_session_config": {"ep.context_file_path": "data/planted"}}}, True),
    ],
)
def test_options_of_onnxruntime_are_code(spot: Spot, conf: dict[str, Any], refused: bool) -> None:
    """Some execution providers open shared libraries that their options name."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    (spot.model / "model.onnx").write_bytes(b"")
    flavors = {"onnx": conf, "python_function": {"loader_module": "mlflow.onnx"}}
    rewrite(spot.model, lambda document: document.update(flavors=flavors))
    assert [("set allow_code" in reason) for reason in judged(spot.model).reasons] == [True] * refused


def test_names_from_the_mlmodel_file_cannot_paint_a_terminal_or_forge_a_log_line(spot: Spot) -> None:
    """A flavour may be called anything."""
    honest_pickle(spot)
    rewrite(spot.model, lambda document: document["flavors"].update({"a\x1b[2J\nb": {"code": "code"}}))
    assert all(reason.isprintable() for reason in judged(spot.model, PICKLES).reasons)
    assert "a?[2J?b" in judged(spot.model, PICKLES).reasons[0]
