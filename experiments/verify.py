"""python -m experiments.verify [--only NAME ...]: published and exactly known results of the field beside this engine's.

Exit status 1 where one of them is not reproduced. The table is logged to MLflow as one run, too.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from blocks import GradientDescent, Machine, Momentum, Nesterov, Network, Optimizer, losses, train
from blocks.arrays import Array
from blocks.measure.lanczos import sharpness
from blocks.theory import MeanField, critical_gain, largest_curvature, softmax_sharpness
from experiments.job import reason_of, status_of
from experiments.published.edges import edges_of_stability
from experiments.published.row import Row
from experiments.published.scaling import feature_learning, transfer
from experiments.published.start import isometry, normalization
from experiments.record.address import absolute, check_reachable
from experiments.record.identity import trajectory_hash
from experiments.run.config import TrackingConfig, UserError, composed, register, typed
from experiments.run.interrupts import end_in_order
from experiments.run.machine import settle
from experiments.run.paper import agreement
from experiments.run.stack import train_stack
from experiments.scikit_learn import ReorderedAdam, trained_as_theirs

SCHOENHOLZ = "Schoenholz et al. 2017"
HE = "He et al. 2015"
QUADRATIC = "2 / lambda_max, exact"
COHEN = "Cohen et al. 2021"
LEWKOWYCZ = "Lewkowycz et al. 2020"
SAXE = "Saxe et al. 2013"
SCIKIT_LEARN = "scikit-learn, plot_mlp_training_curves"
LIU = "Liu 2024"
SOHL_DICKSTEIN = "Sohl-Dickstein 2024"
# In a clone of the project; what they are: tests/published/README.md.
PUBLISHED = Path(__file__).resolve().parents[1] / "tests" / "published"


register()


def mean_field() -> Iterator[Row]:
    """Fixed points, chi_1, depth scales and critical points of tanh; gradients of random networks; what trains on digits."""
    points = {
        0.5: (0.087580, 0.431987, 1.19),
        1.0: (0.193593, 0.759032, 3.63),
        1.5: (0.418037, 0.938636, 15.79),
        2.0: (0.721762, 1.047666, 25.2),
        3.0: (1.428008, 1.208934, 9.05),
    }
    for sw2, (q, chi_1, xi) in points.items():
        field = MeanField("tanh", sw2, 0.05)
        yield Row(f"tanh, sw2 {sw2}: q*", SCHOENHOLZ, q, field.fixed_point, 6e-7)
        yield Row(f"tanh, sw2 {sw2}: chi_1", SCHOENHOLZ, chi_1, field.chi_1, 6e-7)
        # As many digits as are published.
        yield Row(f"tanh, sw2 {sw2}: xi_c", SCHOENHOLZ, xi, field.correlation_depth_scale, 0.06 if xi > 20 else 0.006)
        yield Row(f"tanh, sw2 {sw2}: chi_1 of gradients, width 300", SCHOENHOLZ, chi_1, _measured_chi(sw2), 0.05 * chi_1)
    for sb2, sw2, q in ((0.05, 1.760955, 0.570048), (0.0025, 1.122539**2, 0.153692)):
        yield Row(f"tanh, sb2 {sb2}: critical sw2", SCHOENHOLZ, sw2, critical_gain("tanh", sb2), 2e-6)
        yield Row(
            f"tanh, sb2 {sb2}: q* there", SCHOENHOLZ, q, MeanField("tanh", critical_gain("tanh", sb2), sb2).fixed_point, 2e-6
        )
    for sw2, hidden, accuracy, tolerance in ((1.0, 20, 0.987, 0.03), (1.0, 40, 0.240, 0.06), (1.760955, 40, 0.984, 0.03)):
        what = f"digits, tanh, sw2 {sw2}, {hidden} hidden blocks: training accuracy reached"
        yield Row(what, SCHOENHOLZ, accuracy, _reached_on_digits(sw2, hidden), tolerance)


def _measured_chi(sw2: float) -> float:
    """The factor of ||dJ/dW_l||^2 from block to block of 8 random networks of 30 blocks, one example."""
    rng = np.random.default_rng(0)
    network = Network.create([300] * 31, "tanh", "normal", rng=rng, gain=sw2, bias_variance=0.05, lanes=8)
    x = math.sqrt(MeanField("tanh", sw2, 0.05).fixed_point) * rng.standard_normal((300, 1))
    logits, caches = network.forward(x)
    gradients = network.backward(rng.standard_normal(logits.shape), caches)
    # z has reached q* after the first blocks; the last block has no activation.
    squares = np.array([np.log((dW**2).sum(axis=(-2, -1))).mean() for dW, _ in gradients[5:-1]])
    return float(np.exp(-np.polyfit(np.arange(len(squares)), squares, 1)[0]))


def _standardised(name: str) -> tuple[Array, Array]:
    """x (n_x, m) with mean 0 and variance 1 in every feature that varies, and y, all examples."""
    import sklearn.datasets
    from sklearn.preprocessing import StandardScaler

    X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    return np.ascontiguousarray(StandardScaler().fit_transform(X).T), y


def _reached_on_digits(sw2: float, hidden: int) -> float:
    """300 updates of stochastic gradient descent at rate 0.05, batch 128, width 64: the best training accuracy on the way.

    The best, since such deep networks lose at this rate what they have learned, and learn it again. Of three seeds the
    middle one.
    """
    x, y = _standardised("digits")
    x = x.astype(np.float32)
    sizes, rng = [64, *[64] * hidden, 10], np.random.default_rng(0)
    network = Network.create(sizes, "tanh", "normal", rng=rng, gain=sw2, bias_variance=0.05, lanes=3, dtype=np.float32)
    rule, best = GradientDescent(0.05), np.zeros(network.lanes)
    for _ in range(100):
        drawn = rng.choice(len(y), 3 * 128, replace=False)
        cross_entropy = losses.softmax_cross_entropy
        train(network, x[:, drawn], y[drawn], loss=cross_entropy, optimizer=rule, epochs=1, batch_size=128, evaluations=0)
        logits, _ = network.forward(x)
        best = np.maximum(best, (logits.argmax(axis=-2) == y).mean(axis=-1))
    return float(np.median(best))


def initialisation() -> Iterator[Row]:
    """relu, Var W = g / n: the squared gradient changes by g / 2 a block."""
    for gain, published in ((0.5, 2.14e-7), (1.0, 0.897)):
        network = Network.create([256] * 24, "relu", "he", rng=np.random.default_rng(0), gain=gain, lanes=40)
        rng = np.random.default_rng(1)
        logits, caches = network.forward(rng.standard_normal((256, 1)))
        dlogits = rng.standard_normal(logits.shape)
        *_, (_, dz) = network.signals(dlogits, caches)
        ratio = float(((dz**2).sum(axis=(-2, -1)) / (dlogits**2).sum(axis=(-2, -1))).mean())
        theory = MeanField("relu", 2 * gain).gradient_ratio(22).item()
        yield Row(f"relu, g = {2 * gain:g}, 22 blocks: squared gradient, theory", HE, gain**22, theory, 1e-12 * gain**22)
        # The mean over 40 networks of a product of 22 factors: its own spread between such means is a fifth.
        yield Row(f"relu, g = {2 * gain:g}, 22 blocks: squared gradient, 40 networks", HE, published, ratio, 0.5 * published)


def stable_rate() -> Iterator[Row]:
    """Full-batch gradient descent of a linear model diverges just where its rate is above 2 / lambda_max."""
    for name, lambda_max, classes in (("iris", 2.918498, 3), ("digits", 7.340689, 10), ("diabetes", 4.024211, 0)):
        x, _ = _standardised(name)
        yield Row(f"{name}: lambda_max", QUADRATIC, lambda_max, largest_curvature(x), 6e-7)
        if classes:
            yield Row(
                f"{name}: sharpness of softmax regression", QUADRATIC, lambda_max / classes, softmax_sharpness(x, classes), 6e-7
            )
    yield Row("diabetes at 1.001 of the limit: update at which the loss passes 1e6", QUADRATIC, 3926, _passes(1.001, 5000), 0)
    yield Row("diabetes at 0.999 of the limit: the same, 20000 updates (-1 is never)", QUADRATIC, -1, _passes(0.999, 20000), 0)


def _passes(share: float, updates: int) -> int:
    x, y = _standardised("diabetes")
    y = (y - y.mean()) / y.std()
    network = Network.create([10, 1], "identity", "zeros", rng=np.random.default_rng(0))
    rule = GradientDescent(share * 2 / largest_curvature(x))
    half_squares = losses.half_mean_squared_error
    history = train(network, x, y, loss=half_squares, optimizer=rule, epochs=updates, evaluations=0, loss_bound=1e6)
    return int(history.diverged_step)


def edge_of_stability() -> Iterator[Row]:
    """Full-batch gradient descent raises the sharpness to 2 / lr, where it stays."""
    x, labels = _standardised("digits")
    y = np.eye(10)[:, labels]
    half_squares = losses.half_mean_squared_error
    for rate, published in ((0.4, (5.16, 5.14, 5.09, 5.08, 5.09)), (0.3, (7.50, 6.70, 6.67, 6.74, 6.71))):
        network = Network.create([64, 32, 32, 10], "tanh", "lecun", rng=np.random.default_rng(0))
        for number, value in enumerate(published, 1):
            train(network, x, y, loss=half_squares, optimizer=GradientDescent(rate), epochs=400, evaluations=0)
            if number > 1:
                ours = float(np.ravel(sharpness(network, x, y, half_squares, rng=np.random.default_rng(0)))[0])
                # Other initial weights: what they share is 2 / lr.
                yield Row(
                    f"digits, lr {rate}, update {400 * number}: sharpness (2/lr = {2 / rate:.3f})",
                    COHEN,
                    value,
                    ours,
                    0.05 * value,
                )


def catapult() -> Iterator[Row]:
    """f = v.u / sqrt(n), J = f^2 / 2: one update of gradient descent in closed form."""
    n, steps = 64, 30
    for share in (1.5, 2.5, 3.9):
        rng = np.random.default_rng(0)
        u, v = rng.standard_normal((2, n))
        lam = (u @ u + v @ v) / n
        f = u @ v / math.sqrt(n)
        rate = share / lam
        network = _without_biases([u[:, None] / n**0.25, v[None, :] / n**0.25])
        worst = largest = 0.0
        for _ in range(steps):
            ours = _updated(network, rate / math.sqrt(n), lambda logits: logits)
            worst, largest = max(worst, abs(ours - f)), max(largest, abs(f))
            f, lam = (1 - rate * lam + rate**2 * f**2 / n) * f, lam + rate * f**2 / n * (rate * lam - 4)
        yield Row(
            f"rate {share} / lam_0: largest error of f over {steps} updates, in max |f|", LEWKOWYCZ, 0, worst / largest, 1e-9
        )


def _without_biases(weights: list[Array]) -> Network:
    """A deep linear network with those W and no biases, in float64."""
    sizes = [weights[0].shape[1], *(W.shape[0] for W in weights)]
    network = Network.create(sizes, "identity", "zeros", rng=np.random.default_rng(0))
    for block, W in zip(network.blocks, weights, strict=True):
        block.W[...] = W
    return network


def _updated(network: Network, rate: float, dlogits: Callable[[Array], Array]) -> float:
    """f before one update of the weights alone, at the input 1."""
    logits, caches = network.forward(np.ones((1, 1)))
    before = float(logits[0, 0])
    for block, (dW, _) in zip(network.blocks, network.backward(dlogits(logits), caches), strict=True):
        block.W[...] -= rate * dW
    return before


def deep_linear() -> Iterator[Row]:
    """One mode of a linear network of two weights, J = (s - ab)^2 / 2, balanced."""
    s, u_0, time = 2.0, 1e-3, 4.0
    for rate, published in ((1e-2, 2.78e-2), (1e-3, 2.78e-3), (1e-4, 2.78e-4)):
        network = _without_biases([np.full((1, 1), math.sqrt(u_0))] * 2)
        worst = 0.0
        for step in range(round(time / rate)):
            grown = math.exp(2 * s * step * rate)
            exact = s * grown / (grown - 1 + s / u_0)
            worst = max(worst, abs(_updated(network, rate, lambda logits: logits - s) - exact))
        yield Row(f"lr {rate:g}: largest error of ab(t)", SAXE, published, worst, 0.005 * published)


def training_curves() -> Iterator[Row]:
    """From scikit-learn's initial weights and in its order of examples: final training score and loss."""
    rules: dict[str, tuple[Callable[[float], Optimizer], dict]] = {
        "constant 0.2": (lambda decay: GradientDescent(0.2, weight_decay=decay), {"solver": "sgd", "momentum": 0}),
        "momentum 0.9": (
            lambda decay: Momentum(0.2, 0.9, weight_decay=decay),
            {"solver": "sgd", "momentum": 0.9, "nesterovs_momentum": False},
        ),
        "Nesterov 0.9": (lambda decay: Nesterov(0.2, 0.9, weight_decay=decay), {"solver": "sgd", "momentum": 0.9}),
        "adam 0.01": (lambda decay: ReorderedAdam(0.01, weight_decay=decay), {"solver": "adam"}),
    }
    published = {
        "iris": {
            "constant 0.2": (0.980000, 0.096950),
            "momentum 0.9": (0.980000, 0.049530),
            "Nesterov 0.9": (0.980000, 0.049540),
            "adam 0.01": (0.980000, 0.045311),
        },
        "digits": {
            "constant 0.2": (0.956038, 0.243802),
            "momentum 0.9": (0.992766, 0.041297),
            "Nesterov 0.9": (0.993879, 0.042898),
            "adam 0.01": (0.991653, 0.045934),
        },
    }
    for name, numbers in published.items():
        for strategy, (score, loss) in numbers.items():
            rule, options = rules[strategy]
            ours_score, ours_loss = trained_as_theirs(name, rule, options)
            yield Row(f"{name}, {strategy}: score", SCIKIT_LEARN, score, ours_score, 6e-7)
            # scikit-learn adds the penalty of the weights before each update, ours that of the epoch's last ones.
            yield Row(f"{name}, {strategy}: loss", SCIKIT_LEARN, loss, ours_loss, 2e-6)


def scaling() -> Iterator[Row]:
    """f(x) = x^2 + eps cos(2 pi x / lambda): eps / 4 and lambda / 2 scale the path by 1/2, bit for bit."""

    def path(eps: float, wavelength: float, start: float) -> Array:
        theta = np.array([start])
        rule = GradientDescent(0.05)
        state = rule.start(Network.create([1, 1], "identity", "zeros", rng=np.random.default_rng(0)))
        places = []
        for _ in range(1000):
            gradient = 2 * theta - eps * (2 * np.pi / wavelength) * np.sin(2 * np.pi * (theta / wavelength))
            rule.update(theta, gradient, state)
            places.append(theta[0])
        return np.array(places)

    whole, half = path(0.2, 0.1, 1.0), path(0.05, 0.05, 0.5)
    yield Row("updates of 1000 whose place is not half the other's", LIU, 0, float((whole / 2 != half).sum()), 0)


def trainability() -> Iterator[Row]:
    """The labels that the author's own functions gave two maps: which pairs of learning rates train."""
    for name, tolerance in (("identity", 0.0), ("tanh", 0.005)):
        share = agreement(PUBLISHED / f"trainability_{name}_n8.npz", name)
        yield Row(f"{name}, n = 8: share of labels that are the author's", SOHL_DICKSTEIN, 1.0, share, tolerance)


def bits() -> Iterator[Row]:
    """Trainings' bits on any x86-64 processor with AVX2: every sixth run of the default sweep, and small ones."""
    for name, runs in json.loads((PUBLISHED / "bits.json").read_text()).items():
        some = list(runs)[:: 6 if name == "default sweep" else 1]
        equal = sum(trajectory(overrides) in runs[overrides] for overrides in some)
        yield Row(f"{name}: runs of {len(some)} with the published bits", "tests/published/bits.json", len(some), equal, 0)


def trajectory(overrides: str) -> str:
    """What `record.identity.trajectory_hash` is of the run with those overrides, separated by spaces."""
    (trained,) = train_stack([typed(composed("config", overrides.split()))])
    return trajectory_hash(trained.history, trained.parameters)


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    section.__name__: section
    for section in (
        mean_field,
        initialisation,
        normalization,
        isometry,
        stable_rate,
        edge_of_stability,
        edges_of_stability,
        catapult,
        deep_linear,
        training_curves,
        scaling,
        transfer,
        feature_learning,
        trainability,
        bits,
    )
}


def columns(rows: list[Row]) -> dict[str, list]:
    """The table, a value for each row."""
    return {
        "what": [row.what for row in rows],
        "source": [row.source for row in rows],
        "published": [row.published for row in rows],
        "ours": [row.ours for row in rows],
        "tolerance": [row.tolerance for row in rows],
        "holds": ["yes" if row.holds else "NO" for row in rows],
    }


def record(rows: list[Row], tracking: TrackingConfig) -> None:
    """Log the table as one run."""
    from experiments.record.tracking import Store

    store = Store(tracking)
    try:
        run = store.begin("verify", {"kind": "verify"})
        run.tabulate(columns(rows))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "table.txt").write_text(text(rows))
            run.keep(Path(folder))
        run.end("FINISHED" if all(row.holds for row in rows) else "FAILED")
    except BaseException as error:
        with contextlib.suppress(UserError):
            store.close(status_of(error), reason_of(error))
        raise
    with contextlib.suppress(UserError):
        store.close()


def text(rows: list[Row]) -> str:
    """The table, a line for each row."""
    lines = [f"{'':4}{'what':<76}{'published':>14}{'ours':>14}{'tolerance':>11}  source"]
    for row in rows:
        verdict = "ok" if row.holds else "NO"
        lines.append(f"{verdict:<4}{row.what:<76}{row.published:>14.7g}{row.ours:>14.7g}{row.tolerance:>11.2g}  {row.source}")
    held = sum(row.holds for row in rows)
    return "\n".join([*lines, f"{held} of {len(rows)} results reproduced"])


@end_in_order()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.verify", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=SECTIONS, help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow's tracking URI")
    parser.add_argument("--no-record", action="store_true", help="print the table and record nothing")
    arguments = parser.parse_args()
    reason = settle("portable")
    try:
        if not arguments.no_record:
            check_reachable(absolute(arguments.uri))
    except UserError as error:
        sys.exit(f"error: {error}")
    rows = []
    with tqdm(arguments.only or list(SECTIONS), disable=None) as bar:
        for name in bar:
            bar.set_description_str(name)
            with threadpool_limits(1, user_api="blas"):
                rows += list(SECTIONS[name]())
    print(text(rows))
    print(reason or Machine.here())
    try:
        if not arguments.no_record:
            record(rows, TrackingConfig(uri=arguments.uri))
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
