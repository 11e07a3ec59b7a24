"""Training by gradient descent over batches. All lanes of a network are trained at once, and every step is recorded."""

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

# A function watch(steps, history), see `train`.
Watch = Callable[[int, Callable[[], History]], None]


def reshuffled(rng: np.random.Generator, m: int) -> Iterator[Array]:
    """Yield without end a random order of the numbers 0..m-1, (m,), one for each epoch."""
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

    A step is one cycle: forward through blocks 1..L, which caches every z, then the loss, backward from L to 1, and the update.

    x: (n_0, m) data, one example per column, shared by all lanes. y: targets as `loss` takes them.
    weights: (m,) above 0, one per example. A batch's loss is the weighted mean over its examples. Evaluations and instruments
        do not use weights. None: all are equal.
    loss: the loss of the logits, from `blocks.losses`, or its name.
    optimizer: its hyperparameters are numbers, or arrays with one per lane. The learning rate may also have one per parameter.
    epochs: passes over the data, at least 1.
    until: the number of epochs after which the training stops early, 1 to `epochs`. The history's later steps are nan, and its
        earlier steps are as without `until`. None: it does not stop early.
    batch_size: examples per step, 1 to m. The last batch of an epoch may be smaller. None: m.
    orders: yields for each epoch the order of the examples, (m,), or (..., m) with one per lane; see `reshuffled`. None: the
        order of the columns of x.
    schedule: name of the learning rate's schedule, from `blocks.schedules`.
    warmup: number of updates in which the learning rate first rises linearly. Below 1 it is a share of all updates.
    validation: x and y, which are evaluated in addition to the training data.
    evaluations: the largest number of evaluations, 0 or at least 2. One is before the first epoch, one after the last, and the
        others are log-spaced between. 0: none.
    loss_bound: above 0, a number or one per lane. A lane diverges where its loss is above the bound, or where its loss or
        gradient is not finite. It is no longer trained then, and keeps its parameters. No cycle follows the last update, so
        after it the loss of all training data and the parameters are checked instead.
    watch: is called after every epoch with the number of steps so far, and with a function that returns the history so far.
    instruments: what is measured besides losses and norms, see `blocks.measure.instruments`.
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
    """The state of a training: its data, lanes, settings and log. See `train` for the arguments."""

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
        # Every nan gets the same bits. Otherwise the bits of a nan would depend on the neighbouring lanes.
        parameters = self.lanes.full_network.parameters
        np.copyto(parameters, np.nan, where=np.isnan(parameters))
        return self._history(self.log.steps)

    def _epochs(self, count: int, orders: Iterator[Array] | None, factor: Callable[[int], float], watch: Watch | None) -> None:
        """Train for `count` epochs. Evaluate before each of them, and after the last, where an evaluation is due."""
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
        """Make cycle `step`, and log its loss and norms. Remove the lanes that diverge, and repeat the cycle for the others.

        A repeated cycle gives the same bits. examples: the numbers of the batch's examples, (m,), or (lanes, m) with a row for
        every lane, trained or not. factor: the schedule's factor on the learning rate.
        """
        lanes = self.lanes
        numbers = examples[lanes.index] if lanes.has_own_batches else examples
        batch = lanes.workspaces.gathered(lanes.network, self.examples, numbers, self.weights)
        batch.cycle()
        value, norms = batch.value, batch.norms
        finite = lanes.network.layout.rescale(norms, batch.squares, lanes.workspaces.gradient)
        self.log.losses[step, lanes.index] = value
        if not (largest(value) <= self.least_bound or self._within_bounds(value).all()):
            # z is needed, but the workspace may have overwritten it with a. So forward is computed again.
            is_kept, block = self._within_bounds(value), _first_block(_nonfinite_blocks(lanes.network.forward(batch.x)[1]))
        else:
            self.log.norms[step, lanes.index] = norms
            if finite:
                self._update(step, factor)
                return
            is_kept, block = np.asarray(np.isfinite(norms).all(axis=-1)), _last_block(norms)
        is_kept, block = np.reshape(is_kept, -1), np.reshape(block, -1)
        blocks = block[~is_kept]
        self.log.diverged[:, lanes.live[~is_kept]] = np.full_like(blocks, step), blocks
        lanes.keep(is_kept)
        if lanes.live.size:
            self._cycle(step, examples, factor)

    def _within_bounds(self, value: Array) -> Array:
        return np.asarray(value <= self.loss_bound[self.lanes.live].astype(value.dtype))

    def _update(self, step: int, factor: float) -> None:
        """Update the parameters. The instruments that are due measure before and after it."""
        lanes = self.lanes
        due = [instrument for instrument in self.instruments.values() if instrument.is_due(step)]
        for instrument in due:
            instrument.read(lanes.optimizer, lanes.state)
            instrument.before_update(step, lanes.network, lanes.index)
        lanes.optimizer.update(lanes.network.parameters, lanes.workspaces.gradient, lanes.state, factor)
        for instrument in due:
            instrument.after_update(step, lanes.network, lanes.index)

    def _judge_last_update(self) -> None:
        """Log the lanes that diverged with the last update, since no cycle follows that would find them."""
        lanes = self.lanes
        measured = self.log.measures["loss/train"][-1:, lanes.live]
        loss = measured[0] if len(measured) else np.reshape(lanes.evaluate(self.examples, self.batch_size)[0], -1)
        finite = np.isfinite(lanes.network.parameters).all(axis=-1)
        bad = ~((loss <= self.loss_bound[lanes.live]) & np.reshape(finite, -1))
        if bad.any():
            blocks = np.any([_nonfinite_blocks(lanes.network.forward(self.x[:, batch])[1]) for batch in self.batches], axis=0)
            self.log.diverged[:, lanes.live[bad]] = np.full(bad.sum(), self.log.steps), np.reshape(_first_block(blocks), -1)[bad]

    def _evaluate_sets(self, epoch: int) -> None:
        """Evaluate the training and validation examples, if an evaluation is due after `epoch` epochs."""
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
    """Return the order of an epoch, (m,) or (lanes, m). Raises ValueError where its shape or a number in it does not fit."""
    if order is None:
        raise ValueError(f"orders ends before epoch {epoch + 1}, it must have an order for every epoch")
    order = np.asarray(order)
    has_fitting_shape = order.shape in ((m,), (*lanes.shape, m)) and (not epoch or (order.ndim > 1) == lanes.has_own_batches)
    if not has_fitting_shape or not np.issubdtype(order.dtype, np.integer) or order.min() < 0 or order.max() >= m:
        raise ValueError(f"an order of shape {order.shape} is no order of {m} examples, it must hold 0 to {m - 1}")
    return order if order.ndim == 1 else order.reshape(-1, m)


def _check_bound(loss_bound: float | Array, network: Network) -> Array:
    """Return the loss bound of every lane, (lanes,). Raises ValueError unless it is above 0, one number or one per lane."""
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
    """Return a mask (..., L), which is True for a block where an entry of z is not finite. caches: of blocks 1..L."""
    return np.stack([~np.isfinite(cache.z).all(axis=(-2, -1)) for cache in caches], axis=-1)


def _first_block(blocks: Array) -> Array:
    """Return the number of the first block that is True, (...), counted from 1, or 0 where none is. blocks: (..., L)."""
    return np.where(blocks.any(axis=-1), blocks.argmax(axis=-1) + 1, 0)


def _last_block(norms: Array) -> Array:
    """Return the number of the last block with a norm that is not finite, (...), counted from 1. Backward reaches it first.

    norms: (..., 2 L) of dW_1, db_1, dW_2, ...
    """
    bad = ~np.isfinite(norms)[..., ::-1]
    return (norms.shape[-1] - 1 - bad.argmax(axis=-1)) // 2 + 1
