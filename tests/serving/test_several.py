"""Networks with several outputs: what each is called, and what becomes of it on its way."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.calls import Answer
from serving.configuration import ModelOptions, TorchOptions
from serving.errors import BadRequest
from serving.flight import wanted
from serving.loading import Loaded, Loader, warm
from serving.response_cache import owned, size_of
from serving.runtimes.base import Outputs, Want
from serving.runtimes.several import choose
from serving.transport.v1 import dumps, to_document
from serving.transport.v2 import check_outputs
from tests.models import Folder
from tests.networks import OUTPUTS, WEIGHTS, answers, graph, save_graph, save_network, signature

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.audit("5"), pytest.mark.filterwarnings("ignore")]
ROWS = [[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]]
Pair = namedtuple("Pair", ["left", "right"])


def load(path: Path, isolation: str = "none", compiled: bool = False, **tags: str) -> Loaded:
    version = ModelVersion("m", "3", configuration=tuple((f"headway.{k}", v) for k, v in tags.items()))
    options = ModelOptions(allow_code=True, isolation=isolation, torch=TorchOptions(compile=compiled))
    loaded = Loader(Folder(path), options, None).load(version)
    warm(loaded)
    return loaded


def ask(loaded: Loaded, output: str = "auto") -> Outputs:
    return loaded.runtime.predict((np.array(ROWS, np.float32),), len(ROWS), wanted(output, loaded))


def v1(loaded: Loaded, outputs: Outputs, output: str = "auto", per_instance: bool = False) -> Any:
    answer = Answer("m", ModelVersion("m", "3"), loaded, outputs, output, per_instance)
    return json.loads(dumps(to_document(answer)))["predictions"]


class Network(torch.nn.Module):  # type: ignore[name-defined, misc]
    """Scores and their sum, in the form that is asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.weights = form, torch.nn.Parameter(torch.tensor(WEIGHTS))

    def forward(self, x: Any) -> Any:
        scores = x @ self.weights
        total = scores.sum(dim=1, keepdim=True)
        forms = {
            "tuple": (scores, total), "list": [scores, total], "dict": {"scores": scores, "total": total},
            "pair": Pair(scores, total), "lone": {"scores": scores}, "three": (scores, total, total),
            "scalar": {"scores": scores, "loss": total.mean()}, "text": {"scores": scores, "name": "x"}, "none": (),
        }  # fmt: skip
        return forms[self.form]


@pytest.mark.parametrize(
    ("own", "promised", "answered"),
    [
        (("a", "b"), (), ("a", "b")),
        (("a", "b"), ("y", "z"), ("y", "z")),
        (("a", "b", "c"), ("c", "a"), ("c", "a")),
        (("a", "b", "c"), ("b",), ("b",)),
        (("a", "b"), ("x", "y", "z"), ("a", "b")),
        (("output-0", "output-1"), ("scores", "boxes"), ("scores", "boxes")),
    ],
)
def test_the_signature_names_the_outputs_where_it_can(
    own: tuple[str, ...], promised: tuple[str, ...], answered: tuple[str, ...]
) -> None:
    """By the network's own names, and then those alone; else one by one; else it does not fit, and the network's own stay."""
    assert tuple(name for _, name in choose(own, promised)) == answered
    assert all(own[place] == name for place, name in choose(own, promised) if set(promised) <= set(own))


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize(
    ("form", "said", "names"),
    [
        ("tuple", (), ("output-0", "output-1")), ("tuple", ("scores", "total"), ("scores", "total")),
        ("list", (), ("output-0", "output-1")), ("dict", (), ("scores", "total")),
        ("dict", ("total", "scores"), ("total", "scores")), ("pair", (), ("left", "right")),
    ],
)  # fmt: skip
def test_a_network_answers_each_output_by_its_name(
    tmp_path: Path, form: str, said: tuple[str, ...], names: tuple[str, ...], pickled: bool
) -> None:
    """Tuples, lists and mappings, exported or pickled."""
    if form == "pair" and not pickled:
        pytest.skip("torch.export loads no types of others")
    loaded = load(save_network(tmp_path / "m", Network(form), signature(*said), pickled=pickled))
    found = ask(loaded)
    assert found.named is not None
    assert tuple(found.named) == loaded.names == names
    expected = answers(ROWS)
    for name, array in found.named.items():
        kind = "total" if name in ("total", "output-1", "right") else "scores"
        np.testing.assert_allclose(array, expected[kind], atol=1e-6)
    assert [o["name"] for o in loaded.outputs] == list(names)


def test_one_output_is_the_predictions_whatever_holds_it(tmp_path: Path) -> None:
    """A mapping of one, and a network of which the signature names one, which may be a classifier then."""
    lone = load(save_network(tmp_path / "lone", Network("lone"), signature(), pickled=True))
    assert (lone.names, lone.outputs[0]["name"]) == ((), "predictions")
    one = save_graph(tmp_path / "one", graph(), signature("scores"))
    loaded = load(one, task="classification", activation="softmax", classes='["a", "b", "c"]')
    assert v1(loaded, ask(loaded)) == [["a", "b", "c"][i] for i in answers(ROWS)["best"]]


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_graph_answers_each_output_by_its_name(tmp_path: Path, isolation: str) -> None:
    """In the server's process or in one of its own; the metadata lists them; V1 has an object per instance."""
    loaded = load(save_graph(tmp_path / "m", graph(), signature()), isolation)
    try:
        found = ask(loaded)
        rows = v1(loaded, found)
        assert [list(row) for row in rows] == [list(OUTPUTS)] * len(ROWS)
        for name, array in answers(ROWS).items():
            np.testing.assert_allclose([row[name] for row in rows], array, atol=1e-6)
        assert v1(loaded, found, per_instance=True) == [{"prediction": row} for row in rows]
        assert v1(loaded, ask(loaded, "raw"), "raw") == v1(loaded, ask(loaded, "labels"), "labels") == rows
        assert loaded.outputs == [{"name": n, "datatype": t, "shape": [-1, *s]} for n, (t, s) in OUTPUTS.items()]
    finally:
        loaded.runtime.close()


def test_a_request_selects_outputs_by_name(tmp_path: Path) -> None:
    """There are no `predictions` beside them; probabilities are a classifier's."""
    loaded = load(save_graph(tmp_path / "m", graph(), signature("scores", "best")))
    assert check_outputs(["best"], loaded, None) == ("best",)
    for name in ("predictions", "total"):
        with pytest.raises(BadRequest, match=f"no output '{name}'; this answer has scores, best"):
            check_outputs([name], loaded, None)
    with pytest.raises(BadRequest, match="no probabilities"):
        ask(loaded, "probabilities")


def test_a_classifier_is_of_one_output(tmp_path: Path) -> None:
    """The reason says what to do; a graph is refused before it runs."""
    for path in (
        save_graph(tmp_path / "graph", graph(), signature()),
        save_network(tmp_path / "network", Network("dict"), signature(), pickled=True),
    ):
        with pytest.raises(InvalidModel, match=r"says classification.*scores, total.*signature's outputs name the one"):
            load(path, task="classification")


def test_a_label_and_its_probabilities_are_a_classifier_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    """As converters write them; names in the signature or the task `regression` make them two outputs."""
    two = graph("best", "scores")
    plain = load(save_graph(tmp_path / "plain", two, signature()))
    assert ask(plain).probabilities is not None
    named = save_graph(tmp_path / "named", two, signature("best", "scores"))
    assert load(named).names == load(tmp_path / "plain", task="regression").names == ("best", "scores")
    assert ask(load(named, task="classification")).probabilities is not None


def test_what_the_signature_does_not_name_is_left_out(tmp_path: Path) -> None:
    """An output without one row per row fails the version, unless nobody is answered it."""
    state = graph("scores", "total", "state")
    with pytest.raises(InvalidModel, match="'state' has not one row for each"):
        load(save_graph(tmp_path / "all", state, signature()))
    assert load(save_graph(tmp_path / "two", state, signature("scores", "total"))).names == ("scores", "total")
    with pytest.raises(InvalidModel, match="'loss' has not one row for each"):
        load(save_network(tmp_path / "loss", Network("scalar"), signature(), pickled=True))


@pytest.mark.parametrize("form", ["text", "none"])
def test_what_is_no_tensor_fails_the_version(tmp_path: Path, form: str) -> None:
    """At warm-up, with a reason."""
    with pytest.raises(InvalidModel, match="must answer a tensor, or a tuple"):
        load(save_network(tmp_path / "m", Network(form), signature(), pickled=True))


def test_a_network_exported_for_one_row_joins_each_output(tmp_path: Path) -> None:
    """In calls of that size, whose outputs stand one under the other."""
    from serving.runtimes.exported import batch_size
    from serving.runtimes.pytorch import TorchRuntime

    loaded = load(save_network(tmp_path / "m", Network("dict"), signature()))
    fixed = torch.export.export(Network("dict"), (torch.ones(2, 2),))
    runtime = TorchRuntime(fixed.module(), loaded.schema, loaded.configuration, batch_size(fixed))
    found = runtime.predict((np.array(ROWS, np.float32),), len(ROWS), Want.LABELS).named
    assert found is not None
    for name, array in found.items():
        np.testing.assert_allclose(array, answers(ROWS)[name], atol=1e-6)


def test_a_compiled_network_is_compared_output_by_output(tmp_path: Path) -> None:
    """And answers what it answers uncompiled, whether or not this machine can compile."""
    loaded = load(save_network(tmp_path / "m", Network("dict"), signature(), pickled=True), compiled=True)
    found = ask(loaded).named
    assert found is not None
    np.testing.assert_allclose(found["total"], answers(ROWS)["total"], atol=1e-5)


def test_a_dict_of_a_python_model_is_several_outputs_where_the_signature_names_them(tmp_path: Path) -> None:
    """Arrays of any width, which no frame could hold."""
    import mlflow

    class Two(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            x = model_input["x"]
            return {"double": 2 * x, "sum": x.sum(axis=1)}

    mlflow.pyfunc.save_model(
        str(tmp_path / "m"), python_model=Two(), signature=signature("double", "sum"), pip_requirements=["mlflow"]
    )
    loaded = load(tmp_path / "m")
    assert v1(loaded, ask(loaded))[1] == {"double": [6.0, -2.0], "sum": 2.0}


def test_outputs_are_cut_joined_and_kept_by_name() -> None:
    """As one array is: for a batch, for a long request, for the response cache."""
    whole = Outputs(3, named={"a": np.arange(6.0).reshape(3, 2), "b": np.array(["x", "y", "z"], object)})
    assert whole.consistent()
    assert not Outputs(2, named=whole.named).consistent()
    joined = Outputs.join([whole.cut(0, 1), whole.cut(1, 3)])
    kept = owned(whole.cut(1, 3), Want.LABELS)
    assert joined.named is not None
    assert kept.named is not None
    assert whole.named is not None
    for name, array in whole.named.items():
        assert joined.named[name].tolist() == array.tolist()
        assert kept.named[name].tolist() == array[1:].tolist()
        assert not kept.named[name].flags.writeable
        assert kept.named[name].base is None
    assert size_of(whole) > size_of(kept) > 200  # type: ignore[operator]
