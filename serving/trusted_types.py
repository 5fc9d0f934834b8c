"""The types that a skops file may hold: data behind fixed classes, and functions that only compute.

skops trusts public estimators by itself. These are what fitted estimators of scikit-learn hold beside them, by module.
Loading one of them runs no code that the file brings; what a file's arrays say is as much as the file can say. Types of
any other library stay out, but for the few inert ones at the end: SplineTransformer therefore needs a pickle.
"""

from __future__ import annotations

_SKLEARN = {
    "sklearn._loss._loss": (
        "CyAbsoluteError CyExponentialLoss CyHalfBinomialLoss CyHalfGammaLoss CyHalfMultinomialLoss "
        "CyHalfPoissonLoss CyHalfSquaredError CyHalfTweedieLoss CyHuberLoss CyPinballLoss"
    ),
    "sklearn._loss.link": "HalfLogitLink IdentityLink Interval LogLink LogitLink MultinomialLogit",
    "sklearn._loss.loss": (
        "AbsoluteError ExponentialLoss HalfBinomialLoss HalfGammaLoss HalfMultinomialLoss HalfPoissonLoss "
        "HalfSquaredError HalfTweedieLoss HalfTweedieLossIdentity HuberLoss PinballLoss"
    ),
    "sklearn.calibration": "_CalibratedClassifier _SigmoidCalibration _TemperatureScaling",
    "sklearn.cluster._bisect_k_means": "_BisectingTree",
    "sklearn.cluster._kmeans": "_kmeans_single_elkan _kmeans_single_lloyd",
    "sklearn.compose._column_transformer": "make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.binning": "_BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression r_regression",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels": (
        "CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern PairwiseKernel "
        "Product RBF RationalQuadratic Sum WhiteKernel"
    ),
    "sklearn.impute._iterative": "IterativeImputer _ImputerTriplet",
    "sklearn.metrics._classification": (
        "accuracy_score balanced_accuracy_score brier_score_loss d2_brier_score d2_log_loss_score f1_score "
        "jaccard_score log_loss matthews_corrcoef precision_score recall_score"
    ),
    "sklearn.metrics._dist_metrics": (
        "BrayCurtisDistance64 CanberraDistance64 ChebyshevDistance64 DiceDistance64 EuclideanDistance64 "
        "HammingDistance64 HaversineDistance64 JaccardDistance64 KulsinskiDistance64 MahalanobisDistance64 "
        "ManhattanDistance64 MatchingDistance64 MinkowskiDistance64 RogersTanimotoDistance64 "
        "RussellRaoDistance64 SEuclideanDistance64 SokalMichenerDistance64 SokalSneathDistance64"
    ),
    "sklearn.metrics._ranking": "average_precision_score roc_auc_score top_k_accuracy_score",
    "sklearn.metrics._regression": (
        "d2_absolute_error_score explained_variance_score max_error mean_absolute_error "
        "mean_absolute_percentage_error mean_gamma_deviance mean_poisson_deviance mean_squared_error "
        "mean_squared_log_error median_absolute_error r2_score root_mean_squared_error "
        "root_mean_squared_log_error"
    ),
    "sklearn.metrics._scorer": (
        "_CurveScorer _PassthroughScorer _Scorer negative_likelihood_ratio positive_likelihood_ratio"
    ),
    "sklearn.metrics.cluster._supervised": (
        "adjusted_mutual_info_score adjusted_rand_score completeness_score fowlkes_mallows_score "
        "homogeneity_score mutual_info_score normalized_mutual_info_score rand_score v_measure_score"
    ),
    "sklearn.model_selection._search_successive_halving": "HalvingGridSearchCV HalvingRandomSearchCV",
    "sklearn.model_selection._split": (
        "GroupKFold GroupShuffleSplit KFold LeaveOneGroupOut LeaveOneOut LeavePGroupsOut LeavePOut "
        "PredefinedSplit RepeatedKFold RepeatedStratifiedKFold ShuffleSplit StratifiedGroupKFold "
        "StratifiedKFold StratifiedShuffleSplit TimeSeriesSplit"
    ),
    "sklearn.multiclass": "_ConstantPredictor",
    "sklearn.neighbors._ball_tree": "BallTree BallTree64",
    "sklearn.neighbors._kd_tree": "KDTree KDTree64",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.preprocessing._label": "LabelBinarizer",
    "sklearn.tree._tree": "Tree",
    "sklearn.utils._bunch": "Bunch",
    "sklearn.utils._metadata_requests": "MetadataRequest MethodMetadataRequest",
    "sklearn.utils.validation": "check_array",
}

#: An estimator's dtype, sparse matrix or mean; a partial is of a trusted function or it does not load.
_INERT = (
    "functools.partial",
    "numpy.dtype",
    "numpy.mean",
    "numpy.number",
    "scipy.sparse._csc.csc_matrix",
    "scipy.sparse._csr.csr_matrix",
)

#: scikit-learn's own.
SKLEARN_TYPES = frozenset(f"{module}.{name}" for module, names in _SKLEARN.items() for name in names.split())
TRUSTED_SKOPS = SKLEARN_TYPES | frozenset(_INERT)
