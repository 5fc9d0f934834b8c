"""The benchmark's arithmetic, its table of experiments, and the page that it writes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.bench.commands import Job, settings
from scripts.bench.environments import PINS
from scripts.bench.experiments import EXPERIMENTS, PEERS, Experiment, Side, allowed, chosen, estimate
from scripts.bench.figures import Figure, median, next_rate, order, quantile, ratio, ratios
from scripts.bench.loads import of_wrk, raw
from scripts.bench.page import TEMPLATE, render, write
from scripts.bench.rendering import BY_NAME, HEADLINES, PLANE, fastest, headlines, number, row, stages
from scripts.bench.results import Record, Results
from scripts.bench.saved import Saved
from scripts.bench.wires import ask, read, same
from serving.settings import Settings


def figures(**rates: list[float]) -> dict[str, list[dict[str, Any]]]:
    """Figures by clients (`c16=[…]`), one per round; p99 and CPU go with the rate."""
    return {k[1:]: [Figure(rate, cpu=1e6 / rate, p99=1e3 / rate).plain() for rate in v] for k, v in rates.items()}


def record(**sides: dict[str, list[dict[str, Any]]]) -> Record:
    """A record of these sides."""
    return Record(2, 1.0, "2026-11-21T10:00+00:00", _MACHINE, {k.replace("_", "-"): v for k, v in sides.items()})


_MACHINE = {"processor": "a processor", "cores": 2, "memory_gb": 4, "system": "Linux", "python": "3.11", "packages": {}}


# -- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([10, 20, 90], [10, 10, 30], 2.0),  # the ratios are 1, 2 and 3; that of the medians is 2 as well
        ([10, 40, 20], [10, 10, 20], 1.0),  # the ratios are 1, 4 and 1; that of the medians would be 2
        ([10, 20], [5], 2.0),  # a side that broke in the second round
        ([10], [], None),
        ([10, 10], [0, 5], 2.0),  # a round without an answer has no ratio
    ],
)
def test_a_ratio_is_the_median_of_the_rounds_own(
    ours: list[float], theirs: list[float], expected: float | None
) -> None:
    """Ratios are taken within a round, and rounds that only one side has are left out."""
    plain = [[{"rate": rate} for rate in side] for side in (ours, theirs)]
    assert ratio({"16": plain[0]}, {"16": plain[1]}, 16) == expected


def test_the_range_of_a_ratio_is_that_of_its_rounds() -> None:
    """What varies between rounds can be shown."""
    found = ratios(figures(c1=[10, 30]), figures(c1=[10, 10]), 1)
    assert found == pytest.approx([1, 3])


def test_nothing_measured_has_no_median() -> None:
    """A side without figures is no zero."""
    assert median({}, 64, "rate") is None


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_side_comes_first_in_turn(count: int) -> None:
    """Every round measures all sides, and each is as often the first as any other."""
    rounds = [order(count, number) for number in range(count)]
    assert all(sorted(found) == list(range(count)) for found in rounds)
    assert {found[0] for found in rounds} == set(range(count))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 51), (0.95, 96), (0.99, 100), (1.0, 100)])
def test_a_quantile_is_a_value_of_the_sample(share: float, expected: int) -> None:
    """The last quantile is the largest value, not one past it."""
    assert quantile(list(range(1, 101)), share) == expected


@pytest.mark.parametrize("limit", [40.0, 300.0, 1234.0, 1e9])
def test_the_search_for_the_rate_ends_near_the_limit(limit: float) -> None:
    """Doubling while all is carried, then halving the gap, finds the highest rate that is; or the highest there is."""
    carried: dict[float, bool] = {}
    for _ in range(14):
        rate = next_rate(200.0, 20_000.0, carried)
        carried[rate] = rate <= limit
    found = max(rate for rate, good in carried.items() if good)
    assert found == pytest.approx(min(limit, 20_000.0), rel=0.05)


# -- experiments ----------------------------------------------------------------------------------------------------


def test_every_name_stands_once() -> None:
    """Names are keys of the file of results."""
    names = [experiment.name for experiment in EXPERIMENTS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_an_experiment_can_be_run(experiment: Experiment) -> None:
    """Sides have names of their own, ours is the first, and protocols that only some speak go to those."""
    names = [side.name for side in experiment.sides]
    assert sorted(set(names)) == sorted(names)
    assert experiment.sides[0].server.program == "headway"
    for side in experiment.sides:
        if side.wire in ("v2-binary", "grpc", "entities"):
            assert side.server.program in ("headway", "kserve")
        assert experiment.model in ("linear", "forest") or side.server.program in ("headway", "kserve")
    assert 0 < estimate(experiment, 5, 3.0) < 600


@pytest.mark.parametrize(
    "side",
    [s for e in EXPERIMENTS for s in e.sides if s.server.program == "headway" and s.server.options.get("workers") is None],
    ids=lambda s: s.name,
)  # fmt: skip
def test_our_settings_are_settings(side: Side, tmp_path: Path) -> None:
    """Every option of a row becomes a setting that the server knows."""
    saved = Saved(tmp_path, (), np.zeros((1, 1)), np.zeros(1))
    tree = settings(Job(side.server.options, saved, tmp_path, 1, 2, 3, tmp_path))
    entry = Settings.model_validate(tree).models[0]
    assert entry.batching.max_rows is not None
    assert entry.batching.max_queue is not None


@pytest.mark.parametrize(
    ("peers", "absent"), [("kserve", set(PEERS)), ("own", {"mosec", "litserve", "bentoml", "mlserver"}), ("all", set())]
)
def test_peers_that_are_not_wanted_are_left_out(peers: str, absent: set[str]) -> None:
    """Nothing foreign is installed that was not asked for."""
    programs = {side.server.program for e in chosen([], peers) for side in e.sides}
    assert programs <= allowed(peers)
    assert not programs & absent


def test_rows_that_are_named_are_run_whoever_they_are_beside() -> None:
    """Naming a row is asking for its peer."""
    assert [e.name for e in chosen(["peer-mosec", "forest"], "kserve")] == ["peer-mosec", "forest"]


def test_a_peer_of_its_own_environment_has_pins() -> None:
    """Whoever is not in our requirements is pinned."""
    assert set(PEERS) - {"mlflow", "ray"} == set(PINS)
    assert all("==" in packages[0] for packages in PINS.values())


# -- requests and answers -------------------------------------------------------------------------------------------

ROWS = np.array([[1.5, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("wire", "answer", "headers"),
    [
        ("v1", b'{"predictions": [0, 1]}', {}),
        ("v2", b'{"outputs": [{"name": "predictions", "shape": [2, 1], "data": [0, 1]}]}', {}),
        ("plain", b"[0, 1]", {}),
        ("v2-binary", None, {}),
        ("grpc", None, {}),
    ],
)
def test_predictions_are_read_alike_of_all_protocols(wire: Any, answer: bytes | None, headers: dict[str, str]) -> None:
    """The same two predictions, however they are written."""
    if wire == "v2-binary":
        output = {"datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}}
        head = json.dumps({"outputs": [output]}).encode()
        answer, headers = head + np.array([0, 1]).tobytes(), {"inference-header-content-length": str(len(head))}
    if wire == "grpc":
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

        message = pb.ModelInferResponse(raw_output_contents=[np.array([0, 1]).tobytes()])
        message.outputs.add(name="predictions", datatype="INT64", shape=[2])
        answer = message.SerializeToString()
    assert answer is not None
    assert same(read(wire, answer, headers), np.array([0, 1]))


@pytest.mark.parametrize("answer", [[0, 0], [0], [0, 1, 1]])
def test_other_predictions_are_not_the_same(answer: list[int]) -> None:
    """A wrong value, one too few, and one too many."""
    assert not same(np.array(answer), np.array([0, 1]))


def test_a_request_says_how_long_it_is() -> None:
    """The open loop writes requests by itself."""
    message = ask("v1", (), ROWS)
    head, _, body = raw(message).partition(b"\r\n\r\n")
    assert json.loads(body) == {"instances": ROWS.tolist()}
    assert f"Content-Length: {len(body)}".encode() in head.splitlines()


def test_lookups_ask_for_other_keys_in_turn() -> None:
    """Requests for the same key at the same moment would be one lookup, and cost less than lookups do."""
    pieces = raw(ask("entities", (), ROWS[:1])).split(b"\0")
    keys = [json.loads(piece.partition(b"\r\n\r\n")[2])["instances"][0]["machine_id"] for piece in pieces]
    assert sorted(keys) == list(range(1, 101))


def test_wrks_errors_are_no_answers() -> None:
    """A status that is no success is taken off the count; microseconds become milliseconds."""
    found = of_wrk("Running\nfigures 100 2000000 10 3 500.0 900.0 1500.0\n")
    assert found == {"answers": 90, "seconds": 2.0, "errors": 13, "p50": 0.5, "p95": 0.9, "p99": 1.5}


# -- results and the page -------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was measured is found again by the next run; what could not be is tried again."""
    file = tmp_path / "bench.json"
    results = Results(file)
    results.put("kserve-v1", record(headway=figures(c1=[10])))
    results.put("workers", Record(1, 1.0, skipped={"2-workers": "not built"}))
    again = Results(file)
    assert again.has(BY_NAME["kserve-v1"])
    assert not again.has(BY_NAME["workers"])
    assert not again.has(BY_NAME["forest"])
    assert median(again.records["kserve-v1"].figures["headway"], 1, "rate") == 10


def test_the_page_has_a_place_for_every_experiment() -> None:
    """No row is measured that the page would not show, and none is shown twice."""
    places = re.findall(r"^\{\{row ([\w-]+)\}\}$", TEMPLATE.read_text(), re.M)
    assert sorted(places) == sorted(BY_NAME)


def test_headlines_are_about_sides_that_are_there() -> None:
    """A summary that names an unknown side would say for ever that it was not measured."""
    for line in HEADLINES:
        names = {side.name for side in BY_NAME[line.row].sides}
        assert {line.first, *line.others} <= names
        assert line.clients in BY_NAME[line.row].clients


def test_the_summary_has_the_ratio_and_its_range() -> None:
    """The median of the paired ratios, and the lowest and highest."""
    records = {"kserve-v1": record(headway=figures(c16=[100, 300]), kserve=figures(c16=[10, 10]))}
    line = next(line for line in headlines(records).splitlines() if "clients: 16" in line)
    assert "| **20** | 10 to 30 | max_rows 64, max_queue 4096 |" in line


def test_a_peer_is_taken_at_its_best() -> None:
    """Of a peer's settings, the one with the highest rate at that load counts."""
    sides = {"mosec_5ms": figures(c16=[20]), "mosec_1ms": figures(c16=[50]), "mosec_unbatched": figures(c16=[10])}
    line = next(
        x for x in headlines({"peer-mosec-32": record(headway=figures(c16=[100]), **sides)}).splitlines() if "32" in x
    )
    assert "| **2** |" in line


def test_the_nearest_peer_comes_first() -> None:
    """The table of the fastest others is by the ratio of each pair."""
    records = {
        "kserve-v1": record(headway=figures(c64=[100]), kserve=figures(c64=[10])),
        "peer-mosec": record(headway=figures(c64=[90]), mosec_5ms=figures(c64=[30])),
    }
    line = next(line for line in fastest(records).splitlines() if line.startswith("| 64 "))
    assert line == "| 64 | mosec-5ms: 3 | kserve: 10 |  |"


def test_what_was_skipped_says_why() -> None:
    """A peer that could not be started stands on the page with the reason."""
    found = record(headway=figures(c16=[100]))
    found.skipped["mosec-5ms"] = "it did not come up"
    text = row(BY_NAME["peer-mosec-32"], found)
    assert "- `mosec-5ms` was skipped: it did not come up" in text
    assert "| 16 | headway | 100 |" in text


def test_errors_and_a_busy_load_stand_beside_the_name() -> None:
    """A rate that is not only the server's is marked."""
    found = record(headway={"1": [Figure(10, load=0.95, errors=3).plain()]}, kserve=figures(c1=[5]))
    assert "| 1 | headway (3 errors) † | 10 |" in row(BY_NAME["kserve-v2-1000"], found)


def test_the_rests_are_what_the_stages_leave() -> None:
    """The data plane's rest is without its stages, the connection's without the data plane."""
    costs = {f"{name} 1": 1.0 for name in (*PLANE, "parse", "head", "write")}
    lines = stages({**costs, "plane 1": 7.0, "whole 1": 15.0}).splitlines()
    assert "| the data plane's rest: lease, deadline, timings | 2 |" in lines
    assert "| the connection's rest: callbacks, order, timers | 5 |" in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (0.1234, "0.123"), (4.567, "4.57"), (45.67, "45.7"), (156.4, "156"), (15649.0, "15,600"), (0.0, "0")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    """As many as a run of seconds is good for."""
    assert number(value) == text


def test_a_page_is_written_whatever_was_measured(tmp_path: Path) -> None:
    """With one row measured the page has its table, a plot, and says of the others that they were not."""
    results = Results(tmp_path / "bench.json")
    results.put("kserve-v1", record(headway=figures(c1=[100], c16=[200]), kserve=figures(c1=[10], c16=[20])))
    write(results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| 16 | kserve | 20 |" in text
    assert "`forest`, a forest of 100 trees" in text
    assert "![throughput and p99 by clients](page.svg)" in text
    assert "headway" in (tmp_path / "page.svg").read_text()
    assert "{{" not in text


def test_an_empty_page_has_no_plot(tmp_path: Path) -> None:
    """Before anything was measured there is nothing to point at."""
    assert "![" not in render(TEMPLATE.read_text(), Results(tmp_path / "bench.json"))
