"""scikit-learn's data sets as the published results take them."""

import numpy as np

from blocks.arrays import Array


def standardised(name: str) -> tuple[Array, Array]:
    """x (n_x, m) with mean 0 and variance 1 in every feature that varies, and y, all examples."""
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    return np.ascontiguousarray(StandardScaler().fit_transform(X).T), y
