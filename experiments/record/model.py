"""The network of a run as an MLflow model."""

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
from experiments.record.client import errors_in_one_line
from experiments.record.files import PARAMETERS, Files
from experiments.record.tracking import Store
from experiments.run.config import Config
from experiments.run.data import Task
from experiments.run.stack import sizes

for _logger_name in (
    "mlflow.models.model",
    "mlflow.store.model_registry",
    "mlflow.tracking._model_registry.fluent",
    "mlflow.pyfunc",
):
    logging.getLogger(_logger_name).setLevel(logging.ERROR)


def log_model(store: Store, run_id: str, config: Config, files: Files, task: Task, register: str | None = None) -> str:
    """Log the network of a run as an MLflow model, once, and return the model's URI.

    The model has a signature, an example of its input, and its requirements.

    files, task: the run's files, and the task that it was trained on.
    register: the name under which the model registry gets a new version of it, None for no registration.
    """
    existing_models = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    if existing_models:
        # A sweep that is resumed has logged it before.
        return existing_models[0].model_uri
    data = task.dataset
    network = Network(sizes(config, task), config.network.activation, files.parameters, config.network.kind).with_statistics(
        data.x
    )
    input_example = data.x_validation[:, :2].T * data.x_scale + data.x_mean
    output_example = np.asarray(data.labels[:1]) if data.classes else np.zeros((1, task.units))
    # The model's page shows the run's metrics of this step, at which the network has its final parameters.
    last_step = files.history.loss.shape[-1]
    with errors_in_one_line(store.uri), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        mlflow.set_tracking_uri(with_password(store.uri))
        mlflow.set_experiment(experiment_id=store.experiment_id)
        # MLflow asks for type hints as a schema, but the signature is one already.
        warnings.simplefilter("ignore", UserWarning)
        # MLflow calls the model once, and a network that diverged overflows.
        warnings.simplefilter("ignore", RuntimeWarning)
        network_file, parameters = Path(folder, "network.json"), Path(folder, PARAMETERS)
        network_file.write_text(json.dumps(_description(network, task)))
        np.save(parameters, network.parameters, allow_pickle=False)
        model = Model.log(
            None,
            mlflow.pyfunc,
            name="network",
            run_id=run_id,
            step=last_step,
            registered_model_name=register,
            # The file is given by its path, since importing it would set it as the model of this process.
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"network": str(network_file), "parameters": str(parameters)},
            code_paths=[str(Path(blocks.__file__).parent)],
            signature=infer_signature(input_example, output_example),
            input_example=input_example,
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}"],
        )
    return model.model_uri


def _description(network: Network, task: Task) -> dict[str, object]:
    """Return what `served.py` needs in addition to the parameters, to predict in the data's own units."""
    data = task.dataset
    return {
        "sizes": network.layout.sizes,
        "activation": network.activation.name,
        "kind": network.kind,
        "loss": task.loss.name,
        "x_mean": data.x_mean.tolist(),
        "x_scale": data.x_scale.tolist(),
        "y_mean": data.y_mean.tolist(),
        "y_scale": data.y_scale.tolist(),
        "labels": data.labels.tolist(),
    }
