"""A network: L blocks in a chain, their parameters one flat vector a lane."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from blocks.activations import Activation
from blocks.arrays import Array, Call, check_shape, choice, transpose, whole_number
from blocks.block import Block, Cache
from blocks.initializers import initialize
from blocks.normalized import Normalized
from blocks.parameters import SAFE, Layout, split
from blocks.residual import Residual

# What makes a block from [W b] and its activation, by its number and the depth. Block 1 sees the data: they are standardised,
# and of another size than what it gives, as the last block's input is.
KINDS: dict[str, Callable[[int, int], Callable[[Array, Activation], Block]]] = {
    "plain": lambda number, depth: Block.over,
    "residual": lambda number, depth: partial(Residual.over, scale=depth**-0.5) if 1 < number < depth else Block.over,
    "normalized": lambda number, depth: Normalized.over if number > 1 else Block.over,
}


class Network:
    """Blocks 1..L; the last one has the identity activation and gives the logits.

    sizes: (n_0, ..., n_L).
    activation: of blocks 1..L-1, a name from the table.
    parameters: (..., P) flat vectors, one a lane; every block's W and b are views into them.
    kind: plain; residual: blocks 2..L-1 are `Residual`, n_1 to n_{L-1} must be equal; normalized: blocks 2..L are `Normalized`.
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
    ) -> "Network":
        """A network with random initial weights.

        initializer, gain, bias_variance: see `blocks.initializers`.
        rng: where all randomness comes from. Lane k of `lanes` draws from `rng.spawn(lanes)[k]`, so it has the bits of
            the network created alone with that generator.
        dtype: of all parameters, float32 or float64.
        """
        layout = Layout(sizes)
        if lanes is None:
            parameters = initialize(layout, initializer, rng, gain, bias_variance).astype(dtype)
        else:
            lanes = whole_number("lanes", lanes, at_least=1)
            draws = [initialize(layout, initializer, lane_rng, gain, bias_variance) for lane_rng in rng.spawn(lanes)]
            parameters = np.stack(draws).astype(dtype)
        return cls(layout.sizes, activation, parameters, kind)

    def with_parameters(self, parameters: Array) -> "Network":
        """The same network over other parameters (..., P), of as many lanes as those have."""
        return Network(self.layout.sizes, self.activation.name, parameters, self.kind)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The shape of the lanes, () for one network."""
        return self.parameters.shape[:-1]

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return self.layout.depth

    def __reduce__(self) -> tuple[type["Network"], tuple[Any, ...]]:
        # A copy of views would hold copies: W and b must be views into the copied parameters.
        return Network, (self.layout.sizes, self.activation.name, self.parameters, self.kind)

    def __repr__(self) -> str:
        sizes = "-".join(str(n) for n in self.layout.sizes)
        lanes = f", lanes={self.lanes}" if self.lanes else ""
        kind = "" if self.kind == "plain" else f"{self.kind}, "
        return f"Network({sizes}, {kind}{self.activation.name}, {self.parameters.dtype}{lanes}, {self.layout.size} parameters)"

    def new_caches(self, x_shape: tuple[int, ...], in_place: bool = False) -> list[Cache]:
        """Empty caches for inputs of that shape, every block's `a` the next one's `a_prev` where that is kept.

        in_place: z is overwritten by a where g' is found from a alone: half as much then lies between forward and backward.
        """
        caches: list[Cache] = []
        shape = x_shape
        for block in self.blocks:
            cache = block.new_cache(shape)
            shape = cache.z.shape
            if in_place and not block.activation.needs_z:
                cache.z = cache.a
            if caches:
                before = caches[-1]
                over_z = before.z is before.a
                cache.follow(before)
                if over_z:
                    before.z = before.a
            caches.append(cache)
        return caches

    def workspace(self, x_shape: tuple[int, ...]) -> list[Cache]:
        """Caches in place, with room for backward's intermediate results, for a loop that allocates nothing.

        All blocks share that room: what `Block.backward` returns as da_prev is overwritten by the next block's.
        """
        caches = self.new_caches(x_shape, in_place=True)
        room: dict[tuple[str, tuple[int, ...]], Array] = {}
        for cache, before in zip(caches, [None, *caches], strict=False):
            # The last block's dz is the loss's dlogits.
            if cache is not caches[-1]:
                cache.dz = room.setdefault(("dz", cache.z.shape), np.empty_like(cache.z))
            if cache.turns:
                cache.dz_T = room.setdefault(("dz_T", cache.z.shape), np.empty_like(transpose(cache.z), order="C"))
            if before is not None:
                cache.da_prev = room.setdefault(("da", before.z.shape), np.empty_like(before.z))
                cache.room = room.setdefault(("room", before.z.shape), np.empty_like(before.z))
        return caches

    def forward(self, x: Array, caches: list[Cache] | None = None) -> tuple[Array, list[Cache]]:
        """logits, caches of blocks 1..L.

        x: (..., n_0, m) data, one example a column; lanes may share it.
        caches: an earlier call's, for the same shape of x, to be written over; the results do not depend on them.
        Returns logits (..., n_L, m).
        """
        check_shape("x", x, (self.layout.sizes[0], "m"))
        if caches is None:
            caches = self.new_caches(x.shape)
        elif x.shape != caches[0].a_prev.shape:
            raise ValueError(f"x has shape {x.shape}, the caches are for {caches[0].a_prev.shape}")
        a = x
        for block, cache in zip(self.blocks, caches, strict=True):
            a, _ = block.forward(a, cache)
        return a, caches

    def backward(self, dlogits: Array, caches: list[Cache]) -> list[tuple[Array, Array]]:
        """[(dW, db), ...] of blocks 1..L, computed from block L down.

        dlogits: (..., n_L, m) the loss's derivative with respect to the logits.
        caches: forward's.
        """
        return self._backward(dlogits, caches)[0]

    def backward_to_data(self, dlogits: Array, caches: list[Cache]) -> tuple[list[tuple[Array, Array]], Array]:
        """What `backward` returns, and da_0 (..., n_0, m), the loss's derivative with respect to x."""
        gradients, (da, dz) = self._backward(dlogits, caches)
        return gradients, self.blocks[0].pull_back(da, dz, caches[0])

    def _backward(self, dlogits: Array, caches: list[Cache]) -> tuple[list[tuple[Array, Array]], tuple[Array, Array]]:
        check_shape("dlogits", dlogits, caches[-1].z.shape[-2:])
        joined = self.layout.blocks(np.empty_like(self.parameters))
        da_dz = self.backward_into(joined, dlogits, caches)
        return [split(block) for block in joined], da_dz

    def backward_into(self, joined: list[Array], dlogits: Array, caches: list[Cache]) -> tuple[Array, Array]:
        """`backward`, its results written into `joined`: [dW db] of blocks 1..L, as `layout.blocks` gives them.

        Returns block 1's da and dz, (..., n_1, m) each.
        """
        da = dlogits
        for index in range(self.depth - 1, 0, -1):
            dz, _ = self.blocks[index].gradient(da, caches[index], joined[index])
            da = self.blocks[index].pull_back(da, dz, caches[index])
        dz, _ = self.blocks[0].gradient(da, caches[0], joined[0])
        return da, dz

    def forward_calls(self, caches: list[Cache]) -> list[Call]:
        """`forward` of what stands in caches[0].a_prev, as calls one after another.

        For a loop over a workspace: what lies between the products then takes a quarter less. Same bits.
        """
        if not self._all_plain:
            return [partial(self.forward, caches[0].a_prev, caches)]
        return [call for block, cache in zip(self.blocks, caches, strict=True) for call in block.forward_calls(cache)]

    def backward_calls(self, joined: list[Array], dlogits: Array, caches: list[Cache]) -> list[Call]:
        """`backward_into`, as calls one after another, see `forward_calls`."""
        if not self._all_plain:
            return [partial(self.backward_into, joined, dlogits, caches)]
        calls: list[Call] = []
        da = dlogits
        for block, cache, out in reversed(list(zip(self.blocks, caches, joined, strict=True))):
            calls += block.backward_calls(da, cache, out)
            da = da if cache.da_prev is None else cache.da_prev
        return calls

    @property
    def _all_plain(self) -> bool:
        """Another kind of block takes steps of its own."""
        return all(type(block) is Block for block in self.blocks)
