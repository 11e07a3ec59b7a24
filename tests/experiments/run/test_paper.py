"""The networks of Sohl-Dickstein 2024: the author's labels, and JAX's gradients of the author's formula."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.run import paper
from experiments.run.config import Config, NetworkConfig, UserError
from experiments.run.paper import DIVERGED, STUCK, TRAINED, Problem

PUBLISHED = Path(__file__).parents[2] / "published"


def published(name):
    """(what the author's own functions gave, the problem)"""
    file = PUBLISHED / f"trainability_{name}_n8.npz"
    return np.load(file), Problem.read(str(file))


@pytest.mark.parametrize(("name", "least"), [("identity", 1.0), ("tanh", 0.995)])
@pytest.mark.parametrize("early_exit", [True, False])
def test_the_labels_are_the_authors(name, least, early_exit):
    theirs, problem = published(name)
    losses = paper.losses(problem, name, theirs["learning_rates"], int(theirs["steps"]), "float64", early_exit)
    ours = paper.score(losses)
    trained, labels = ours["outcome"] == TRAINED, theirs["trainable"].ravel()
    assert (trained == labels).mean() >= least
    # The measure itself, wherever it is not next to the boundary and so not of the last bit.
    close = np.isclose(ours["measure"], theirs["measure"].ravel(), rtol=1e-6)
    assert close.mean() > 0.85


def jax_losses(problem, activation, rates, steps):
    """The author's formula, differentiated by JAX; (networks, steps)."""
    import jax
    import jax.numpy as jnp

    nonlinearity = {
        "tanh": lambda z: jnp.tanh(z * jnp.sqrt(2)),
        "relu": lambda z: jax.nn.relu(z) * jnp.sqrt(2),
        "identity": lambda z: z,
    }[activation]
    n = problem.W0.shape[0]

    def loss(theta):
        h = nonlinearity(problem.X @ theta[0] / jnp.sqrt(n))
        return jnp.mean((h @ theta[1] / n - problem.Y) ** 2)

    def run(rate):
        def cycle(theta, _):
            value, gradient = jax.value_and_grad(loss)(theta)
            return (theta[0] - rate[0] * gradient[0], theta[1] - rate[1] * gradient[1]), value

        return jax.lax.scan(cycle, (jnp.asarray(problem.W0), jnp.asarray(problem.W1)), length=steps)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(rates)))


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (4, 20), (6, 3)])
def test_the_losses_are_those_of_the_authors_formula_under_jax(activation, n, m):
    problem = Problem.random(n, m, 3)
    rates = 10 ** np.random.default_rng(0).uniform(-2, 0.3, (20, 2))
    ours = paper.losses(problem, activation, rates, 25, "float64")
    np.testing.assert_allclose(ours, jax_losses(problem, activation, rates, 25), rtol=1e-9)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_labels_are_jaxs_over_the_whole_window(activation):
    problem = Problem.random(8, 72, 0)
    grid = np.geomspace(1e-3, 1e6, 24)
    rates = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    ours = paper.score(paper.losses(problem, activation, rates, 100, "float64"))["outcome"] == TRAINED
    with np.errstate(all="ignore"):
        theirs = paper.score(jax_losses(problem, activation, rates, 100))["outcome"] == TRAINED
    assert (ours == theirs).mean() >= 0.995
    assert 0.2 < theirs.mean() < 0.8


def test_the_score_of_losses_by_hand():
    inf = np.inf
    rows = {
        # halves, then stays: 1 + 29 / 2
        "trained": ([2.0] + [1.0] * 29, TRAINED, -15.5, -1),
        "trained after a peak of inf": ([2.0, inf] + [1.0] * 28, TRAINED, -(1 + 5e5 + 14), -1),
        "stuck": ([2.0] * 30, STUCK, 30.0, -1),
        "diverged at a bound": ([1.0] * 10 + [1e7] * 20, DIVERGED, 10 + 20 / 1e6, 10),
        "diverged to inf": ([1.0] * 5 + [inf] * 25, DIVERGED, 5 + 25 / 1e6, 5),
        "diverged to nan": ([1.0] * 5 + [np.nan] * 25, DIVERGED, 5 + 25 / 1e6, 5),
        # 1e6 is the loss itself, before it is divided by the first: 1e6 / 8.
        "trained after nan, from above 1": ([8.0, np.nan] + [1.0] * 28, TRAINED, -(1 + 1.25e5 + 3.5), -1),
        "lost from above 1": ([4.0] * 5 + [inf] * 25, DIVERGED, 5 + 25 / 2.5e5, 5),
        # The first one counts as 1e6 too: all are 1.
        "lost from the first step on": ([inf] * 30, DIVERGED, 30.0, 0),
        "lost at the first step": ([inf] + [2e6] * 29, DIVERGED, 1 + 29 / 2, 0),
    }
    scored = paper.score(np.array([losses for losses, *_ in rows.values()]))
    for pixel, (name, (_, outcome, measure, step)) in zip(scored, rows.items(), strict=True):
        assert (pixel["outcome"], pixel["step"]) == (outcome, step), name
        assert pixel["measure"] == pytest.approx(measure, rel=1e-12), name


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
def test_a_loss_is_the_papers_mean_of_squares(activation):
    problem = Problem.random(5, 30, 1)
    g = {"tanh": lambda z: np.tanh(np.sqrt(2) * z), "relu": lambda z: np.sqrt(2) * np.maximum(z, 0), "identity": lambda z: z}
    out = g[activation](problem.X @ problem.W0 / np.sqrt(5)) @ problem.W1 / 5
    first = paper.losses(problem, activation, np.array([[0.1, 0.1], [1e9, 1e9]]), 40, "float64")
    np.testing.assert_allclose(first[:, 0], np.mean((out - problem.Y) ** 2), rtol=1e-12)


def test_the_problem_is_drawn_from_the_seed_with_the_papers_shapes():
    problem = paper.create_problem(Config(network=NetworkConfig(depth=2, width=8, activation="tanh")), None)
    assert [part.shape for part in (problem.W0, problem.W1, problem.X, problem.Y)] == [(8, 8), (8, 1), (72, 8), (72, 1)]
    again = paper.create_problem(Config(network=NetworkConfig(depth=2, width=8, activation="tanh")), None)
    assert problem.X.tobytes() == again.X.tobytes()
    other = paper.create_problem(Config(network=NetworkConfig(depth=2, width=8, activation="tanh"), seed=1), None)
    assert problem.X.tobytes() != other.X.tobytes()
    assert paper.create_problem(Config(network=NetworkConfig(width=8, activation="identity")), None).X.shape == (8, 8)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"", "File is not a zip file"), (b"W0, W1", "File is not a zip file")],
)
def test_a_file_that_holds_no_problem_is_one_line(tmp_path, content, told):
    file = tmp_path / "problem.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"map.file is .*problem.npz', it must be a .npz with W0, W1, X and Y: .*{told}"):
        Problem.read(str(file))


def of_text(file):
    np.savez(file, W0=np.array([["1"]]), W1=np.ones((1, 1)), X=np.ones((1, 1)), Y=np.ones((1, 1)))


def of_a_large_header(file):
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("W0", "W1", "X", "Y"):
            header = str({"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)}).encode()
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), of_text, of_a_large_header])
def test_a_stranger_s_file_is_one_line(tmp_path, make):
    make(tmp_path / "problem.npz")
    with pytest.raises(
        UserError, match=r"map\.file is .*, it must be a \.npz with W0, W1, X and Y: (it is|its header|they must)"
    ):
        Problem.read(str(tmp_path / "problem.npz"))


@pytest.mark.parametrize("width", [10**5, 10**30])
def test_a_problem_that_no_memory_takes_is_not_drawn(width):
    with pytest.raises(UserError, match=f"network.width is {width}, which does not fit: it takes"):
        paper.create_problem(Config(network=NetworkConfig(width=width, activation="tanh")), None)


def test_a_file_of_other_shapes_is_one_line(tmp_path):
    np.savez(tmp_path / "p.npz", W0=np.ones((3, 3)), W1=np.ones((3, 1)), X=np.ones((5, 4)), Y=np.ones((5, 1)))
    with pytest.raises(UserError, match=r"W0 has shape \(3, 3\), it must be \(..., 4, 4\)"):
        Problem.read(str(tmp_path / "p.npz"))
