"""Every manifest of every overlay holds what it promises; and every rule that says so has been seen to complain."""

import re
import shutil
import subprocess
from pathlib import Path

import mlflow.cli
import pytest
import yaml
from feast.repo_config import RepoConfig

from tests.manifests import schemas
from tests.manifests.breaking import BREAKS, Broken
from tests.manifests.cluster import Bundle
from tests.manifests.rendering import KSERVE, KUBECTL, OVERLAYS, folder, render
from tests.manifests.rules import RULES, bundle, judge
from tests.manifests.truth import config_values

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not here: overlays cannot be rendered")
CUSTOM = (
    "InferenceService", "ClusterServingRuntime", "HTTPRoute", "PodMonitor", "PrometheusRule", "AuthorizationPolicy",
    "PeerAuthentication",
)  # fmt: skip


def test_the_base_keeps_every_rule() -> None:
    """Nothing is to be said against the base, kubectl or not."""
    assert judge(bundle("base")) == []


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_keeps_every_rule(name: str) -> None:
    """Nothing is to be said against the overlay, by the rules of its own mode."""
    assert judge(bundle(name)) == []


@pytest.mark.parametrize("broken", BREAKS, ids=str)
def test_a_rule_notices_what_is_broken(broken: Broken) -> None:
    """What is broken in one way is noticed by the rule for it, and by no other."""
    if KUBECTL is None and broken.overlay != "base":
        pytest.skip("kubectl is not here: overlays cannot be rendered")
    found = bundle(broken.overlay)
    broken.edit(found)
    assert {rule for rule, _ in judge(found)} == {broken.rule}


def test_every_rule_has_been_seen_to_complain() -> None:
    """No rule stands here that nothing breaks."""
    assert {broken.rule for broken in BREAKS} == RULES.keys()


@needs_kubectl
@pytest.mark.parametrize("kind", CUSTOM)
def test_a_custom_kind_is_judged_by_its_definition(kind: str) -> None:
    """A field that the kind does not have is refused; kinds without a definition at hand say so."""
    found = next(found for name in OVERLAYS for found in render(name) if found["kind"] == kind)
    if not schemas.judged(found):
        pytest.skip(f"no definition of {kind} is at hand ({schemas.CRDS})")
    assert schemas.problems(found) == ()
    found["spec"]["surprise"] = True
    assert schemas.problems(found)


@needs_kubectl
def test_another_namespace_is_one_word_in_one_line(tmp_path: Path) -> None:
    """Every overlay then lies there, with its Namespace and its queries, and nothing is left in the one of before."""
    copied = shutil.copytree(KSERVE, tmp_path / "kserve")
    shutil.copytree(KSERVE.parent / "monitoring" / "dashboards", tmp_path / "monitoring" / "dashboards")
    line = copied / "components" / "namespace" / "kustomization.yaml"
    line.write_text(line.read_text("utf-8").replace("namespace: headway", "namespace: elsewhere"))
    for name in ("base", *OVERLAYS):
        where = copied / ("base" if name == "base" else f"overlays/{name}")
        done = subprocess.run(
            [str(KUBECTL), "kustomize", str(where)], check=True, capture_output=True, text=True, timeout=60
        )
        objects = list(yaml.safe_load_all(done.stdout))
        assert {o["metadata"].get("namespace") for o in objects} <= {"elsewhere", "mlflow", "redis", None}, name
        assert "headway" not in {o["metadata"]["name"] for o in objects if o["kind"] == "Namespace"}
        assert not re.findall(r'namespace=~?\\?"headway', done.stdout), name


COMPONENTS = {"envoy-gateway": "BackendTrafficPolicy", "istio": "DestinationRule"}


@needs_kubectl
@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_for_a_gateway_is_what_its_definition_says(name: str, tmp_path: Path) -> None:
    """Rendered into the base, it is one object more, of a shape that its definition takes, and it means our pods."""
    overlay = tmp_path / "kserve" / "overlays" / "mine"
    shutil.copytree(KSERVE, tmp_path / "kserve")
    overlay.mkdir()
    said = {"resources": ["../../base"], "components": [f"../../components/{name}"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(said))
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(overlay)], check=True, capture_output=True, text=True, timeout=60
    )
    objects = list(yaml.safe_load_all(done.stdout))
    (found,) = [each for each in objects if each["kind"] == COMPONENTS[name]]
    assert found["metadata"]["namespace"] == "headway"
    (service,) = [each for each in objects if each["kind"] == "InferenceService"]
    if name == "istio":
        assert found["spec"]["host"] == f"{service['metadata']['name']}-predictor"
    else:
        (selector,) = found["spec"]["targetSelectors"]
        assert selector["matchLabels"].items() <= service["metadata"]["labels"].items()
    if schemas.definition(found) is None:
        pytest.skip(f"no definition of {found['kind']} is at hand ({schemas.CRDS})")
    assert schemas.problems(found) == ()


def test_the_sdk_knows_every_field_of_the_base() -> None:
    """KServe's own model classes have all fields of the InferenceService, and not one that is misspelt."""
    service = bundle("base").services[0]
    assert list(schemas.modelled(service)) == []
    service["spec"]["predictor"]["containers"][0]["readynessProbe"] = {}
    assert list(schemas.modelled(service))


@needs_kubectl
def test_the_base_read_file_by_file_is_the_base_as_rendered() -> None:
    """Where kubectl is missing, the same objects are judged."""
    by_name = {(found["kind"], found["metadata"]["name"]): found for found in render("base")}
    listed = yaml.safe_load((KSERVE / "base" / "kustomization.yaml").read_text("utf-8"))["resources"]
    read = [yaml.safe_load((KSERVE / "base" / name).read_text("utf-8")) for name in listed]
    for found in read:
        rendered = by_name[found["kind"], found["metadata"]["name"]]
        rendered["metadata"].pop("namespace", None)
        assert rendered == found


def test_mlflow_accepts_the_words_of_the_test_cluster() -> None:
    """Every flag of the overlay `dev` is one of `mlflow server`, and its address is the one that the base asks."""
    objects = [yaml.safe_load(part) for part in (folder("dev") / "mlflow.yaml").read_text("utf-8").split("---\n")]
    (pod,) = Bundle("dev", objects).pods
    container = pod.container
    assert container["command"] == ["mlflow", "server"]
    known = {each["name"]: each.get("value", "mlflow") for each in container["env"]}
    words = [re.sub(r"\$\((\w+)\)", lambda name: known[name[1]], word) for word in container["args"]]
    given = mlflow.cli.server.make_context("server", words).params
    service = f"mlflow.mlflow.svc.cluster.local:{given['port']}"
    assert service in given["allowed_hosts"].split(",")
    ((_, settings),) = config_values(bundle("base"))
    assert settings["registry"]["tracking_uri"] == f"http://{service}"


def test_feast_accepts_the_repository_of_the_transformer() -> None:
    """Its file is a repository's, and the store is where the network lets the pod go."""
    (found,) = yaml.safe_load_all((folder("transformer") / "feast-config-map.yaml").read_text("utf-8"))
    config = RepoConfig(repo_path=KSERVE, **yaml.safe_load(found["data"]["feature_store.yaml"]))
    assert config.online_store.connection_string == "redis.redis.svc.cluster.local:6379"
    assert config.registry.path.startswith("s3://")


def test_every_overlay_is_in_the_table() -> None:
    """kserve/README.md has a row for each overlay, with the command that applies it."""
    text = (KSERVE / "README.md").read_text("utf-8")
    for name in OVERLAYS:
        assert f"| [`{name}`](overlays/{name}/kustomization.yaml) |" in text
        assert f"`kubectl apply -k kserve/overlays/{name}`" in text
