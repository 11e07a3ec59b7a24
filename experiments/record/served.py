"""A trained network as MLflow's model: raw features in, labels or values out.

MLflow copies this file and `blocks` into the model and runs them when it is loaded; nothing of it is pickled.
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


class Served(PythonModel):
    """What `mlflow models serve` answers with."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from parameters.npy and network.json."""
        self.about = json.loads(Path(context.artifacts["network"]).read_text())
        parameters = np.load(context.artifacts["parameters"], allow_pickle=False)
        self.network = Network(self.about["sizes"], self.about["activation"], parameters, self.about["kind"])

    def predict(self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Array:
        """(m,) labels, or (m, n_y) values in the data's own units; model_input: (m, n_x) features as the data set has them."""
        X = np.asarray(model_input, dtype=np.float64)
        x = ((X - self.about["x_mean"]) / self.about["x_scale"]).T
        logits, _ = self.network.forward(np.ascontiguousarray(x, self.network.parameters.dtype))
        decides = LOSSES[self.about["loss"]].decides
        if decides is None:
            return logits.T * self.about["y_scale"] + self.about["y_mean"]
        return np.asarray(self.about["labels"])[decides(logits)]


set_model(Served())
