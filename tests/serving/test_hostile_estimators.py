"""skops files whose arrays lie, and whose parameters reach for more than the rows: none is used, and no process ends of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from sklearn.decomposition import NMF, LatentDirichletAllocation
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC

from registry.errors import InvalidModel
from serving.estimators.file import load_skops, skops_reasons
from tests.crafted import Spot, load
from tests.models import columns
from tests.servers import ROOT
from tests.serving.hostile import HOSTILE, LABELS, TEXTS, X, save, set_on


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each hostile file did to a process of its own that served it. One thread: those processes are forks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.serving.hostile", str(tmp_path_factory.mktemp("hostile"))]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.audit("25")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_whose_arrays_lie_is_refused_and_nobody_crashes(fates: dict[str, str], name: str) -> None:
    """Indices, widths, counts, columns, functions and what holds itself: a reason, no signal, and no answer."""
    assert fates[name].startswith("InvalidModel: the skops file "), fates[name]


def piped(*steps: Any) -> Any:
    return make_pipeline(*steps, LogisticRegression())


#: Parameters that name files, functions, or work without end.
REACHING: dict[str, Any] = {
    "files": CountVectorizer(input="filename"),
    "files by tf-idf": TfidfVectorizer(input="filename"),
    "files by hash": HashingVectorizer(input="filename"),
    "open files": CountVectorizer(input="file"),
    "a tokenizer": CountVectorizer(tokenizer=np.log),
    "a preprocessor": TfidfVectorizer(preprocessor=np.log),
    "an analyzer": HashingVectorizer(analyzer=np.log),
    "a pattern that never ends": CountVectorizer(token_pattern=r"(\w+)+\b!"),
    "a pattern of squares": CountVectorizer(token_pattern=r".+x"),
    "every run of words": CountVectorizer(ngram_range=(1, 10**6)),
    "a metric that is a function": KNeighborsClassifier(metric=np.add),
    "weights that are a function": KNeighborsClassifier(weights=np.log),
    "a kernel that is a function": SVC(kernel=RBF()),
    "a function into the model": FunctionTransformer(np.log, kw_args={"out": np.zeros(3)}),
    "a function that is none that computes": FunctionTransformer(np.mean, kw_args={"out": np.zeros(3)}),
    "columns beyond all": FeatureHasher(n_features=2**40),
    "powers beyond all": set_on(PolynomialFeatures(2).fit(X), _n_out_full=10**12),
    "rounds beyond all": LatentDirichletAllocation(max_doc_update_iter=10**12),
    "more rounds": NMF(max_iter=10**12),
}  # fmt: skip


@pytest.mark.audit("27")
@pytest.mark.parametrize("what", REACHING)
def test_a_parameter_that_reaches_beyond_the_rows_is_a_reason(tmp_path: Path, what: str) -> None:
    """Within a pipeline, as an attacker would place it."""
    assert list(skops_reasons(save(piped(REACHING[what]), tmp_path / "model.skops"))) != []


@pytest.mark.audit("27")
def test_a_vectorizer_that_reads_files_is_not_served(spot: Spot) -> None:
    """The attack is real: what the library answers depends on the file that a row names."""
    model = piped(CountVectorizer()).fit(TEXTS, LABELS)
    model[-1].coef_ = np.array([[9.0 if word == "aa" else -9.0 for word in sorted(model[0].vocabulary_)]])
    model[-1].intercept_ = np.zeros(1)
    model[0].input = "filename"
    spot.save(mlflow.sklearn, model, serialization_format="skops", signature=columns(("text", "string")))
    told = []
    for secret in ("aa", "bb cc dd"):
        spot.canary.write_text(secret)
        told.append(model.predict([str(spot.canary)])[0])
    assert told[0] != told[1]
    with pytest.raises(InvalidModel, match="CountVectorizer reads files"):
        load(spot.model)


@pytest.mark.audit("27")
def test_what_is_this_machines_business_is_set_aside(tmp_path: Path) -> None:
    """Threads beyond its processors, folders for a cache, and messages; the answers are the same."""
    forest = RandomForestClassifier(3, random_state=0)
    model = Pipeline([("scaled", StandardScaler()), ("forest", forest)]).fit(X, LABELS)
    model.set_params(memory=str(tmp_path / "cache"), verbose=True, forest__n_jobs=10**6, forest__verbose=3)
    loaded = load_skops(save(model, tmp_path / "model.skops"))
    assert (loaded.memory, loaded.verbose, loaded[-1].verbose) == (None, 0, 0)
    assert loaded[-1].n_jobs == os.cpu_count()
    assert loaded.predict(X).tolist() == model.set_params(forest__n_jobs=1, forest__verbose=0).predict(X).tolist()
    assert not (tmp_path / "cache").exists()
