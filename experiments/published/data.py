"""scikit-learn's data sets, standardised as in the published results."""

import numpy as np

from blocks.arrays import Array


def load_standardised(name: str) -> tuple[Array, Array]:
    """Return all examples of a data set, x (n_x, m) and y (m,).

    Every feature of x has mean 0, and variance 1 unless it is constant.
    """
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    return np.ascontiguousarray(StandardScaler().fit_transform(X).T), y
