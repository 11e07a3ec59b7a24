"""A scikit-learn data set -> split, scaled, (n_x, m) arrays and a digest: the one place where rows become columns."""

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
    """Split and scaled data, one example a column, float64.

    x, y: (n_x, m) and labels (m,) from 0, or values (n_y, m), of the training part; x_validation, y_validation likewise.
    classes: their number, None where y are values. labels: (classes,) what the data set calls them, empty for values.
    digest: sha256 of all four arrays.
    x_mean, x_scale (n_x,), y_mean, y_scale (n_y,): what was subtracted from each row, and what it was then divided by.
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


def load(config: DatasetConfig) -> Dataset:
    """The data set of that config; the last few stay in memory. Raises UserError where it cannot be had or split."""
    return _load(json.dumps(asdict(config), sort_keys=True))


@lru_cache(maxsize=4)
def _load(key: str) -> Dataset:
    config = DatasetConfig(**json.loads(key))
    X, y = _fetch(config)
    return _split(config, X, y)


def _fetch(config: DatasetConfig) -> tuple[Array, Array]:
    """X (m, n_x) and y as the loader gives them."""
    arguments = dict(config.loader)
    target = arguments.pop("_target_", None)
    loader = import_loader(target)
    check_examples(config.loader)
    try:
        with warnings.catch_warnings():
            # A loader that downloads warns at every retry; what counts is whether it succeeds.
            warnings.simplefilter("ignore")
            loaded = loader(**arguments)
    except OSError as error:
        raise UserError(f"dataset {config.name}: {target} could not fetch its data: {error}") from None
    except Exception as error:
        # What a loader raises for arguments that it does not expect is no part of what it promises.
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"dataset.loader {config.loader} does not fit {target}: {told}") from None
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
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    are_values = np.issubdtype(y.dtype, np.floating)
    classes, names = None, np.empty(0)
    if not are_values:
        names, y, counts = np.unique(y, return_inverse=True, return_counts=True)
        classes = len(names)
        if classes < 2 or counts.min() < 2:
            has = f"class {names[counts.argmin()]} has {counts.min()}" if classes > 1 else "1 class"
            raise UserError(
                f"dataset {config.name}: {has} of {len(y)} examples, it must have 2 classes or more, each with 2 or more"
            )
    try:
        X_train, X_held, y_train, y_held = train_test_split(
            X, y, test_size=config.test_fraction, random_state=config.seed, stratify=None if are_values else y
        )
    except ValueError as error:
        raise UserError(f"dataset.test_fraction is {config.test_fraction}, which cannot split {config.name}: {error}") from None

    def scaled(train: Array, held: Array) -> tuple[Array, Array, Array, Array]:
        """Both parts as columns, mean and scale: of the training part alone."""
        with np.errstate(over="ignore", invalid="ignore"):
            scaler = StandardScaler().fit(train)
            columns = [np.ascontiguousarray(scaler.transform(part).T) for part in (train, held)]
        if not all(np.isfinite(values).all() for values in (*columns, scaler.scale_)):
            largest = max(np.abs(train).max(), np.abs(held).max())
            raise UserError(f"dataset {config.name}: it has a value of size {largest:g}, which cannot be scaled in float64")
        return columns[0], columns[1], scaler.mean_, scaler.scale_

    x, x_validation, x_mean, x_scale = scaled(X_train, X_held)
    y_mean, y_scale = np.zeros(0), np.ones(0)
    if are_values:
        # The targets of a regression too: their loss then is a share of their variance.
        y_train, y_held, y_mean, y_scale = scaled(*(part.reshape(len(part), -1) for part in (y_train, y_held)))
    digest = hashlib.sha256()
    for part in (x, y_train, x_validation, y_held):
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(part.tobytes())
    scaling = (x_mean, x_scale, y_mean, y_scale)
    return Dataset(config.name, x, y_train, x_validation, y_held, classes, names, digest.hexdigest(), *scaling)


@dataclass(frozen=True, eq=False)
class Task:
    """What the data and the config together ask of a network.

    loss: of its logits. units: n_L, the number of logits.
    constant_loss: what the best prediction that ignores x has, in J's units.
    """

    dataset: Dataset
    loss: Loss
    units: int
    constant_loss: float

    @property
    def score(self) -> str:
        """What is measured beside the loss: accuracy of labels, r2 of values."""
        return "r2" if self.loss.decides is None else "accuracy"


def load_task(config: Config) -> Task:
    """The data set and the loss that fits it; raises UserError where the config's loss, batch size or dtype does not."""
    dataset = load(config.dataset)
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
    return _task(dataset, config.training.loss, config.dtype)


@lru_cache(maxsize=4)
def _task(dataset: Dataset, name: str | None, dtype: str) -> Task:
    """One object for all configs that share it: an engine sends it to a worker once."""
    largest = max(float(np.abs(part).max()) for part in (dataset.x, dataset.y, dataset.x_validation, dataset.y_validation))
    if largest > float(np.finfo(dtype).max):
        raise UserError(f"dataset {dataset.name}: scaled, it has a value of size {largest:g}, which is infinite in {dtype}")
    fitting = _fitting(dataset)
    name = name or next(iter(fitting))
    if name not in fitting:
        raise UserError(f"training.loss is {name!r}, which does not fit {dataset.name}, allowed: {', '.join(fitting)}")
    loss, units, constant_loss = fitting[name]
    return Task(dataset, loss, units, constant_loss)


def _fitting(dataset: Dataset) -> dict[str, tuple[Loss, int, float]]:
    """name -> (loss, logits, loss of the best constant prediction), the default first."""
    if dataset.classes is None:
        n_y = dataset.y.shape[0]
        return {half_mean_squared_error.name: (half_mean_squared_error, n_y, float(dataset.y.var(axis=-1).sum()) / 2)}
    share = np.bincount(dataset.y, minlength=dataset.classes) / len(dataset.y)
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    # Of the best constant, the shares, half the sum of the variances of the one-hot labels is left.
    variance = float((share * (1 - share)).sum()) / 2
    losses = {
        softmax_cross_entropy.name: (softmax_cross_entropy, dataset.classes, entropy),
        # By the name it has for values: a sweep over data sets of both kinds can ask for it.
        half_mean_squared_error.name: (one_hot_squared_error, dataset.classes, variance),
    }
    if dataset.classes == 2:
        losses = {sigmoid_cross_entropy.name: (sigmoid_cross_entropy, 1, entropy), **losses}
    return losses
