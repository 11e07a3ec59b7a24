"""The log of a training: every step's loss and norms, every evaluation, and the lanes that diverged."""

from collections.abc import Mapping, Sequence

import numpy as np

from blocks.arrays import Array, quiet
from blocks.history import History, Quantity


class Log:
    """Arrays for a whole training, which are filled step by step. Values that are missing are nan. Lanes are one axis.

    batch_sizes: of the batches of an epoch. epochs: their number. evaluated: the epochs after which there is an evaluation.
    measures: the names of what an evaluation measures.

    losses: (steps, lanes). norms: (steps, lanes, 2 L) of dW_1, db_1, dW_2, ... diverged: (2, lanes) step and block, -1 for none.
    """

    def __init__(
        self,
        lanes: int,
        depth: int,
        dtype: np.dtype,
        batch_sizes: Sequence[int],
        epochs: int,
        evaluated: Array,
        measures: Sequence[str],
    ) -> None:
        self.steps_an_epoch, self.steps = len(batch_sizes), epochs * len(batch_sizes)
        self.evaluated = evaluated * self.steps_an_epoch
        self.batch_sizes = np.array([*batch_sizes] * epochs)
        self.losses = np.full((self.steps, lanes), np.nan, dtype)
        self.norms = np.full((self.steps, lanes, 2 * depth), np.nan, dtype)
        self.measures = {name: np.full((len(evaluated), lanes), np.nan) for name in measures}
        self.diverged = np.full((2, lanes), -1)

    def history(self, steps: int, lanes: tuple[int, ...], quantities: Mapping[str, Quantity]) -> History:
        """Return the history of the first `steps` steps, with all evaluations.

        lanes: the shape of the lanes. quantities: the instruments' measurements.
        """

        def by_lane(values: Array) -> Array:
            return quiet(np.moveaxis(values, 1, 0).reshape(*lanes, values.shape[0], *values.shape[2:]))

        norms = by_lane(self.norms[:steps])
        return History(
            by_lane(self.losses[:steps]),
            norms[..., 0::2],
            norms[..., 1::2],
            self.batch_sizes[:steps],
            self.steps_an_epoch,
            self.evaluated,
            {name: by_lane(values) for name, values in self.measures.items()},
            dict(quantities),
            self.diverged[0].reshape(lanes).copy(),
            self.diverged[1].reshape(lanes).copy(),
        )
