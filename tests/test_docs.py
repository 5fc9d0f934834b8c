"""The documentation cannot drift: settings, variables, metrics, routes, links and versions are compared with the code."""

import argparse
import configparser
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from features.errors import Cause
from features.policies import ACTIONS as POLICY_ACTIONS
from features.policies import Target, policy_for
from monitoring.crew import CrewMetrics
from monitoring.metrics import ACTIONS, CAUSES, EVICTIONS, FOUND, Metrics
from monitoring.tally import Counts, Levels, Spreads
from registry.versions import CONFIGURING
from serving.cli import parser
from serving.commands import VERBS
from serving.commands.base import Verb
from serving.commands.serve import settings_from
from serving.configuration import Configuration, ModelOptions, TorchOptions, resolve
from serving.crew import Alone
from serving.dataplane import DataPlane
from serving.errors import REASONS, TABLE, MethodNotAllowed, NotFound
from serving.fleet import Fleet
from serving.lifecycle import State
from serving.named import Finder
from serving.options import options_of
from serving.response_cache import CacheLimits
from serving.runtimes.spawn import Ending
from serving.settings import PREFIX, ModelEntry, Served, Settings, load_settings
from serving.transport.http import Http
from serving.transport.webhook import OUTCOMES, Webhook
from serving.workers.member import Fate
from tests.fakes import Registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def pages() -> list[Path]:
    """Every Markdown file of the project, outside hidden folders."""
    return sorted(p for p in ROOT.rglob("*.md") if not any(part[0] == "." for part in p.relative_to(ROOT).parts))


def rows(page: str, first: str) -> Iterator[list[str]]:
    """The cells of each table row of a page whose first cell begins with `first`."""
    for line in (DOCS / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0].startswith(first):
            yield cells


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf of a settings tree, as `group.field`."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{path}{name}.")
        else:
            yield path + name, field


def built_in() -> dict[str, Any]:
    """What holds for a model of which nobody says anything, by the name of its setting."""
    options = ModelOptions()
    resolved: Configuration = resolve(options, {}, {})
    policy = policy_for((), Target("view", "column", "double", required=True, ttl=None))
    own = (
        "allow_pickle", "allow_code", "timeout_ms", "ignore_extra_columns", "isolation", "memory_mb", "hang_seconds",
        "accelerate",
    )  # fmt: skip
    return {
        **{name: getattr(options, name) for name in own},
        **{name: getattr(resolved, name) for name in ("output", "per_instance")},
        **{f"signature.{name}": getattr(options.signature, name) for name in ("required", "file", "public_key")},
        "signature.certificate_chain": None,
        **{f"torch.{name}": getattr(options.torch, name) for name in TorchOptions.__slots__},
        **{f"batching.{name}": getattr(resolved.limits, name) for name in type(resolved.limits).__slots__},
        **{f"response_cache.{name}": getattr(resolved.response_cache, name) for name in CacheLimits.__slots__},
        **{f"features.on_{cause}": action for cause, action in policy.actions.items()},
        "features.views": {},
        "features.columns": {},
        "features.default": policy.default,
        "features.max_age_seconds": policy.max_age,
        "features.last_good_seconds": policy.last_good_seconds,
    }


def as_written(value: Any) -> str:
    """A default as the tables write it."""
    if value in (None, ""):
        return "—"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def documented_settings() -> dict[str, tuple[str, str]]:
    """Setting → (environment variable, default), as the page has them."""
    groups = "|".join(Settings.model_fields)
    found = {}
    for name, *cells in rows("configuration.md", "`"):
        if re.fullmatch(rf"`({groups})(\[\])?\.[a-z_.]+`", name):
            found[name.strip("`")] = (cells[0].strip("`"), cells[1])
    return found


def expected_settings() -> dict[str, tuple[str, str]]:
    """The same, from the code. What both `defaults` and an entry of `models` may say is written once."""
    inherited = {name for name, _ in fields(Served)}
    plain = built_in()
    expected = {}
    for path, field in fields(Settings):
        group, _, name = path.partition(".")
        if path != "models":
            default = plain[name] if group == "defaults" else field.default
            expected[path] = (PREFIX + path.replace(".", "__").upper(), as_written(default))
    for name, field in fields(ModelEntry):
        if name not in inherited:
            expected[f"models[].{name}"] = ("—", as_written(None if field.is_required() else field.default))
    return expected


def test_the_changelog_and_the_package_have_the_same_version() -> None:
    """The newest release in CHANGELOG.md is the version in setup.cfg; what is not released yet stands above it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    top = re.search(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert top is not None
    assert top.group(1) == config["metadata"]["version"]


def test_every_setting_is_documented_with_its_variable_and_default() -> None:
    """docs/configuration.md has exactly the settings that exist, with the defaults that hold."""
    assert documented_settings() == expected_settings()


def test_every_tag_that_configures_is_documented() -> None:
    """docs/configuration.md has exactly the tags that are part of a version's identity."""
    names = {cells[0].strip("`") for cells in rows("configuration.md", "`")}
    assert {name for name in names if name.startswith(("headway.", "feast."))} == set(CONFIGURING)


def accepted(page: str, tmp_path: Path) -> list[Settings]:
    """Every YAML block of a page, read as a file."""
    found = []
    for block in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL):
        file = tmp_path / "headway.yaml"
        file.write_text(block)
        found.append(load_settings({}, {}, file))
    return found


def test_the_example_file_and_the_strict_profile_are_valid(tmp_path: Path) -> None:
    """Every YAML block of docs/configuration.md is accepted as a file."""
    _, strict = accepted("configuration.md", tmp_path)
    assert strict.defaults.timeout_ms == 100


def test_the_files_of_the_trust_page_are_valid(tmp_path: Path) -> None:
    """Every YAML block of docs/trust.md is accepted as a file."""
    assert [bool(settings.models) for settings in accepted("trust.md", tmp_path)] == [True] * 3


def test_the_file_of_the_caching_page_says_what_the_page_says(tmp_path: Path) -> None:
    """A budget for all, an age for one, and none for another."""
    (settings,) = accepted("caching.md", tmp_path)
    limits = [options_of(entry, settings).response_cache for entry in settings.models]
    assert limits == [CacheLimits(64 * 2**20, 600.0), CacheLimits(0)]


def test_every_variable_in_a_page_is_accepted() -> None:
    """No page names a HEADWAY_ variable that the server would refuse."""
    defaults = dict(documented_settings().values())
    for page in [*pages(), ROOT / ".env.example"]:
        for name in re.findall(r"HEADWAY_[A-Z]+__[A-Z_]+", page.read_text("utf-8")):
            value = defaults.get(name, "").strip("`")
            load_settings({}, {name: value if value != "—" else "123456789"})


def test_the_example_environment_changes_nothing() -> None:
    """All lines of .env.example, uncommented, are accepted together, and say the defaults and every one of them."""
    text = (ROOT / ".env.example").read_text("utf-8")
    given = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE))
    load_settings({}, given)
    for name, (variable, default) in expected_settings().items():
        if variable in given and default != "—":
            assert as_written(given[variable]).strip("`") == default.strip("`"), name
    unbuilt = {"SERVER__DOCS"}
    variables = {variable for variable, _ in expected_settings().values() if variable != "—"}
    assert {name for name in given if name.startswith(PREFIX)} == variables - {PREFIX + name for name in unbuilt}


def test_the_flags_of_the_page_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/configuration.md names every flag of `headway serve`, and none that does not exist."""
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", "--help"])
    real = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    named = {flag for cells in rows("configuration.md", "`--") for flag in re.findall(r"--[a-z-]+", cells[0])}
    assert named == real
    assert settings_from(parser().parse_args(["serve", "--model-uri", "models:/fraud@champion"]), {}).models


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_help_and_is_documented(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/commands.md has a heading for each verb and names its flags; --help exits 0 and names them too."""
    own = argparse.ArgumentParser()
    verb.flags(own)
    with pytest.raises(SystemExit) as exit:
        parser().parse_args([verb.name, "--help"])
    assert exit.value.code == 0
    assert verb.help in " ".join(capsys.readouterr().out.split())
    section = (
        (DOCS / "commands.md").read_text("utf-8").partition(f"\n## `headway {verb.name}`\n")[2].partition("\n## ")[0]
    )
    assert section
    named = set(re.findall(r"--[a-z][a-z_-]*", section))
    assert named == flags_of(own) or "configuration.md#flags" in section


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of the actions below it."""
    found = set()
    for action in parser._actions:
        found |= {flag for flag in action.option_strings if flag.startswith("--")} - {"--help"}
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for below in action.choices.values() for flag in flags_of(below)}
    return found


def metrics_of(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, REASONS, [state.value for state in State])


def test_every_metric_that_a_page_names_is_in_the_list() -> None:
    """No page speaks of a counter or a histogram that docs/metrics.md does not have."""
    known = {cells[0].strip("`") for cells in rows("metrics.md", "`")}
    for page in pages():
        named = re.findall(r"`((?:headway|model|inference)_[a-z_]+_(?:total|seconds))\b", page.read_text("utf-8"))
        assert set(named) <= known, page


def test_every_metric_is_documented() -> None:
    """docs/metrics.md has exactly the series of the code, with type and labels."""
    real = {}
    own = vars(CrewMetrics(CollectorRegistry(), ())).values()
    for metric in (*vars(metrics_of(CollectorRegistry())).values(), *own):
        if isinstance(metric, Counter | Gauge | Histogram | Counts | Levels | Spreads):
            family = next(iter(metric.describe()))
            name = family.name + ("_total" if family.type == "counter" else "")
            real[name] = (family.type, ", ".join(f"`{label}`" for label in metric._labelnames))
    named = {cells[0].strip("`"): (cells[1], cells[2]) for cells in rows("metrics.md", "`")}
    assert named == real


def test_the_metrics_know_every_cause_and_action() -> None:
    """The label sets of the feature policies are those of the policies."""
    assert (set(CAUSES), ACTIONS) == (set(Cause), POLICY_ACTIONS)


def test_every_reason_and_state_is_documented() -> None:
    """The closed label sets on the page are those of the code."""
    text = (DOCS / "metrics.md").read_text("utf-8")
    listed = text.partition("`error_type` is\none of")[2].strip().partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", listed)) == set(REASONS)
    fates = next(cells[3] for cells in rows("metrics.md", "`headway_worker_restarts_total`"))
    assert set(re.findall(r"`([a-z]+)`", fates)) == set(Fate)
    endings = next(cells[3] for cells in rows("metrics.md", "`headway_process_restarts_total`"))
    assert set(re.findall(r"`([a-z]+)`", endings)) == set(Ending)
    for metric, words in (("requests", FOUND), ("evictions", EVICTIONS)):
        meaning = next(cells[3] for cells in rows("metrics.md", f"`headway_response_cache_{metric}_total`"))
        assert set(re.findall(r"`([a-z]+)`", meaning)) == set(words)
    outcomes = next(cells[3] for cells in rows("metrics.md", "`headway_webhooks_total`"))
    assert set(re.findall(r"`([a-z]+)`", outcomes)) == set(OUTCOMES)
    states = set(re.findall(r"\b[A-Z]{5,}\b", text.partition("`state` is one of")[2].partition("`error_type`")[0]))
    assert states == {state.value for state in State} - {State.NEW.value}


def test_every_error_status_is_documented() -> None:
    """The error table of docs/api.md has every HTTP status that the code's table has."""
    statuses = {cells[1] for cells in rows("api.md", "") if len(cells) == 3 and cells[1].isdigit()}
    assert statuses == {str(outcome.http) for outcome in TABLE.values()}


def documented_routes() -> set[tuple[str, str]]:
    """Method and path of every route in the table of docs/api.md, with sample names in the braces."""
    text = " ".join(cells[0] for cells in rows("api.md", "`"))
    samples = {"{m}": "fraud", "{v}": "3", "{alias}": "champion"}
    found = re.findall(r"`(GET|POST) ([^`]+)`", text)
    return {(verb, re.sub(r"\{\w+\}", lambda m: samples[m.group()], path)) for verb, path in found}


async def test_every_route_is_documented_and_exists() -> None:
    """Every documented route has a handler, and every handler's pattern has a documented route."""
    registry = CollectorRegistry()
    metrics = metrics_of(registry)

    async def no_app(*_: Any) -> None:
        raise AssertionError("only CloudEvents go to KServe's app")

    webhook = Webhook("a secret", lambda name: 0, lambda outcome: None)
    fleet = Fleet({}, None, 1.0, lambda: 0, Finder(Registry()))
    crew = Alone(fleet, metrics)
    http = Http(DataPlane(fleet, metrics, crew), metrics, no_app, 1, crew.exposition, webhook)
    unused = {(verb, pattern.pattern) for verb, pattern, _ in http._routes}
    for verb, path in documented_routes():
        try:
            http._route(verb, path)
        except (NotFound, MethodNotAllowed) as error:
            raise AssertionError(f"{verb} {path}: {error}") from error
        unused -= {(v, p) for v, p in unused if v == verb and re.fullmatch(p, path)}
    assert unused == set()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that exists, and a heading in it if it has an anchor."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_decisions_are_all_listed() -> None:
    """docs/adr/README.md links every record, and no record is longer than forty lines."""
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (DOCS / "adr" / "README.md").read_text("utf-8")))
    records = sorted((DOCS / "adr").glob("[0-9]*.md"))
    assert listed == {record.name for record in records}
    assert all(len(record.read_text("utf-8").splitlines()) <= 40 for record in records)
