"""A trained network as an MLflow model, which takes raw features and returns labels or values.

MLflow copies this file and `blocks` into the model, and runs them when the model is loaded; nothing is pickled.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from blocks.arrays import Array
from blocks.losses import LOSSES
from blocks.network import Network


class NetworkModel(PythonModel):
    """The model that `mlflow models serve` serves."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from parameters.npy and network.json."""
        self.about = json.loads(Path(context.artifacts["network"]).read_text())
        parameters = np.load(context.artifacts["parameters"], allow_pickle=False)
        self.network = Network(self.about["sizes"], self.about["activation"], parameters, self.about["kind"])

    def predict(self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Array:
        """Return labels (m,), or values (m, n_y) in the data's own units. model_input: raw features (m, n_x)."""
        X = np.asarray(model_input, dtype=np.float64)
        x = ((X - self.about["x_mean"]) / self.about["x_scale"]).T
        logits, _ = self.network.forward(np.ascontiguousarray(x, self.network.parameters.dtype))
        decides = LOSSES[self.about["loss"]].decides
        if decides is None:
            return logits.T * self.about["y_scale"] + self.about["y_mean"]
        return np.asarray(self.about["labels"])[decides(logits)]


set_model(NetworkModel())
