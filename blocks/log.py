"""What a training notes: every step's loss and norms, every evaluation, and which lanes diverged."""

from collections.abc import Mapping, Sequence

import numpy as np

from blocks.arrays import Array, quiet
from blocks.history import History, Quantity


class Log:
    """Arrays for a whole training, filled in step by step; nan where a value is still to come. Lanes are counted along one axis.

    batch_sizes: of an epoch. epochs: all of them. evaluated: the epochs after which whole sets are measured.
    measures: the names of what is measured of them.

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
        """The first `steps` steps, and all evaluations. lanes: their shape. quantities: what instruments have measured."""

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
