"""An exported program is data: whatever PyTorch would evaluate, import, look up or write into a function of its own is what
its exporter writes there, or the program is code. Each attack touches a canary file if PyTorch itself loads and calls it.
"""

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from registry.errors import InvalidModel
from registry.mlmodel import read_mlmodel
from serving.pt2.sizes import is_guard, is_size
from serving.trust import brings_code, trust_reasons
from tests.crafted import SUMS, Spot, answer, load

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.export import Dim, export, save  # noqa: E402

from serving.pt2.archive import broken, code_in  # noqa: E402
from serving.pt2.fitting import fitted, recurrent  # noqa: E402
from serving.pt2.operators import is_operator  # noqa: E402
from serving.runtimes.exported import load_exported  # noqa: E402

Program = dict[str, Any]
Change = Callable[[Program, str], None]
aten = torch.ops.aten


@pytest.fixture
def spot(tmp_path: Path) -> Spot:
    return Spot(tmp_path)


def honest(spot: Spot) -> Path:
    """The sum of two columns; its archive."""
    network = nn.Linear(2, 1)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    shape = Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
    signature = ModelSignature(shape, Schema([TensorSpec(np.dtype("float32"), (-1, 1))]))
    spot.save(mlflow.pytorch, network, signature=signature, input_example=np.ones((2, 2), dtype=np.float32))
    return spot.model / "data" / "model.pt2"


def records(archive: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Writes each record anew."""
    with zipfile.ZipFile(archive) as old:
        kept = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in kept.items():
            new.writestr(name, content)


def craft(archive: Path, change: Change, code: str) -> None:
    """Changes the program in an archive."""

    def changed(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        change(program, code)
        return json.dumps(program).encode()

    records(archive, changed)


def in_a_size(program: Program, code: str) -> None:
    graph = program["graph_module"]["graph"]
    graph["tensor_values"]["linear"]["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}


def in_a_guard(program: Program, code: str) -> None:
    program["guards_code"] = [f"{code} or True"]


def as_an_operator(program: Program, code: str) -> None:
    """One of PyTorch's own maps any file of the server into memory, and makes it if it is not there."""
    graph = program["graph_module"]["graph"]
    given = {"filename": {"as_string": code.partition("touch ")[2].removesuffix("')")}, "shared": {"as_bool": True},
             "size": {"as_int": 2}}  # fmt: skip
    inputs = [{"name": name, "arg": argument, "kind": 1} for name, argument in given.items()]
    graph["tensor_values"]["evil"] = {
        **graph["tensor_values"]["linear"],
        "sizes": [{"as_int": 2}],
        "strides": [{"as_int": 1}],
    }
    node = {
        "target": "torch.ops.aten.from_file.default",
        "inputs": inputs,
        "outputs": [{"as_tensor": {"name": "evil"}}],
    }
    graph["nodes"].insert(0, {**node, "name": "evil", "metadata": {}, "is_hop_single_tensor_return": None})


def as_the_name_of_an_input(program: Program, code: str) -> None:
    """Names are written into the text of a function, which is compiled: this one has a default."""
    name = json.dumps(f"input={code}")
    text = json.dumps(program["graph_module"]).replace(
        '{"as_tensor": {"name": "input"}}', f'{{"as_tensor": {{"name": {name}}}}}'
    )
    program["graph_module"] = json.loads(text.replace('"input": {"dtype"', f'{name}: {{"dtype"'))


def as_a_structure_that_is_imported(program: Program, code: str) -> None:
    """A defaultdict names the module of its factory."""
    inner = {"default_factory_module": "planted_factory", "default_factory_name": "list", "dict_context": []}
    tree = {"type": "collections.defaultdict", "context": inner, "children_spec": []}
    program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])


ATTACKS: list[tuple[Change, str]] = [
    (in_a_size, "expr_str"),
    (in_a_guard, "guards_code"),
    (as_an_operator, "target"),
    (as_the_name_of_an_input, "name"),
    (as_a_structure_that_is_imported, "out_spec"),
]


def attacked(spot: Spot, attack: Change) -> Path:
    archive = honest(spot)
    spot.code("planted_factory.py", "")
    craft(archive, attack, f"__import__('os').system('touch {spot.canary}')")
    return archive


@pytest.mark.audit("1")
@pytest.mark.parametrize(("attack", "key"), ATTACKS, ids=lambda v: getattr(v, "__name__", v))
def test_a_program_that_runs_code_is_code(spot: Spot, attack: Change, key: str) -> None:
    """It is refused by its key unless code is allowed, and then it is given a process of its own."""
    attacked(spot, attack)
    for allowed in ({}, {"allow_pickle": True}):
        with pytest.raises(InvalidModel, match=rf"run as code \(in .*{key}.*set allow_code"):
            load(spot.model, **allowed)
    model = read_mlmodel(spot.model)
    assert brings_code(model)
    assert list(trust_reasons(model, allow_pickle=True, allow_code=True)) == []
    assert not spot.canary.exists()


RUN = """
import sys, torch
sys.path.insert(0, sys.argv[1])
for archive in sys.argv[2:]:
    try:
        torch.export.load(archive).module()(torch.ones(2, 2))
    except BaseException as error:
        print(type(error).__name__, error)
"""


@pytest.mark.audit("1")
def test_the_attacks_are_real(tmp_path: Path) -> None:
    """PyTorch by itself runs the code of each, when it loads the archive or calls the network."""
    spots = [Spot(tmp_path / attack.__name__) for attack, _ in ATTACKS]
    for spot, (attack, _) in zip(spots, ATTACKS, strict=True):
        spot.folder.mkdir()
        attacked(spot, attack)
    archives = [str(spot.model / "data" / "model.pt2") for spot in spots]
    planted = str(spots[-1].folder)
    done = subprocess.run([sys.executable, "-c", RUN, planted, *archives], capture_output=True, text=True, check=False)
    assert [spot.canary.exists() for spot in spots] == [True] * len(spots), done.stdout


@pytest.mark.audit("1")
def test_an_honest_export_stays_data(spot: Spot) -> None:
    """It loads without permission, and answers right."""
    honest(spot)
    assert not brings_code(read_mlmodel(spot.model))
    assert answer(load(spot.model)) == SUMS


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"conv-1": nn.Conv2d(3, 4, 3, padding="same"), "a norm": nn.BatchNorm2d(4)})
        self.head = nn.Linear(4, 2)

    def forward(self, image: Any) -> Any:
        x = nn.functional.max_pool2d(self.parts["a norm"](self.parts["conv-1"](image)), 2)
        return torch.softmax(self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)), -1)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(50, 8), nn.LSTM(8, 8, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.attend = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids: Any) -> Any:
        return self.attend(self.lstm(self.embed(ids))[0]).mean(1)


class Sizes(nn.Module):
    """Products, quotients, remainders, bounds and powers of sizes, a branch, and a size that the data decide."""

    def forward(self, x: Any, y: Any) -> Any:
        both = torch.cat([x, y], 1)
        flat, half = x.reshape(x.shape[0] * x.shape[1]), x[:, : x.shape[1] // 2]
        rest, head = both[:, both.shape[1] % 3 :], x[: min(x.shape[0], 5)]
        padded = nn.functional.pad(x, (0, (8 - x.shape[1] % 8) % 8), value=float("-inf")).exp()
        square = torch.zeros(x.shape[0] ** 2) + max(x.shape[1], 3)
        chosen = torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, (x,))
        count = torch.nonzero(x).shape[0]
        parts = (flat, half, rest, head, padded, square, chosen)
        return sum(part.sum() for part in parts) + torch.einsum("bi,bi->b", x, x) + count


class Words(nn.Module):
    def forward(self, x: Any, *, scale: dict[str, Any]) -> Any:
        rounded = torch.div(x, 3, rounding_mode="floor") + nn.functional.gelu(x, approximate="tanh")
        return {"a": rounded * scale["by this"], "b": (x + 1, [x - 1])}


BATCH = Dim("batch", min=2, max=64)
HONEST: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = [
    (Convolutions(), (torch.rand(2, 3, 16, 16),), {}, ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)),
    (Sequences(), (torch.randint(0, 50, (2, 6)),), {}, ({0: Dim.AUTO, 1: Dim.AUTO},)),
    (Sizes(), (torch.rand(6, 12), torch.rand(6, 9)), {}, ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO})),
    (Words(), (torch.rand(4, 3),), {"scale": {"by this": torch.rand(4, 3)}}, {"x": {0: BATCH}, "scale": {"by this": {0: BATCH}}}),
    (nn.Bilinear(3, 3, 2), (torch.rand(4, 3), torch.rand(4, 3)), {}, ({0: BATCH}, {0: BATCH})),
]  # fmt: skip


@pytest.mark.audit("1")
@pytest.mark.parametrize("case", HONEST, ids=lambda case: type(case[0]).__name__)
@pytest.mark.parametrize("decomposed", [False, True])
def test_what_pytorchs_exporter_writes_is_no_code(tmp_path: Path, case: Any, decomposed: bool) -> None:
    """Sizes that depend on each other, operators of every kind, words, structures, names with spaces: loaded, and called."""
    network, args, kwargs, dynamic = case
    program = export(network.eval(), args, kwargs, dynamic_shapes=dynamic)
    archive = tmp_path / "model.pt2"
    save(program.run_decompositions() if decomposed else program, archive)
    assert broken(archive) is None
    assert list(code_in(archive)) == []
    load_exported(archive, torch.device("cpu"))[0](*args, **kwargs)


SIZE_TEXTS = [
    ("Mul(Integer(8), Max(Integer(1), FloorDiv(Symbol('s6', positive=True, integer=True), Integer(2))))", True),
    ("s0 + 2*s1 - 1", True), ("(s0 + 7)//8 % 3", True), ("Pow(Symbol('s0'), Integer(2))", True), ("u0 >= 0", True),
    ("Float('1.5', precision=53)", True), ("s0 if s0 > 2 else 2", True), ("And(s0 > 1, Ne(s1, 3))", True),
    ("__import__('os')", False), ("s0.__class__", False), ("().__class__", False), ("Symbol('s0').func", False),
    ("Symbol('__import__')", False), ("Symbol('s0', positive=print(1))", False), ("Function('f')(s0)", False),
    ("[s0 for s0 in s1]", False), ("lambda: s0", False), ("(s0 := 1)", False), ("f'{s0}'", False), ("s0 @ s1", False),
    ("Add(*s0)", False), ("Add(s0, **s1)", False), ("9**9**9", False), ("Pow(9, Pow(9, 9))", False), ("s0 ** s1", False),
    ("LShift(1, 100000)", False), ("-" * 500 + "s0", False), ("(" * 300 + "s0" + ")" * 300, False), ("s0\n+1", False),
    ("Mul(" + ", ".join(["Add(s0, s1)"] * 13) + ")", False), ("1" * 500, False), ("s0 +", False), ("ｓ0", False),
    ("L['x'].size()[0]", False),
]  # fmt: skip


@pytest.mark.audit("1")
@pytest.mark.parametrize(("text", "fits"), SIZE_TEXTS)
def test_the_grammar_of_sizes(text: str, fits: bool) -> None:
    """Nothing is called, looked up in an object, or worked out that could grow."""
    assert is_size(text) is fits


GUARD_TEXTS = [
    ("L['x'].size()[1] + L['y'].size()[1] == 2*(L['x'].size()[1] % 3)", True), ("min(5, L['y'].size()[0]) <= 7", True),
    ("L['scale']['by this'].size()[0] == L['x'].size()[0]", True), ("not L['x'][0].stride()[1] != 1", True),
    ("math.isnan(L['k'])", True), ("L['x'].storage_offset() == 0 or 3 < 4", True),
    ("L['x'].data_ptr()", False), ("L['x'].__class__", False), ("L.size()", False), ("L['x\\'] or 1 #']", False),
    ("L['x'].size()[__import__('os')]", False), ("math.factorial(L['x'].size()[0])", False), ("print(1)", False),
]  # fmt: skip


@pytest.mark.audit("1")
@pytest.mark.parametrize(("text", "fits"), GUARD_TEXTS)
def test_the_grammar_of_guards(text: str, fits: bool) -> None:
    """Sizes of inputs beside numbers."""
    assert is_guard(text) is fits


@pytest.mark.audit("1")
@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("torch.ops.aten.add.Tensor", True), ("torch.ops.higher_order.cond", True), ("_operator.floordiv", True),
        ("torch.sym_max", True), ("torch.os.system", False), ("torch.load", False), ("_operator.methodcaller", False),
        ("torch.ops.aten.from_file.default", False), ("torch.ops.aten.save.default", False), ("math.factorial", False),
        ("torch.ops.aten.empty.memory_format", False), ("torch.ops.higher_order.call_torchbind", False),
        ("torch.ops.aten.add.__class__", False), ("torch.ops.aten.segment_reduce.default", False), ("#evil:op", False),
        ("torch.ops.other.op.default", False), ("torch.ops.aten.manual_seed.default", False),
        ("torch.ops.aten._reshape_alias.default", False), ("torch.ops.aten._fft_c2r.default", False),
        ("torch.ops.aten.native_batch_norm.default", False), ("torch.ops.aten.embedding_bag.padding_idx", False),
        ("torch.ops.aten.promote_types.default", False), ("torch.ops.aten.lstm.data", False), ("torch.ops.aten.lstm.input", True),
        ("torch.ops.aten._upsample_bilinear2d_aa.default", False), ("torch.ops.aten._upsample_bilinear2d_aa.vec", True),
    ],
)  # fmt: skip
def test_the_operators_compute_and_do_nothing_else(name: str, fits: bool) -> None:
    """No file, no object, no memory of others, no index that is not checked."""
    assert is_operator(name) is fits


FAR = 100_000
#: Operators with sizes that do not fit each other: two ended the process, attention answered what lay in memory after its values.
UNFIT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "attention": (aten.scaled_dot_product_attention, (torch.rand(1, 1, 2, 8), torch.rand(1, 1, FAR, 8), torch.rand(1, 1, 2, 8))),
    "no keys": (aten.scaled_dot_product_attention, (torch.rand(2, 4, 3, 8), *[torch.rand(2, 0, 3, 8)] * 2)),
    "batch norm": (
        aten._native_batch_norm_legit_no_training, (torch.rand(1, FAR), *[torch.rand(1)] * 4, 0.1, 1e-5)
    ),
    "weight norm": (aten._weight_norm, (torch.rand(FAR, 2), torch.rand(1, 1), 0)),
    "weight norm and lengths": (aten._weight_norm_interface, (torch.rand(FAR, 2), torch.rand(1, 1), 0)),
}  # fmt: skip


@pytest.mark.audit("25")
@pytest.mark.parametrize("name", UNFIT)
def test_operators_whose_sizes_do_not_fit_are_an_error(name: str) -> None:
    """They are compared before the operator is called, which would not compare them."""
    operator, given = UNFIT[name]
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(f"x{i}") if isinstance(x, torch.Tensor) else x for i, x in enumerate(given)]
    graph.output(graph.call_function(operator.default, tuple(inputs)))
    network = fitted(torch.fx.GraphModule(nn.Module(), graph))
    with pytest.raises(RuntimeError, match="do not fit each other"):
        network(*[x for x in given if isinstance(x, torch.Tensor)])


def lstm(rows: int = 3, weights: int = 20, layers: int = 1) -> tuple[Any, ...]:
    """What an LSTM of five is given: states for so many rows, so many weights, so many layers."""
    states = [torch.rand(1, rows, 5), torch.rand(1, rows, 5)]
    return (
        torch.rand(2, 3, 4),
        states,
        [torch.rand(weights, 4), torch.rand(20, 5), *[torch.rand(20)] * 2],
        True,
        layers,
        0.0,
        False,
        False,
        False,
    )


@pytest.mark.audit("25")
@pytest.mark.parametrize("given", [lstm(rows=1), lstm(weights=1), lstm(layers=2), lstm(layers=10**9), lstm(layers=-1)])
def test_an_lstm_whose_sizes_do_not_fit_is_an_error(given: tuple[Any, ...]) -> None:
    """Its states of another number of rows ended the process."""
    with pytest.raises(RuntimeError, match="do not fit each other"):
        recurrent(*given)
    recurrent(*lstm())


LSTMS: dict[str, dict[str, Any]] = {
    "plain": {}, "without biases": {"bias": False}, "both ways": {"bidirectional": True, "num_layers": 2},
    "projected": {"proj_size": 2, "num_layers": 2, "bidirectional": True}, "rows first": {"batch_first": True, "num_layers": 3},
}  # fmt: skip


@pytest.mark.audit("25")
@pytest.mark.parametrize("how", LSTMS.values(), ids=LSTMS)
def test_an_honest_lstm_answers_the_same(how: dict[str, Any]) -> None:
    """In all its forms, with rows of any number."""
    network, x = nn.LSTM(4, 5, **how).eval(), torch.rand(2, 3, 4)
    rows = {0 if how.get("batch_first") else 1: Dim("rows", min=1, max=64)}
    exported = fitted(export(network, (x,), dynamic_shapes=(rows,)).module())
    assert torch.allclose(exported(x)[0], network(x)[0], atol=1e-6)
    assert "recurrent" in exported.code


class Normalized(nn.Module):
    """What is looked at before it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.one(x))
        return nn.functional.scaled_dot_product_attention(y, y, x)


@pytest.mark.audit("25")
@pytest.mark.parametrize("decomposed", [False, True])
def test_operators_whose_sizes_are_compared_answer_the_same(tmp_path: Path, decomposed: bool) -> None:
    """Attention, batch norms and weight norms of an honest network."""
    network, x = Normalized().eval(), torch.rand(2, 3, 8)
    program = export(network, (x,))
    save(program.run_decompositions() if decomposed else program, tmp_path / "model.pt2")
    loaded, _ = load_exported(tmp_path / "model.pt2", torch.device("cpu"))
    assert list(code_in(tmp_path / "model.pt2")) == []
    assert torch.allclose(loaded(x), network(x), atol=1e-6)
    assert "serving_pt2_fitting" in loaded.code


def squared(program: Program, code: str) -> None:
    """A size times itself, forty times: a number of a trillion digits."""
    graph = program["graph_module"]["graph"]
    graph["nodes"] = [
        {"target": "_operator.mul", "metadata": {}, "outputs": [{"as_sym_int": {"as_name": f"m{i + 1}"}}],
         "inputs": [{"name": "", "kind": 1, "arg": {"as_sym_int": {"as_name": f"m{i}"}}}] * 2} for i in range(40)
    ]  # fmt: skip


def unknown_text(program: Program, code: str) -> None:
    program["graph_module"]["graph"]["nodes"][0]["a field of tomorrow"] = "text"


def a_message_in_quotes(program: Program, code: str) -> None:
    program["graph_module"]["graph"]["inputs"].append({"as_string": "' or 1 or '"})


@pytest.mark.audit("1")
@pytest.mark.parametrize(
    ("change", "key"), [(squared, "nodes"), (unknown_text, "a field of tomorrow"), (a_message_in_quotes, "as_string")]
)
def test_other_texts_that_are_refused(spot: Spot, change: Change, key: str) -> None:
    """What has no rule fails closed."""
    archive = honest(spot)
    craft(archive, change, "")
    assert key in list(code_in(archive))


def _samples(value: Any) -> bytes:
    stream = BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.audit("1")
def test_keys_of_the_example_inputs_are_plain_words(spot: Spot) -> None:
    """They become part of a function that PyTorch writes, which a quote in them would end."""
    archive = honest(spot)
    evil = _samples((({'it\'s" + evil + "': torch.ones(2)},), {}))
    records(archive, lambda name, content: evil if name.endswith("sample_inputs/model.pt") else content)
    with pytest.raises(InvalidModel, match="example inputs have a key"):
        load(spot.model, allow_code=True)


@pytest.mark.audit("1")
def test_a_network_that_takes_more_memory_than_its_file_has_is_refused(spot: Spot) -> None:
    """A record of no bytes says a shape, which PyTorch would fill with zeros."""
    archive = honest(spot)

    def grow(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return content.replace(b'"as_int": 2', b'"as_int": 20000000000')
        return b"" if "/weights/weight_" in name else content

    records(archive, grow)
    with pytest.raises(InvalidModel, match="larger than its record"):
        load(spot.model)


@pytest.mark.audit("30b")
def test_two_exported_networks_load_at_once(spot: Spot) -> None:
    """PyTorch's loader keeps its work in a global; ours lets one in at a time."""
    archive = honest(spot)
    start, errors = threading.Barrier(4), []

    def one() -> None:
        start.wait()
        try:
            for _ in range(3):
                load_exported(archive, torch.device("cpu"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
