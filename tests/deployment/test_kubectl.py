"""The test's kubectl does what the real one does, where the real one is there to compare."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployment.clusters import running
from tests.deployment.controller import Json
from tests.deployment.kubectl import Failure, apply_patch, jsonpath

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
VALUE = "/spec/predictor/containers/0/env/1/value"
PATCHES = [
    ("json", [{"op": "replace", "path": VALUE, "value": "2"}, {"op": "add", "path": "/spec/predictor/x", "value": 1}]),
    ("json", [{"op": "remove", "path": "/spec/predictor/minReplicas"}]),
    ("merge", {"spec": {"predictor": {"canaryTrafficPercent": 10, "minReplicas": None}}}),
    ("merge", {"spec": {"predictor": {"containers": [{"name": "kserve-container"}]}}}),
]
REFUSED = [
    ("json", [{"op": "test", "path": "/spec/predictor/containers/0/env/0/name", "value": "MODEL_VERSION"}]),
    ("json", [{"op": "remove", "path": "/spec/predictor/canaryTrafficPercent"}]),
    ("strategic", {"spec": {"predictor": {"canaryTrafficPercent": 10}}}),
]
TEMPLATES = [
    "{.spec.predictor.canaryTrafficPercent}",
    "{.spec.predictor.minReplicas}",
    "{.metadata.annotations.serving\\.kserve\\.io/deploymentMode}",
    '{.spec.predictor.containers[0].env[?(@.name=="MODEL_VERSION")].value}',
    '{range .spec.predictor.containers[0].env[*]}{.name}{"\\n"}{end}',
    "{.spec.predictor.containers[0].securityContext}",
    "{.spec.predictor.containers[0].env[*].name} {.spec.predictor.minReplicas}",
]


@pytest.fixture
def service() -> Json:
    return running("1").service()


def real(folder: Path, service: Json, *flags: str) -> subprocess.CompletedProcess[str]:
    """`kubectl patch --local`: no cluster is asked."""
    file = folder / "service.json"
    file.write_text(json.dumps(service))
    command = ["kubectl", "patch", "--local", "-f", str(file), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"KUBECONFIG": "/nowhere"})


@pytest.mark.parametrize(("kind", "change"), PATCHES)
def test_patches_are_equal(service: Json, tmp_path: Path, kind: str, change: object) -> None:
    """JSON patches and merge patches give the same object."""
    text = json.dumps(change)
    done = real(tmp_path, service, f"--type={kind}", "-p", text, "-o", "json")
    assert json.loads(done.stdout) == apply_patch(service, kind, text)


@pytest.mark.parametrize(("kind", "change"), REFUSED)
def test_what_one_refuses_the_other_refuses(service: Json, tmp_path: Path, kind: str, change: object) -> None:
    """A failed test, a missing path, and the strategic patch that custom resources do not have."""
    text = json.dumps(change)
    assert real(tmp_path, service, f"--type={kind}", "-p", text).returncode == 1
    with pytest.raises(Failure):
        apply_patch(service, kind, text)


@pytest.mark.parametrize("template", TEMPLATES)
def test_json_paths_are_equal(service: Json, tmp_path: Path, template: str) -> None:
    """Missing fields, escaped dots, filters, ranges, objects."""
    done = real(tmp_path, service, "--type=merge", "-p", "{}", "-o", f"jsonpath={template}")
    assert done.stdout == jsonpath(template, service)
