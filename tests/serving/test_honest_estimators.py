"""What people save: every kind of estimator that compiled code follows, in its variants, loads and answers as it did."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.decomposition import LatentDirichletAllocation, TruncatedSVD
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, mutual_info_classif
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, RationalQuadratic
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import RandomizedSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, LocalOutlierFactor, RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.random_projection import SparseRandomProjection
from sklearn.svm import SVC, SVR, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier

from serving.estimators.file import load_skops
from tests.serving.hostile import LABELS, NUMBERS, TEXTS, THREE, X, save

SEVERAL = np.c_[LABELS, 1 - LABELS, (X[:, 1] > 0.5).astype(int)]
FRAME = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": np.tile(["x", "y", "z", "x"], 20), "d": np.tile(["u", "v"], 40)})
GAPS = np.where(X > 0.9, np.nan, X)
CODED = [("coded", OrdinalEncoder(), ["c", "d"])]


def mixed(encoder: Any, **more: Any) -> Any:
    return ColumnTransformer([("coded", encoder, ["c", "d"]), ("rest", "passthrough", ["a", "b"])], **more)


HONEST: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "trees that were pruned": lambda: (DecisionTreeClassifier(ccp_alpha=0.01, max_leaf_nodes=9), X, THREE),
    "trees with gaps": lambda: (RandomForestClassifier(3), GAPS, LABELS),
    "trees with several targets": lambda: (RandomForestClassifier(3, random_state=np.random.RandomState(3)), X, SEVERAL),
    "trees of chance": lambda: (ExtraTreesRegressor(3, bootstrap=True, oob_score=False), X, NUMBERS),
    "trees of the odd ones": lambda: (IsolationForest(n_estimators=3), X, None),
    "boosting of three classes": lambda: (GradientBoostingClassifier(n_estimators=2), X, THREE),
    "boosting from zero": lambda: (GradientBoostingClassifier(n_estimators=2, init="zero"), X, THREE),
    "boosting of quantiles": lambda: (GradientBoostingRegressor(n_estimators=2, loss="quantile"), X, NUMBERS),
    "histogram of three classes": lambda: (HistGradientBoostingClassifier(max_iter=2), X, THREE),
    "histogram of categories": lambda: (
        HistGradientBoostingClassifier(max_iter=3, categorical_features=["c", "d"], min_samples_leaf=2), FRAME, LABELS
    ),
    "histogram with gaps": lambda: (HistGradientBoostingRegressor(max_iter=2, loss="poisson"), GAPS, NUMBERS),
    "histogram in a pipeline": lambda: (
        make_pipeline(ColumnTransformer(CODED, remainder="passthrough"), HistGradientBoostingClassifier(max_iter=2)),
        FRAME, LABELS,
    ),
    "support vectors of three classes": lambda: (SVC(), X, THREE),
    "support vectors by polynomials": lambda: (SVR(kernel="poly"), X, NUMBERS),
    "support vectors of one class": lambda: (OneClassSVM(), X, None),
    "support vectors of the caller": lambda: (SVC(kernel="precomputed"), X @ X.T, LABELS),
    "support vectors of texts": lambda: (make_pipeline(TfidfVectorizer(), SVC(kernel="linear")), TEXTS, LABELS),
    "neighbours by mahalanobis": lambda: (
        KNeighborsClassifier(metric="mahalanobis", metric_params={"VI": np.eye(3)}, algorithm="ball_tree"), X, THREE
    ),
    "neighbours by weights": lambda: (KNeighborsRegressor(p=3, metric_params={"w": np.ones(3)}), X, NUMBERS),
    "neighbours on a sphere": lambda: (KNeighborsRegressor(metric="haversine", algorithm="ball_tree"), X[:, :2], NUMBERS),
    "neighbours by angle": lambda: (KNeighborsClassifier(metric="cosine", algorithm="brute"), X, THREE),
    "neighbours of texts": lambda: (make_pipeline(TfidfVectorizer(), KNeighborsClassifier()), TEXTS, LABELS),
    "neighbours with several targets": lambda: (KNeighborsClassifier(weights="distance"), X, SEVERAL),
    "neighbours within a radius": lambda: (RadiusNeighborsClassifier(radius=3.0), X, THREE),
    "neighbours of the odd ones": lambda: (LocalOutlierFactor(novelty=True), X, None),
    "means": lambda: (make_pipeline(StandardScaler(), KMeans(3)), X, None),
    "means in batches": lambda: (MiniBatchKMeans(3), X, None),
    "means by halves": lambda: (BisectingKMeans(4, algorithm="elkan"), X, None),
    "words": lambda: (
        make_pipeline(CountVectorizer(ngram_range=(1, 2), stop_words="english", token_pattern=r"(?u)\b\w+\b"), MultinomialNB()),
        TEXTS, LABELS,
    ),
    "letters": lambda: (
        make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)), LogisticRegression()), TEXTS, LABELS
    ),
    "words without a vocabulary": lambda: (make_pipeline(HashingVectorizer(n_features=64), SGDClassifier()), TEXTS, LABELS),
    "topics": lambda: (make_pipeline(CountVectorizer(), LatentDirichletAllocation(2), Ridge()), TEXTS, NUMBERS),
    "fewer columns of words": lambda: (make_pipeline(TfidfVectorizer(), TruncatedSVD(2), Ridge()), TEXTS, NUMBERS),
    "rare categories": lambda: (
        make_pipeline(
            mixed(OneHotEncoder(drop="first", min_frequency=25, handle_unknown="infrequent_if_exist")), LogisticRegression()
        ),
        FRAME, LABELS,
    ),
    "two categories": lambda: (
        make_pipeline(mixed(OneHotEncoder(drop="if_binary", sparse_output=False)), RandomForestClassifier(3)), FRAME, LABELS
    ),
    "categories by target": lambda: (make_pipeline(mixed(TargetEncoder()), LogisticRegression()), FRAME, LABELS),
    "columns by their type": lambda: (
        make_pipeline(
            ColumnTransformer([("n", QuantileTransformer(n_quantiles=9), make_column_selector(dtype_include=np.number))]),
            Ridge(),
        ),
        FRAME, NUMBERS,
    ),
    "bins": lambda: (
        make_pipeline(KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf"), LogisticRegression()), X, LABELS
    ),
    "powers": lambda: (make_pipeline(PolynomialFeatures(3), Ridge()), X, NUMBERS),
    "functions": lambda: (make_pipeline(FunctionTransformer(np.log1p, np.expm1), Ridge()), X, NUMBERS),
    "functions of the target": lambda: (TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1), X, NUMBERS),
    "functions that choose": lambda: (
        make_pipeline(SelectKBest(partial(mutual_info_classif, random_state=0), k=2), LogisticRegression()), X, LABELS
    ),
    "projections": lambda: (make_pipeline(SparseRandomProjection(2), Ridge()), X, NUMBERS),
    "searches": lambda: (
        RandomizedSearchCV(
            RandomForestClassifier(), {"n_estimators": [2, 3]}, n_iter=2, cv=2, scoring=make_scorer(f1_score, average="macro")
        ),
        X, LABELS,
    ),
    "thresholds": lambda: (TunedThresholdClassifierCV(LogisticRegression()), X, LABELS),
    "calibration": lambda: (CalibratedClassifierCV(LinearSVC(), ensemble=False), X, THREE),
    "processes": lambda: (GaussianProcessClassifier(1.0 * RBF() + RationalQuadratic()), X, THREE),
    "bags": lambda: (BaggingClassifier(LogisticRegression(), max_features=2, n_estimators=3), X, THREE),
    "stacks": lambda: (StackingClassifier([("a", LogisticRegression()), ("b", KNeighborsClassifier())]), X, THREE),
    "votes": lambda: (VotingRegressor([("a", Ridge()), ("b", KNeighborsRegressor())]), X, NUMBERS),
    "chains": lambda: (ClassifierChain(LogisticRegression()), X, SEVERAL),
    "several models": lambda: (MultiOutputClassifier(RandomForestClassifier(3)), X, SEVERAL),
    "one model a label": lambda: (OneVsRestClassifier(LogisticRegression()), X, SEVERAL),
}  # fmt: skip


@pytest.mark.audit("25")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", HONEST)
def test_an_honest_model_loads_and_answers_as_it_did(tmp_path: Path, what: str) -> None:
    """Through the checks that hostile ones do not pass."""
    model, rows, target = HONEST[what]()
    fitted = model.fit(rows, target)
    loaded = load_skops(save(fitted, tmp_path / "model.skops"))
    assert np.array_equal(loaded.predict(rows), fitted.predict(rows))
