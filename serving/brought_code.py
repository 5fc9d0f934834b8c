"""Code among a version's files, for flavours that MLflow loads. Its loaders trust what lies beside the weights: that of
`transformers` imports a model's own Python, or fetches it from a hub, without being asked. So the files decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from registry.mlmodel import MLmodel
from registry.trees import files

#: What Python, or a library, would import or run.
_IMPORTED = frozenset({".py", ".pyc", ".pyd", ".so", ".dylib", ".dll", ".pyz", ".egg", ".whl", ".jar"})
#: Keys of configurations that name classes outside of the library, in the folder or on a hub.
_NAMES_CLASSES = re.compile(rb'"(auto_map|auto_mapping|custom_pipelines)"')
_ESCAPED = re.compile(rb"\\u00([2-7][0-9a-fA-F])")
LONGEST_JSON = 64 << 20
_OWN_MODULES = "sentence_transformers."


def code_in_files(model: MLmodel) -> Iterator[str]:
    """Why the files are code; nothing if MLflow's loader would find none. Raises InvalidModel for a link among them."""
    found = list(files(model.path))
    imported = [name for name, path in found if path.suffix.lower() in _IMPORTED]
    if imported:
        yield f"the version brings a file that may be imported ({imported[0][-64:]}): set allow_code to load it"
    named = [name for name, path in found if path.suffix.lower() == ".json" and _names_classes(path)]
    if named:
        yield f"{named[0][-64:]} names classes of its own, which are code: set allow_code to load it"
    if any(path.name == "modules.json" and not _own_modules(path) for _, path in found):
        yield "modules.json names classes that are not its library's: set allow_code to load it"
    if _from_a_hub(model.flavor("transformers")):
        yield "the weights are on a hub, with whatever code lies there: set allow_code to load it"


def _names_classes(path: Path) -> bool:
    """Whether a JSON file has one of the keys, however it is written; a file too long to look at may."""
    if path.stat().st_size > LONGEST_JSON:
        return True
    text = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), path.read_bytes())
    return _NAMES_CLASSES.search(text) is not None


def _own_modules(path: Path) -> bool:
    """Whether the parts of a sentence-transformers model are that library's."""
    try:
        return all(str(part["type"]).startswith(_OWN_MODULES) for part in json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _from_a_hub(conf: Mapping[str, Any]) -> bool:
    return bool(conf) and not conf.get("model_binary")
