"""The house: what lies where, and what must never happen."""

import configparser
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_manifest_folder_never_shadows_the_sdk() -> None:
    """`import kserve` is the SDK; without it, run: pip install -r requirements.txt."""
    spec = find_spec("kserve")
    assert spec is not None
    assert spec.origin is not None, "kserve is not installed: pip install -r requirements.txt"
    assert "site-packages" in spec.origin
    assert list((ROOT / "kserve").rglob("*.py")) == []


def test_setup_names_exactly_the_packages_that_exist() -> None:
    """Packages are named one by one, and none is forgotten."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = set(config["options"]["packages"].split())
    found = {
        str(init.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("serving", "registry", "features", "monitoring")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert named == found
