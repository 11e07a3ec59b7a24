"""Data sets, split and scaled. Here scikit-learn's rows of examples become columns: X (m, n_x) becomes x (n_x, m)."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from blocks.arrays import Array
from blocks.losses import Loss, half_mean_squared_error, one_hot_squared_error, sigmoid_cross_entropy, softmax_cross_entropy
from experiments.run.config import Config, DatasetConfig, UserError
from experiments.run.loaders import check_examples, import_loader


@dataclass(frozen=True, eq=False)
class Dataset:
    """Split and scaled data in float64, one example a column.

    x: (n_x, m) inputs of the m training examples. y: their labels (m,), from 0, or their real-valued targets (n_y, m).
    x_validation, y_validation: the same for the validation examples.
    classes: the number of classes, None for real-valued targets.
    labels: (classes,) the data set's own names of the classes, empty for real-valued targets.
    digest: SHA-256 of all four arrays, in hexadecimal.
    x_mean (n_x,), y_mean (n_y,): the mean that was subtracted from each row. x_scale (n_x,), y_scale (n_y,): the standard
    deviation by which the row was then divided.
    """

    name: str
    x: Array
    y: Array
    x_validation: Array
    y_validation: Array
    classes: int | None
    labels: Array
    digest: str
    x_mean: Array
    x_scale: Array
    y_mean: Array
    y_scale: Array


def load_dataset(config: DatasetConfig) -> Dataset:
    """Return the data set of a config. The last four are cached. Raises UserError where it cannot be loaded or split."""
    return _load_cached(json.dumps(asdict(config), sort_keys=True))


@lru_cache(maxsize=4)
def _load_cached(key: str) -> Dataset:
    config = DatasetConfig(**json.loads(key))
    X, y = _fetch(config)
    return _split(config, X, y)


def _fetch(config: DatasetConfig) -> tuple[Array, Array]:
    """Return X (m, n_x) in float64 and y (m,) or (m, n_y) as the loader returns them. Raises UserError where they do not fit."""
    arguments = dict(config.loader)
    target = arguments.pop("_target_", None)
    loader = import_loader(target)
    check_examples(config.loader)
    try:
        with warnings.catch_warnings():
            # A loader that downloads warns at every retry; only its result matters.
            warnings.simplefilter("ignore")
            loaded = loader(**arguments)
    except OSError as error:
        raise UserError(f"dataset {config.name}: {target} could not fetch its data: {error}") from None
    except Exception as error:
        # A loader may raise any exception for arguments that it does not expect.
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"dataset.loader {config.loader} does not fit {target}: {message}") from None
    try:
        X, y = loaded if isinstance(loaded, tuple) else (loaded.data, loaded.target)
    except (AttributeError, ValueError):
        raise UserError(f"dataset {config.name}: {target} gives {type(loaded).__name__}, it must give X and y") from None
    try:
        X, y = np.asarray(X, dtype=np.float64), np.asarray(y)
    except (TypeError, ValueError):
        raise UserError(f"dataset {config.name}: {target} gives data that are not numbers") from None
    if X.ndim != 2 or y.shape[:1] != X.shape[:1] or not np.isfinite(X).all():
        raise UserError(
            f"dataset {config.name}: X has shape {X.shape}, it must be finite, one example a row for targets of shape {y.shape}"
        )
    are_values = np.issubdtype(y.dtype, np.floating)
    if y.ndim > 1 + are_values:
        raise UserError(f"dataset {config.name}: its labels have shape {y.shape}, there must be one an example")
    if are_values and not np.isfinite(y).all():
        raise UserError(f"dataset {config.name}: its targets hold {y[~np.isfinite(y)][0]}, they must be finite")
    return X, y


def _split(config: DatasetConfig, X: Array, y: Array) -> Dataset:
    """Split X and y into training and validation part, and scale both. Raises UserError where that is not possible."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    are_values = np.issubdtype(y.dtype, np.floating)
    classes, names = None, np.empty(0)
    if not are_values:
        names, y, counts = np.unique(y, return_inverse=True, return_counts=True)
        classes = len(names)
        if classes < 2 or counts.min() < 2:
            problem = f"class {names[counts.argmin()]} has {counts.min()}" if classes > 1 else "1 class"
            raise UserError(
                f"dataset {config.name}: {problem} of {len(y)} examples, it must have 2 classes or more, each with 2 or more"
            )
    try:
        X_train, X_validation, y_train, y_validation = train_test_split(
            X, y, test_size=config.test_fraction, random_state=config.seed, stratify=None if are_values else y
        )
    except ValueError as error:
        raise UserError(f"dataset.test_fraction is {config.test_fraction}, which cannot split {config.name}: {error}") from None

    def scale(train: Array, validation: Array) -> tuple[Array, Array, Array, Array]:
        """Return both parts scaled, as columns, and the mean and scale of each row, which are those of the training part."""
        with np.errstate(over="ignore", invalid="ignore"):
            scaler = StandardScaler().fit(train)
            columns = [np.ascontiguousarray(scaler.transform(part).T) for part in (train, validation)]
        if not all(np.isfinite(values).all() for values in (*columns, scaler.scale_)):
            largest = max(np.abs(train).max(), np.abs(validation).max())
            raise UserError(f"dataset {config.name}: it has a value of size {largest:g}, which cannot be scaled in float64")
        return columns[0], columns[1], scaler.mean_, scaler.scale_

    x, x_validation, x_mean, x_scale = scale(X_train, X_validation)
    y_mean, y_scale = np.zeros(0), np.ones(0)
    if are_values:
        # Targets are scaled too: the loss is then a share of their variance.
        y_train, y_validation, y_mean, y_scale = scale(*(part.reshape(len(part), -1) for part in (y_train, y_validation)))
    digest = hashlib.sha256()
    for part in (x, y_train, x_validation, y_validation):
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(part.tobytes())
    scaling = (x_mean, x_scale, y_mean, y_scale)
    return Dataset(config.name, x, y_train, x_validation, y_validation, classes, names, digest.hexdigest(), *scaling)


@dataclass(frozen=True, eq=False)
class Task:
    """The task that a data set and a loss set for a network.

    loss: J, the loss of the network's outputs. units: n_L, the number of outputs.
    constant_loss: J of the best constant prediction, which ignores x.
    """

    dataset: Dataset
    loss: Loss
    units: int
    constant_loss: float

    @property
    def score(self) -> str:
        """The score that is measured in addition to the loss: `accuracy` for labels, `r2` for real-valued targets."""
        return "r2" if self.loss.decides is None else "accuracy"


def load_task(config: Config) -> Task:
    """Return the data set of a config with its loss. Raises UserError where loss, batch size, examples or dtype do not fit it."""
    dataset = load_dataset(config.dataset)
    m = dataset.x.shape[-1]
    batch_size = config.training.batch_size
    if batch_size is not None and batch_size > m:
        raise UserError(
            f"training.batch_size is {batch_size}, it must be null or 1 to {m}, the training examples of {dataset.name}"
        )
    if config.network.kind == "batch_normalized" and 1 in (m, batch_size, m % (batch_size or m)):
        raise UserError(
            f"training.batch_size is {batch_size}, which leaves a batch of one of the {m} training examples of {dataset.name}, "
            "but network.kind batch_normalized needs at least 2 in each"
        )
    if config.network.kind == "batch_normalized" and config.instruments.examples == 1:
        raise UserError(
            f"instruments.examples is 1, but network.kind batch_normalized needs at least 2: it must be null or 2 to {m}"
        )
    examples = config.instruments.examples
    if config.instruments.noise_scale is not None and (examples or batch_size or m) == 1:
        raise UserError(
            f"instruments.examples is {examples} and training.batch_size {batch_size}, but instruments.noise_scale needs "
            f"at least 2 examples: instruments.examples must be 2 to {m}"
        )
    if (config.instruments.examples or 0) > m:
        raise UserError(
            f"instruments.examples is {config.instruments.examples}, it must be null or 1 to {m}, "
            f"the training examples of {dataset.name}"
        )
    return _create_task(dataset, config.training.loss, config.dtype)


@lru_cache(maxsize=4)
def _create_task(dataset: Dataset, name: str | None, dtype: str) -> Task:
    """Return the task. It is cached, since an engine sends one object to a worker only once."""
    largest = max(float(np.abs(part).max()) for part in (dataset.x, dataset.y, dataset.x_validation, dataset.y_validation))
    if largest > float(np.finfo(dtype).max):
        raise UserError(f"dataset {dataset.name}: scaled, it has a value of size {largest:g}, which is infinite in {dtype}")
    suitable_losses = _suitable_losses(dataset)
    name = name or next(iter(suitable_losses))
    if name not in suitable_losses:
        raise UserError(f"training.loss is {name!r}, which does not fit {dataset.name}, allowed: {', '.join(suitable_losses)}")
    loss, units, constant_loss = suitable_losses[name]
    return Task(dataset, loss, units, constant_loss)


def _suitable_losses(dataset: Dataset) -> dict[str, tuple[Loss, int, float]]:
    """Return the losses that fit a data set, the default first: name -> (loss, number of outputs, constant_loss)."""
    if dataset.classes is None:
        n_y = dataset.y.shape[0]
        return {half_mean_squared_error.name: (half_mean_squared_error, n_y, float(dataset.y.var(axis=-1).sum()) / 2)}
    share = np.bincount(dataset.y, minlength=dataset.classes) / len(dataset.y)
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    # The best constant prediction is the classes' shares. Its loss is half the sum of the variances of the one-hot labels.
    variance = float((share * (1 - share)).sum()) / 2
    losses = {
        softmax_cross_entropy.name: (softmax_cross_entropy, dataset.classes, entropy),
        # It has the name of the loss for real-valued targets, so that a sweep over both kinds of data sets can use one name.
        half_mean_squared_error.name: (one_hot_squared_error, dataset.classes, variance),
    }
    if dataset.classes == 2:
        losses = {sigmoid_cross_entropy.name: (sigmoid_cross_entropy, 1, entropy), **losses}
    return losses
