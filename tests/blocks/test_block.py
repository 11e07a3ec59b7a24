import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from blocks import Block, Network
from tests.blocks import oracle
from tests.blocks.reference import ACTIVATION_NAMES, assert_near

every_activation = pytest.mark.parametrize("activation", ACTIVATION_NAMES)


def some_block(rng, n, n_prev, activation, lanes=(), dtype=float):
    W, b = rng.standard_normal((*lanes, n, n_prev)), rng.standard_normal((*lanes, n, 1))
    return Block(W.astype(dtype), b.astype(dtype), activation)


@cache
def forward_and_backward(activation):
    """f(W, b, a_prev, da) -> a, (dW, db, da_prev) by JAX; compiled once for each set of shapes."""

    def forward(W, b, a_prev):
        return oracle.ACTIVATIONS[activation](W @ a_prev + b)

    def both(W, b, a_prev, da):
        a, pull_back = jax.vjp(forward, W, b, a_prev)
        return a, pull_back(da)

    return jax.jit(both)


def vjp(block, a_prev, da, lane=()):
    """a, (dW, db, da_prev) by JAX, of one lane."""
    return forward_and_backward(block.activation.name)(block.W[lane], block.b[lane], a_prev, da)


def test_forward_and_backward_of_numbers_worked_out_by_hand():
    W, b = np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.0]]), np.array([[1.0], [-10.0], [0.0]])
    block = Block(W, b, "relu")
    a, cache = block.forward(np.array([[1.0, 0.0], [1.0, 2.0]]))
    assert cache.z.tolist() == [[4, 5], [-3, -2], [-1, 0]]
    assert a.tolist() == [[4, 5], [0, 0], [0, 0]]
    da_prev, dW, db = block.backward(np.array([[1.0, 10.0], [5.0, 5.0], [7.0, 7.0]]), cache)
    assert dW.tolist() == [[1, 21], [0, 0], [0, 0]]
    assert db.tolist() == [[11], [0], [0]]
    assert da_prev.tolist() == [[1, 10], [2, 20]]


# JAX compiles nearly every one.
@settings(max_examples=12)
@given(
    activation=st.sampled_from(ACTIVATION_NAMES),
    n=st.integers(1, 4),
    n_prev=st.integers(1, 4),
    m=st.integers(1, 4),
    lanes=st.sampled_from([(), (7,), (2, 3)]),
    shared=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_backward_is_the_vector_jacobian_product_of_forward(activation, n, n_prev, m, lanes, shared, seed):
    rng = np.random.default_rng(seed)
    block = some_block(rng, n, n_prev, activation, lanes)
    a_prev = rng.standard_normal((*(() if shared else lanes), n_prev, m))
    da = rng.standard_normal((*lanes, n, m))
    a, cache = block.forward(a_prev)
    da_prev, dW, db = block.backward(da, cache)
    assert (a.shape, da_prev.shape) == ((*lanes, n, m), (*lanes, n_prev, m))
    assert (dW.shape, db.shape) == (block.W.shape, block.b.shape)
    # One lane is enough for JAX, which compiles for every shape; lanes are compared to the bit elsewhere.
    lane = tuple(k - 1 for k in lanes)
    exact_a, (exact_dW, exact_db, exact_da_prev) = vjp(block, a_prev if shared else a_prev[lane], da[lane], lane)
    for actual, exact in ((a, exact_a), (dW, exact_dW), (db, exact_db), (da_prev, exact_da_prev)):
        assert_near(actual[lane], exact)


@every_activation
def test_two_forwards_then_two_backwards_in_another_order_give_the_right_gradients(activation):
    rng = np.random.default_rng(3)
    block = some_block(rng, 4, 3, activation)
    inputs, upstream = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 4, 5))
    forwards = [block.forward(a_prev) for a_prev in inputs]
    backwards = {k: block.backward(upstream[k], forwards[k][1]) for k in (1, 0)}
    for k in (0, 1):
        _, (dW, db, da_prev) = vjp(block, inputs[k], upstream[k])
        for actual, exact in zip(backwards[k], (da_prev, dW, db), strict=True):
            assert_near(actual, exact)


@every_activation
@pytest.mark.parametrize("lanes", [(), (3,)])
def test_backward_leaves_da_the_cache_and_the_block_unchanged(activation, lanes):
    rng = np.random.default_rng(4)
    block = some_block(rng, 4, 3, activation, lanes)
    a_prev, da = rng.standard_normal((3, 5)), rng.standard_normal((*lanes, 4, 5))
    a, cache = block.forward(a_prev)
    kept = [da, a_prev, a, cache.a_prev, cache.a_prev_1, cache.z, cache.a, block.W, block.b]
    before = [array.copy() for array in kept]
    once = block.backward(da, cache)
    again = block.backward(da, cache)
    for array, was in zip(kept, before, strict=True):
        assert_array_equal(array, was)
    for one, two in zip(once, again, strict=True):
        assert_array_equal(one, two)


def test_forward_keeps_its_own_copy_of_a_prev():
    rng = np.random.default_rng(6)
    block = some_block(rng, 2, 3, "tanh")
    a_prev, da = rng.standard_normal((3, 5)), rng.standard_normal((2, 5))
    _, cache = block.forward(a_prev)
    exact = vjp(block, a_prev, da)[1][0]
    a_prev[...] = 0
    assert_near(block.backward(da, cache)[1], exact)


def test_arrays_handed_in_are_not_the_block_s():
    W, b = np.ones((2, 3)), np.ones((2, 1))
    block = Block(W, b)
    W[...], b[...] = 7, 7
    assert_array_equal(block.forward(np.ones((3, 1)))[0], [[4], [4]])


@pytest.mark.parametrize("lanes", [(), (2,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_result_has_the_parameters_dtype(dtype, lanes):
    rng = np.random.default_rng(7)
    block = some_block(rng, 2, 3, "gelu", lanes, dtype)
    a, cache = block.forward(rng.standard_normal((3, 4)))
    assert {array.dtype for array in (a, cache.z, *block.backward(rng.standard_normal((*lanes, 2, 4)), cache))} == {
        np.dtype(dtype)
    }


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Block(np.ones(3), np.ones((3, 1))), r"W has shape \(3,\), it must be \(\.\.\., n_l, n_\{l-1\}\)"),
        (lambda: Block(np.ones((2, 3)), np.ones((3, 1))), r"b has shape \(3, 1\), it must be \(\.\.\., 2, 1\)"),
        (lambda: Block(np.ones((2, 3)), np.ones(2)), r"b has shape \(2,\), it must be \(\.\.\., 2, 1\)"),
        (lambda: Block(np.ones((2, 3)), np.ones((2, 1)), "step"), r"activation 'step' is unknown, allowed: identity, "),
        (
            lambda: Block(np.ones((2, 3)), np.ones((2, 1))).forward(np.ones((2, 5))),
            r"a_prev has shape \(2, 5\), it must be \(\.\.\., 3, m\)",
        ),
        (
            lambda: Block(np.ones((2, 3)), np.ones((2, 1))).forward(np.ones(3)),
            r"a_prev has shape \(3,\), it must be \(\.\.\., 3, m\)",
        ),
    ],
)
def test_shapes_that_do_not_match_raise_and_name_the_argument(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (5,)])
def test_backward_refuses_a_da_of_another_shape(shape):
    block = Block(np.ones((2, 3)), np.ones((2, 1)))
    _, cache = block.forward(np.ones((3, 5)))
    with pytest.raises(ValueError, match=rf"da has shape \({shape[0]},.*\), it must be \(\.\.\., 2, 5\)"):
        block.backward(np.ones(shape), cache)


@pytest.mark.parametrize("turns", [False, True])
def test_dW_is_the_same_product_whether_dz_is_turned_or_not(monkeypatch, turns):
    monkeypatch.setattr("blocks.arrays.AVX_512", turns)
    monkeypatch.setattr("blocks.arrays.TINY", 0)
    rng = np.random.default_rng(0)
    lanes = [Block(rng.standard_normal((7, 5)), rng.standard_normal((7, 1)), "tanh") for _ in range(3)]
    stack = Block(np.stack([block.W for block in lanes]), np.stack([block.b for block in lanes]), "tanh")
    a_prev, da = rng.standard_normal((3, 5, 11)), rng.standard_normal((3, 7, 11))
    _, cache = stack.forward(a_prev)
    _, dW, db = stack.backward(da, cache)
    dz = da * (1 - np.tanh(cache.z) ** 2)
    np.testing.assert_allclose(dW, np.einsum("lij,lkj->lik", dz, a_prev), rtol=1e-12)
    np.testing.assert_allclose(db[..., 0], dz.sum(axis=-1), rtol=1e-12)
    for k, block in enumerate(lanes):
        _, own = block.forward(a_prev[k])
        _, dW_alone, _ = block.backward(da[k], own)
        np.testing.assert_array_equal(dW[k], dW_alone)


def test_the_lectures_own_update_is_what_forward_computes_with():
    rng = np.random.default_rng(0)
    network = Network.create([3, 4, 2], "tanh", "glorot", rng=rng, dtype="float64")
    a_prev = rng.standard_normal((3, 5))
    block = network.blocks[0]
    W, b, alpha = block.W.copy(), block.b.copy(), 0.1
    dW, db = rng.standard_normal(W.shape), rng.standard_normal(b.shape)
    block.W = block.W - alpha * dW
    block.b -= alpha * db
    expected = np.tanh((W - alpha * dW) @ a_prev + (b - alpha * db))
    np.testing.assert_allclose(block.forward(a_prev)[0], expected, rtol=1e-14)
    # The network's flat vector holds the same memory.
    np.testing.assert_array_equal(network.blocks[0].W, W - alpha * dW)
    np.testing.assert_array_equal(network.with_parameters(network.parameters).blocks[0].b, b - alpha * db)
    with pytest.raises(ValueError, match=r"W has shape \(4, 1\), it must be \(4, 3\)"):
        block.W = np.zeros((4, 1))


@pytest.mark.parametrize("function", [Block.forward, Block.backward, Block.backpropagate])
def test_the_readme_shows_it_as_it_stands_in_the_file(function):
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    docstring = ast.parse("\n".join(lines)).body[0].body[0]
    code = [*lines[: docstring.lineno - 1], *lines[docstring.end_lineno :]]
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert textwrap.indent("\n".join(line for line in code if not line.strip().startswith("#")), " " * 4) in readme
