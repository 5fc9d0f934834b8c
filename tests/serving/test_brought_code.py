"""What brings code is decided from a version's files: MLflow's own loaders import what lies beside the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from sklearn.cluster import KMeans

from registry.errors import InvalidModel
from registry.mlmodel import read_mlmodel
from serving.trust import brings_code, trust_reasons
from tests.crafted import ROWS, SUMS, Spot, answer, estimator, load, rewrite


@pytest.fixture
def spot(tmp_path: Path) -> Spot:
    return Spot(tmp_path)


def generic(spot: Spot, flavor: str = "sklearn", **conf: Any) -> None:
    """A pickled estimator that says that it is of another flavour, which MLflow's loader of that flavour would open."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="pickle")

    def change(document: dict[str, Any]) -> None:
        flavors = document["flavors"]
        flavors["python_function"]["loader_module"] = f"mlflow.{flavor}"
        flavors.pop("sklearn")
        if flavor != "sklearn":
            flavors[flavor] = conf

    rewrite(spot.model, change)


def own_python(spot: Spot) -> None:
    generic(spot, "transformers", model_binary="model")
    (spot.model / "model").mkdir()
    Path(spot.code("modeling.py", "")).rename(spot.model / "model" / "modeling.py")


def a_library(spot: Spot) -> None:
    generic(spot)
    (spot.model / "kernel.SO").write_bytes(b"\x7fELF")


def classes_on_a_hub(spot: Spot) -> None:
    generic(spot, "transformers", model_binary="model")
    (spot.model / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil/repo--modeling.Evil"}}))


def classes_by_an_escaped_key(spot: Spot) -> None:
    generic(spot, "transformers", model_binary="model")
    (spot.model / "config.json").write_text('{"auto\\u005fmap": {"AutoModel": "evil/repo--modeling.Evil"}}')


def weights_on_a_hub(spot: Spot) -> None:
    generic(spot, "transformers", source_model_name="evil/repo", source_model_revision="1")


def modules_of_others(spot: Spot) -> None:
    generic(spot, "sentence_transformers")
    (spot.model / "modules.json").write_text(json.dumps([{"idx": 0, "type": "os.system"}]))


def a_loader_of_code(spot: Spot) -> None:
    generic(spot, "pyfunc.loaders.code_model")


def a_module_of_mlflow_that_is_no_loader(spot: Spot) -> None:
    generic(spot, "server.handlers")


ATTACKS = [own_python, a_library, classes_on_a_hub, classes_by_an_escaped_key, weights_on_a_hub, modules_of_others,
           a_loader_of_code, a_module_of_mlflow_that_is_no_loader]  # fmt: skip


@pytest.mark.audit("3")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_such_files_need_allow_code_whatever_the_flavour(spot: Spot, attack: Callable[[Spot], None]) -> None:
    """`allow_pickle` is not enough; with `allow_code` the version is given a process of its own."""
    attack(spot)
    with pytest.raises(InvalidModel, match="set allow_code"):
        load(spot.model, allow_pickle=True)
    model = read_mlmodel(spot.model)
    assert brings_code(model)
    assert list(trust_reasons(model, allow_pickle=True, allow_code=True)) == []
    assert not spot.canary.exists()


def test_an_honest_version_of_a_flavour_that_mlflow_loads_needs_pickles_alone(spot: Spot) -> None:
    """With its examples and configurations, which are JSON too."""
    generic(spot)
    (spot.model / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "map": {"auto": 1}}))
    assert not brings_code(read_mlmodel(spot.model))
    assert answer(load(spot.model, allow_pickle=True)) == SUMS


@pytest.mark.audit("3")
def test_data_outside_of_the_folder_is_refused_for_every_flavour(spot: Spot) -> None:
    """MLflow joins the name to the folder, wherever that leads."""
    generic(spot)
    rewrite(spot.model, lambda document: document["flavors"]["python_function"].update(model_path="../../etc/passwd"))
    with pytest.raises(InvalidModel, match="not in the version's folder"):
        load(spot.model, allow_code=True)


@pytest.mark.audit("1")
def test_a_version_may_not_name_a_method_that_learns(spot: Spot) -> None:
    """`predict_fn` is looked up in the estimator, and called with the rows of requests."""
    spot.save(mlflow.sklearn, KMeans(1, n_init=1).fit(ROWS), serialization_format="skops")
    rewrite(spot.model, lambda document: document["flavors"]["python_function"].update(predict_fn="fit_predict"))
    with pytest.raises(InvalidModel, match="no method that only answers"):
        load(spot.model, allow_code=True)


@pytest.mark.audit("1")
@pytest.mark.parametrize(
    ("domain", "operator"), [("ai.onnx.contrib", "PyOp"), ("com.microsoft", "PythonOp"), ("com.microsoft", "EPContext")]
)
def test_a_graph_with_operators_of_others_is_refused(spot: Spot, domain: str, operator: str) -> None:
    """Some run Python, or open compiled graphs; a function that the graph brings itself may have any domain."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from serving.runtimes.onnx import onnx_reasons
    from tests.serving.test_onnx import linear, save

    graph = linear()
    save(spot, graph)
    graph.graph.node.append(onnx.helper.make_node(operator, ["x"], ["z"], domain=domain))
    (spot.model / "model.onnx").write_bytes(graph.SerializeToString())
    assert any(f"{domain}:{operator}" in reason for reason in onnx_reasons(read_mlmodel(spot.model)))


@pytest.mark.audit("1")
def test_a_graph_may_not_name_memory_as_its_data(spot: Spot) -> None:
    """onnxruntime has a name that stands for an address; a file may be called so as well."""
    pytest.importorskip("onnxruntime")
    from serving.runtimes.onnx import onnx_reasons
    from tests.serving.test_onnx import linear, save

    save(spot, linear())
    graph = linear(location="*/_ORT_MEM_ADDR_/*")
    (spot.model / "model.onnx").write_bytes(graph.SerializeToString())
    place = spot.model / "*" / "_ORT_MEM_ADDR_" / "*"
    place.parent.mkdir(parents=True)
    place.write_bytes(bytes(100))
    assert list(onnx_reasons(read_mlmodel(spot.model))) == [
        "the onnx file names data that is not in the version's folder"
    ]


def functions(calls: list[list[str]]) -> Any:
    """A graph of functions `f0`, `f1`, …, each of which calls others by name; `Abs` is onnxruntime's."""
    import onnx

    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]

    def nodes(called: list[str]) -> list[Any]:
        names = ["x", *(f"v{i}" for i in range(1, len(called))), "y"]
        return [
            onnx.helper.make_node(name, [a], [b], domain="" if name == "Abs" else "own")
            for name, a, b in zip(called, names[:-1], names[1:], strict=True)
        ]

    bodies = [onnx.helper.make_function("own", f"f{i}", ["x"], ["y"], nodes(c), opsets) for i, c in enumerate(calls)]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes(["f0"]), "g", values[:1], values[1:])
    return onnx.helper.make_model(graph, functions=bodies, opset_imports=opsets, ir_version=9)


FUNCTIONS = {
    "deep": [[f"f{i + 1}"] for i in range(20_000)] + [["Abs"]],
    "doubled": [[f"f{i + 1}"] * 2 for i in range(30)] + [["Abs"]],
    "deep, from below": [[f"f{i}" for i in range(100, 0, -1)]] + [[f"f{i + 1}"] for i in range(1, 100)] + [["Abs"]],
    "itself": [["f0", "f0"]],
}


@pytest.mark.audit("26")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_graph_that_come_to_too_much_are_refused(spot: Spot, name: str) -> None:
    """onnxruntime writes them out where they are called: a deep chain ended the process, a doubled one never ended."""
    pytest.importorskip("onnxruntime")
    from serving.runtimes.onnx import onnx_reasons
    from tests.serving.test_onnx import linear, save

    save(spot, linear())
    (spot.model / "model.onnx").write_bytes(functions(FUNCTIONS[name]).SerializeToString())
    assert any("functions that come to more" in reason for reason in onnx_reasons(read_mlmodel(spot.model)))


@pytest.mark.audit("1")
def test_functions_of_a_graph_may_call_each_other(spot: Spot) -> None:
    """As exporters write them."""
    pytest.importorskip("onnxruntime")
    from serving.runtimes.onnx import onnx_reasons
    from tests.serving.test_onnx import linear, save

    save(spot, linear())
    honest = functions([["f1", "f2"], ["f2", "Abs"], ["Abs"]])
    (spot.model / "model.onnx").write_bytes(honest.SerializeToString())
    assert list(onnx_reasons(read_mlmodel(spot.model))) == []


@pytest.mark.audit("1")
@pytest.mark.parametrize("name", ["model.textproto", "model.json", "model.ort"])
def test_a_graph_is_named_as_one(spot: Spot, name: str) -> None:
    """By such names the parser reads text, or onnxruntime another format: what is checked would not be what is run."""
    pytest.importorskip("onnxruntime")
    from serving.runtimes.onnx import onnx_reasons
    from tests.serving.test_onnx import linear, save

    save(spot, linear())
    (spot.model / "model.onnx").rename(spot.model / name)
    rewrite(spot.model, lambda document: document["flavors"]["onnx"].update(data=name))
    assert list(onnx_reasons(read_mlmodel(spot.model))) == ["the MLmodel file names a model file that is no .onnx"]
