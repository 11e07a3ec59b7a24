"""What a record made by somebody else may say: values of a run, and one of the known loaders."""

import inspect
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import sklearn.datasets
from sklearn.datasets import get_data_home

from experiments.run.composition import parse_config
from experiments.run.config import UserError
from experiments.run.data import load_dataset
from experiments.run.loaders import (
    BUNDLED_LOADERS,
    CHOICE_ARGUMENTS,
    DATASETS,
    FETCHING_LOADERS,
    GENERATING_LOADERS,
    OPENML_LOADER,
    targets_to_allow,
)
from experiments.run.trust import from_record

ALLOWED_BY_ISSUE = re.compile(r"load_(?!files|svmlight)|make_|fetch_(?!file$)")


@pytest.fixture
def values(composed):
    return asdict(parse_config(composed("dataset=iris")))


def loader(name, /, **arguments):
    return {"_target_": f"sklearn.datasets.{name}", **arguments}


HOSTILE = {
    "may name only a loader": [
        loader("dump_svmlight_file", X=[[1.0]], y=[1], f="written"),
        loader("clear_data_home"),
        loader("get_data_home", data_home="written"),
        loader("fetch_file", url="http://127.0.0.1:9/x", folder=".", local_filename="sitecustomize.py"),
        loader("load_files", container_path="."),
        loader("load_svmlight_file", f="secret"),
        loader("load_svmlight_files", files=["secret"]),
        loader("load_sample_image", image_name="secret"),
        loader("fetch_20newsgroups"),
        loader("_base._fetch_remote"),
        loader("os.system", command="touch written"),
        {"_target_": "subprocess.run", "args": "touch written"},
        {"_target_": "sklearn.datasets"},
        {"_target_": ["sklearn.datasets.load_iris"]},
        {"_target_": None},
        {},
        ["sklearn.datasets.load_iris"],
        "sklearn.datasets.load_iris",
    ],
    "a record may not say where data are had": [
        loader("fetch_california_housing", data_home="."),
        loader("fetch_covtype", n_retries=10**9),
        loader("fetch_olivetti_faces", delay=1e9),
        loader("fetch_lfw_people", resize=1e6),
        loader("fetch_openml", name="mnist_784", version=1, data_home="."),
        loader("fetch_openml", data_id=554),
    ],
    "may name only mnist_784 version 1 of openml.org": [
        loader("fetch_openml", name="mnist_785", version=1),
        loader("fetch_openml", name="mnist_784"),
        loader("fetch_openml", name="mnist_784", version="active"),
        loader("fetch_openml", name=["mnist_784"], version=1),
    ],
    "is no argument of": [
        loader("load_iris", data_home="."),
        loader("make_blobs", file="written"),
        loader("make_moons", n_features=3),
    ],
    "it must be a number, a word or a list of such": [loader("make_blobs", centers={"f": "written"})],
    "may name nothing to be called": [
        loader("load_digits", n_class={"_target_": "os.system"}),
        {"_partial_": True, **loader("load_iris")},
    ],
    "may not refer to anything outside it": [loader("load_iris", as_frame="${oc.env:HOME}")],
}
CASES = [(line, case) for line, cases in HOSTILE.items() for case in cases]


@pytest.mark.parametrize(("line", "case"), CASES)
def test_a_record_may_name_no_loader_that_does_more_than_give_known_data(values, line, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("1 1:password")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "data"))
    kept = Path(get_data_home(), "kept")
    kept.touch()
    values["dataset"]["loader"] = case
    with pytest.raises(UserError, match=r"^the record's config does not fit: dataset\.loader.*" + re.escape(line)) as refused:
        from_record(values)
    assert "\n" not in str(refused.value)
    assert "password" not in str(refused.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "secret"]
    assert kept.exists()


def test_every_known_loader_is_one_the_issue_names_and_gives_data_by_arguments_that_it_has():
    names = (*BUNDLED_LOADERS, *GENERATING_LOADERS, *FETCHING_LOADERS, OPENML_LOADER)
    assert set(names) <= set(sklearn.datasets.__all__)
    assert all(ALLOWED_BY_ISSUE.match(name) for name in names)
    fetched = [set(inspect.signature(getattr(sklearn.datasets, name)).parameters) for name in (*FETCHING_LOADERS, OPENML_LOADER)]
    assert set.union(*fetched) >= CHOICE_ARGUMENTS


@pytest.mark.parametrize("name", [*BUNDLED_LOADERS, *GENERATING_LOADERS])
def test_every_data_set_that_needs_no_network_is_had_from_a_record(values, name):
    values["dataset"]["loader"] = loader(name)
    dataset = load_dataset(from_record(values).dataset)
    assert dataset.x.shape[1] > 10


def test_the_presets_of_conf_are_all_known(composed):
    for file in Path("conf/dataset").glob("*.yaml"):
        from_record(asdict(parse_config(composed(f"dataset={file.stem}"))))


def test_what_is_allowed_by_name_alone_is_called_with_anything(values):
    values["dataset"]["loader"] = loader("fetch_california_housing", data_home=".")
    for allow in (f"{DATASETS}.fetch_california_housing", DATASETS):
        assert from_record(values, [allow]).dataset.loader["data_home"] == "."
    with pytest.raises(UserError, match=f"--allow {DATASETS}.fetch_california_housing lets it be called"):
        from_record(values, [f"{DATASETS}.fetch_covtype", "fetch_california_housing", "sklearn"])


def test_a_sweep_knows_which_of_its_loaders_must_be_allowed():
    own, elsewhere = {"_target_": "mine.load"}, loader("fetch_california_housing", data_home=".")
    loaders = [loader("load_iris"), own, loader("make_blobs", n_samples=9), elsewhere, own]
    assert targets_to_allow(loaders) == ["mine.load", "sklearn.datasets.fetch_california_housing"]


NO_RUN = [
    ({"seed": 10**400}, "seed is 1000"),
    ({"seed": 2**128}, "it must be a whole number from 0 to 340282366920938463463374607431768211455"),
    ({"dataset": {"seed": 2**32}}, "dataset.seed is 4294967296, it must be a whole number from 0 to 4294967295"),
    ({"network": {"depth": float("inf")}}, "could not be converted to Integer"),
    (
        {"training": {"threads": 10**30}},
        "training.threads is 1000000000000000000000000000000, it must be",
    ),
    ({"optimizer": {"learning_rate": 10**400}}, "does not fit"),
    ({"dataset": {"name": "???"}}, "dataset.name"),
    ({"dataset": []}, "may name only a loader"),
    ({"network": 3}, "does not fit"),
    ({"network": {"width": b"64"}}, "numbers and text alone"),
    ({"optimizer": {"block_rates": "all"}}, "does not fit"),
    ({3: 4}, "3 is no text"),
]


@pytest.mark.parametrize(("edit", "line"), NO_RUN)
def test_what_no_run_can_have_does_not_fit(values, edit, line):
    for key, value in edit.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=r"^the record's config does not fit: ") as refused:
        from_record(values)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_largest_seeds_are_trained(values):
    values["seed"], values["dataset"]["seed"] = 2**128 - 1, 2**32 - 1
    assert load_dataset(from_record(values).dataset).classes == 3
