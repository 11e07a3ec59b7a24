"""The functions that load data sets. A user may name any function, a record only one of the list here."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.run.config import UserError
from experiments.run.memory import check_memory

DATASETS = "sklearn.datasets"
# The loaders of scikit-learn that return numbers and targets. These read files that are part of scikit-learn,
BUNDLED_LOADERS = ("load_breast_cancer", "load_diabetes", "load_digits", "load_iris", "load_linnerud", "load_wine")
# these draw random examples,
GENERATING_LOADERS = (
    *("make_blobs", "make_circles", "make_classification", "make_friedman1", "make_friedman2", "make_friedman3"),
    *("make_gaussian_quantiles", "make_hastie_10_2", "make_moons", "make_regression", "make_s_curve"),
    *("make_sparse_uncorrelated", "make_swiss_roll"),
)
# and these download one known data set each. Of their arguments a record may set those that choose examples or their form.
FETCHING_LOADERS = ("fetch_california_housing", "fetch_covtype", "fetch_lfw_pairs", "fetch_lfw_people", "fetch_olivetti_faces")
OPENML_LOADER, OPENML_NAME_KEYS, OPENML_SETS = "fetch_openml", ("name", "version"), (("mnist_784", 1),)
CHOICE_ARGUMENTS = frozenset(
    ("as_frame", "color", "funneled", "min_faces_per_person", "parser", "random_state", "return_X_y", "shuffle", "subset")
)
# At most so many arrays of a data set's size exist at once: as drawn, split, scaled, and transposed into columns.
# A generator without an argument for the number of columns makes at most so many columns.
MAX_COPIES, MAX_COLUMNS = 4, 20


def import_loader(target: object) -> Callable[..., Any]:
    """Return the function that `dataset.loader._target_` names. Raises UserError where there is no such function."""
    expected = "it must name a function such as sklearn.datasets.load_digits"
    module, _, name = str(target).rpartition(".")
    try:
        loader = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"dataset.loader._target_ is {target!r}, {expected}: {' '.join(str(error).split())}") from None
    if not callable(loader):
        raise UserError(f"dataset.loader._target_ is {target!r}, {expected}")
    return loader


def targets_to_allow(loaders: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the targets of those loaders that a record may name only with --allow, each once.

    loaders: of each `_target_` and its arguments.
    """
    targets = {}
    for loader in loaders:
        try:
            check_loader(loader)
        except UserError:
            targets[str(loader.get("_target_"))] = loader
    return list(targets)


def check_loader(loader: Mapping[str, Any], allow: Sequence[str] = ()) -> None:
    """Raise UserError unless a record may name that loader with those arguments.

    loader: `_target_` and its arguments.
    allow: names of loaders, or of modules of loaders, that a record may call with any arguments.
    """
    arguments = dict(loader)
    target = str(arguments.pop("_target_", None))
    module, _, name = target.rpartition(".")
    if target in allow or module in allow:
        return
    hint = f"--allow {target} lets it be called, with any arguments and all that you may do"
    if not _is_known_loader(target):
        names = ", ".join((*BUNDLED_LOADERS, *GENERATING_LOADERS, *FETCHING_LOADERS, OPENML_LOADER))
        raise UserError(
            f"dataset.loader._target_ is {target!r}, a record may name only a loader of {DATASETS} among {names}; {hint}"
        )
    parameters = inspect.signature(import_loader(target)).parameters
    for key, value in arguments.items():
        if key not in parameters:
            raise UserError(f"dataset.loader.{key} is no argument of {target}, allowed: {', '.join(parameters)}")
        if (
            name not in (*BUNDLED_LOADERS, *GENERATING_LOADERS)
            and key not in CHOICE_ARGUMENTS
            and not (name == OPENML_LOADER and key in OPENML_NAME_KEYS)
        ):
            # scikit-learn unpickles the files in a data_home, and a pickle can run any code.
            raise UserError(f"dataset.loader.{key} is set, a record may not say where data are had, and how; {hint}")
        if not _is_plain(value):
            raise UserError(f"dataset.loader.{key} is {value!r}, it must be a number, a word or a list of such")
    if name == OPENML_LOADER and tuple(arguments.get(key) for key in OPENML_NAME_KEYS) not in OPENML_SETS:
        names = ", ".join(f"{set_name} version {version}" for set_name, version in OPENML_SETS)
        raise UserError(
            f"dataset.loader.name is {arguments.get('name')!r} and version {arguments.get('version')!r}, "
            f"a record may name only {names} of openml.org; {hint}"
        )


def check_examples(loader: Mapping[str, Any]) -> None:
    """Raise UserError where a generator of scikit-learn would make more numbers than fit in the machine's memory."""
    target = str(loader.get("_target_"))
    if target.rpartition(".")[2] not in GENERATING_LOADERS or not _is_known_loader(target):
        return
    defaults = {key: parameter.default for key, parameter in inspect.signature(import_loader(target)).parameters.items()}
    counts = {
        key: _requested_count(value) for key, value in {**defaults, **loader}.items() if key.startswith("n_") or key == "centers"
    }
    largest = max(counts, key=lambda key: counts[key])
    columns = max(MAX_COLUMNS, *(count for key, count in counts.items() if key != largest), 0)
    check_memory(f"dataset.loader.{largest} is {loader.get(largest)}", 8 * MAX_COPIES * counts[largest] * columns)


def _is_known_loader(target: str) -> bool:
    module, _, name = target.rpartition(".")
    return module == DATASETS and name in (*BUNDLED_LOADERS, *GENERATING_LOADERS, *FETCHING_LOADERS, OPENML_LOADER)


def _is_plain(value: object) -> bool:
    return all(_is_plain(entry) for entry in value) if isinstance(value, list) else isinstance(value, int | float | str | None)


def _requested_count(value: object) -> int:
    """Return the count that a generator's argument sets. Moons and blobs take a list too, with a count for each class."""
    if isinstance(value, list | tuple):
        return sum(entry if isinstance(entry, int) else 1 for entry in value)
    return value if isinstance(value, int) else 0
