"""The engine as scikit-learn's estimators: the only folder of the engine that may import scikit-learn."""

from blocks.estimators.networks import NetworkClassifier, NetworkRegressor

__all__ = ["NetworkClassifier", "NetworkRegressor"]
