"""Checks of model archives that MLflow knows best."""

from __future__ import annotations

from pathlib import Path

from registry.errors import InvalidModel


def check_pt2(file: Path) -> None:
    """Raises InvalidModel unless every record of a `.pt2` archive is JSON, plain tensor bytes, or passes torch's
    weights-only loader. Compiled AOTInductor code is none of these.

    The check is MLflow's own (it is what `MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false` runs); if a future MLflow moves
    it, nothing is loaded rather than something unchecked.
    """
    try:
        from mlflow.pytorch import _validate_pt2_archive_is_pickle_free as check
    except ImportError as error:
        raise InvalidModel("this MLflow cannot check pt2 archives, so none is loaded") from error
    try:
        check(str(file))
    except Exception as error:
        raise InvalidModel("the pt2 archive holds a record that is pickled or compiled code, not tensors") from error
