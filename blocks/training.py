"""The training of a network by gradient descent over batches, for all its lanes. Every step's loss and norms are recorded."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from blocks.arrays import Array, largest, transpose, whole_number
from blocks.block import Cache
from blocks.history import History, log_spaced
from blocks.lanes import Lanes
from blocks.log import Log
from blocks.losses import Loss, check_weights
from blocks.measure.instruments import Instrument
from blocks.network import Network
from blocks.optimizers import Optimizer
from blocks.schedules import rate_schedule
from blocks.workspace import Examples

Watch = Callable[[int, Callable[[], History]], None]


def reshuffled(rng: np.random.Generator, m: int) -> Iterator[Array]:
    """Yield a random order of m examples for every epoch, without an end."""
    while True:
        yield rng.permutation(m)


def train(
    network: Network,
    x: Array,
    y: Array,
    *,
    weights: Array | None = None,
    loss: Loss | str,
    optimizer: Optimizer,
    epochs: int,
    until: int | None = None,
    batch_size: int | None = None,
    orders: Iterator[Array] | None = None,
    schedule: str = "constant",
    warmup: float = 0.0,
    validation: tuple[Array, Array] | None = None,
    evaluations: int = 10,
    loss_bound: float | Array = np.inf,
    watch: Watch | None = None,
    instruments: Sequence[Instrument] = (),
) -> History:
    """Train `network` in place and return the history of every step.

    One cycle: forward through blocks 1..L caching every z, the loss, backward from L to 1, update.

    x: (n_0, m) data, one example a column, shared by all lanes. y: targets as `loss` takes them.
    weights: (m,) above 0, one per example. A batch's loss is the weighted mean over its examples. Evaluations and instruments
        do not use weights. None: all are equal.
    loss: the loss of the logits, from `blocks.losses`, or its name.
    optimizer: its hyperparameters are numbers, or arrays with one per lane; its learning rate may be one per parameter.
    epochs: passes over the data, at least 1. until: the epoch after which the training stops, None for the last. The history
        then has nan for the later steps, and for the earlier ones the values of the complete training.
    batch_size: examples per step, 1 to m; the last batch of an epoch may be shorter. None: all.
    orders: the order of the examples in each epoch, (m,), or (..., m) with one per lane, see `reshuffled`; None keeps the data's.
    schedule: name of the learning rate's schedule. warmup: number of updates over which the rate first rises linearly; below 1
        a share of all updates, see `blocks.schedules.rate_schedule`.
    validation: x and y that are evaluated in addition to the training data.
    evaluations: the largest number of evaluations: before the first epoch, after the last, and log-spaced between. 0: none.
    loss_bound: a number, or one per lane. A lane has diverged where its loss is above the bound, or where its loss or gradient is
        not finite. It is then no longer trained, and keeps its parameters. After the last update, the loss of all training data
        and the parameters are checked.
    watch: is called after every epoch with the number of steps so far, and a function that returns their history.
    instruments: what else is measured, see `blocks.measure.instruments`.
    Raises ValueError for data that are not finite or do not fit the network, and for numbers out of range.
    """
    if isinstance(loss, str):
        loss = Loss.named(loss)
    if not isinstance(loss, Loss):
        raise ValueError(f"loss is {loss!r}, it must be one of blocks.losses, or its name")
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer is {optimizer!r}, it must be an Optimizer, such as GradientDescent(0.1)")
    return _Training(network, x, y, weights, loss, optimizer, batch_size, loss_bound).run(
        epochs, until, orders, schedule, warmup, validation, evaluations, watch, instruments
    )


class _Training:
    """A training: its data, its lanes, its settings and its log. See `train` for the arguments."""

    def __init__(
        self,
        network: Network,
        x: Array,
        y: Array,
        weights: Array | None,
        loss: Loss,
        optimizer: Optimizer,
        batch_size: int | None,
        loss_bound: float | Array,
    ) -> None:
        self.loss, self.examples = loss, Examples.create(network, loss, x, y)
        self.x, self.y = transpose(self.examples.rows[:, :-1]), np.asarray(y)
        self.m = len(self.examples.rows)
        self.weights = None if weights is None else check_weights(weights, self.m)
        self.batch_size = _check_batch_size(batch_size, self.m, network.mixes_examples)
        self.batches = [slice(start, min(start + self.batch_size, self.m)) for start in range(0, self.m, self.batch_size)]
        self.loss_bound = _check_bound(loss_bound, network)
        self.least_bound = float(np.min(self.loss_bound))
        self.lanes = Lanes(network, optimizer, loss, self.x, self.weights)

    def run(
        self,
        epochs: int,
        until: int | None,
        orders: Iterator[Array] | None,
        schedule: str,
        warmup: float,
        validation: tuple[Array, Array] | None,
        evaluations: int,
        watch: Watch | None,
        instruments: Sequence[Instrument],
    ) -> History:
        epochs = whole_number("epochs", epochs, at_least=1)
        until = whole_number("until", epochs if until is None else until, at_least=1, at_most=epochs)
        evaluations = whole_number("evaluations", evaluations, at_least=2) if evaluations else 0
        self.sets = {"train": self.examples}
        if validation is not None:
            self.sets["validation"] = Examples.create(self.lanes.full_network, self.loss, *validation, "validation ")
        self.scores = "loss", "r2" if self.loss.decides is None else "accuracy"
        self.evaluated_epochs = log_spaced(epochs + 1, evaluations) if evaluations else np.empty(0, int)
        network, sizes = self.lanes.network, [batch.stop - batch.start for batch in self.batches]
        measures = [f"{score}/{name}" for score in self.scores for name in self.sets]
        shape = self.lanes.live.size, network.depth
        self.log = Log(*shape, network.parameters.dtype, sizes, epochs, self.evaluated_epochs, measures)
        factor = rate_schedule(schedule, warmup, self.log.steps)
        self.instruments = {
            instrument.name: instrument.mount(network, self.x, self.y, self.loss, self.batch_size, self.log.steps)
            for instrument in instruments
        }
        # A network that diverges overflows, and one that vanishes underflows. Both are results here, not errors.
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            self._epochs(until, orders, factor, watch)
            if self.lanes.live.size and until == epochs:
                self._judge_last_update()
        self.lanes.write_back()
        # All nans get the same bits, which otherwise depend on the neighbouring lanes.
        parameters = self.lanes.full_network.parameters
        np.copyto(parameters, np.nan, where=np.isnan(parameters))
        return self._history(self.log.steps)

    def _epochs(self, count: int, orders: Iterator[Array] | None, factor: Callable[[int], float], watch: Watch | None) -> None:
        """Train for `count` epochs, with the evaluations before each of them and after the last."""
        order = np.arange(self.m) if orders is None else _check_order(next(orders, None), 0, self.lanes, self.m)
        if order.ndim > 1:
            self.lanes.give_own_batches()
        batches, step = [order[..., batch] for batch in self.batches], 0
        for epoch in range(count):
            self._evaluate_sets(epoch)
            if epoch and orders is not None:
                order = _check_order(next(orders, None), epoch, self.lanes, self.m)
                batches = [order[..., batch] for batch in self.batches]
            for batch in batches:
                if self.lanes.live.size == 0:
                    break
                self._cycle(step, batch, factor(step))
                step += 1
            if watch:
                watch(step, partial(self._history, (epoch + 1) * len(batches)))
        self._evaluate_sets(count)

    def _cycle(self, step: int, examples: Array, factor: float) -> None:
        """Make one cycle of gradient descent, and log its loss and norms at `step`. examples: (m,), or (lanes, m) of all lanes.

        Lanes with a loss above the bound, or with a gradient that is not finite, are removed. The others repeat the cycle, and
        have the same bits again.
        """
        lanes = self.lanes
        numbers = examples[lanes.index] if lanes.has_own_batches else examples
        batch = lanes.workspaces.gathered(lanes.network, self.examples, numbers, self.weights)
        batch.cycle()
        value, norms = batch.value, batch.norms
        finite = lanes.network.layout.rescale(norms, batch.squares, lanes.workspaces.gradient)
        self.log.losses[step, lanes.index] = value
        if not (largest(value) <= self.least_bound or self._within_bounds(value).all()):
            # Forward is computed again, since a may have overwritten z in the workspace.
            mask, block = self._within_bounds(value), _first_block(_nonfinite_blocks(lanes.network.forward(batch.x)[1]))
        else:
            self.log.norms[step, lanes.index] = norms
            if finite:
                self._update(step, factor)
                return
            mask, block = np.asarray(np.isfinite(norms).all(axis=-1)), _last_block(norms)
        mask, block = np.reshape(mask, -1), np.reshape(block, -1)
        blocks = block[~mask]
        self.log.diverged[:, lanes.live[~mask]] = np.full_like(blocks, step), blocks
        lanes.keep(mask)
        if lanes.live.size:
            self._cycle(step, examples, factor)

    def _within_bounds(self, value: Array) -> Array:
        return np.asarray(value <= self.loss_bound[self.lanes.live].astype(value.dtype))

    def _update(self, step: int, factor: float) -> None:
        """Make the update, and measure before and after it."""
        lanes = self.lanes
        due = [instrument for instrument in self.instruments.values() if instrument.is_due(step)]
        for instrument in due:
            instrument.read(lanes.optimizer, lanes.state)
            instrument.before_update(step, lanes.network, lanes.index)
        lanes.optimizer.update(lanes.network.parameters, lanes.workspaces.gradient, lanes.state, factor)
        for instrument in due:
            instrument.after_update(step, lanes.network, lanes.index)

    def _judge_last_update(self) -> None:
        """Log the lanes that diverged with the last update, as the next cycle would do."""
        lanes = self.lanes
        measured = self.log.measures["loss/train"][-1:, lanes.live]
        loss = measured[0] if len(measured) else np.reshape(lanes.evaluate(self.examples, self.batch_size)[0], -1)
        finite = np.isfinite(lanes.network.parameters).all(axis=-1)
        bad = ~((loss <= self.loss_bound[lanes.live]) & np.reshape(finite, -1))
        if bad.any():
            blocks = np.any([_nonfinite_blocks(lanes.network.forward(self.x[:, batch])[1]) for batch in self.batches], axis=0)
            self.log.diverged[:, lanes.live[bad]] = np.full(bad.sum(), self.log.steps), np.reshape(_first_block(blocks), -1)[bad]

    def _evaluate_sets(self, epoch: int) -> None:
        """Evaluate the training and validation examples, if an evaluation is due after that number of epochs."""
        if self.lanes.live.size == 0 or epoch not in self.evaluated_epochs:
            return
        row = int(np.searchsorted(self.evaluated_epochs, epoch))
        for name, examples in self.sets.items():
            for score, values in zip(self.scores, self.lanes.evaluate(examples, self.batch_size), strict=True):
                self.log.measures[f"{score}/{name}"][row, self.lanes.live] = values

    def _history(self, steps: int) -> History:
        quantities = {name: instrument.quantity(self.lanes.shape) for name, instrument in self.instruments.items()}
        return self.log.history(steps, self.lanes.shape, quantities)


def _check_order(order: Array | None, epoch: int, lanes: Lanes, m: int) -> Array:
    """Return the order of an epoch, (m,) or (lanes, m). Raises ValueError where it is none of m examples."""
    if order is None:
        raise ValueError(f"orders ends before epoch {epoch + 1}, it must have an order for every epoch")
    order = np.asarray(order)
    has_fitting_shape = order.shape in ((m,), (*lanes.shape, m)) and (not epoch or (order.ndim > 1) == lanes.has_own_batches)
    if not has_fitting_shape or not np.issubdtype(order.dtype, np.integer) or order.min() < 0 or order.max() >= m:
        raise ValueError(f"an order of shape {order.shape} is no order of {m} examples, it must hold 0 to {m - 1}")
    return order if order.ndim == 1 else order.reshape(-1, m)


def _check_bound(loss_bound: float | Array, network: Network) -> Array:
    """Return the loss bound of every lane, (lanes,)."""
    if np.shape(loss_bound) not in ((), network.lanes) or not np.all(np.asarray(loss_bound) > 0):
        raise ValueError(f"loss_bound is {loss_bound}, it must be above 0, a number or one a lane")
    bounds = np.minimum(loss_bound, float(np.finfo(network.parameters.dtype).max))
    return np.broadcast_to(bounds, network.lanes).reshape(-1)


def _check_batch_size(batch_size: int | None, m: int, mixes_examples: bool) -> int:
    batch_size = whole_number("batch_size", m if batch_size is None else batch_size, at_least=1, at_most=m)
    if mixes_examples and 1 in (m, batch_size, m % batch_size):
        raise ValueError(
            f"batch_size is {batch_size}, which leaves a batch of one sample of {m}, "
            "but batch normalisation needs at least 2 in each"
        )
    return batch_size


def _nonfinite_blocks(caches: list[Cache]) -> Array:
    """Return a mask (..., L), True where a z of the block is not finite."""
    return np.stack([~np.isfinite(cache.z).all(axis=(-2, -1)) for cache in caches], axis=-1)


def _first_block(blocks: Array) -> Array:
    """Return (...) the number of the first block that is True in `blocks` (..., L), counted from 1; 0 where none is."""
    return np.where(blocks.any(axis=-1), blocks.argmax(axis=-1) + 1, 0)


def _last_block(norms: Array) -> Array:
    """Return (...) the last block, counted from 1, with a norm that is not finite. Backward starts at block L."""
    bad = ~np.isfinite(norms)[..., ::-1]
    return (norms.shape[-1] - 1 - bad.argmax(axis=-1)) // 2 + 1
