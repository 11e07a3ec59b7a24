"""Pictures by what they show: axes, cells, marks, lines."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.patches import Rectangle

from blocks.history import History
from experiments.pictures import figures, table
from experiments.pictures.report import Report, Row
from experiments.pictures.slices import slices
from experiments.run.composition import parse_config
from experiments.run.repeats import stack_histories
from experiments.run.stack import train_stack


def report(composed, cells, *overrides):
    """cells: (depth, rate, seed) -> (value, outcome)"""
    default, rows = parse_config(composed(*overrides)), []
    for job, ((depth, rate, seed), (loss, outcome)) in enumerate(cells.items()):
        network, optimizer = replace(default.network, depth=depth), replace(default.optimizer, learning_rate=rate)
        rows.append(Row(replace(default, network=network, optimizer=optimizer, seed=seed), loss, outcome, job))
    return Report(rows)


@pytest.fixture
def swept(composed):
    inf = float("inf")
    return report(
        composed,
        {
            (2, 0.1, 0): (0.5, "trained"),
            (2, 0.1, 1): (0.3, "trained"),
            (2, 1.0, 0): (0.01, "trained"),
            (2, 1.0, 1): (0.03, "trained"),
            (9, 0.1, 0): (0.2, "trained"),
            (9, 0.1, 1): (0.2, "trained"),
            (9, 1.0, 0): (inf, "diverged"),
            (9, 1.0, 1): (0.6, "trained"),
        },
    )


def test_the_map_has_a_cell_for_every_depth_and_rate(swept):
    axes, bar = figures.sweep_map(swept).axes
    (image,) = axes.images
    # Seeds are averaged over the runs that did not diverge.
    np.testing.assert_allclose(image.get_array(), [[0.4, 0.02], [0.2, 0.6]])
    assert isinstance(image.norm, LogNorm)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "depth L (blocks)")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "9"]
    assert bar.get_ylabel() == "final training loss"


def test_the_map_marks_the_best_cell_its_spread_and_the_largest_stable_rates(swept):
    axes = figures.sweep_map(swept).axes[0]
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    # The standard deviation of 0.5 and 0.3 is 0.1, of 0.01 and 0.03 it is 0.01.
    assert texts == {(0, 0): "0.4\n±0.1", (1, 0): "[0.02\n±0.01]", (0, 1): "0.2\n±0", (1, 1): "0.6\n1/2"}
    frames = {
        (round(patch.get_x() + 0.47), round(patch.get_y() + 0.47)) for patch in axes.patches if isinstance(patch, Rectangle)
    }
    # Depth 2 trains up to rate 1; at depth 9 one seed diverges there.
    assert frames == {(1, 0), (0, 1)}


def test_a_sweep_that_diverged_everywhere_still_has_its_map(composed):
    inf = float("inf")
    lost = report(composed, {(2, 10.0, 0): (inf, "diverged"), (9, 10.0, 0): (inf, "diverged")})
    axes = figures.sweep_map(lost).axes[0]
    assert [text.get_text() for text in axes.texts] == ["diverged", "diverged"]
    assert not axes.patches
    assert "every run diverged (2 runs)" in table.report_text(lost)


@pytest.mark.parametrize(
    "cells", [{(2, 0.1, 0): (0.5, "trained")}, {(2, 0.1, 0): (0.5, "trained"), (2, 0.2, 0): (0.4, "trained")}]
)
def test_one_depth_or_one_rate_is_a_map_too(composed, cells):
    axes = figures.sweep_map(report(composed, cells)).axes[0]
    assert axes.images[0].get_array().shape == (1, len(cells))


@pytest.mark.parametrize(("values", "down", "across"), [(3, 1, 3), (4, 4, 1)])
def test_up_to_three_maps_stand_side_by_side_and_share_their_colours(composed, values, down, across):
    rows = []
    for number in range(values):
        for rate in (0.1, 0.2):
            for depth in (2, 9):
                swept = f"dataset.seed={number}", f"network.depth={depth}", f"optimizer.learning_rate={rate}"
                rows.append(Row(parse_config(composed(*swept)), 0.5 + number, "trained"))
    figure = figures.sweep_map(Report(rows))
    *maps, bar = figure.axes
    assert [axes.get_title().split("\n")[0] for axes in maps] == [f"dataset.seed {number}" for number in range(values)]
    assert maps[0].get_gridspec().get_geometry() == (down, across)
    assert len({(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in maps}) == 1
    assert bar.get_ylabel() == "final training loss"


def test_a_map_too_large_to_read_has_no_texts_and_few_labels(composed):
    axes = figures.sweep_map(report(composed, {(2, 0.1 + k / 100, 0): (0.5, "trained") for k in range(30)})).axes[0]
    assert not axes.texts
    assert len(axes.get_xticks()) == 24


@pytest.fixture(scope="module")
def runs(composed):
    common = ["network.width=8", "training.epochs=4"]
    fine = train_stack([parse_config(composed(*common, "network.depth=5"))])[0]
    lost = train_stack([parse_config(composed(*common, "network.depth=5", "optimizer.learning_rate=1e6"))])[0]
    return fine.history, lost.history


def test_loss_curves_show_every_batch_and_the_whole_sets_on_a_log_scale(runs):
    fine, lost = runs
    (axes,) = figures.loss_curves(fine).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["batch", "train", "validation"]
    np.testing.assert_array_equal(lines["batch"].get_ydata(), fine.loss)
    np.testing.assert_array_equal(lines["train"].get_xdata(), fine.evaluated)
    assert (axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "step (updates made)", "loss")
    (axes,) = figures.loss_curves(lost).axes
    assert axes.lines[-1].get_label().startswith("diverged in block ")
    assert list(axes.lines[-1].get_xdata()) == [lost.diverged_step] * 2


def test_the_norm_map_has_a_row_for_every_block_and_a_column_for_every_step(runs):
    for history in runs:
        axes, bar = figures.norm_map(history).axes
        (image,) = axes.images
        np.testing.assert_allclose(np.ma.filled(image.get_array(), np.nan), history.grad_norm.T, rtol=1e-6)
        assert isinstance(image.norm, LogNorm)
        # Block 1 is below, as the data are.
        assert image.origin == "lower"
        assert image.get_extent() == [0, 92, 0.5, 5.5]
        assert (axes.get_ylabel(), bar.get_ylabel()) == ("block l", r"$\|dW_l\|$")


def test_the_norm_profile_has_the_first_a_middle_and_the_last_step(runs):
    fine, lost = runs
    (axes,) = figures.norm_profile(stack_histories([fine])).axes
    assert [line.get_label() for line in axes.lines] == ["step 0", "step 46", "step 91"]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), fine.grad_norm[91])
    (axes,) = figures.norm_profile(stack_histories([lost])).axes
    assert axes.lines[-1].get_label() == f"step {int(lost.diverged_step) - 1}"


def rows(composed, *axes, loss=1.0):
    """A report of the runs of a sweep over those axes, `key=value,value`; every run but the first has that loss and is stuck."""
    parts = [[f"{key}={value}" for value in values.split(",")] for key, _, values in (axis.partition("=") for axis in axes)]
    configs = [parse_config(composed(*chosen)) for chosen in itertools.product(*parts)]
    return Report([Row(config, loss if job else 0.5, "stuck" if job else "trained", job) for job, config in enumerate(configs)])


def test_norm_ratios_are_of_the_first_block_over_the_last(composed, runs):
    fine, _ = runs
    axes = figures.norm_ratios(rows(composed, "network.depth=5"), {(5, ""): stack_histories([fine])}).axes[0]
    first = next(line for line in axes.lines if line.get_label() == "first step")
    assert list(first.get_xdata()) == [5]
    assert first.get_ydata()[0] == pytest.approx(float(fine.grad_norm[0, 0]) / float(fine.grad_norm[0, -1]))
    assert axes.get_yscale() == "log"


def test_a_category_has_lines_of_its_own_and_the_title_says_which_runs_are_drawn(composed):
    # 2 ** -L and 1: vanishing and not.
    def history(depth, factor):
        norms = np.tile(factor ** np.arange(depth)[::-1].astype(float), (3, 1))
        return History(np.ones(3), norms, norms, np.ones(3, int), 3, np.array([0, 3]), {"loss/train": np.array([2.0, factor])})

    swept = rows(composed, "network.activation=sigmoid,tanh", "network.depth=2,5,9", "optimizer.learning_rate=0.01,1.0")
    factors = {"sigmoid": 0.5, "tanh": 1.0}
    histories = {(depth, name): stack_histories([history(depth, factors[name])]) for depth in (2, 5, 9) for name in factors}
    axes = figures.norm_ratios(swept, histories).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["sigmoid, first step"] == [0.5, 0.5**4, 0.5**8]
    assert lines["tanh, last step"] == [1, 1, 1]
    says = "the run of smallest final training loss of each depth and activation, of rates 0.01 to 1"
    assert axes.get_title().splitlines()[1] == says

    figure = figures.best_curves(swept, histories)
    axes = figure.axes[0]
    assert axes.get_title().splitlines()[1] == says
    labels = [line.get_label() for line in axes.lines]
    assert labels[0] == "depth 2, sigmoid, rate 0.01"
    looks = {(tuple(np.round(to_rgb(line.get_color()), 6)), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(labels) == 6
    assert len({look[0] for look in looks}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels


@pytest.fixture(scope="module", params=[3, 6])
def seeds(composed, request):
    """A report of two depths and so many seeds, and the histories of each depth."""
    base = ["dataset=iris", "training.epochs=3", "training.batch_size=16", "network.width=4"]
    configs = [
        parse_config(composed(*base, f"network.depth={depth}", f"seed={k}")) for depth in (2, 4) for k in range(request.param)
    ]
    trained = [train_stack([config])[0] for config in configs]
    found = Report([Row(run.config, run.final("loss/train"), run.outcome, job) for job, run in enumerate(trained)])
    return found, {(d, ""): stack_histories([run.history for run in trained if run.config.network.depth == d]) for d in (2, 4)}


def drawn_band(axes, number):
    """The line of that number, and the lower and the upper end of its band."""
    line, (outline,) = axes.lines[number], axes.collections[number].get_paths()
    points = len(line.get_xdata())
    # Around the band: its start, the lower end from left to right, its end, the upper end back.
    lower, upper = outline.vertices[1 : points + 1, 1], outline.vertices[points + 2 : 2 * points + 2, 1][::-1]
    return line.get_ydata(), *sorted((lower, upper), key=np.nanmin)


def logarithmic(values):
    """By hand: 10 to the mean of log10, and the range, or of five and more the mean -+ the standard deviation."""
    logs = np.log10(np.array(values, float))
    mean, spread = logs.mean(axis=0), np.sqrt(((logs - logs.mean(axis=0)) ** 2).sum(axis=0) / (len(logs) - 1))
    ends = (logs.min(axis=0), logs.max(axis=0)) if len(logs) < 5 else (mean - spread, mean + spread)
    return 10**mean, 10 ** ends[0], 10 ** ends[1]


def test_seeds_are_a_line_of_the_mean_and_a_band_in_every_picture_of_curves(seeds):
    report, best = seeds
    n = report.seeds
    word = "range" if n < 5 else "standard deviation"
    says = f"mean of the logarithm, band: {word}"

    axes = figures.best_curves(report, best).axes[0]
    assert axes.get_title().splitlines()[2] == says
    assert [line.get_label() for line in axes.lines] == [f"depth 2, n = {n}", f"depth 4, n = {n}"]
    for number, history in enumerate(best.values()):
        np.testing.assert_allclose(drawn_band(axes, number), logarithmic(history.measures["loss/train"]), rtol=1e-6)

    axes = figures.norm_ratios(report, best).axes[0]
    assert axes.lines[0].get_label() == f"first step, n = {n}"
    ratios = [history.grad_norm[:, 0, 0] / history.grad_norm[:, 0, -1] for history in best.values()]
    np.testing.assert_allclose(drawn_band(axes, 0), logarithmic(np.transpose(ratios)), rtol=1e-6)

    history, last = best[4, ""], best[4, ""].loss.shape[-1] - 1
    (axes,) = figures.norm_profile(history, "network.depth=4").axes
    assert axes.get_title().splitlines()[1:] == ["network.depth=4", says]
    assert [line.get_label() for line in axes.lines][::2] == [f"step 0, n = {n}", f"step {last}, n = {n}"]
    np.testing.assert_allclose(drawn_band(axes, 2), logarithmic(history.grad_norm[:, last]), rtol=1e-6)

    (axes,) = figures.norm_curves(history, "network.depth=4").axes
    assert [line.get_label() for line in axes.lines] == [f"block {block}, n = {n}" for block in (1, 3, 4)]
    np.testing.assert_allclose(drawn_band(axes, 2), logarithmic(history.grad_norm[:, :, 3]), rtol=1e-6)


def test_twenty_depths_have_twenty_colours(composed, runs):
    swept = rows(composed, "network.depth=" + ",".join(str(depth) for depth in range(2, 22)))
    axes = figures.best_curves(swept, {(depth, ""): stack_histories([runs[0]]) for depth in range(2, 22)}).axes[0]
    assert len({tuple(to_rgb(line.get_color())) for line in axes.lines}) == 20


def test_the_map_of_a_score_is_linear_and_marks_the_largest(composed):
    values = {(2, 0.1, 0): (0.7, "trained"), (2, 0.2, 0): (0.9, "trained"), (2, 0.3, 0): (-np.inf, "diverged")}
    axes, bar = figures.sweep_map(report(composed, values, "sweep.measure=accuracy/validation")).axes
    assert bar.get_ylabel() == axes.get_title().partition(",")[0] == "final validation accuracy"
    assert type(axes.images[0].norm) is Normalize
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (0.7, 0.9)
    assert [text.get_text() for text in axes.texts] == ["0.7", "[0.9]", "diverged"]


def test_an_r2_far_below_that_of_the_best_constant_prediction_leaves_the_other_cells_their_colours(composed):
    values = {(2, 0.1, 0): (0.5, "trained"), (2, 0.2, 0): (-1e7, "stuck")}
    axes, bar = figures.sweep_map(report(composed, values, "dataset=diabetes", "sweep.measure=r2/train")).axes
    # The best constant prediction has 0, one with twice its loss -1.
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-1, 0.5)
    assert bar.get_ylabel() == "final training r2 (all below -1 alike)"
    assert bar.get_ylim() == (-1, 0.5)


@pytest.mark.parametrize("loss", [2.4e7, 16.0])
def test_a_huge_loss_leaves_the_other_cells_their_colours(composed, loss):
    swept = rows(composed, "network.depth=2,9", "optimizer.learning_rate=0.1,1.0", loss=loss)
    axes, bar = figures.sweep_map(swept).axes
    # ln 10 is the loss of the best constant prediction on ten classes as frequent as each other: digits', nearly.
    assert axes.images[0].norm.vmax == pytest.approx(2 * np.log(10), rel=0.01)
    assert bar.get_ylabel() == "final training loss (all above 4.6 alike)"
    # The frame is around what trains, and no other cell.
    (frame,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (round(frame.get_x() + 0.47), round(frame.get_y() + 0.47)) == (0, 0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_texts_of_a_large_map_do_not_overlap(composed, seeds):
    default = parse_config(composed())
    runs = []
    for depth, rate, seed in itertools.product(range(2, 14), np.geomspace(1e-3, 10, 16), range(seeds)):
        network, optimizer = replace(default.network, depth=depth), replace(default.optimizer, learning_rate=float(rate))
        loss = 1.23e7 * rate * (1 + seed / 7)
        runs.append(Row(replace(default, network=network, optimizer=optimizer, seed=seed), loss, "stuck", len(runs)))
    figure = figures.sweep_map(Report(runs))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [[label for label in axis.get_ticklabels() if label.get_text()] for axis in (axes.xaxis, axes.yaxis)]
    for texts in (axes.texts, *labels):
        boxes = [text.get_window_extent() for text in texts]
        assert len(boxes) in (192, 16, 12)
        assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_figures_are_saved_as_png_and_svg(runs, tmp_path):
    figures.save(tmp_path / "pictures", loss=figures.loss_curves(runs[0]))
    assert (tmp_path / "pictures/loss.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "pictures/loss.svg").read_bytes()


@pytest.mark.parametrize(
    ("key", "values", "ordered"),
    [
        ("training.batch_size", ["null", "32", "8"], [None, 32, 8]),
        ("optimizer.block_rates", ["[1,2,3]", "null", "[0.1,0.2,0.3]"], ["[1.0, 2.0, 3.0]", None, "[0.1, 0.2, 0.3]"]),
        ("+dataset.loader.n_class", ["10", "2"], [2, 10]),
    ],
)
def test_any_value_can_be_a_row(composed, key, values, ordered):
    swept = Report([Row(parse_config(composed(f"{key}={value}")), 1.0 + job, "trained", job) for job, value in enumerate(values)])
    assert swept.row_key == key.lstrip("+")
    # Numbers in ascending order, all else as it was swept.
    assert [down for down, _ in swept.best_cells()] == ordered
    assert [len(cells) for cells in swept.tables().values()] == [len(values)]
    assert len(figures.sweep_map(swept).axes[0].get_yticklabels()) == len(values)


def test_an_argument_that_one_runs_loader_has_not_is_empty_in_its_row(composed):
    configs = [parse_config(composed("dataset=wine", *more)) for more in ([], ["+dataset.loader.as_frame=false"])]
    swept = Report([Row(config, 1.0, "trained", job) for job, config in enumerate(configs)])
    assert swept.columns()["dataset.loader.as_frame"] == ["", False]
    assert "dataset.loader.as_frame=" in table.report_text(swept)


@pytest.mark.parametrize(("measure", "best", "end"), [("loss/train", 0.2, 0.98), ("accuracy/train", 0.5, 0.02)])
def test_a_search_is_its_measure_against_every_key_with_all_its_runs(composed, measure, best, end):
    worst = float("inf") if measure == "loss/train" else -float("inf")
    drawn = {
        (2, 0.013, 0): (0.2, "trained"),
        (5, 0.0027, 0): (0.5, "trained"),
        (3, 0.4, 0): (worst, "stopped"),
        (9, 0.71, 0): (worst, "diverged"),
    }
    by_depth, by_rate = slices(report(composed, drawn, f"sweep.measure={measure}")).axes
    assert (by_depth.get_xlabel(), by_rate.get_xlabel(), by_rate.get_xscale()) == ("depth L (blocks)", "learning rate", "log")
    for axes, column in ((by_depth, 0), (by_rate, 1)):
        places = [cell[column] for cell in drawn]
        finite, star, stopped, diverged = (marks.get_offsets().tolist() for marks in axes.collections)
        assert finite == [[places[0], 0.2], [places[1], 0.5]]
        assert star == [[places[0 if best == 0.2 else 1], best]]
        assert (stopped, diverged) == ([[places[2], end]], [[places[3], end]])
        left, right = axes.get_xlim()
        assert left < min(places) < max(places) < right


def test_a_search_over_names_that_all_diverged_has_its_picture(composed):
    default, rows = parse_config(composed()), []
    for job, kind in enumerate(("plain", "residual", "normalized")):
        network = replace(default.network, kind=kind)
        rows.append(Row(replace(default, network=network), float("inf"), "diverged", job))
    (axes,) = slices(Report(rows)).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["plain", "residual", "normalized"]
