"""What callers are told of files: names without the folders that they lie in."""

import pytest

from serving.paths import shown_reference, without_folders


@pytest.mark.audit("39")
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/srv/secret/model has no MLmodel file", "model has no MLmodel file"),
        ("file:///srv/secret/model/MLmodel cannot be read", "MLmodel cannot be read"),
        ("[Errno 2] No such file: '/root/.cache/headway/ab/model.skops'", "[Errno 2] No such file: 'model.skops'"),
        ("(/a/b/, /c/d)", "(, d)"),
        ("models:/fraud/3 FAILED: see docs/trust.md, and/or http://host/a/b", None),
        ("runs:/0a1b/model, s3://bucket/a/b, 1/2", None),
        ("", None),
    ],
)
def test_a_path_is_cut_to_its_last_part(said: str, shown: str | None) -> None:
    """References, addresses and what merely has a slash stay."""
    assert without_folders(said) == (said if shown is None else shown)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [("/mnt/models", "models"), ("file:///mnt/models/", "models"), ("relative/folder", "folder"),
     ("models:/fraud@champion", "models:/fraud@champion"), ("runs:/0a/model", "runs:/0a/model")],
)  # fmt: skip
def test_a_folder_is_shown_by_its_name(uri: str, shown: str) -> None:
    """Everything else is no path."""
    assert shown_reference(uri) == shown
