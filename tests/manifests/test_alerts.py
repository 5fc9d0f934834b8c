"""The alerts of overlays/monitoring, each in the case that it is for, by Prometheus's own unit tests of rules."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.rendering import folder

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here (Debian: prometheus)")
FOR = 'namespace="headway",model_name="fraud"'
SERVING, FAILS, SILENT = "HeadwayNotServing", "HeadwayVersionFails", "HeadwayRegistrySilent"


@dataclass(frozen=True)
class Case:
    """Series as they were, a value a minute, and the alerts that fire at a minute."""

    what: str
    series: dict[str, str]
    at: int
    fires: tuple[str, ...]


def ready(pod: str, values: str) -> dict[str, str]:
    return {f'headway_model_ready{{{FOR},pod="{pod}"}}': values}


def failed(values: str, version: str = "2") -> dict[str, str]:
    return {f'headway_state_changes_total{{{FOR},model_version="{version}",state="FAILED",pod="a"}}': values}


def polls(pod: str, outcome: str, values: str) -> dict[str, str]:
    return {f'headway_registry_polls_total{{{FOR},pod="{pod}",outcome="{outcome}"}}': values}


def stale(pod: str, values: str) -> dict[str, str]:
    return {f'headway_registry_staleness_seconds{{{FOR},pod="{pod}"}}': values}


WELL = {**ready("a", "1x60"), **polls("a", "ok", "0+6x60"), **polls("a", "error", "0x60"), **stale("a", "5x60")}
CASES = (
    Case("all is well", {**WELL, **failed("0x60", "1")}, 30, ()),
    Case("a version that does not exist: nothing is loaded, and nothing is aspired to", ready("a", "0x60"), 6, (SERVING,)),
    Case("not for a start that takes a few minutes", ready("a", "0x3 1x60"), 4, ()),
    Case("one of two pods is enough", {**ready("a", "0x60"), **ready("b", "1x60")}, 30, ()),
    Case(
        "the stable service's pods serve nothing, and the canary's do",
        {
            f'headway_model_ready{{{FOR},pod="a",serving_kserve_io_inferenceservice="stable"}}': "1x10 0x50",
            f'headway_model_ready{{{FOR},pod="b",serving_kserve_io_inferenceservice="canary"}}': "1x60",
        },
        17,
        (SERVING,),
    ),
    Case("no pod is left", ready("a", "1x10 _x50"), 22, (SERVING,)),
    Case("and it does not resolve by that", ready("a", "1x10 _x400"), 300, (SERVING,)),
    Case("a pod was replaced", {**ready("a", "1x10 _x50"), **ready("b", "_x10 1x50")}, 30, ()),
    Case(
        "the registry is unreachable from the first start on",
        {**ready("a", "0x60"), **polls("a", "error", "0+1x60"), **stale("a", "0+60x60")},
        20,
        (SERVING, SILENT),
    ),
    Case(
        "pods that are replaced again and again have waited for nothing yet",
        {**polls("a", "error", "1+1x9 _x50"), **polls("b", "error", "_x10 1+1x50"),
         **stale("a", "0+60x9 _x50"), **stale("b", "_x10 0+60x12 _x50")},
        18,
        (SILENT,),
    ),
    Case(
        "not for a registry that comes up a few minutes after the first server",
        {**polls("a", "error", "0+6x5 30x55"), **polls("a", "ok", "0x5 1+6x55"), **stale("a", "0+60x5 5x55")},
        4,
        (),
    ),
    Case("the pod that waits longest counts", {**stale("a", "0+60x60"), **stale("b", "_x17 0+60x60"), **ready("a", "1x60")}, 20, (SILENT,)),
    Case("one answer within a quarter of an hour is one", {**polls("a", "error", "0+1x60"), **polls("a", "ok", "0x10 1x50")}, 20, ()),
    Case("the first failure of a version: the series begins at 1", failed("_x5 1x60"), 7, (FAILS,)),
    Case("a later one", failed("1x20 2x40"), 24, (FAILS,)),
    Case("none of late", failed("1x60"), 40, ()),
)  # fmt: skip


def rules(home: Path) -> Path:
    """The groups of the PrometheusRule, as a file of Prometheus."""
    (found,) = yaml.safe_load_all((folder("monitoring") / "prometheus-rule.yaml").read_text("utf-8"))
    file = home / "rules.yml"
    file.write_text(yaml.safe_dump(found["spec"]))
    return file


def unit_test(case: Case, file: Path) -> dict[str, Any]:
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    query = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{case.at}m"}
    query["exp_samples"] = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in case.fires]  # type: ignore[assignment]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [query]}
    return {"rule_files": [str(file)], "evaluation_interval": "1m", "tests": [test]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_an_alert_fires_in_its_case_and_in_no_other(case: Case, tmp_path: Path) -> None:
    """With the series as they were on a cluster."""
    (tmp_path / "test.yml").write_text(yaml.safe_dump(unit_test(case, rules(tmp_path))))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
