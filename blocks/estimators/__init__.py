"""The engine as scikit-learn's estimators."""

from blocks.estimators.networks import NetworkClassifier, NetworkRegressor

__all__ = ["NetworkClassifier", "NetworkRegressor"]
