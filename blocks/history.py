"""The history of a training: arrays with the values of every step."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from blocks.arrays import Array

MEASURE, QUANTITY, AT, EDGES, COUNTS = "measures/", "quantities/", "/at", "/edges", "/counts"


def log_spaced(count: int, points: int) -> Array:
    """Return at most `points` (2 or more) of the numbers 0..count-1, log-spaced, with the first and the last."""
    if count <= points:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, points)).astype(int)) - 1


def evenly_spaced(count: int, points: int) -> Array:
    """Return at most `points` of the numbers 0..count-1, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(int))


@dataclass(frozen=True)
class Histogram:
    """The number of values in each of B bins.

    edges: (B + 1,) edges of the bins, ascending; the first and the last may be infinite.
    counts: (..., E, L, B) whole numbers, of blocks 1..L; 0 where nothing was measured.
    """

    edges: Array
    counts: Array


@dataclass(frozen=True)
class Quantity:
    """The measurements of an instrument.

    at: (E,) the steps before whose update was measured.
    values: (..., E, n), nan where nothing was measured; for the instrument `signals` (..., E, k, L).
    reasons: (..., E) texts that say why a value is nan although the step was made, else empty; None where no value is missing.
        They are in a run's tags, and not in its file.
    histograms: symbol -> its histogram, for the instrument `signals`.
    """

    at: Array
    values: Array
    reasons: Array | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def lane(self, index: int | tuple[int, ...]) -> "Quantity":
        """Return a copy for one lane."""
        reasons = None if self.reasons is None else np.array(self.reasons[index])
        histograms = {symbol: Histogram(h.edges, np.array(h.counts[index])) for symbol, h in self.histograms.items()}
        return Quantity(self.at, np.array(self.values[index]), reasons, histograms)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that are saved to a file, by name."""
        arrays = {"": self.values, AT: self.at}
        for symbol, histogram in self.histograms.items():
            arrays |= {f"/{symbol}{EDGES}": histogram.edges, f"/{symbol}{COUNTS}": histogram.counts}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> "Quantity":
        """Return the quantity with arrays as `arrays` returns them."""
        symbols = [name.removesuffix(COUNTS)[1:] for name in arrays if name.endswith(COUNTS)]
        histograms = {s: Histogram(arrays[f"/{s}{EDGES}"], arrays[f"/{s}{COUNTS}"]) for s in symbols}
        return cls(arrays[AT], arrays[""], histograms=histograms)


@dataclass
class History:
    """T steps of a training. Each step is measured before its update, so that step t has the values after t updates.

    loss: (..., T) the batch's loss.
    grad_norm, grad_norm_b: (..., T, L) Frobenius norms of dW_l and db_l of that loss, blocks 1..L.
    batch_sizes: (T,) the number of examples in each step's batch.
    steps_an_epoch: the number of steps in one pass over the data.
    evaluated: (E,) the numbers of updates after which all examples were evaluated, from 0 to the end of the last epoch.
    measures: name -> (..., E); `loss/train`, `loss/validation`, and `accuracy/...` (labels) or `r2/...` (real-valued targets).
    quantities: name of an instrument -> its measurements, see `blocks.measure.instruments`.
    diverged_step: (...) the first step with a value that is not finite, or with a loss above the bound; T where the last
        update led to it; -1 where the lane has not diverged. Later steps of that lane are nan.
    diverged_block: (...) the block 1..L with that value; 0 where only the loss had it, -1 where the lane has not diverged.
    """

    loss: Array
    grad_norm: Array
    grad_norm_b: Array
    batch_sizes: Array
    steps_an_epoch: int
    evaluated: Array
    measures: dict[str, Array] = field(default_factory=dict)
    quantities: dict[str, Quantity] = field(default_factory=dict)
    diverged_step: Array = field(default_factory=lambda: np.array(-1))
    diverged_block: Array = field(default_factory=lambda: np.array(-1))

    @property
    def steps_made(self) -> int:
        """The number of steps of a single lane that have a loss: all, unless it diverged or was stopped."""
        return int((~np.isnan(self.loss)).sum())

    def epoch_loss(self) -> Array:
        """Return (..., epochs) the mean loss of each epoch's steps, weighted by batch size."""
        by_epoch = (*self.loss.shape[:-1], -1, self.steps_an_epoch)
        weights = self.batch_sizes[: self.steps_an_epoch] / self.batch_sizes[: self.steps_an_epoch].sum()
        return (self.loss.reshape(by_epoch) * weights).sum(axis=-1)

    def final(self, measure: str) -> float:
        """Return the last value of a measure of a single lane, nan where it diverged."""
        return float(self.measures[measure][-1]) if self.diverged_step < 0 else float("nan")

    def lane(self, index: int | tuple[int, ...]) -> "History":
        """Return a copy of one lane's history."""
        return replace(
            self,
            loss=np.array(self.loss[index]),
            grad_norm=np.array(self.grad_norm[index]),
            grad_norm_b=np.array(self.grad_norm_b[index]),
            measures={name: np.array(values[index]) for name, values in self.measures.items()},
            quantities={name: quantity.lane(index) for name, quantity in self.quantities.items()},
            diverged_step=np.array(self.diverged_step[index]),
            diverged_block=np.array(self.diverged_block[index]),
        )

    def save(self, file: Path) -> None:
        """Write every array to one .npz file, without pickle. Equal histories give equal bytes."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("measures", "quantities")}
        arrays |= {MEASURE + name: values for name, values in self.measures.items()}
        for name, quantity in self.quantities.items():
            arrays |= {QUANTITY + name + part: values for part, values in quantity.arrays().items()}
        np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, file: Path) -> "History":
        """Return the history that `save` wrote."""
        with file.open("rb") as content, np.load(content, allow_pickle=False) as saved:
            arrays: dict[str, Any] = {name: saved[name] for name in saved.files}
        measures = {name.removeprefix(MEASURE): arrays.pop(name) for name in list(arrays) if name.startswith(MEASURE)}
        stored = {name.removeprefix(QUANTITY): arrays.pop(name) for name in list(arrays) if name.startswith(QUANTITY)}
        names = dict.fromkeys(name.partition("/")[0] for name in stored)
        quantities = {name: Quantity.from_arrays(_below(name, stored)) for name in names}
        steps_an_epoch = int(arrays.pop("steps_an_epoch"))
        return cls(**arrays, steps_an_epoch=steps_an_epoch, measures=measures, quantities=quantities)

    def _repr_html_(self) -> str:
        """Return HTML for notebooks, for a single lane with the first and the last value of its measures and norms."""
        rows = {"": repr(self)}
        if not self.diverged_step.shape:
            ends = {
                **self.measures,
                "||dW_1||": self.grad_norm[:, 0],
                f"||dW_{self.grad_norm.shape[-1]}||": self.grad_norm[:, -1],
            }
            rows |= {name: f"{values[0]:.4g} &rarr; {values[-1]:.4g}" for name, values in ends.items()}
        return f"<table>{''.join(f'<tr><th>{name}</th><td>{text}</td></tr>' for name, text in rows.items())}</table>"

    def __repr__(self) -> str:
        *lanes, steps, depth = self.grad_norm.shape
        of_lanes = f", lanes={tuple(lanes)}" if lanes else ""
        return f"History({steps} steps, {depth} blocks{of_lanes}, {int((self.diverged_step >= 0).sum())} diverged)"


def _below(name: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """Return the arrays with that name or a name below it, by the rest of the name: "", "/at" and so on."""
    return {key.removeprefix(name): values for key, values in arrays.items() if key == name or key.startswith(f"{name}/")}
