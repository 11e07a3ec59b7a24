"""What a data set's loader may be: any function where the user types it, one of a list where a record names it."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.run.config import UserError
from experiments.run.memory import check_memory

DATASETS = "sklearn.datasets"
# Those of scikit-learn that give numbers and targets: what it brings along,
BUNDLED = ("load_breast_cancer", "load_diabetes", "load_digits", "load_iris", "load_linnerud", "load_wine")
# what it draws,
GENERATORS = (
    *("make_blobs", "make_circles", "make_classification", "make_friedman1", "make_friedman2", "make_friedman3"),
    *("make_gaussian_quantiles", "make_hastie_10_2", "make_moons", "make_regression", "make_s_curve"),
    *("make_sparse_uncorrelated", "make_swiss_roll"),
)
# and what it fetches, one known data set each, with the arguments that choose among the examples and their form alone.
FETCHED = ("fetch_california_housing", "fetch_covtype", "fetch_lfw_pairs", "fetch_lfw_people", "fetch_olivetti_faces")
OPENML, NAMING, OPENML_SETS = "fetch_openml", ("name", "version"), (("mnist_784", 1),)
CHOOSING = frozenset(
    ("as_frame", "color", "funneled", "min_faces_per_person", "parser", "random_state", "return_X_y", "shuffle", "subset")
)
# Arrays of a data set's size that are there at once: as drawn, split, scaled, and turned into columns. A generator that is
# not asked how many columns has at most so many.
COPIES, COLUMNS = 4, 20


def import_loader(target: object) -> Callable[..., Any]:
    """The function that `dataset.loader._target_` names; raises UserError where there is none."""
    expected = "it must name a function such as sklearn.datasets.load_digits"
    module, _, name = str(target).rpartition(".")
    try:
        loader = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"dataset.loader._target_ is {target!r}, {expected}: {' '.join(str(error).split())}") from None
    if not callable(loader):
        raise UserError(f"dataset.loader._target_ is {target!r}, {expected}")
    return loader


def needing_allowance(loaders: Iterable[Mapping[str, Any]]) -> list[str]:
    """The targets of those loaders that a record may not name, or not with those arguments, unless they are allowed."""
    targets = {}
    for loader in loaders:
        try:
            check_loader(loader)
        except UserError:
            targets[str(loader.get("_target_"))] = loader
    return list(targets)


def check_loader(loader: Mapping[str, Any], allow: Sequence[str] = ()) -> None:
    """Raise UserError unless a record may name that loader with those arguments.

    loader: `_target_` and its arguments. allow: loaders, or modules of loaders, that may be called with any arguments.
    """
    arguments = dict(loader)
    target = str(arguments.pop("_target_", None))
    module, _, name = target.rpartition(".")
    if target in allow or module in allow:
        return
    allows = f"--allow {target} lets it be called, with any arguments and all that you may do"
    if not _is_known(target):
        known = ", ".join((*BUNDLED, *GENERATORS, *FETCHED, OPENML))
        raise UserError(
            f"dataset.loader._target_ is {target!r}, a record may name only a loader of {DATASETS} among {known}; {allows}"
        )
    known_arguments = inspect.signature(import_loader(target)).parameters
    for key, value in arguments.items():
        if key not in known_arguments:
            raise UserError(f"dataset.loader.{key} is no argument of {target}, allowed: {', '.join(known_arguments)}")
        if name not in (*BUNDLED, *GENERATORS) and key not in CHOOSING and not (name == OPENML and key in NAMING):
            # scikit-learn unpickles what it finds in a data_home.
            raise UserError(f"dataset.loader.{key} is set, a record may not say where data are had, and how; {allows}")
        if not _is_plain(value):
            raise UserError(f"dataset.loader.{key} is {value!r}, it must be a number, a word or a list of such")
    if name == OPENML and tuple(arguments.get(key) for key in NAMING) not in OPENML_SETS:
        known = ", ".join(f"{named} version {version}" for named, version in OPENML_SETS)
        raise UserError(
            f"dataset.loader.name is {arguments.get('name')!r} and version {arguments.get('version')!r}, "
            f"a record may name only {known} of openml.org; {allows}"
        )


def check_examples(loader: Mapping[str, Any]) -> None:
    """Raise UserError where a generator of scikit-learn is asked for more numbers than the machine's memory takes."""
    target = str(loader.get("_target_"))
    if target.rpartition(".")[2] not in GENERATORS or not _is_known(target):
        return
    defaults = {key: parameter.default for key, parameter in inspect.signature(import_loader(target)).parameters.items()}
    counts = {key: _count(value) for key, value in {**defaults, **loader}.items() if key.startswith("n_") or key == "centers"}
    largest = max(counts, key=lambda key: counts[key])
    columns = max(COLUMNS, *(count for key, count in counts.items() if key != largest), 0)
    check_memory(f"dataset.loader.{largest} is {loader.get(largest)}", 8 * COPIES * counts[largest] * columns)


def _is_known(target: str) -> bool:
    module, _, name = target.rpartition(".")
    return module == DATASETS and name in (*BUNDLED, *GENERATORS, *FETCHED, OPENML)


def _is_plain(value: object) -> bool:
    return all(_is_plain(entry) for entry in value) if isinstance(value, list) else isinstance(value, int | float | str | None)


def _count(value: object) -> int:
    """How many are asked for: of moons and blobs a list of numbers, one a class."""
    if isinstance(value, list | tuple):
        return sum(entry if isinstance(entry, int) else 1 for entry in value)
    return value if isinstance(value, int) else 0
