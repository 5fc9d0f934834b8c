"""The trust gate: may this version's files be loaded? Decided from the MLmodel file and the archives' bytes.

It stands in front of every loader and fails closed. pickle and cloudpickle need `allow_pickle`; a PythonModel,
models-from-code, `code_paths` and foreign loader modules are code and need `allow_code`, which includes `allow_pickle`;
skops loads with the server's own list, never with the model's; ONNX loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from serving.trusted_types import TRUSTED_SKOPS

#: Loader modules whose models are data only, without any pickle.
_DATA_ONLY = frozenset({"mlflow.onnx"})


def check_trust(model: MLmodel, *, allow_pickle: bool, allow_code: bool) -> None:
    """Raises InvalidModel with every reason why the version must not be loaded."""
    reasons = list(_reasons(model, allow_pickle or allow_code, allow_code))
    if reasons:
        raise InvalidModel("; ".join(reasons))


def brings_code(model: MLmodel) -> bool:
    """Whether the version has code of its own: what needs `allow_code`."""
    return any(_code(model))


def _reasons(model: MLmodel, allow_pickle: bool, allow_code: bool) -> Iterator[str]:
    if not allow_code:
        yield from _code(model)
    if "sklearn" in model.flavors:
        yield from _sklearn(model, allow_pickle)
    elif "pytorch" in model.flavors:
        yield from _pytorch(model, allow_pickle)
    elif not allow_pickle:
        loader = str(model.flavor("python_function").get("loader_module", ""))
        if loader.startswith("mlflow.") and loader not in _DATA_ONLY:
            yield f"models of {loader[:64]} may hold pickles: set allow_pickle to load them"


def _code(model: MLmodel) -> Iterator[str]:
    for name, conf in model.flavors.items():
        if conf.get("code"):
            yield f"the {name[:64]} flavour brings code of its own (code_paths): set allow_code to load it"
    pyfunc = model.flavor("python_function")
    loader = str(pyfunc.get("loader_module", ""))
    if "python_model" in pyfunc or "model_code_path" in pyfunc or loader == "mlflow.pyfunc.model":
        yield "the version is a PythonModel, which is code: set allow_code to load it"
    elif loader and not loader.startswith("mlflow."):
        yield f"the loader module {loader[:64]!r} is not MLflow's own: set allow_code to load it"


def _sklearn(model: MLmodel, allow_pickle: bool) -> Iterator[str]:
    conf = model.flavor("sklearn")
    serialization = str(conf.get("serialization_format", "pickle"))
    if serialization == "skops":
        yield from _skops(_inside(model, str(conf.get("pickled_model", ""))))
    elif not allow_pickle:
        yield f"the model is saved as {serialization[:32]}, which runs code when it is loaded: set allow_pickle to load it"


def _skops(file: Path) -> Iterator[str]:
    from skops.io import get_untrusted_types

    try:
        untrusted = set(get_untrusted_types(file=file)) - TRUSTED_SKOPS
    except Exception as error:  # noqa: BLE001  a crafted archive may make the scanner fail in any way
        yield f"the skops file cannot be read ({type(error).__name__})"
        return
    if untrusted:
        yield f"the skops file holds types that are not trusted: {', '.join(sorted(untrusted))[:300]}"


def _pytorch(model: MLmodel, allow_pickle: bool) -> Iterator[str]:
    from serving.runtimes.pytorch import pt2_reasons, saved_as_pt2

    if saved_as_pt2(model):
        yield from pt2_reasons(model)
    elif not allow_pickle:
        yield "the model is saved as pickle, which runs code when it is loaded: set allow_pickle to load it"


def _inside(model: MLmodel, name: str) -> Path:
    """A file of the version; refuses names and links that lead out of its folder."""
    file = (model.path / name).resolve()
    if not name or not file.is_relative_to(model.path.resolve()) or not file.is_file():
        raise InvalidModel("the MLmodel file names a model file that is not in the version's folder")
    return file
