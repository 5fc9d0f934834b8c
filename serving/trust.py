"""The trust gate: may this version's files be loaded? Decided from the MLmodel file and the archives' bytes.

It is a part of the verdict (`serving/verdict.py`), stands in front of every loader, and fails closed. pickle and
cloudpickle need `allow_pickle`; a PythonModel, models-from-code, `code_paths` and foreign loader modules are code and
need `allow_code`, which includes `allow_pickle`; skops loads with the server's own list, never with the model's, and
if what it holds cannot lead compiled code astray (`serving/estimators`); ONNX loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from serving.archives import check_archive
from serving.brought_code import code_in_files
from serving.estimators.file import skops_reasons
from serving.runtimes.choose import NO_FLAVOR, flavor_of

#: Of the description in a skops file: so much always, and more beside large arrays. While it is parsed nothing else runs.
FREE_SCHEMA, LONGEST_SCHEMA = 16 << 20, 128 << 20
_PYTHON_MODEL = "mlflow.pyfunc.model"
_FLAVORS = (
    "catboost diffusers dspy dspy.load h2o johnsnowlabs keras keras.load langchain langchain.model lightgbm llama_index "
    "llama_index.model onnx openai openai.model paddle pmdarima prophet pytorch sentence_transformers shap sklearn spacy spark "
    "statsmodels tensorflow transformers xgboost"
)
#: MLflow's loaders of models; any other module of it is not there to be imported by a version.
_LOADERS = frozenset(f"mlflow.{name}" for name in _FLAVORS.split())
#: Methods of estimators that only answer. `fit_predict` would learn from requests.
_ANSWERING = frozenset(
    {
        "predict",
        "predict_proba",
        "predict_log_proba",
        "predict_joint_log_proba",
        "score",
        "transform",
        "decision_function",
        "score_samples",
    }
)


def brings_code(model: MLmodel) -> bool:
    """Whether the version has code of its own: what needs `allow_code`."""
    return any(_code(model))


def trust_reasons(model: MLmodel, *, allow_pickle: bool, allow_code: bool) -> Iterator[str]:
    """Every reason why the version must not be loaded; none if it may."""
    if not allow_code:
        yield from _code(model)
    flavor = flavor_of(model)
    if flavor == "sklearn":
        yield from _sklearn(model, allow_pickle or allow_code)
    elif flavor == "pytorch":
        yield from _pytorch(model, allow_pickle or allow_code)
    elif flavor == "onnx":
        yield from _onnx(model)
    elif flavor == "python_function":
        yield from _pyfunc(model, allow_pickle or allow_code)
    else:
        yield NO_FLAVOR


def format_of(model: MLmodel | None) -> str:
    """The flavour that would be loaded and how it is saved, in words for people."""
    if model is None:
        return "unknown"
    flavor = flavor_of(model)
    if flavor == "sklearn":
        return f"sklearn, {_serialization(model)}"
    if flavor == "pytorch":
        return f"pytorch, {'pt2' if _exported(model) else 'pickle'}"
    if flavor == "python_function":
        return f"python_function, {_loader(model)[:64]}"
    return flavor or "unknown"


def _code(model: MLmodel) -> Iterator[str]:
    for name, conf in model.flavors.items():
        if conf.get("code"):
            yield f"the {name[:64]} flavour brings code of its own (code_paths): set allow_code to load it"
    pyfunc, loader = model.flavor("python_function"), _loader(model)
    if "python_model" in pyfunc or "model_code_path" in pyfunc or loader == _PYTHON_MODEL:
        yield "the version is a PythonModel, which is code: set allow_code to load it"
    elif loader and loader not in _LOADERS:
        yield f"the loader module {loader[:64]!r} is not MLflow's own: set allow_code to load it"
    onnx = model.flavor("onnx")
    if _options_of_onnxruntime(onnx):
        yield "the onnx flavour sets options of onnxruntime, which may load libraries: set allow_code to load it"
    if flavor_of(model) == "pytorch":
        yield from _evaluated(model)
    if flavor_of(model) == "python_function":
        yield from code_in_files(model)


def _onnx(model: MLmodel) -> Iterator[str]:
    try:
        from serving.runtimes.onnx import onnx_reasons
    except ImportError as error:
        yield f"onnxruntime cannot be imported here ({type(error).__name__}): install the extra onnx"
        return
    yield from onnx_reasons(model)


def _options_of_onnxruntime(conf: Mapping[str, Any]) -> bool:
    """Some execution providers take paths of shared libraries. Their bare names are what MLflow writes."""
    providers = conf.get("providers") or []
    bare = isinstance(providers, str) or all(isinstance(provider, str) for provider in providers)
    session = conf.get("onnx_session_options") or {}
    return not bare or bool(session.get("extra_session_config"))


def _loader(model: MLmodel) -> str:
    return str(model.flavor("python_function").get("loader_module") or "")


def _pyfunc(model: MLmodel, allow_pickle: bool) -> Iterator[str]:
    loader = _loader(model)
    if not loader:
        yield "the python_function flavour names no loader module"
    elif loader in _LOADERS and not allow_pickle:
        yield f"models of {loader[:64]} may hold pickles: set allow_pickle to load them"
    conf = model.flavor("python_function")
    if any(_leads_out(model, str(conf[key])) for key in ("data", "model_path") if conf.get(key)):
        yield "the MLmodel file names data that is not in the version's folder"


def _serialization(model: MLmodel) -> str:
    """How an estimator is saved; MLmodel files from before formats were named do not say, and mean pickle."""
    return str(model.flavor("sklearn").get("serialization_format", "pickle"))[:32]


def _sklearn(model: MLmodel, allow_pickle: bool) -> Iterator[str]:
    serialization = _serialization(model)
    method = str(model.flavor("python_function").get("predict_fn", "predict"))
    if method not in _ANSWERING:
        yield f"the python_function flavour calls {method[:64]!r}, which is no method that only answers"
    file = _inside(model, str(model.flavor("sklearn").get("pickled_model", "")))
    if file is None:
        yield "the MLmodel file names a model file that is not in the version's folder"
    elif serialization == "skops":
        yield from _skops(file)
    if serialization != "skops" and not allow_pickle:
        yield f"the model is saved as {serialization}, which runs code when it is loaded: set allow_pickle to load it"


def _skops(file: Path) -> Iterator[str]:
    try:
        _check_skops(file)
    except InvalidModel as error:
        yield f"the skops file cannot be read: {error}"
        return
    except Exception as error:  # noqa: BLE001  a crafted archive may make the reader fail in any way
        yield f"the skops file cannot be read ({type(error).__name__})"
        return
    yield from skops_reasons(file)


def _check_skops(file: Path) -> None:
    """Bounds of the archive, and of its one long text: a forest of two thousand trees describes itself in 31 MB."""
    members = {member.filename: member for member in check_archive(file)}
    described = members["schema.json"].file_size
    if described > min(LONGEST_SCHEMA, FREE_SCHEMA + file.stat().st_size // 2):
        raise InvalidModel(f"its description has {described} bytes")


def _pytorch(model: MLmodel, allow_pickle: bool) -> Iterator[str]:
    try:
        from serving.runtimes.pytorch import pt2_reasons
    except ImportError as error:
        yield f"PyTorch cannot be imported here ({type(error).__name__}): install the extra torch"
        return
    if _exported(model):
        yield from pt2_reasons(model)
    elif not allow_pickle:
        yield "the model is saved as pickle, which runs code when it is loaded: set allow_pickle to load it"


def _evaluated(model: MLmodel) -> Iterator[str]:
    """PyTorch evaluates texts of an exported program, at load and at the first call."""
    try:
        from serving.runtimes.pytorch import pt2_code
    except ImportError:
        return  # nothing is loaded then, and `_pytorch` says so
    found = sorted(pt2_code(model)) if _exported(model) else []
    if found:
        where = ", ".join(found)[:200]
        yield f"the pt2 archive has text that PyTorch would run as code (in {where}): set allow_code to load it"


def _exported(model: MLmodel) -> bool:
    """Whether the file that the loader would open is a `.pt2`. Raises InvalidModel for one outside of the folder."""
    from serving.runtimes.pytorch import saved_as_pt2

    return saved_as_pt2(model)


def _leads_out(model: MLmodel, name: str) -> bool:
    return not (model.path / name).resolve().is_relative_to(model.path.resolve())


def _inside(model: MLmodel, name: str) -> Path | None:
    """A file of the version; None for names and links that lead out of its folder, or nowhere."""
    file = (model.path / name).resolve()
    return file if name and file.is_relative_to(model.path.resolve()) and file.is_file() else None
