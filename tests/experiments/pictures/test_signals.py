"""Pictures of signals, of a network and of its loss, by what they show; and the variance of z beside mean-field theory."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from blocks import Network, losses
from blocks.measure.diagnostics import check_data
from blocks.measure.signals import NUMBERS, deviations, signals
from blocks.theory import MeanField
from experiments.pictures import landscape
from experiments.pictures import signals as pictures
from experiments.pictures.gallery import draw_run
from experiments.record import files
from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.data import load_task
from experiments.run.stack import train_stack

LOSS = losses.softmax_cross_entropy


@pytest.fixture(scope="module")
def run(composed):
    """A trained one, its config and its task."""
    asked = ["instruments.signals=log", "instruments.parameters=log", "training.epochs=4"]
    config = parse_config(composed("dataset=moons", "network.depth=4", "network.width=16", "network.activation=tanh", *asked))
    (trained,) = train_stack([config])
    return config, load_task(config), trained


def areas(axes):
    """Of each line, the area under it."""
    logarithmic = axes.get_xscale() == "log"
    at = [np.log10(line.get_xdata()) if logarithmic else line.get_xdata() for line in axes.get_lines()]
    return [np.trapezoid(line.get_ydata(), x) for line, x in zip(axes.get_lines(), at, strict=True)]


@pytest.mark.parametrize(("symbol", "lines", "label"), [("a", 3, "2, std "), ("da", 4, "2, std "), ("dW", 4, ", grad : data ")])
def test_a_distribution_has_a_density_for_every_block_before_and_after(run, symbol, lines, label):
    history = run[2].history
    figure = pictures.distribution(history, symbol)
    first, last = figure.axes
    steps = history.loss.shape[-1]
    assert [axes.get_title() for axes in (first, last)] == ["before training", f"after {steps - 1} updates"]
    for axes in (first, last):
        assert len(axes.get_lines()) == lines
        # The trapezoids leave out half a bin at the ends, where the logits' da, p - y, has many of its values.
        np.testing.assert_allclose(areas(axes)[:3], 1, atol=0.05)
        assert label in axes.get_legend().get_texts()[1].get_text()
    assert (first.get_xscale() == "log") == (symbol != "a")


def test_a_run_that_has_not_measured_its_signals_says_how_they_are_had(run):
    bare = replace(run[2].history, quantities={})
    for draw in (pictures.update_to_data, pictures.ridge, lambda history: pictures.distribution(history, "a")):
        with pytest.raises(
            UserError, match=r"has not measured its signals by block: it must be trained with instruments\.signals=log"
        ):
            draw(bare)


def test_updates_are_a_line_a_block_on_a_logarithmic_scale_with_the_usual_place(run):
    history = run[2].history
    (axes,) = pictures.update_to_data(history).axes
    *blocks, usual = axes.get_lines()
    assert len(blocks) == 4
    assert set(usual.get_ydata()) == {-3.0}
    measured = history.quantities["signals"].values[:, NUMBERS.index("update_data")]
    np.testing.assert_allclose(10.0 ** blocks[2].get_ydata(), measured[:, 2])


def test_a_ridge_has_the_normal_density_of_theory_over_the_first_step_alone(run):
    config, task, trained = run
    variances = pictures.mean_field_variances(config, task)
    first, last = pictures.ridge(trained.history, variances).axes
    assert (len(first.patches), len(last.patches)) == (4, 4)
    assert (len(first.get_lines()), len(last.get_lines())) == (4, 0)
    for block, line in enumerate(first.get_lines()):
        density = line.get_ydata() + block
        spread = np.average(line.get_xdata() ** 2, weights=density)
        # As far as the picture goes, the last block's ends are cut off.
        assert spread == pytest.approx(variances[block], rel=0.02) or block == 3
    assert not pictures.ridge(trained.history).axes[0].get_lines()


def test_the_theory_of_plain_networks_is_drawn_for_those_alone(composed):
    for without in (
        "network.kind=residual",
        "network.kind=normalized",
        "network.initializer=zeros",
        "network.gain=1e200",
        "network.parametrization=mup",
    ):
        config = parse_config(composed("network.depth=4", without))
        assert pictures.mean_field_variances(config, load_task(config)) is None


@pytest.mark.parametrize("initializer", ["glorot", "orthogonal", "he_uniform"])
def test_theory_knows_the_variance_of_weights_between_blocks_of_unequal_widths(composed, initializer):
    config = parse_config(composed("network.depth=2", "network.width=300", f"network.initializer={initializer}"))
    task = load_task(config)
    x = task.dataset.x[:, :64]
    W = np.concatenate(
        [Network.create([64, 300, 10], "relu", initializer, rng=np.random.default_rng(k)).blocks[0].W for k in range(9)]
    )
    expected = 64 * W.var() * (x * x).mean()
    assert pictures.mean_field_variances(config, task)[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.5, 1.76, 3.0])
def test_z_has_the_variance_of_mean_field_theory_at_every_block(composed, gain):
    # Ordered, critical at this variance of the biases, and chaotic (Schoenholz et al. 2017).
    chi = MeanField("tanh", gain, 0.05).chi_1
    assert {0.5: chi < 0.9, 1.76: abs(chi - 1) < 0.01, 3.0: chi > 1.1}[gain]
    common = ["network.depth=21", "network.width=300", "network.activation=tanh", "network.initializer=normal"]
    config = parse_config(composed(*common, f"network.gain={gain}", "network.bias_variance=0.05", "training.batch_size=32"))
    task = load_task(config)
    x, y, measured = task.dataset.x[:, :32], task.dataset.y[:32], []
    for seed in range(40):
        rng, law = np.random.default_rng(seed), config.network
        sizes = [x.shape[0], *[300] * 20, 10]
        network = Network.create(sizes, "tanh", "normal", rng=rng, gain=gain, bias_variance=law.bias_variance, dtype=np.float32)
        _, found = signals(network, *check_data(network, x, y, LOSS), LOSS, deviations(network.parameters, network.layout))
        numbers = dict(zip(NUMBERS[:-1], found, strict=True))
        measured.append(numbers["z_std"] ** 2 + numbers["z_mean"] ** 2)
    # Block 21 has ten units alone.
    np.testing.assert_allclose(np.mean(measured, axis=0)[:20], pictures.mean_field_variances(config, task)[:20], rtol=0.05)


def test_a_saturation_map_marks_what_is_saturated_and_which_way(run, composed):
    config, task, trained = run
    axes, _ = landscape.saturation_map(config, task, trained.parameters, block=2).axes
    network = landscape.build_network(config, task, trained.parameters)
    _, caches = network.forward(task.dataset.x[:, :100])
    a = caches[1].a
    marked = axes.images[0].get_array()
    assert marked.shape == (100, 16)
    expected = np.where(np.abs(a) > 0.97, np.sign(a), 0)
    assert sorted(map(tuple, marked.T.tolist())) == sorted(map(tuple, expected.tolist()))
    assert axes.get_title().startswith(f"saturated activations of block 2 of 4: {100 * np.abs(expected).mean():.0f} %")
    relu = parse_config(composed("network.depth=3", "network.width=8"))
    dead = np.zeros_like(train_stack([relu])[0].parameters)
    title = landscape.saturation_map(relu, load_task(relu), dead, block=1).axes[0].get_title()
    assert title == "dead activations of block 1 of 3: 100 %\n8 of 8 units for every example"


def test_decision_regions_are_those_of_the_network_at_its_steps(run):
    config, task, trained = run
    quantity = trained.history.quantities["parameters"]
    figure = landscape.decision_regions(config, task, trained.history)
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert len(drawn) == 6
    assert drawn[0].get_title().startswith("after 0 updates: ")
    network = landscape.build_network(config, task, quantity.values[-1])
    right = ((network.forward(task.dataset.x)[0][0] > 0) == task.dataset.y).mean()
    assert drawn[-1].get_title() == f"after {quantity.at[-1]} updates: {100 * right:.0f} % right"
    points = [each for each in drawn[-1].collections if isinstance(each, PathCollection)]
    assert sum(len(each.get_offsets()) for each in points) == task.dataset.x.shape[-1]


def test_a_loss_slice_has_the_loss_at_its_middle_and_rises_as_its_eigenvalues_say(run):
    config, task, trained = run
    figure = landscape.loss_slice(config, task, trained.parameters)
    axes = figure.axes[0]
    first, second = (float(label().split("= ")[1]) for label in (axes.get_xlabel, axes.get_ylabel))
    assert first >= second > 0
    # As far as the curvature alone would add the loss of the best constant, log 2.
    assert axes.get_xlim()[1] == pytest.approx(np.sqrt(2 * np.log(2) / first), rel=0.01)


def test_a_loss_slice_names_what_it_is_drawn_along(run, monkeypatch):
    config, task, trained = run

    def drawn_with(values, vectors):
        monkeypatch.setattr(landscape, "top_eigenpairs", lambda *args, **kw: (values, vectors))
        axes = landscape.loss_slice(config, task, trained.parameters).axes[0]
        return axes.get_xlabel(), axes.get_ylabel(), axes.get_title()

    two = np.eye(2, len(trained.parameters))
    first, second, title = drawn_with(np.array([2.5, np.nan]), two)
    assert first == r"along $v_1$, $\lambda_1$ = 2.5"
    assert second == r"along an estimate of $v_2$, $\lambda_2$ is not found to 1 %"
    assert title.endswith("its Hessian's top eigenvectors")
    *directions, title = drawn_with(np.full(2, np.nan), np.full_like(two, np.nan))
    assert directions == ["along random direction 1", "along random direction 2"]
    assert title.endswith("random directions:\nno product of its Hessian is finite")


def test_updates_of_weights_that_are_all_0_are_none(composed):
    config = parse_config(composed("dataset=moons", "network.initializer=zeros", "training.epochs=1", "instruments.signals=log"))
    (trained,) = train_stack([config])
    figure = pictures.update_to_data(trained.history)
    # Drawn, since the limits of a log axis are looked for then.
    figure.canvas.draw()
    assert not np.isfinite([line.get_ydata() for line in figure.axes[0].get_lines()[:-1]]).any()


@pytest.mark.slow
@pytest.mark.parametrize("network", [["network.depth=1"], ["network.depth=2", "optimizer.learning_rate=1e6"]])
def test_every_picture_is_drawn_of_shallow_networks_and_of_those_that_diverge(composed, tmp_path, network):
    small = ["dataset=circles", "network.width=5", "training.epochs=2"]
    asked = ["instruments.signals=2", "instruments.parameters=3", "instruments.sharpness=5"]
    (trained,) = train_stack([parse_config(composed(*small, *network, *asked))])
    assert trained.outcome == ("diverged" if len(network) > 1 else "stuck")
    files.write(trained, tmp_path)
    draw_run(trained.config, files.read(tmp_path), tmp_path)
    drawn = {file.name for file in (tmp_path / "pictures").iterdir()}
    names = ["loss", "grad_norm_map", "grad_norm_by_block", "activations", "gradients", "weight_gradients", "update_to_data"]
    names += ["pre_activations", "saturation", "decisions"] + ["loss_slice"] * (trained.outcome != "diverged")
    assert drawn == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
