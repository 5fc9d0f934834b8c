"""ONNX: graphs run by onnxruntime, on arrays. No library of custom operators is ever loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from registry.pyfunc import add_code
from serving.configuration import Configuration
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.interpret import Interpretation
from serving.runtimes.several import promised
from serving.runtimes.sizes import Sizes
from serving.schema import InputSchema

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
          "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(string)": np.object_,
          "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(uint8)": np.uint8}  # fmt: skip
#: What onnxruntime defines itself, operators of its own that run Python or load compiled graphs, and a plain name of a file:
#: it takes some others for addresses in memory.
_DOMAINS, _ELSEWHERE = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}), frozenset({"PythonOp", "EPContext"})
_PLAIN = re.compile(r"[\w .@+=,/-]+")
MOST_THREADS = 256
MOST_NODES, DEEPEST = 1_000_000, 64
_LABELS = ("tensor(int64)", "tensor(string)")


class OnnxRuntime:
    """One graph. Columns go in as one matrix `[n, k]` if it has one input, else each to the input of its name; tensors to
    the inputs of their names. One output means what the version's tags say; two may be a label and its probabilities, as
    converters of scikit-learn write them; several others are answered by name."""

    def __init__(
        self, session: Any, schema: InputSchema, configuration: Configuration, names: tuple[str, ...] = ()
    ) -> None:
        self.engine = Engine("onnxruntime", parallel=True)
        self._session, self._meaning, self._sizes = session, Interpretation(configuration, names), Sizes()
        self._inputs = {node.name: _dtype(node) for node in session.get_inputs()}
        self._names = [column.name for column in schema.columns]
        self._tensors = [tensor.name for tensor in schema.tensors]
        outputs = session.get_outputs()
        named = len(names) > 1 or configuration.task == "regression"
        self._labelled = _are_label_and_probabilities(outputs) and (self._meaning.is_classifier or not named)
        self._own = tuple(node.name for node in outputs)
        #: what is computed: not those that nobody is answered
        self._asked = None if self._labelled else self._chosen(outputs)
        self._matrix = bool(schema.columns) and len(self._inputs) == 1 and len(self._names) > 1
        wanted = set() if self._matrix or len(self._inputs) == 1 else set(self._names or self._tensors)
        if (self._matrix and not schema.all_numeric) or (wanted and wanted != set(self._inputs)):
            raise InvalidModel("the inputs of the graph are not those of the signature")
        self._classes = np.array(configuration.classes) if configuration.classes is not None else None

    @property
    def classes(self) -> np.ndarray | None:
        """The classes: by tag, of the graph's own probabilities once it has answered, or 0…k-1; None for regression."""
        return (np.arange(2) if self._classes is None else self._classes) if self._labelled else self._meaning.classes

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """One run of the graph."""
        feed = self._feed(arrays)
        try:
            outputs = self._session.run(self._asked, feed)
        except Exception as error:  # noqa: BLE001  onnxruntime's errors have no base of their own
            raise self._sizes.blame(arrays, error)  # noqa: B904  its cause is the error, or it is the error
        self._sizes.taken(arrays)
        if self._asked is not None:
            return self._meaning.meaning(tuple(self._asked), list(map(np.asarray, outputs)), rows, want)
        labels = np.asarray(outputs[0])
        return Outputs(rows, labels, self._probabilities(outputs[1]), labels)

    def close(self) -> None:
        """Nothing but memory is held."""

    def _chosen(self, outputs: list[Any]) -> list[str]:
        chosen = [outputs[place] for place, _ in self._meaning.choose(self._own)]
        for node in chosen:
            if not node.type.startswith("tensor("):
                raise InvalidModel(f"the graph's output {node.name[:64]!r} is no tensor, and cannot be served")
        return [node.name for node in chosen]

    def _feed(self, arrays: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        if self._matrix or (self._tensors and len(self._inputs) == 1):
            whole = arrays[0] if len(arrays) == 1 else np.column_stack(arrays)
            return {name: np.ascontiguousarray(whole, dtype) for name, dtype in self._inputs.items()}
        if self._tensors:
            given: Iterable[tuple[Any, np.ndarray]] = zip(self._tensors, arrays, strict=True)
        else:
            one = len(arrays) == 1 and arrays[0].ndim == 2
            columns = arrays[0].T if one else arrays
            names = self._inputs if len(self._inputs) == 1 else self._names
            given = ((name, column.reshape(-1, 1)) for name, column in zip(names, columns, strict=True))
        return {name: np.ascontiguousarray(array, self._inputs[name]) for name, array in given}

    def _probabilities(self, found: Any) -> np.ndarray:
        """`[n, classes]`, from a tensor, or from one mapping of class to probability per row."""
        if isinstance(found, list):
            found = self._of_mappings(found)
        elif self._classes is None or len(self._classes) != found.shape[1]:
            self._classes = np.arange(found.shape[1])
        return np.asarray(found, dtype=np.float64)

    def _of_mappings(self, found: list[Mapping[Any, float]]) -> np.ndarray:
        classes = list(found[0])
        self._classes = np.array(classes)
        return np.array([[row[c] for c in classes] for row in found])


def _are_label_and_probabilities(outputs: list[Any]) -> bool:
    """Whether the two outputs are `[n]` of labels, and a table or one mapping per row beside them."""
    if len(outputs) != 2 or outputs[0].type not in _LABELS or len(outputs[0].shape or ()) > 1:
        return False
    return not outputs[1].type.startswith("tensor(") or len(outputs[1].shape or (0, 0)) == 2


def _dtype(node: Any) -> Any:
    try:
        return _TYPES[node.type]
    except KeyError:
        raise InvalidModel(
            f"the graph has an input of the type {str(node.type)[:32]}, which cannot be served"
        ) from None


def load_onnx(model: MLmodel, schema: InputSchema, configuration: Configuration) -> OnnxRuntime:
    """Loads the onnx flavour of a version whose trust has been checked."""
    conf = model.flavor("onnx")
    add_code(model.path, conf)
    file = _file(model)
    if file is None:
        raise InvalidModel("the MLmodel file names a model file that is not in the version's folder")
    session = onnxruntime.InferenceSession(str(file), _options(conf), providers=_providers(conf))
    return OnnxRuntime(session, schema, configuration, promised(model))


def _options(conf: Mapping[str, Any]) -> Any:
    """What MLflow's own loader takes from the MLmodel file; `extra_session_config` needs allow_code."""
    options, said = onnxruntime.SessionOptions(), conf.get("onnx_session_options") or {}
    for key in ("intra_op_num_threads", "inter_op_num_threads"):
        if said.get(key):
            setattr(options, key, max(0, min(int(said[key]), MOST_THREADS)))
    for key, value in (said.get("extra_session_config") or {}).items():
        options.add_session_config_entry(key, value)
    return options


def _providers(conf: Mapping[str, Any]) -> list[Any]:
    """Those that are there, in the order of the MLmodel file, else the CPU. Options of theirs need allow_code."""
    said, available = conf.get("providers") or [], onnxruntime.get_available_providers()
    every = [tuple(p) if isinstance(p, list) else p for p in ([said] if isinstance(said, str) else said)]
    usable = [p for p in every if (p[0] if isinstance(p, tuple) else p) in available]
    return usable or ["CPUExecutionProvider"]


def onnx_reasons(model: MLmodel) -> Iterator[str]:
    """Why the graph must not be loaded; nothing if it may. It is parsed, and none of its data files is opened."""
    file = _file(model)
    if file is None:
        yield "the MLmodel file names a model file that is not in the version's folder"
        return
    if file.suffix != ".onnx":  # by their names, onnxruntime and the parser here would read it as two different things
        yield "the MLmodel file names a model file that is no .onnx"
        return
    try:
        graph = onnx.load(str(file), format="protobuf", load_external_data=False)
        places = {
            entry.value
            for tensor in _of(graph, onnx.TensorProto)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    except Exception as error:  # noqa: BLE001  a crafted file may make the parser fail in any way
        yield f"the onnx file cannot be read ({type(error).__name__})"
        return
    if any(not _PLAIN.fullmatch(place) or not _within(model, file.parent / place) for place in places):
        yield "the onnx file names data that is not in the version's folder"
    if not _ends(graph):
        yield f"the onnx file has functions that come to more than {MOST_NODES} nodes, or lie in each other {DEEPEST} deep"
    foreign = _foreign(graph)
    if foreign:
        yield f"the onnx file has operators that are not onnxruntime's own: {', '.join(foreign)[:200]}"


def _ends(graph: Any) -> bool:
    """Whether its functions, which onnxruntime writes out where they are called, are few nodes in sum, and not deep in each
    other: it ends the process for a chain of twenty thousand, and never ends for thirty that each call the next one twice."""
    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in _of(f, onnx.NodeProto)] for f in graph.functions}
    known: dict[tuple[str, str], tuple[int, int]] = {}

    def written(called: list[tuple[str, str]], above: int) -> tuple[int, int]:
        """How many nodes, and how deep."""
        if above > DEEPEST:
            return MOST_NODES + 1, 0
        for name in called:
            if name in bodies and name not in known:
                known[name] = MOST_NODES + 1, 0  # for one that calls itself
                known[name] = written(bodies[name], above + 1)
        parts = [known.get(name, (1, 0)) for name in called]
        return sum(nodes for nodes, _ in parts), 1 + max((deep for _, deep in parts), default=0)

    nodes, deep = written([(n.domain, n.op_type) for n in _of(graph.graph, onnx.NodeProto)], 0)
    return nodes <= MOST_NODES and deep <= DEEPEST


def _foreign(graph: Any) -> list[str]:
    """Domains of operators that neither onnxruntime nor a function of the graph defines, and operators that call elsewhere."""
    own = {function.domain for function in graph.functions}
    nodes = [(node.domain, node.op_type) for node in _of(graph, onnx.NodeProto)]
    return sorted({f"{d}:{op}" for d, op in nodes if d not in _DOMAINS | own or op in _ELSEWHERE})


def _of(message: Any, kind: Any) -> Iterator[Any]:
    """Every part of that kind in a parsed graph, wherever it hides: in attributes, subgraphs and functions too."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                if isinstance(part, kind):
                    yield part
                yield from _of(part, kind)


def _file(model: MLmodel) -> Path | None:
    file = model.path / str(model.flavor("onnx").get("data", "model.onnx"))
    return file if _within(model, file) else None


def _within(model: MLmodel, file: Path) -> bool:
    return file.resolve().is_relative_to(model.path.resolve()) and file.is_file()
