"""What a training leaves: arrays with every step in them."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from blocks.arrays import Array

MEASURE, QUANTITY, AT = "measures/", "quantities/", "/at"


def log_spaced(count: int, points: int) -> Array:
    """At most `points` (2 or more) of the numbers 0..count-1, log-spaced, with the first and the last."""
    if count <= points:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, points)).astype(int)) - 1


def evenly_spaced(count: int, points: int) -> Array:
    """At most `points` of the numbers 0..count-1, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(int))


@dataclass(frozen=True)
class Quantity:
    """What an instrument has measured.

    at: (E,) steps, each before its update. values: (..., E, n), nan where nothing was measured.
    reasons: (..., E) text, why a value is nan although the step was made, else empty; None where there is no such value. A run's
        tags have it, its file does not.
    """

    at: Array
    values: Array
    reasons: Array | None = None

    def lane(self, index: int | tuple[int, ...]) -> "Quantity":
        """One lane's, on arrays of its own."""
        return Quantity(self.at, np.array(self.values[index]), None if self.reasons is None else np.array(self.reasons[index]))


@dataclass
class History:
    """T steps of training, each measured before its update: step t is what t updates have led to.

    loss: (..., T) the batch's loss.
    grad_norm, grad_norm_b: (..., T, L) Frobenius norms of dW_l and db_l of that loss, blocks 1..L.
    batch_sizes: (T,) examples in each step's batch.
    steps_an_epoch: steps in one pass over the data.
    evaluated: (E,) the counts of updates after which the whole data were measured: 0, and ends of epochs to the last.
    measures: name -> (..., E), `loss/train`, `loss/validation`, and `accuracy/...` (labels) or `r2/...` (values).
    quantities: name -> what the instrument of that name has measured; see `blocks.measure.instruments`.
    diverged_step: (...) the first step with a value that is not finite, or with a loss above the bound; T where the last
        update led there; -1 for none. Later steps of that lane are nan.
    diverged_block: (...) the block 1..L in which that value stood; 0 where it was the loss alone, -1 for none.
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

    def epoch_loss(self) -> Array:
        """(..., epochs) mean loss of each epoch's steps, weighted by batch size."""
        by_epoch = (*self.loss.shape[:-1], -1, self.steps_an_epoch)
        weights = self.batch_sizes[: self.steps_an_epoch] / self.batch_sizes[: self.steps_an_epoch].sum()
        return (self.loss.reshape(by_epoch) * weights).sum(axis=-1)

    def final(self, measure: str) -> float:
        """The last value of one of the measures of a single lane; nan where it diverged."""
        return float(self.measures[measure][-1]) if self.diverged_step < 0 else float("nan")

    def lane(self, index: int | tuple[int, ...]) -> "History":
        """One lane's history, on arrays of its own."""
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
        """Write every array into one .npz, without pickle; equal histories give equal bytes."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("measures", "quantities")}
        arrays |= {MEASURE + name: values for name, values in self.measures.items()}
        arrays |= {QUANTITY + name: kept.values for name, kept in self.quantities.items()}
        arrays |= {QUANTITY + name + AT: kept.at for name, kept in self.quantities.items()}
        np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, file: Path) -> "History":
        """What `save` wrote."""
        with file.open("rb") as content, np.load(content, allow_pickle=False) as saved:
            arrays: dict[str, Any] = {name: saved[name] for name in saved.files}
        measures = {name.removeprefix(MEASURE): arrays.pop(name) for name in list(arrays) if name.startswith(MEASURE)}
        kept = {name.removeprefix(QUANTITY): arrays.pop(name) for name in list(arrays) if name.startswith(QUANTITY)}
        quantities = {name: Quantity(kept[name + AT], values) for name, values in kept.items() if not name.endswith(AT)}
        steps_an_epoch = int(arrays.pop("steps_an_epoch"))
        return cls(**arrays, steps_an_epoch=steps_an_epoch, measures=measures, quantities=quantities)

    def _repr_html_(self) -> str:
        """For notebooks: what it is, and of a single lane the first and the last of its measures and norms."""
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
