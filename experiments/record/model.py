"""A run's network logged as an MLflow model."""

import json
import logging
import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import Model, infer_signature

import blocks
from blocks.network import Network
from experiments.record.address import with_password
from experiments.record.client import in_one_line
from experiments.record.files import PARAMETERS, Files
from experiments.record.tracking import Store
from experiments.run.config import Config
from experiments.run.data import Task
from experiments.run.stack import sizes

for _chatty in ("mlflow.models.model", "mlflow.store.model_registry", "mlflow.tracking._model_registry.fluent", "mlflow.pyfunc"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)


def log_model(store: Store, run_id: str, config: Config, kept: Files, of: Task, register: str | None = None) -> str:
    """Log the network of that run, with signature, an example of its input, and what it needs, once; returns the model's URI.

    register: the name under which the model registry gets it as a new version.
    """
    logged_before = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    if logged_before:
        # A sweep that is resumed comes here again.
        return logged_before[0].model_uri
    data = of.dataset
    predicting = Network(sizes(config, of), config.network.activation, kept.parameters, config.network.kind).with_statistics(
        data.x
    )
    example = data.x_validation[:, :2].T * data.x_scale + data.x_mean
    answer = np.asarray(data.labels[:1]) if data.classes else np.zeros((1, of.units))
    # The model's page shows the run's metrics of that step: those of the network as it is now.
    last = kept.history.loss.shape[-1]
    with in_one_line(store.uri), tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        mlflow.set_tracking_uri(with_password(store.uri))
        mlflow.set_experiment(experiment_id=store.experiment_id)
        # MLflow would like type hints as a schema; the signature is one.
        warnings.simplefilter("ignore", UserWarning)
        # It asks for an answer, which of a network that diverged overflows.
        warnings.simplefilter("ignore", RuntimeWarning)
        network, parameters = Path(name, "network.json"), Path(name, PARAMETERS)
        network.write_text(json.dumps(_description(predicting, of)))
        np.save(parameters, predicting.parameters, allow_pickle=False)
        logged = Model.log(
            None,
            mlflow.pyfunc,
            name="network",
            run_id=run_id,
            step=last,
            registered_model_name=register,
            # By its path: to import it would be to load it as a model.
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"network": str(network), "parameters": str(parameters)},
            code_paths=[str(Path(blocks.__file__).parent)],
            signature=infer_signature(example, answer),
            input_example=example,
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}"],
        )
    return logged.model_uri


def _description(network: Network, of: Task) -> dict[str, object]:
    """What `served.py` needs to answer in the data's own units, beside the parameters."""
    data = of.dataset
    return {
        "sizes": network.layout.sizes,
        "activation": network.activation.name,
        "kind": network.kind,
        "loss": of.loss.name,
        "x_mean": data.x_mean.tolist(),
        "x_scale": data.x_scale.tolist(),
        "y_mean": data.y_mean.tolist(),
        "y_scale": data.y_scale.tolist(),
        "labels": data.labels.tolist(),
    }
