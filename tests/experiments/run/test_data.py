import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.run.composition import parse_config
from experiments.run.config import DatasetConfig, UserError
from experiments.run.data import load_dataset, load_task

# name -> (n_x, classes or None, examples), as scikit-learn's documentation states them.
SHAPES = {
    "iris": (4, 3, 150),
    "wine": (13, 3, 178),
    "breast_cancer": (30, 2, 569),
    "digits": (64, 10, 1797),
    "diabetes": (10, None, 442),
    "moons": (2, 2, 1000),
    "circles": (2, 2, 1000),
    "blobs": (10, 5, 1000),
    "friedman1": (10, None, 1000),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_data_set_is_split_scaled_and_transposed_once(composed, name):
    n_x, classes, examples = SHAPES[name]
    dataset = load_dataset(parse_config(composed(f"dataset={name}")).dataset)
    m, held = dataset.x.shape[1], dataset.x_validation.shape[1]
    assert (dataset.x.shape[0], dataset.classes, m + held) == (n_x, classes, examples)
    assert held == -(-examples // 5)
    # Scaled on the training part alone: exactly standard there, and only nearly so in the part held out.
    varies = dataset.x.std(axis=1) > 0
    np.testing.assert_allclose(dataset.x[varies].mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(dataset.x[varies].std(axis=1), 1, atol=1e-12)
    assert not np.allclose(dataset.x_validation.mean(axis=1), 0, atol=1e-6)
    if classes:
        assert set(dataset.y) == set(range(classes))
        shares = [np.bincount(part) / len(part) for part in (dataset.y, dataset.y_validation)]
        np.testing.assert_allclose(*shares, atol=0.03)


def test_the_split_is_scikit_learns_own_for_that_seed(composed):
    dataset = load_dataset(parse_config(composed("dataset.seed=3", "dataset.test_fraction=0.3")).dataset)
    _, y = load_digits(return_X_y=True)
    expected, held = train_test_split(y, test_size=0.3, random_state=3, stratify=y)
    np.testing.assert_array_equal(dataset.y, expected)
    np.testing.assert_array_equal(dataset.y_validation, held)


def test_the_digest_changes_with_the_data_alone(composed):
    digests = [
        load_dataset(parse_config(composed(f"dataset.seed={seed}", *more)).dataset).digest
        for seed, *more in ((0,), (0, "seed=1"), (1,))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_is_over_the_bytes_of_all_four_parts(composed):
    dataset = load_dataset(parse_config(composed()).dataset)
    content = b""
    for part in (dataset.x, dataset.y, dataset.x_validation, dataset.y_validation):
        content += f"{part.dtype.str}{part.shape}".encode() + part.tobytes()
    assert dataset.digest == hashlib.sha256(content).hexdigest()


def test_a_batch_may_be_all_examples(composed):
    assert load_task(parse_config(composed("training.batch_size=1437"))).dataset.x.shape == (64, 1437)


def test_any_loader_of_scikit_learn_is_taken_by_its_target(composed):
    config = parse_config(
        composed("dataset.loader._target_=sklearn.datasets.make_classification", "+dataset.loader.n_samples=60")
    )
    assert load_dataset(config.dataset).x.shape == (20, 48)


BAD_DATA = {
    "network.kind=batch_normalized training.batch_size=359": "training.batch_size is 359, which leaves a batch of one of",
    "network.kind=batch_normalized instruments.signals=log instruments.examples=1": "instruments.examples is 1, but network.kind",
    "network.kind=batch_normalized training.batch_size=1": "training.batch_size is 1, which leaves a batch of one of",
    "training.batch_size=1438": "training.batch_size is 1438, it must be null or 1 to 1437",
    "training.loss=one_hot_squared_error": "does not fit digits, allowed: softmax_cross_entropy, half_mean_squared_error",
    "training.loss=sigmoid_cross_entropy": "does not fit digits",
    "dataset.loader._target_=sklearn.datasets.load_nothing": "must name a function such as sklearn.datasets.load_digits",
    "dataset.loader._target_=nothing": "must name a function",
    "+dataset.loader.n_class=1": "1 class of 178 examples, it must have 2 classes or more",
    "++dataset.loader={_target_:sklearn.datasets.make_low_rank_matrix}": "gives ndarray, it must give X and y",
    "++dataset.loader={_target_:sklearn.datasets.make_moons,n_samples:[3]}": "does not fit sklearn.datasets.make_moons",
    "++dataset.loader={_target_:sklearn.datasets.make_blobs,return_centers:true}": "gives tuple, it must give X and y",
    "++dataset.loader={_target_:sklearn.datasets.fetch_file,url:1}": "does not fit sklearn.datasets.fetch_file",
    "+dataset.loader.foo=1": "does not fit sklearn.datasets.load_digits",
    "dataset.test_fraction=0.001": "dataset.test_fraction is 0.001, which cannot split digits",
}


@pytest.mark.parametrize("override", BAD_DATA)
def test_data_that_do_not_fit_are_named_with_what_does(composed, override):
    with pytest.raises(UserError) as error:
        load_task(parse_config(composed(*override.split())))
    assert BAD_DATA[override] in str(error.value)


def one_example_of_a_class():
    return np.eye(5), np.array([0, 0, 1, 1, 2])


def test_a_class_with_one_example_cannot_be_split(composed):
    config = parse_config(composed("dataset.loader={_target_:" + f"{__name__}.one_example_of_a_class" + "}"))
    with pytest.raises(UserError, match="class 2 has 1 of 5 examples"):
        load_task(config)


def values(x=1.0, y=1.0, at=(0, 0)):
    """50 examples of two inputs, the first of them 0 but for x at one place, and a target that is 0 but for y there."""
    X, targets = np.random.default_rng(0).standard_normal((50, 2)), np.zeros(50)
    X[:, 0] = 0
    X[at], targets[at[0]] = x, y
    return X, targets


# With this seed and share example 0 is held out: nothing scales a value that the training part does not have.
HELD_OUT = train_test_split(np.arange(50), test_size=0.2, random_state=0)[1][0]


def infinite_in_float32():
    return values(x=1e39, at=(HELD_OUT, 0))


def negative_in_float32():
    return values(x=-3.5e38, at=(HELD_OUT, 0))


def target_infinite_in_float32():
    return values(y=1e39, at=(HELD_OUT, 0))


def too_large_to_scale():
    return 1e200 * np.random.default_rng(0).standard_normal((50, 2)), np.arange(50) % 2


def targets_too_large_to_scale():
    return np.eye(50), 1e300 * np.arange(50.0)


def nan_among_targets():
    return values(y=np.nan)


TOO_LARGE = {
    "infinite_in_float32": r"scaled, it has a value of size 1e\+39, which is infinite in float32",
    "negative_in_float32": r"scaled, it has a value of size 3\.5e\+38, which is infinite in float32",
    "target_infinite_in_float32": r"scaled, it has a value of size 1e\+39, which is infinite in float32",
    "too_large_to_scale": r"it has a value of size 2\.\d+e\+200, which cannot be scaled in float64",
    "targets_too_large_to_scale": r"it has a value of size 4\.9e\+301, which cannot be scaled in float64",
    "nan_among_targets": "its targets hold nan, they must be finite",
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_number_that_the_networks_dtype_does_not_hold_is_one_line(composed, name):
    options = ("dataset.loader={_target_:" + f"{__name__}.{name}" + "}", "training.batch_size=null")
    with pytest.raises(UserError, match=f"^dataset digits: {TOO_LARGE[name]}$"):
        load_task(parse_config(composed(*options, "dtype=float32")))
    if "float32" in name:
        task = load_task(parse_config(composed(*options, "dtype=float64")))
        assert max(abs(task.dataset.x_validation).max(), abs(task.dataset.y_validation).max()) > np.finfo(np.float32).max


def test_several_labels_an_example_are_refused(composed):
    config = parse_config(composed("dataset.loader={_target_:sklearn.datasets.make_multilabel_classification}"))
    with pytest.raises(UserError, match=r"dataset digits: its labels have shape \(100, 5\), there must be one an example"):
        load_task(config)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "half_mean_squared_error"])
def test_no_constant_prediction_is_better_than_the_constant_loss(composed, loss):
    wine = load_task(parse_config(composed("dataset=wine", f"training.loss={loss}")))
    y = wine.dataset.y
    # Every prediction on a grid of 1/200, as shares of the three classes.
    shares = [(i, j, 200 - i - j) for i in range(1, 199) for j in range(1, 200 - i)]
    predictions = np.array(shares).T / 200
    logits = np.log(predictions) if loss == "softmax_cross_entropy" else predictions
    counts = [np.count_nonzero(y == label) / len(y) for label in range(3)]
    losses = sum(share * wine.loss(logits[:, :, None].swapaxes(0, 1), np.array([k]))[0] for k, share in enumerate(counts))
    assert wine.constant_loss <= losses.min() <= wine.constant_loss * (1 + 1e-4)


@pytest.mark.parametrize("name", ["california_housing", "mnist_784"])
def test_a_download_that_fails_is_one_line(composed, name, monkeypatch, tmp_path):
    def no_network(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", no_network)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"dataset {name}: .* could not fetch its data: .*no route to host"):
        load_dataset(parse_config(composed(f"dataset={name}")).dataset)


MANY = [
    ("make_blobs", {"n_samples": 10**12}),
    ("make_blobs", {"n_samples": [10**12, 1]}),
    ("make_blobs", {"n_features": 10**12}),
    ("make_blobs", {"centers": 10**12}),
    ("make_hastie_10_2", {"n_samples": 10**12}),
    ("make_regression", {"n_samples": 10**6, "n_features": 10**6}),
    ("make_regression", {"n_targets": 10**400}),
    ("make_classification", {"n_classes": 10**12}),
    ("make_moons", {"n_samples": [10**12, 10**12]}),
]


@pytest.mark.parametrize(("name", "arguments"), MANY)
def test_examples_that_no_memory_takes_are_refused_before_they_are_drawn(name, arguments):
    config = DatasetConfig("d", {"_target_": f"sklearn.datasets.{name}", **arguments})
    (key, *_) = arguments
    with pytest.raises(UserError, match=rf"dataset\.loader\.{key} is .*, which does not fit: it takes \S+ GiB of memory"):
        load_dataset(config)
