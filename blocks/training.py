"""The gradient-descent cycle, over batches, for a whole stack of lanes; every step's loss and gradient norms are kept."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from blocks.arrays import Array, check_finite, largest, quiet, transpose, whole_number
from blocks.block import Cache
from blocks.history import History, log_spaced
from blocks.losses import Loss, check_weights, r2, shares_of
from blocks.measure.instruments import Instrument
from blocks.network import Network
from blocks.optimizers import Optimizer
from blocks.schedules import rate_schedule
from blocks.tape.recorder import Tape
from blocks.tape.replay import Replay, replay_is_on

Watch = Callable[[int, Callable[[], History]], None]
# Targets of more numbers than these are encoded batch by batch: those of 10,000 classes would be far larger than the data.
ENCODED_AT_ONCE = 2**24


def reshuffled(rng: np.random.Generator, m: int) -> Iterator[Array]:
    """An endless series of orders of m examples, one an epoch."""
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
    weights: (m,) above 0, one an example, with which a batch's loss is the mean of its examples'; what is measured beside
        the steps counts every example alike. None: all are equal.
    loss: of the logits, from `blocks.losses`, or its name.
    optimizer: its hyperparameters numbers, or arrays with one a lane; its learning rate may be one a parameter.
    epochs: passes over the data, at least 1. until: the training is left off after so many of them, None is all; in its
        history, what would come then is nan, and what has come is as in the whole training.
    batch_size: examples a step, 1 to m; the last batch of an epoch may be shorter. None: all.
    orders: the examples' order in each epoch, (m,) or (..., m) with one a lane, see `reshuffled`; None keeps the data's own.
    schedule: name of the learning rate's schedule. warmup: updates over which the rate rises linearly ahead of it, below 1 a
        share of all updates, see `blocks.schedules.rate_schedule`.
    validation: x and y measured beside the training data before the first epoch, after the last, and log-spaced
        between, `evaluations` times at most; 0 measures nothing.
    loss_bound: a number, or one a lane. A lane whose loss is above it has diverged, as has one whose loss or gradient is not
        finite: it leaves the stack where it stands. What the last update has led to is judged by the loss of all training data,
        and by the parameters.
    watch: called after every epoch with the number of steps made so far, and a function that gives their history.
    instruments: what else to measure, see `blocks.measure.instruments`.
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


class Workspace:
    """What batches of m examples are gathered into, and computed in: recorded once, and replayed.

    rows: (m, n_0 + 1) an example a row, with a 1 behind it: turned, block 1's a_prev_1, so that no batch is copied twice;
        (lanes, m, n_0 + 1) where every lane has a batch of its own.
    gradient: (..., P) where `backward` leaves the gradient.
    value: (...,) the loss. logits: (..., n_L, m).
    norms: (..., 2 L) of all dW and db. squares: their squares, see `Layout.squares`.
    """

    value: Array
    logits: Array
    norms: Array
    squares: Array

    def __init__(
        self,
        network: Network,
        loss: Loss,
        gradient: Array,
        target: Array,
        shape: tuple[int, ...],
        weighted: bool = False,
    ) -> None:
        self.network, self.loss, self.gradient, self.shape = network, loss, gradient, shape
        inputs, units, dtype = network.layout.sizes[0], network.layout.sizes[-1], network.parameters.dtype
        *lanes, m = shape
        self.labels = np.empty((*target.shape[:-1], *shape), target.dtype)
        # (units, lanes, m) -> (lanes, units, m)
        labels = self.labels.swapaxes(0, -2) if lanes else self.labels
        self.encode = partial(loss.encode, labels, units, dtype) if target.dtype != dtype else lambda: labels
        # Every lane's own copy of the labels: broadcasting takes longer, and allocates.
        own = bool(network.lanes) or target.dtype != dtype
        self.target = np.empty((*network.lanes, units, m), dtype) if own else self.labels
        self.shares = np.empty(shape, dtype) if weighted else None
        self.held: Array | None = None
        self.replay: Replay | None = None
        if replay_is_on():
            self._record(Tape(), (*lanes, inputs, m))
        else:
            self.rows = np.ones((*shape, inputs + 1), dtype)

    def _record(self, tape: Tape, shape: tuple[int, ...]) -> None:
        x = tape.input(shape, self.gradient.dtype, order=(*range(len(shape) - 2), -1, -2))
        shares = None if self.shares is None else tape.watch(self.shares)
        network = self.network.with_parameters(tape.watch(self.network.parameters))
        self._forward(network, x, tape.watch(self.target), shares)
        tape.stage = 1
        self._backward(network, tape.watch(self.gradient))
        x_1 = self.caches[0].a_prev_1
        results = self.value, self.logits, self.norms, self.squares
        self.replay = Replay(tape, [*results, x_1])
        self.value, self.logits, self.norms, self.squares = map(self.replay.array, results)
        self.rows = transpose(self.replay.array(x_1))
        del self.caches, self.dlogits

    def _forward(self, network: Network, x: Array, target: Array, shares: Array | None) -> None:
        self.logits, self.caches = network.forward(x)
        self.value, self.dlogits = self.loss.value_and_gradient(self.logits, target, shares)

    def _backward(self, network: Network, gradient: Array) -> None:
        gradient[...] = network.gradient(self.dlogits, self.caches)
        self.squares = self.network.layout.squares(gradient)
        self.norms = np.sqrt(self.squares)

    @property
    def x(self) -> Array:
        """(n_0, m) the batch, or one a lane."""
        return transpose(self.rows)[..., :-1, :]

    def forward(self) -> None:
        """Leave value and logits."""
        if self.replay is None:
            self._forward(self.network, self.x, self.target, self.shares)
        else:
            self.replay(0)

    def cycle(self) -> None:
        """Leave the gradient and its norms, too."""
        if self.replay is None:
            self._forward(self.network, self.x, self.target, self.shares)
            self._backward(self.network, self.gradient)
        else:
            self.replay()

    def gather(self, rows: Array, target: Array, examples: Array, weights: Array | None) -> None:
        """Take these examples of a whole set: (m,) for all lanes, or (lanes, m)."""
        if examples is not self.held:
            wanted = examples if examples.shape == self.shape else np.broadcast_to(examples, self.shape)
            rows.take(wanted, 0, self.rows, "clip")
            target.take(wanted, -1, self.labels, "clip")
            if self.target is not self.labels:
                np.copyto(self.target, self.encode())
            if self.shares is not None:
                self.shares[...] = 1 / self.shape[-1] if weights is None else shares_of(weights[wanted])
            self.held = examples


class _Training:
    """The lanes still in training, with all they compute in. Lanes are counted along one axis, whatever their shape."""

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
        self.lanes = network.lanes
        self.live = np.arange(int(np.prod(self.lanes)))
        if len(self.lanes) > 1:
            network = network.with_parameters(network.parameters.reshape(self.live.size, -1))
            optimizer = optimizer.take(self.live, self.lanes)
        self.whole, self.loss = network, loss
        self.rows, self.target = self._encoded("", x, y)
        self.x, self.y = transpose(self.rows[:, :-1]), np.asarray(y)
        self.m = len(self.rows)
        self.weights = None if weights is None else check_weights(weights, self.m)
        self.batch_size = self.m if batch_size is None else batch_size
        self.batch_size = whole_number("batch_size", self.batch_size, at_least=1, at_most=self.m)
        if network.mixes_examples and 1 in (self.m, self.batch_size, self.m % self.batch_size):
            raise ValueError(
                f"batch_size is {self.batch_size}, which leaves a batch of one sample of {self.m}, "
                "but batch normalisation needs at least 2 in each"
            )
        if np.shape(loss_bound) not in ((), self.lanes) or not np.all(np.asarray(loss_bound) > 0):
            raise ValueError(f"loss_bound is {loss_bound}, it must be above 0, a number or one a lane")
        bounds = np.minimum(loss_bound, float(np.finfo(network.parameters.dtype).max))
        self.loss_bound, self.least_bound = np.broadcast_to(bounds, self.lanes).reshape(-1), float(np.min(bounds))
        self.place: slice | Array = slice(None)
        self.own_orders = False
        self._occupy(network, optimizer)
        self.state = optimizer.start(network)

    def _encoded(self, name: str, x: Array, y: Array) -> tuple[Array, Array]:
        sizes, dtype = self.whole.layout.sizes, self.whole.parameters.dtype
        x, y = np.asarray(x), np.asarray(y)
        if x.ndim != 2 or x.shape[0] != sizes[0]:
            raise ValueError(f"{name}x has shape {x.shape}, it must be ({sizes[0]}, m)")
        if y.shape[-1:] != x.shape[-1:]:
            raise ValueError(f"{name}y has shape {y.shape}, it must be (..., {x.shape[-1]}), an entry for each column of x")
        check_finite(f"{name}x", x, dtype)
        target = self.loss.check(y, sizes[-1], dtype)
        if self.loss.decides is None or target.size * sizes[-1] <= ENCODED_AT_ONCE:
            target = self.loss.encode(target, sizes[-1], dtype)
        # An example's values side by side: gathering a batch moves whole rows.
        rows = np.empty((x.shape[1], x.shape[0] + 1), dtype)
        rows[:, :-1], rows[:, -1] = x.T, 1
        return rows, target

    def _occupy(self, network: Network, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.gradient = np.empty_like(network.parameters)
        self.workspaces: dict[tuple[Network, int], Workspace] = {}
        # What is evaluated.
        self.predicting = network.with_statistics(self.x)

    def gathered(
        self, rows: Array, target: Array, examples: Array, weights: Array | None = None, network: Network | None = None
    ) -> Workspace:
        """These examples of a whole set, in the workspace for so many, of the network that is trained or of another one."""
        m = examples.shape[-1]
        key = network or self.network, m
        if key not in self.workspaces:
            shape, weighted = (*self.network.lanes, m) if self.own_orders else (m,), self.weights is not None
            self.workspaces[key] = Workspace(key[0], self.loss, self.gradient, target, shape, weighted)
        self.workspaces[key].gather(rows, target, examples, weights)
        return self.workspaces[key]

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
        sets = {"train": (self.rows, self.target)}
        if validation is not None:
            sets["validation"] = self._encoded("validation ", *validation)

        batches = [slice(start, min(start + self.batch_size, self.m)) for start in range(0, self.m, self.batch_size)]
        steps = epochs * len(batches)
        factor = rate_schedule(schedule, warmup, steps)
        measured_epochs = log_spaced(epochs + 1, evaluations) if evaluations else np.empty(0, int)
        self._open_history(steps, [batch.stop - batch.start for batch in batches], measured_epochs, list(sets))
        self.instruments = {
            instrument.name: instrument.mounted(self.network, self.x, self.y, self.loss, self.batch_size, steps)
            for instrument in instruments
        }

        order = np.arange(self.m) if orders is None else self._checked(next(orders, None), 0)
        self.own_orders = order.ndim > 1
        examples = [order[..., batch] for batch in batches]
        # A network that diverges overflows on its way, and one that vanishes underflows: both are results here.
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            step = 0
            for epoch in range(until + 1):
                if epoch in measured_epochs:
                    column = int(np.searchsorted(measured_epochs, epoch))
                    for name, (rows, target) in sets.items():
                        self._measure(name, rows, target, column)
                if epoch == until:
                    break
                if epoch and orders is not None:
                    order = self._checked(next(orders, None), epoch)
                    examples = [order[..., batch] for batch in batches]
                for batch in examples:
                    if self.live.size == 0:
                        break
                    self._cycle(step, batch, factor(step))
                    step += 1
                if watch:
                    watch(step, partial(self._history, (epoch + 1) * len(batches)))
            if self.live.size and until == epochs:
                self._judge_last_update(steps)
        self._write_back()
        # One nan for all: the bits of one depend on the lanes beside it.
        np.copyto(self.whole.parameters, np.nan, where=np.isnan(self.whole.parameters))
        return self._history(steps)

    def _open_history(self, steps: int, batch_sizes: list[int], measured_epochs: Array, sets: list[str]) -> None:
        """Room for what every step and every evaluation will give: nan where they are still to come."""
        lanes, depth, dtype = self.live.size, self.network.depth, self.network.parameters.dtype
        self.steps_an_epoch, self.evaluated = len(batch_sizes), measured_epochs * len(batch_sizes)
        self.batch_sizes = np.array(batch_sizes * (steps // len(batch_sizes)))
        self.losses = np.full((steps, lanes), np.nan, dtype)
        self.norms = np.full((steps, lanes, 2 * depth), np.nan, dtype)
        kinds = "loss", "r2" if self.loss.decides is None else "accuracy"
        self.measures = {f"{kind}/{name}": np.full((len(measured_epochs), lanes), np.nan) for kind in kinds for name in sets}
        self.diverged = np.full((2, lanes), -1)

    def _checked(self, order: Array | None, epoch: int) -> Array:
        if order is None:
            raise ValueError(f"orders ends before epoch {epoch + 1}, it must have an order for every epoch")
        order = np.asarray(order)
        fits = order.shape in ((self.m,), (*self.lanes, self.m)) and (not epoch or (order.ndim > 1) == self.own_orders)
        if not fits or not np.issubdtype(order.dtype, np.integer) or order.min() < 0 or order.max() >= self.m:
            raise ValueError(f"an order of shape {order.shape} is no order of {self.m} examples, it must hold 0 to {self.m - 1}")
        return order if order.ndim == 1 else order.reshape(-1, self.m)

    def _cycle(self, step: int, examples: Array, factor: float) -> None:
        """One cycle of gradient descent, its loss and norms kept at `step`. examples: (m,), or (lanes, m) of all lanes.

        Lanes with a loss above the bound, or a gradient that is not finite, leave; the others make the cycle anew, with
        their very bits.
        """
        own = examples[self.place] if self.own_orders else examples
        batch = self.gathered(self.rows, self.target, own, self.weights)
        batch.cycle()
        value, norms = batch.value, batch.norms
        finite = self.network.layout.rescale(norms, batch.squares, self.gradient)
        self.losses[step, self.place] = value
        if not (largest(value) <= self.least_bound or self._within_bounds(value).all()):
            # Caches of its own, since a workspace's z may be overwritten by a.
            stays, block = self._within_bounds(value), _first(_lost_blocks(self.network.forward(batch.x)[1]))
        else:
            self.norms[step, self.place] = norms
            if finite:
                self._update(step, factor)
                return
            stays, block = np.asarray(np.isfinite(norms).all(axis=-1)), _last_block(norms)
        self._part(step, np.reshape(stays, -1), np.reshape(block, -1))
        if self.live.size:
            self._cycle(step, examples, factor)

    def _within_bounds(self, value: Array) -> Array:
        return np.asarray(value <= self.loss_bound[self.live].astype(value.dtype))

    def _update(self, step: int, factor: float) -> None:
        """The update, and what is measured around it."""
        due = [instrument for instrument in self.instruments.values() if instrument.due(step)]
        for instrument in due:
            instrument.read(self.optimizer, self.state)
            instrument.before(step, self.network, self.place)
        self.optimizer.update(self.network.parameters, self.gradient, self.state, factor)
        for instrument in due:
            instrument.after(step, self.network, self.place)

    def _judge_last_update(self, steps: int) -> None:
        """Note the lanes that it has made diverge, as `_cycle` does: no cycle comes after it."""
        measured = self.measures["loss/train"][-1:, self.live]
        loss = measured[0] if len(measured) else np.reshape(self._evaluate(self.rows, self.target)[0], -1)
        finite = np.isfinite(self.network.parameters).all(axis=-1)
        bad = ~((loss <= self.loss_bound[self.live]) & np.reshape(finite, -1))
        if bad.any():
            batches = [self.x[:, start : start + self.batch_size] for start in range(0, self.m, self.batch_size)]
            lost = np.any([_lost_blocks(self.network.forward(batch)[1]) for batch in batches], axis=0)
            self.diverged[:, self.live[bad]] = np.full(bad.sum(), steps), np.reshape(_first(lost), -1)[bad]

    def _part(self, step: int, stays: Array, block: Array) -> None:
        """Lanes leave the stack, the step and the block of their first bad value noted."""
        self.diverged[:, self.live[~stays]] = np.stack([np.full_like(block, step), block])[:, ~stays]
        self._write_back()
        self.live = self.place = self.live[stays]
        if self.live.size:
            whole = self.network
            kept = np.flatnonzero(stays)
            parameters = whole.parameters.reshape(-1, whole.layout.size)[kept]
            self._occupy(whole.with_parameters(parameters), self.optimizer.take(kept, whole.lanes))
            self.state = self.state.take(kept)

    def _write_back(self) -> None:
        """Put the live lanes' parameters back into the network that was handed in."""
        if self.network is not self.whole and self.live.size:
            self.whole.parameters.reshape(-1, self.whole.layout.size)[self.live] = self.network.parameters

    def _measure(self, name: str, rows: Array, target: Array, column: int) -> None:
        """Keep loss, and accuracy or r2, of a whole set."""
        if self.live.size == 0:
            return
        measured = ("loss", "r2" if self.loss.decides is None else "accuracy")
        for kind, values in zip(measured, self._evaluate(rows, target), strict=True):
            self.measures[f"{kind}/{name}"][column, self.live] = values

    def _evaluate(self, rows: Array, target: Array) -> tuple[Array, Array]:
        """Loss, and accuracy or r2, over a whole set, in batches of the training's size; see `Network.with_statistics`."""
        m = len(rows)
        if self.predicting is not self.network:
            self.predicting.parameters[...] = self.network.with_statistics(self.x).parameters
        total, right = np.zeros(self.network.lanes), np.zeros(self.network.lanes)
        residual = np.zeros((*self.network.lanes, self.network.layout.sizes[-1]))
        for start in range(0, m, self.batch_size):
            examples = np.arange(start, min(start + self.batch_size, m))
            batch = self.gathered(rows, target, examples, network=self.predicting)
            batch.forward()
            logits = batch.logits
            total += batch.value * np.float64(logits.shape[-1])
            if self.loss.decides:
                # The encoded target less a half decides for its own label, whichever the encoding.
                right += (self.loss.decides(logits) == self.loss.decides(batch.target - 0.5)).sum(axis=-1)
            else:
                errors = np.subtract(logits, batch.target, dtype=np.float64)
                residual += np.vecdot(errors, errors)
        score = right / m if self.loss.decides else r2(residual, m * target.astype(np.float64).var(axis=-1), m)
        return total / m, score

    def _history(self, steps: int) -> History:
        """The first `steps` steps, and all evaluations: nan where they are still to come."""

        def by_lane(values: Array) -> Array:
            return quiet(np.moveaxis(values, 1, 0).reshape(*self.lanes, values.shape[0], *values.shape[2:]))

        norms = by_lane(self.norms[:steps])
        return History(
            by_lane(self.losses[:steps]),
            norms[..., 0::2],
            norms[..., 1::2],
            self.batch_sizes[:steps],
            self.steps_an_epoch,
            self.evaluated,
            {name: by_lane(values) for name, values in self.measures.items()},
            {name: instrument.quantity(self.lanes) for name, instrument in self.instruments.items()},
            self.diverged[0].reshape(self.lanes).copy(),
            self.diverged[1].reshape(self.lanes).copy(),
        )


def _lost_blocks(caches: list[Cache]) -> Array:
    """(..., L) whether a z of the block is not finite."""
    return np.stack([~np.isfinite(cache.z).all(axis=(-2, -1)) for cache in caches], axis=-1)


def _first(lost: Array) -> Array:
    """(...) the first lost block of (..., L), counted from 1; 0 where there is none."""
    return np.where(lost.any(axis=-1), lost.argmax(axis=-1) + 1, 0)


def _last_block(norms: Array) -> Array:
    """(...) the last block, counted from 1, with a norm that is not finite: backward runs from block L down."""
    bad = ~np.isfinite(norms)[..., ::-1]
    return (norms.shape[-1] - 1 - bad.argmax(axis=-1)) // 2 + 1
