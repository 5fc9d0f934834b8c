"""One tree of settings from flags, environment and file; what is unknown or not built is named."""

from pathlib import Path
from typing import Any

import pytest

from registry.errors import InvalidModel
from registry.signatures import SignatureRule
from serving.configuration import Configuration, resolve
from serving.options import options_of
from serving.settings import ModelEntry, Settings, SettingsError, load_settings, model_from_words

FILE = """
server: {port: 1111, drain_seconds: 7}
registry: {poll_seconds: 3}
defaults: {timeout_ms: 500, batching: {max_rows: 8}}
models:
  - {name: m, uri: "models:/m@champion"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "headway.yaml"
    path.write_text(FILE)
    return path


def reading(text: str, tmp_path: Path, **environ: str) -> Settings:
    path = tmp_path / "headway.yaml"
    path.write_text(text)
    return load_settings({}, environ, path)


def test_built_in_values_are_the_contracts() -> None:
    """What holds when nobody says anything."""
    settings = load_settings({}, {})
    server = settings.server
    assert (server.host, server.port, server.grpc_port, server.max_body_bytes) == ("0.0.0.0", 8080, 8081, 16_777_216)
    assert (server.drain_delay_seconds, server.drain_seconds, server.fail_fast) == (0.0, 25.0, False)
    assert (settings.registry.poll_seconds, settings.registry.pinned_poll_seconds) == (10.0, 60.0)
    limits = configured(settings).limits
    assert (limits.max_rows, limits.max_wait_ms, limits.max_queue, limits.high_watermark) == (32, 0.0, 2000, 0.8)
    assert configured(settings).timeout == 1.0
    entry = ModelEntry(name="m", uri="models:/m/1")
    assert (entry.readiness_waits, entry.on_demand) == (True, False)


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({}, {}, 1111),
        ({}, {"HEADWAY_SERVER__PORT": "2222"}, 2222),
        ({"server": {"port": 3333}}, {"HEADWAY_SERVER__PORT": "2222"}, 3333),
        ({"server": {"port": 3333}}, {}, 3333),
    ],
)
def test_a_flag_beats_the_environment_beats_the_file(
    file: Path, flags: dict[str, Any], environ: dict[str, str], expected: int
) -> None:
    """Key by key: what the others say of the same group stays."""
    settings = load_settings(flags, environ, file)
    assert settings.server.port == expected
    assert settings.server.drain_seconds == 7
    assert settings.registry.poll_seconds == 3


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("HEADWAY_DEFAULTS__BATCHING__MAX_WAIT_MS", "5", lambda s: (s.defaults.batching.max_wait_ms, 5.0)),
        ("HEADWAY_DEFAULTS__BATCHING", '{"max_rows": 4}', lambda s: (s.defaults.batching.max_rows, 4)),
        ("HEADWAY_DEFAULTS__ALLOW_PICKLE", "true", lambda s: (s.defaults.allow_pickle, True)),
        ("HEADWAY_SERVER__FAIL_FAST", "1", lambda s: (s.server.fail_fast, True)),
        ("HEADWAY_SERVER__DRAIN_DELAY_SECONDS", "5", lambda s: (s.server.drain_delay_seconds, 5.0)),
        ("HEADWAY_REGISTRY__TRACKING_URI", "http://mlflow", lambda s: (s.registry.tracking_uri, "http://mlflow")),
        ("HEADWAY_MONITORING__LOG_LEVEL", "DEBUG", lambda s: (s.monitoring.log_level, "DEBUG")),
    ],
)
def test_every_setting_has_a_variable(file: Path, name: str, value: str, found: Any) -> None:
    """`HEADWAY_<GROUP>__<FIELD>`, nested as deep as the file."""
    have, want = found(load_settings({}, {name: value}, file))
    assert have == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("servers: {}", r"servers"),
        ("server: {prot: 1}", r"server\.prot.*HEADWAY_SERVER__PROT"),
        ("server: {port: high}", r"server\.port"),
        ("server: {port: 70000}", r"server\.port"),
        ("defaults: {batching: {rows: 1}}", r"defaults\.batching\.rows"),
        ("defaults: {timeout_ms: -1}", r"defaults\.timeout_ms"),
        ("defaults: {output: labels!}", r"defaults\.output"),
        ("defaults: {batching: {high_watermark: 1.5}}", r"high_watermark"),
        ("models: [{name: m}]", r"models\.0\.uri"),
        ("models: [{name: m, uri: 'models:/m/1', colour: red}]", r"models\.0\.colour"),
        ("models: [{name: m, uri: nonsense}]", r"models\[0\]\.uri.*'nonsense'"),
        ("models: [{name: a/b, uri: 'models:/m/1'}]", r"models\.0\.name"),
        ("models: [{name: m, uri: 'models:/m/1'}, {name: m, uri: 'models:/m/2'}]", r"'m' stands twice"),
        ("models: [{uri: 'models:/m/1'}]", r"models\[0\]\.name"),
        ("models: [{name: m, uri: 'models:/*@champion'}]", r"models\[0\]\.name: .*many models"),
        ("models: [{uri: 'models:/*@champion', required: true}]", r"models\[0\]\.required"),
        ("models: [{uri: 'models:/*@champion', on_demand: false}]", r"models\[0\]\.on_demand"),
        ("models: [{uri: 'models:/*@a'}, {uri: 'models:/*@b'}]", "stands twice"),
        ("models: [{uri: 'models:/*/3'}]", r"models\[0\]\.uri"),
        ("models: [{name: m, uri: 'models:/m/1', digest: abc}]", r"models\.0\.digest.*headway verify"),
        ("security: {allow_pickle_from: [fraud]}", r"allow_pickle_from.*'fraud' is no prefix"),
        ("security: {allow_code_from: ['s3://trusted/../all']}", r"allow_code_from.*is no prefix"),
        ("security: {allow_code_from: ['']}", r"allow_code_from.*is no prefix"),
        ("defaults: {signature: {required: true}}", r"defaults\.signature.*public_key"),
        ("models: [{name: m, uri: 'models:/m/1', signature: {required: true}}]", r"models\[0\]\.signature.*public_key"),
        ("defaults: {signature: {file: ../model.sig}}", r"defaults\.signature\.file"),
        ("[1, 2]", "mapping"),
        ("server: [", "not YAML"),
    ],
)
def test_what_cannot_be_understood_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    """A typing error is an error, not a default."""
    with pytest.raises(SettingsError, match=says):
        reading(text, tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HEADWAY_SERVER__PROT", "server.prot"),
        ("HEADWAY_SERVERS__PORT", "HEADWAY_SERVERS__PORT"),
        ("HEADWAY_MODELS__0", "HEADWAY_MODELS__0"),
        ("HEADWAY_SERVER__PORT__X", "HEADWAY_SERVER__PORT__X|server.port"),
    ],
)
def test_an_unknown_variable_is_named(name: str, says: str) -> None:
    """As it is written, or as the setting that it would be."""
    with pytest.raises(SettingsError, match=says):
        load_settings({}, {"HEADWAY_SERVER__PORT": "1", name: "1"})


def test_names_without_two_underscores_are_ignored() -> None:
    """Kubernetes injects such for a Service called headway."""
    injected = {"HEADWAY_PORT": "tcp://10.0.0.1:80", "HEADWAY_SERVICE_HOST": "10.0.0.1", "HEADWAY_PORT_80_TCP": "x"}
    assert load_settings({}, injected) == load_settings({}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One sentence, not a trace."""
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: No such file"):
        load_settings({}, {}, tmp_path / "nowhere.yaml")


def test_a_setting_whose_part_is_not_built_says_so(tmp_path: Path) -> None:
    """Rather than being ignored; its built-in value may be written down."""
    with pytest.raises(SettingsError, match="not built yet"):
        reading("server: {docs: true}", tmp_path)
    assert reading("server: {workers: 1, docs: false}", tmp_path) == load_settings({}, {})


# -- what holds for one model -------------------------------------------------------------------------------------


def configured(
    settings: Settings, tags: dict[str, str] | None = None, metadata: dict[str, str] | None = None
) -> Configuration:
    entry = settings.models[0] if settings.models else ModelEntry(name="m", uri="models:/m/1")
    return resolve(options_of(entry, settings), tags or {}, metadata or {})


ENTRY = "models: [{name: m, uri: 'models:/m/1', batching: {max_rows: 1}}]\n"
DEFAULTS = "defaults: {batching: {max_rows: 4}}\n"


@pytest.mark.parametrize(
    ("text", "tags", "metadata", "expected"),
    [
        (ENTRY + DEFAULTS, {"headway.max_rows": "2"}, {"headway.max_rows": "3"}, 1),
        (DEFAULTS, {"headway.max_rows": "2"}, {"headway.max_rows": "3"}, 2),
        (DEFAULTS, {}, {"headway.max_rows": "3"}, 3),
        (DEFAULTS, {}, {}, 4),
        ("", {}, {}, 32),
    ],
    ids=["entry", "tag", "metadata", "defaults", "built-in"],
)
def test_an_entry_beats_a_tag_beats_metadata_beats_defaults(
    tmp_path: Path, text: str, tags: dict[str, str], metadata: dict[str, str], expected: int
) -> None:
    """Key by key, each layer only where it says something."""
    assert configured(reading(text, tmp_path), tags, metadata).limits.max_rows == expected


def test_the_layers_mix_key_by_key(tmp_path: Path) -> None:
    """One key from each."""
    text = "models: [{name: m, uri: 'models:/m/1', output: raw}]\ndefaults: {per_instance: true, timeout_ms: 0}"
    tags, metadata = {"headway.max_wait_ms": "5", "headway.output": "labels"}, {"headway.max_rows": "3"}
    found = configured(reading(text, tmp_path), tags, metadata)
    assert (found.output, found.per_instance, found.timeout) == ("raw", True, None)
    assert (found.limits.max_wait_ms, found.limits.max_rows, found.limits.max_queue) == (5.0, 3, 2000)


def test_an_entry_may_take_back_what_the_defaults_allow(tmp_path: Path) -> None:
    """False is said; only silence passes to the next layer."""
    text = (
        "models: [{name: m, uri: 'models:/m/1', allow_code: false}]\ndefaults: {allow_code: true, allow_pickle: true}"
    )
    settings = reading(text, tmp_path)
    options = options_of(settings.models[0], settings)
    assert (options.allow_code, options.allow_pickle) == (False, True)


DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("written", [DIGEST, f"sha256:{DIGEST}", DIGEST.upper()])
def test_a_digest_may_be_written_with_or_without_its_prefix(tmp_path: Path, written: str) -> None:
    """What holds is the one spelling of the status."""
    settings = reading(f"models: [{{name: m, uri: 'models:/m/1', digest: '{written}'}}]", tmp_path)
    assert options_of(settings.models[0], settings).digest == f"sha256:{DIGEST}"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("", (("models:/m",), ("/models",))),
        ("allow_pickle: false", ((), ("/models",))),
        ("allow_code: false", (("models:/m",), ())),
        ("allow_code: false, allow_pickle: false", ((), ())),
    ],
)
def test_what_an_entry_says_of_trust_beats_the_prefixes(
    tmp_path: Path, entry: str, expected: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """A prefix allows what nobody spoke of."""
    text = f"""
security: {{allow_pickle_from: ["models:/m"], allow_code_from: [/models]}}
models: [{{name: m, uri: 'models:/m/1', {entry}}}]
"""
    settings = reading(text, tmp_path)
    options = options_of(settings.models[0], settings)
    assert (options.allow_pickle_from, options.allow_code_from) == expected


def test_a_list_in_the_environment_may_be_one_word_or_json() -> None:
    """Both mean prefixes."""
    for value, expected in (("models:/m", ("models:/m",)), ('["models:/m", "/a"]', ("models:/m", "/a"))):
        settings = load_settings({}, {"HEADWAY_SECURITY__ALLOW_PICKLE_FROM": value})
        assert settings.security.allow_pickle_from == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("", SignatureRule(True, "model.sig", Path("team.pub"))),
        ("signature: {required: false}", SignatureRule(False, "model.sig", Path("team.pub"))),
        ("signature: {file: own.sig}", SignatureRule(True, "own.sig", Path("team.pub"))),
        ("signature: {public_key: own.pub}", SignatureRule(True, "model.sig", Path("own.pub"))),
        ("signature: {certificate_chain: ca.pem}", SignatureRule(True, "model.sig", None, (Path("ca.pem"),))),
    ],
)
def test_a_signature_is_configured_for_all_models_or_for_one(
    tmp_path: Path, entry: str, expected: SignatureRule
) -> None:
    """Who names a key or certificates of its own trusts no others."""
    text = f"""
defaults: {{signature: {{required: true, public_key: team.pub}}}}
models: [{{name: m, uri: 'models:/m/1', {entry}}}]
"""
    settings = reading(text, tmp_path)
    assert options_of(settings.models[0], settings).signature == expected


def test_a_tag_says_nothing_of_deadlines_limits_or_trust(tmp_path: Path) -> None:
    """Those are the operator's: such tags are the team's own business."""
    tags = {"headway.timeout_ms": "60000", "headway.max_queue": "1", "headway.allow_pickle": "true",
            "headway.high_watermark": "0.1", "headway.digest": DIGEST, "digest": DIGEST}  # fmt: skip
    assert configured(load_settings({}, {}), tags, tags) == configured(load_settings({}, {}))


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("headway.task", "ranking"), ("headway.activation", "relu"), ("headway.output", "all"),
        ("headway.per_instance", "yes"), ("headway.max_rows", "0"), ("headway.max_rows", "many"),
        ("headway.max_rows", "1.5"), ("headway.max_wait_ms", "-1"), ("headway.max_wait_ms", "nan"),
        ("headway.max_wait_ms", "inf"), ("headway.classes", "ok,failure"), ("headway.classes", "[]"),
        ("headway.classes", '{"a": 1}'), ("headway.classes", "[1.5]"), ("headway.classes", "[" * 5000),
    ],
)  # fmt: skip
def test_a_tag_that_cannot_be_used_fails_the_version_and_is_named(tag: str, value: str) -> None:
    """Better a FAILED version that says why than one that means something else."""
    with pytest.raises(InvalidModel, match=tag):
        configured(load_settings({}, {}), {tag: value})


# -- the three words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "name", "version", "expected"),
    [
        (None, None, None, None),
        ("models:/m/3", None, None, ("m", "models:/m/3")),
        ("models:/m/Production", None, None, ("m", "models:/m/Production")),
        ("models:/m@champion", None, None, ("m", "models:/m@champion")),
        ("models:/m@champion", "served", None, ("served", "models:/m@champion")),
        (None, "m", "3", ("m", "models:/m/3")),
        (None, "m", "latest", ("m", "models:/m/latest")),
        (None, "m", "LATEST", ("m", "models:/m/latest")),
        (None, "m", "production", ("m", "models:/m/Production")),
        (None, "m", "STAGING", ("m", "models:/m/Staging")),
        (None, "m", "Archived", ("m", "models:/m/Archived")),
        (None, "m", "champion", ("m", "models:/m@champion")),
        (None, "m", "@champion", ("m", "models:/m@champion")),
        (None, "m", "@3", ("m", "models:/m@3")),
    ],
)
def test_the_words_mean_one_model(
    uri: str | None, name: str | None, version: str | None, expected: tuple[str, str] | None
) -> None:
    """A reference, or a registered name with a number, stage, `latest` or alias."""
    entry = model_from_words(uri, name, version)
    assert entry == (None if expected is None else {"name": expected[0], "uri": expected[1]})


@pytest.mark.parametrize(
    ("uri", "name", "version"),
    [("models:/m/3", None, "3"), (None, "m", None), (None, None, "3"), ("m", None, None), (None, "m", "@"), (None, "m", "a b")],
)  # fmt: skip
def test_words_that_do_not_go_together_are_an_error(uri: str | None, name: str | None, version: str | None) -> None:
    """Each says what is missing or too much."""
    with pytest.raises(SettingsError):
        model_from_words(uri, name, version)


def test_isolation_is_the_operators_and_the_entry_wins() -> None:
    """`auto` without limits is built in; a model's entry stands before `defaults`."""
    said = {"isolation": "process", "memory_mb": 500, "hang_seconds": 5}
    entries = [
        {"name": "m", "uri": "models:/m/1", "isolation": "none", "memory_mb": 0},
        {"name": "n", "uri": "models:/n/1"},
    ]
    for defaults, expected in (({}, [("none", 0, 60), ("auto", 0, 60)]), (said, [("none", 0, 5), ("process", 500, 5)])):
        settings = load_settings({"defaults": defaults, "models": entries}, {})
        options = [options_of(entry, settings) for entry in settings.models]
        assert [(o.isolation, o.memory_mb, o.hang_seconds) for o in options] == expected
