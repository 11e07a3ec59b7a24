"""What a person finds after a sweep: pictures, model, frame, dashboard."""

import contextlib
import json
import re
import signal
import socket
import sqlite3
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_diabetes, load_digits

from experiments import results
from experiments.run.config import UserError
from tests.experiments.conftest import Lab, empty_store
from tests.experiments.record.test_view import state

FEW = ["training.epochs=3", "network.width=16"]
README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SCREENSHOTS = Path(__file__).resolve().parents[2] / ".screenshots"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("swept"))
    lab.output = lab.run(
        "-m", *FEW, "network.depth=2,5,9", "optimizer.learning_rate=0.01,0.1,0.5,1e6", "tracking.register=digits"
    )
    return lab


@pytest.fixture
def best(swept):
    return min(swept.runs(), key=lambda run: run.data.metrics.get("final/loss_train", np.inf))


def names(lab, run):
    folder = lab.artifact(run, "")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_sweep_has_its_pictures_and_the_best_run_alone_has_its_own(swept, best):
    (parent,) = swept.runs("sweep")
    assert names(swept, parent) == {"table.csv", "table.json", "report.html"} | {
        f"{name}.{kind}" for name in ("map", "best_curves", "norm_ratios") for kind in ("png", "svg")
    }
    drawn = {f"pictures/{name}.{kind}" for name in ("loss", "grad_norm_map", "grad_norm_by_block") for kind in ("png", "svg")}
    for run in swept.runs():
        assert drawn <= names(swept, run) if run.info.run_id == best.info.run_id else not drawn & names(swept, run)
    table = json.loads(swept.artifact(parent, "table.json").read_text())
    # MLflow's page takes a dot for a path.
    assert table["columns"] == ["network depth", "optimizer learning_rate", "sensitivity", "final/loss_train", "outcome"]
    assert len(table["data"]) == 12


def test_the_sweep_says_what_was_swept_and_how_to_have_it_again(swept, best):
    (parent,) = swept.runs("sweep")
    note = parent.data.tags["mlflow.note.content"]
    outcomes = Counter(run.data.tags["outcome"] for run in swept.runs())
    assert f"**12 runs: {outcomes['trained']} trained, {outcomes['stuck']} stuck, 3 diverged**" in note
    assert "`optimizer.learning_rate`: 0.01, 0.1, 0.5, 1e+06" in note
    assert best.info.run_id in note
    # Links and pictures of the page's own server.
    page = f"#/experiments/{parent.info.experiment_id}/runs"
    assert f"({page}?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={parent.info.run_id})" in note
    for name in ("map.png", "best_curves.png", "norm_ratios.png"):
        assert f"({page}/{parent.info.run_id}/artifacts/{name}?workflowType=machine_learning)" in note
        assert f"![{name}](get-artifact?path={name}&run_uuid={parent.info.run_id})" in note
    (command,) = [line.strip() for line in note.splitlines() if line.startswith("    python -m experiments.reproduce")]
    assert "12 of 12 runs are identical" in swept.run(*command.split()[3:], module="experiments.reproduce")


def test_the_sweep_has_the_counts_of_its_outcomes_and_the_numbers_of_its_best_run(swept, best):
    (parent,) = swept.runs("sweep")
    outcomes = Counter(run.data.tags["outcome"] for run in swept.runs())
    ends = {key: value for key, value in best.data.metrics.items() if key.startswith(("final/", "best/"))}
    assert ends.keys() >= {"final/loss_train", "final/accuracy_validation", "best/accuracy_validation"}
    counts = {f"runs/{outcome}": outcomes[outcome] for outcome in ("trained", "stuck", "diverged")}
    assert parent.data.metrics == pytest.approx(ends | counts)


@pytest.mark.slow
def test_pictures_and_models_of_every_run_of_which_the_best_alone_is_registered(lab):
    axes = ["network.depth=2,3", "optimizer.learning_rate=0.1"]
    lab.run("-m", *FEW, *axes, "tracking.pictures=all", "tracking.models=all", "tracking.register=one", "sweep.report=false")
    assert "report.html" not in names(lab, lab.runs("sweep")[0])
    assert all("pictures/loss.svg" in names(lab, run) for run in lab.runs())
    assert len(lab.client().search_logged_models(["1"])) == 2
    assert len(lab.client().search_model_versions("name = 'one'")) == 1


def test_the_best_run_alone_has_the_sweep_s_pictures_as_images_and_the_view_says_in_words_what_was_swept(swept, best):
    (parent,) = swept.runs("sweep")
    stems = {"map", "best_curves", "norm_ratios"}
    for run in swept.runs():
        images = [Path(name).name for name in names(swept, run) if name.startswith("images/")]
        is_best = run.info.run_id == best.info.run_id
        assert {name.partition("+")[0] for name in images} == (stems if is_best else set())
        assert run.data.tags.get("mlflow.loggedImages") == ("True" if is_best else None)
    tags = swept.client().get_experiment("1").tags
    assert json.loads(tags[f"mlflow.sharedViewState.{parent.info.run_id}"])["name"] == (
        "depth 2, 5, 9 x rate 0.01 to 1e+06, 12 runs on digits"
    )


@pytest.mark.slow
def test_another_best_run_takes_the_sweep_s_pictures_over(lab):
    axes = ["network.depth=2", "optimizer.learning_rate=0.01,0.1"]
    lab.run("-m", *FEW, *axes)
    slow, fast = sorted(lab.runs(), key=lambda run: float(run.data.params["optimizer.learning_rate"]))
    lab.client().set_terminated(fast.info.run_id, "KILLED")
    lab.client().set_tag(slow.info.run_id, "mlflow.loggedImages", "True")
    lab.run("-m", *FEW, *axes)
    shown = [run for run in lab.runs() if "mlflow.loggedImages" in run.data.tags]
    assert [run.data.params["optimizer.learning_rate"] for run in shown] == ["0.1"]
    # Typed once more, nothing of the run changes.
    files = {name: lab.artifact(shown[0], name).stat().st_size for name in names(lab, shown[0])}
    lab.run("-m", *FEW, *axes)
    assert {name: lab.artifact(shown[0], name).stat().st_size for name in names(lab, shown[0])} == files


def test_a_single_run_has_its_pictures_and_its_model(lab):
    lab.run(*FEW)
    (run,) = lab.runs()
    assert "pictures/grad_norm_map.svg" in names(lab, run)
    assert run.info.status == "FINISHED"
    note, run_id = run.data.tags["mlflow.note.content"], run.info.run_id
    for name in ("loss", "grad_norm_map", "grad_norm_by_block"):
        page = f"#/experiments/1/runs/{run_id}/artifacts/pictures/{name}.png?workflowType=machine_learning"
        assert f"[{name}]({page})" in note
        assert f"![pictures/{name}.png](get-artifact?path=pictures/{name}.png&run_uuid={run_id})" in note
    (model,) = lab.client().search_logged_models(["1"])
    assert model.source_run_id == run.info.run_id


def test_a_sweep_that_diverged_everywhere_ends_with_its_map_and_no_model(lab):
    output = lab.run("-m", *FEW, "network.depth=2,3", "optimizer.learning_rate=1e6,1e7")
    assert "every run diverged (4 runs)" in output
    (parent,) = lab.runs("sweep")
    assert {"map.svg", "report.html"} <= names(lab, parent)
    assert not lab.client().search_logged_models(["1"])
    # No run has the pictures as images: the dashboard has no section for them, which would be empty.
    view = lab.client().get_experiment("1").tags[f"mlflow.sharedViewState.{parent.info.run_id}"]
    assert "pictures" not in [section["uuid"] for section in state(view)["compareRunSections"]]


def test_the_best_network_is_a_registered_model_without_pickles(swept, best):
    (model,) = swept.client().search_logged_models(["1"])
    assert model.source_run_id == best.info.run_id
    (version,) = swept.client().search_model_versions("name = 'digits'")
    assert version.version in (1, "1")
    # Its page has the metrics of the network as it is: after the last update, not before the first.
    found = {metric.key: metric.value for metric in swept.client().get_logged_model(model.model_id).metrics}
    ends = {name: best.data.metrics[f"final/{name.replace('/', '_')}"] for name in ("loss/train", "accuracy/validation")}
    assert {name: found[name] for name in ends} == ends
    assert found["final/accuracy_validation"] == ends["accuracy/validation"] > 0.5
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")]
    about = yaml.safe_load((folder / "MLmodel").read_text())
    assert about["signature"]["inputs"]
    assert "numpy==" in (folder / "requirements.txt").read_text()


def test_the_served_model_answers_with_the_bits_of_predict(swept):
    import mlflow
    from mlflow.pyfunc import scoring_server

    (model,) = swept.client().search_logged_models(["1"])
    mlflow.set_tracking_uri(swept.uri)
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    X, y = load_digits(return_X_y=True)
    answer = loaded.predict(X)
    kept = np.load(swept.artifact(swept.client().get_run(model.source_run_id), "history.npz"))
    accuracies = kept["measures/accuracy/train"][-1], kept["measures/accuracy/validation"][-1]
    # The model scales as the training did: over all examples it is as right as over the two parts of them.
    assert (answer == y).sum() == round(accuracies[0] * 1437 + accuracies[1] * 360)

    # As `mlflow models serve` does.
    asked = json.dumps({"inputs": X[:50].tolist()})
    served = scoring_server.invocations(asked, "application/json", loaded, loaded.metadata.get_input_schema())
    assert json.loads(served.response)["predictions"] == answer[:50].tolist()


def test_a_regression_s_model_answers_in_the_data_s_own_units(lab):
    import mlflow

    lab.run("dataset=diabetes", "training.epochs=100", "network.width=16", "optimizer.learning_rate=0.05")
    (model,) = lab.client().search_logged_models(["1"])
    (run,) = lab.runs()
    mlflow.set_tracking_uri(lab.uri)
    X, y = load_diabetes(return_X_y=True)
    answer = mlflow.pyfunc.load_model(model.model_uri).predict(X).ravel()
    kept = np.load(lab.artifact(run, "history.npz"))
    explained = 1 - ((answer - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    # Of all examples, r2 lies between that of the two parts, or near.
    parts = sorted(kept[f"measures/r2/{part}"][-1] for part in ("train", "validation"))
    assert parts[0] - 0.1 < explained < parts[1] + 0.1


@pytest.mark.slow
def test_the_model_of_every_kind_answers_as_the_network_did(lab):
    import mlflow

    kinds = "network.kind=residual,normalized,batch_normalized"
    lab.run("-m", kinds, "network.depth=5", *FEW, "tracking.models=all", "tracking.pictures=none")
    models = lab.client().search_logged_models(["1"])
    assert {model.source_run_id for model in models} == {run.info.run_id for run in lab.runs()}
    mlflow.set_tracking_uri(lab.uri)
    X, y = load_digits(return_X_y=True)
    for model in models:
        kept = np.load(lab.artifact(lab.client().get_run(model.source_run_id), "history.npz"))
        accuracies = kept["measures/accuracy/train"][-1], kept["measures/accuracy/validation"][-1]
        right = (mlflow.pyfunc.load_model(model.model_uri).predict(X) == y).sum()
        assert right == round(accuracies[0] * 1437 + accuracies[1] * 360)


def test_results_are_a_frame_and_histories(swept, best, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", swept.uri)
    frame, histories = results.load()
    assert list(frame.columns[:3]) == ["network.depth", "optimizer.learning_rate", "outcome"]
    assert len(frame) == len(histories) == 12
    assert frame.loc[frame["loss/train"].idxmin(), "run_id"] == best.info.run_id
    diverged = frame["optimizer.learning_rate"] == 1e6
    assert (frame["outcome"] == "diverged").equals(diverged)
    assert frame["loss/train"].isna().equals(diverged)
    assert [history.grad_norm.shape[-1] for history in histories] == frame["network.depth"].tolist()
    assert repr(histories[0]) == "History(69 steps, 2 blocks, 0 diverged)"
    first, last = histories[0].measures["loss/train"][[0, -1]]
    assert f"<tr><th>loss/train</th><td>{first:.4g} &rarr; {last:.4g}</td></tr>" in histories[0]._repr_html_()
    html = results.load()._repr_html_()
    assert html.startswith("<p>12 runs and their histories: ")
    assert "3 diverged" in html.partition("</p>")[0]
    with pytest.raises(UserError, match="run 'another'"):
        results.load("another")


def test_the_readme_s_notebook_example_runs(swept):
    start = README.index("    from experiments import results")
    example = README[start:].split("\n\n", 1)[0]
    (swept.folder / "notebook.py").write_text("\n".join(line[4:] for line in example.splitlines()))
    swept.run(module="notebook")
    assert (swept.folder / "norm_map.png").stat().st_size > 1000


def chromium(capabilities=None):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not Path("/usr/bin/chromium").exists() or not Path("/usr/bin/chromedriver").exists():
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage"]
    for argument in (
        "headless=new",
        "no-sandbox",
        "no-first-run",
        "window-size=1600,2200",
        *(f"disable-{name}" for name in quiet),
    ):
        options.add_argument(f"--{argument}")
    for name, value in (capabilities or {}).items():
        options.set_capability(name, value)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def wait_until(reached, seconds=60):
    """Whether that came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not reached():
        time.sleep(0.5)
    return reached()


def images(browser):
    """The address of each picture of the page -> its width in pixels; asked at once, since the page replaces its parts."""
    return dict(browser.execute_script("return [...document.images].map(image => [image.src, image.naturalWidth])"))


def pictures(browser, page, count):
    """The pictures of a page that are no small ones, once there are so many."""

    def found():
        return [source for source, width in images(browser).items() if width > 500]

    if page:
        browser.get(page)
    wait_until(lambda: len(found()) >= count)
    return found()


@pytest.mark.slow
def test_the_dashboard_opens_on_the_sweep_with_nothing_clicked(swept):
    browser = chromium()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = swept.start("--port", str(port), module="experiments.dashboard")
    try:
        line = process.line("http://")
        link = line[line.index("http://") :].strip()
        # The sweep's own last line leads to the same page.
        assert link.partition("#")[2] in swept.output
        browser.get(link)
        deadline = time.monotonic() + 90
        drawn = []
        while time.monotonic() < deadline and not (len(drawn) >= 6 and "depth 9, rate 0.1" in browser.page_source):
            time.sleep(0.5)
            drawn = browser.find_elements("css selector", ".js-plotly-plot .scatterlayer .trace path.js-line")
        SCREENSHOTS.mkdir(exist_ok=True)
        browser.save_screenshot(str(SCREENSHOTS / "dashboard.png"))
        page = browser.page_source
        assert len(drawn) >= 6
        for run in swept.runs():
            assert run.info.run_name in page
        text = browser.find_element("css selector", "body").text
        for heading in ("Pictures", "Losses, log scale", "What was swept", "Gradient norms, log scale"):
            assert heading in text
        # No section is empty, and those that MLflow would fill by itself are folded.
        assert "(0)" not in text
        assert not re.search("(?m)^best/loss_train$|^grad_norm/W_0[2-9]$", text)
        assert browser.find_elements(
            "css selector", ".js-plotly-plot .contour, .contourlayer, .parcoords, [data-testid*=parallel]"
        )
        # The sweep's pictures are there, and one click away as large as they are.
        assert wait_until(lambda: len([source for source in images(browser) if "compressed" in source]) == 3)
        browser.find_element("css selector", "img[src*='images%2Fmap']").click()
        assert "images%2Fmap" in pictures(browser, "", 1)[0]
        browser.save_screenshot(str(SCREENSHOTS / "picture.png"))
        # The parent run itself is not among the runs that are drawn.
        assert "depth x rate, 12 runs" not in browser.find_element("css selector", "body").text

        (parent,) = swept.runs("sweep")
        page = f"{link.partition('#')[0]}#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
        # The description of the sweep's own page has the pictures themselves.
        assert len(pictures(browser, page, 3)) == 3
        browser.save_screenshot(str(SCREENSHOTS / "sweep.png"))
        assert pictures(browser, f"{page}/artifacts/map.png", 1)
        browser.save_screenshot(str(SCREENSHOTS / "map.png"))
        # From another page: a link that differs by its fragment alone leaves the artifact that is open.
        browser.get("about:blank")
        browser.get(f"{page}/artifacts/table.json")
        wait_until(lambda: "optimizer learni" in browser.find_element("css selector", "body").text)
        text = browser.find_element("css selector", "body").text
        assert text.count("diverged") == 3
        assert {"2", "5", "9", "0.01", "1000000"} <= set(text.split())
        # The sweep as one file is shown in place, in a frame of MLflow's that lets scripts run and nothing else.
        browser.get("about:blank")
        browser.get(f"{page}/artifacts/report.html")
        assert wait_until(lambda: browser.find_elements("css selector", "iframe[sandbox]"))
        browser.switch_to.frame(browser.find_element("css selector", "iframe[sandbox]"))
        assert wait_until(lambda: len(browser.find_elements("css selector", ".cell")) == 12)
        browser.find_elements("css selector", ".cell")[4].click()
        assert browser.find_element("css selector", "#card h3").text == "depth 5, rate 0.01"
        browser.switch_to.default_content()
        browser.save_screenshot(str(SCREENSHOTS / "report.png"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        browser.quit()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--uri", "sqlite:///nothing.db"], "but that file is not there"),
        (["--port", "70000"], "--port is 70000, it must be 1 to 65535"),
        (["nothing"], "error: run 'nothing': "),
    ],
)
def test_a_dashboard_that_cannot_be_shown_is_one_line(swept, arguments, line):
    output = swept.run(*arguments, module="experiments.dashboard", status=2 if "--port" in arguments else 1)
    assert line in output
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_one_line(swept):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = swept.run("--port", str(port), module="experiments.dashboard", status=1)
    assert f"error: --port is {port}, which another program uses" in output


def test_a_store_without_a_run_is_one_line(lab):
    with contextlib.closing(sqlite3.connect(lab.folder / "runs.db")) as store:
        empty_store().backup(store)
    output = lab.run(module="experiments.dashboard", status=1)
    assert output.endswith("has no sweep, run or map yet: python -m experiments.train makes one\n")
