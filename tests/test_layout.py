"""The house: what lies where, and what must never happen."""

import ast
import configparser
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

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
        str(module.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("serving", "registry", "features", "monitoring")
        for module in (ROOT / top).rglob("*.py")
    }
    assert named == found


def test_the_core_declares_what_it_imports() -> None:
    """Every library that the packages import comes with the core, or with an extra by name: none with a neighbour alone."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    core = closure(Requirement(line) for line in config["options"]["install_requires"].split("\n") if line)
    extras = {Requirement(line).name for group in config["options.extras_require"].values()
              for line in group.split("\n") if line}  # fmt: skip
    distributions = packages_distributions()
    for name in sorted(imported() - set(sys.stdlib_module_names) - {"serving", "registry", "features", "monitoring"}):
        assert {canonical(found) for found in distributions[name]} & {canonical(n) for n in core | extras}, name


def imported() -> set[str]:
    """The first word of every import in the packages, wherever it stands."""
    found = set()
    for top in ("serving", "registry", "features", "monitoring"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.partition(".")[0])
    return found


def closure(wanted: Iterator[Requirement]) -> set[str]:
    """Everything that is installed along with these, without their extras."""
    found: set[str] = set()
    ahead = list(wanted)
    while ahead:
        name = canonical(ahead.pop().name)
        if name not in found:
            found.add(name)
            try:
                ahead += [r for r in map(Requirement, requires(name) or ()) if not r.marker or r.marker.evaluate()]
            except PackageNotFoundError:  # for another platform or Python
                continue
    return found


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")
