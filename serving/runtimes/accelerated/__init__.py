"""scikit-learn models computed without scikit-learn: arrays for linear models, ONNX Runtime for trees, proved at load."""
