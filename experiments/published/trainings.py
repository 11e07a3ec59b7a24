"""Complete trainings: those of scikit-learn, the maps of the fractal's author, and those with published bits of this engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from blocks import GradientDescent, Momentum, Nesterov, Optimizer
from experiments.published.row import Row
from experiments.published.scikit_learn import ReorderedAdam, train_like_scikit_learn
from experiments.record.identity import trajectory_hash
from experiments.run.composition import compose_config, parse_config, register
from experiments.run.paper import label_agreement
from experiments.run.stack import train_stack

SCIKIT_LEARN = "scikit-learn, plot_mlp_training_curves"
SOHL_DICKSTEIN = "Sohl-Dickstein 2024"
# The folder exists only in a clone of the project. Its files are described in tests/published/README.md.
PUBLISHED_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "published"

register()


def training_curves() -> Iterator[Row]:
    """Yield rows on the final training scores and losses, with scikit-learn's initial weights and its order of examples."""
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
            create_optimizer, options = rules[strategy]
            ours_score, ours_loss = train_like_scikit_learn(name, create_optimizer, options)
            yield Row(f"{name}, {strategy}: score", SCIKIT_LEARN, score, ours_score, 6e-7)
            # scikit-learn adds the penalty of the weights before each update, ours is that of the weights before the last epoch.
            yield Row(f"{name}, {strategy}: loss", SCIKIT_LEARN, loss, ours_loss, 2e-6)


def trainability() -> Iterator[Row]:
    """Yield rows on two maps: how many labels, which say whether a pair of learning rates trains, are equal to the author's."""
    for name, tolerance in (("identity", 0.0), ("tanh", 0.005)):
        share = label_agreement(PUBLISHED_FOLDER / f"trainability_{name}_n8.npz", name)
        yield Row(f"{name}, n = 8: share of labels that are the author's", SOHL_DICKSTEIN, 1.0, share, tolerance)


def bits() -> Iterator[Row]:
    """Yield rows on the bits of trainings, which are the same on any x86-64 processor with AVX2.

    The trainings are every sixth run of the default sweep, and small runs.
    """
    for name, runs in json.loads((PUBLISHED_FOLDER / "bits.json").read_text()).items():
        selected_runs = list(runs)[:: 6 if name == "default sweep" else 1]
        equal_runs = sum(run_trajectory_hash(overrides) in runs[overrides] for overrides in selected_runs)
        yield Row(
            f"{name}: runs of {len(selected_runs)} with the published bits",
            "tests/published/bits.json",
            len(selected_runs),
            equal_runs,
            0,
        )


def run_trajectory_hash(overrides: str) -> str:
    """Return `record.identity.trajectory_hash` of the run with these overrides, which are separated by spaces."""
    (trained_run,) = train_stack([parse_config(compose_config("config", overrides.split()))])
    return trajectory_hash(trained_run.history, trained_run.parameters)
