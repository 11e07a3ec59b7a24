"""A network: a chain of L blocks, whose parameters are one flat vector per lane."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, check_shape, choice, transpose, whole_number
from blocks.block import Block, Cache
from blocks.initializers import initialize
from blocks.normalized import BatchNormalized, Normalized, NormalizedCache
from blocks.parameters import SAFE, Layout, joined_gradient
from blocks.residual import Residual

# Kind -> number of a block and depth -> the function that makes the block from [W b] and its activation. Block 1 is always plain:
# its input, the data, is standardised already. In a residual network the last block is plain, too, since it changes the size.
KINDS: dict[str, Callable[[int, int], Callable[[Array, Activation], Block]]] = {
    "plain": lambda number, depth: Block.over,
    "residual": lambda number, depth: partial(Residual.over, scale=depth**-0.5) if 1 < number < depth else Block.over,
    "normalized": lambda number, depth: Normalized.over if number > 1 else Block.over,
    "batch_normalized": lambda number, depth: BatchNormalized.over if number > 1 else Block.over,
}


class Network:
    """Blocks 1..L. The last one has the identity activation and returns the logits.

    sizes: (n_0, ..., n_L).
    activation: of blocks 1..L-1, a name from the table.
    parameters: (..., P) flat vectors, one per lane; every block's W and b are views of them.
    kind: plain; residual: blocks 2..L-1 are `Residual`, n_1 to n_{L-1} must be equal; normalized: blocks 2..L are `Normalized`;
        batch_normalized: they are `BatchNormalized`.
    """

    def __init__(self, sizes: Sequence[int], activation: str, parameters: Array, kind: str = "plain") -> None:
        self.layout = Layout(sizes)
        if parameters.dtype not in SAFE:
            raise ValueError(f"dtype is {parameters.dtype}, it must be float32 or float64")
        check_shape("parameters", parameters, (self.layout.size,))
        self.activation = Activation.named(activation)
        self.parameters = parameters
        self.kind, make = kind, choice("kind", kind, KINDS)
        joined = self.layout.blocks(parameters)
        self.blocks = [make(number, self.depth)(block, self.activation) for number, block in enumerate(joined, start=1)]
        self.blocks[-1].activation = Activation.named("identity")

    @classmethod
    def create(
        cls,
        sizes: Sequence[int],
        activation: str = "relu",
        initializer: str = "he",
        *,
        rng: np.random.Generator,
        gain: float = 1.0,
        bias_variance: float = 0.0,
        dtype: type | str | np.dtype = np.float64,
        lanes: int | None = None,
        kind: str = "plain",
        parametrization: str = "standard",
        gamma: float | None = None,
    ) -> "Network":
        """Return a network with random initial weights.

        initializer, gain, bias_variance: see `blocks.initializers`.
        parametrization, gamma: see `blocks.parametrizations`. They also need its `rate_factors` in the optimizer.
        rng: draws all weights. Lane k of `lanes` draws from `rng.spawn(lanes)[k]`, so that it has the bits of the network that
            is created alone with that generator.
        dtype: of all parameters, float32 or float64.
        """
        layout = Layout(sizes)
        rngs = [rng] if lanes is None else rng.spawn(whole_number("lanes", lanes, at_least=1))
        law = gain, bias_variance, parametrization, gamma
        draws = [initialize(layout, initializer, lane_rng, *law).astype(dtype) for lane_rng in rngs]
        return cls(layout.sizes, activation, draws[0] if lanes is None else np.stack(draws), kind)

    def with_parameters(self, parameters: Array) -> "Network":
        """Return the same network with other parameters (..., P), and with their lanes."""
        return Network(self.layout.sizes, self.activation.name, parameters, self.kind)

    @property
    def mixes_examples(self) -> bool:
        """Whether an example's logits depend on the other examples of its batch."""
        return any(isinstance(block, BatchNormalized) for block in self.blocks)

    def with_statistics(self, x: Array) -> "Network":
        """Return the network for prediction, which standardises every batch with the means and variances of x.

            W x_hat + b = W' a_prev + b'        W' = W diag(r)        b' = b - W' mean

        mean, r: of a_prev for x. The result is a plain network with the same logits for x. A network that does not mix examples
        is returned unchanged.

        x: (n_0, m) data, at least 2 examples.
        """
        if not self.mixes_examples:
            return self
        plain, a = Network(self.layout.sizes, self.activation.name, self.parameters.copy()), x
        for block, folded in zip(self.blocks, plain.blocks, strict=True):
            a, cache = block.forward(a)
            if isinstance(cache, NormalizedCache):
                folded.W *= transpose(cache.r)
                folded.b -= folded.W @ cache.mean
        return plain

    @property
    def lanes(self) -> tuple[int, ...]:
        """The shape of the lanes, () for a single network."""
        return self.parameters.shape[:-1]

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return self.layout.depth

    def __reduce__(self) -> tuple[type["Network"], tuple[Any, ...]]:
        # Copied views would become arrays of their own, but W and b must be views of the copied parameters.
        return Network, (self.layout.sizes, self.activation.name, self.parameters, self.kind)

    def __repr__(self) -> str:
        sizes = "-".join(str(n) for n in self.layout.sizes)
        lanes = f", lanes={self.lanes}" if self.lanes else ""
        kind = "" if self.kind == "plain" else f"{self.kind}, "
        return f"Network({sizes}, {kind}{self.activation.name}, {self.parameters.dtype}{lanes}, {self.layout.size} parameters)"

    def forward(self, x: Array) -> tuple[Array, list[Cache]]:
        """Return logits, and the caches of blocks 1..L.

        x: (..., n_0, m) data, one example a column; lanes may share it.
        Returns logits (..., n_L, m).
        """
        check_shape("x", x, (self.layout.sizes[0], "m"))
        a, caches = x, []
        for block in self.blocks:
            a, cache = block.forward(a)
            caches.append(cache)
        return a, caches

    def backward(self, dlogits: Array, caches: list[Cache]) -> list[tuple[Array, Array]]:
        """Return [(dW, db), ...] of blocks 1..L, computed from block L down to block 1.

        dlogits: (..., n_L, m) the loss's derivative with respect to the logits.
        caches: forward's.
        """
        return self.backward_to_data(dlogits, caches)[0]

    def backward_to_data(self, dlogits: Array, caches: list[Cache]) -> tuple[list[tuple[Array, Array]], Array]:
        """Return what `backward` returns, and da_0 (..., n_0, m), the loss's derivative with respect to x."""
        check_shape("dlogits", dlogits, caches[-1].z.shape[-2:])
        gradients: list[tuple[Array, Array]] = []
        da = dlogits
        for block, cache in zip(reversed(self.blocks), reversed(caches), strict=True):
            da, dW, db = block.backward(da, cache)
            gradients.insert(0, (dW, db))
        return gradients, da

    def gradient(self, dlogits: Array, caches: list[Cache]) -> Array:
        """Return the gradient as one flat vector (..., P) in the order of the parameters."""
        signals = zip(self.signals(dlogits, caches), reversed(caches), strict=True)
        return self.layout.flat([joined_gradient(dz, cache.a_prev_1) for (_, dz), cache in signals][::-1])

    def signals(self, dlogits: Array, caches: list[Cache]) -> Iterator[tuple[Array, Array]]:
        """Yield (da, dz) of blocks L, L-1, ..., 1: backward without the parameters' gradients."""
        da = dlogits
        for block, cache in zip(reversed(self.blocks), reversed(caches), strict=True):
            dz, da_prev = block.backpropagate(da, cache)
            yield da, dz
            da = da_prev
