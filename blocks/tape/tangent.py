"""The tangent of recorded operations: the derivative of results along a direction of the arrays that they are computed from.

A table has the derivatives of every elementwise ufunc with respect to its operands, one line per ufunc. As long as operations are
elementwise, a tangent is a sum of coefficients times derivatives. The coefficients do not depend on the direction, and are
computed once for many directions.

Source: forward mode, as in Baydin, Pearlmutter, Radul and Siskind, "Automatic differentiation in machine learning", 2018.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from blocks.arrays import sum_over_units
from blocks.tape.addresses import array_at, axes_by_stride
from blocks.tape.recorder import Operation, Owner, Tape, Tracer, needed_operations

# Pairs (coefficient, derivative): a tangent is the sum of their products.
Terms = list[tuple[Any, Tracer]]


def _where(condition: Any, out: Any) -> Any:
    """Return 1 where the condition holds, else 0."""
    return np.where(condition, out.dtype.type(1), out.dtype.type(0))


# The derivatives of out = f(x) or f(x, y) with respect to each operand; None where the derivative is 0 except at jumps.
# Where both operands are equal, maximum and minimum have the derivative of their second operand.
DERIVATIVES: dict[Callable[..., Any], tuple[Callable[..., Any] | None, ...]] = {
    np.positive: (lambda out, x: 1,),
    np.negative: (lambda out, x: -1,),
    np.add: (lambda out, x, y: 1, lambda out, x, y: 1),
    np.subtract: (lambda out, x, y: 1, lambda out, x, y: -1),
    np.multiply: (lambda out, x, y: y, lambda out, x, y: x),
    np.divide: (lambda out, x, y: 1 / y, lambda out, x, y: -out / y),
    np.reciprocal: (lambda out, x: -out * out,),
    np.square: (lambda out, x: 2 * x,),
    np.sqrt: (lambda out, x: 0.5 / out,),
    np.exp: (lambda out, x: out,),
    np.expm1: (lambda out, x: 1 + out,),
    np.log: (lambda out, x: 1 / x,),
    np.log1p: (lambda out, x: 1 / (1 + x),),
    np.logaddexp: (lambda out, x, y: np.exp(x - out), lambda out, x, y: np.exp(y - out)),
    np.tanh: (lambda out, x: 1 - out * out,),
    np.sin: (lambda out, x: np.cos(x),),
    np.cos: (lambda out, x: -np.sin(x),),
    np.absolute: (lambda out, x: np.sign(x),),
    np.sign: (None,),
    np.maximum: (lambda out, x, y: _where(x > y, out), lambda out, x, y: 1 - _where(x > y, out)),
    np.minimum: (lambda out, x, y: _where(x < y, out), lambda out, x, y: 1 - _where(x < y, out)),
    np.where: (None, lambda out, c, x, y: _where(c, out), lambda out, c, x, y: 1 - _where(c, out)),
}


def tangent(tape: Tape, start: Tracer, direction: Tracer, output: Any) -> Tracer:
    """Note on the tape the derivative of `output` along `direction` of `start`, and return its tracer.

    Operations that depend on the direction become the next stage, so that all others are replayed once for many directions.

    start: an array of the caller, from which `output` is computed. direction: (*directions, *start's shape).
    Raises ValueError for an operation without a rule, for one that overwrites what is read, and where `output` does not depend
    on `start`.
    """
    rules = _Rules(tape, start, direction)
    read: set[Owner] = set()
    for operation in needed_operations(tape.operations, [output.owner]):
        read.update(tracer.owner for tracer in operation.tracers)
        if operation.out.owner in read:
            raise ValueError(f"np.{operation.function.__name__} writes over what is read: it has no tangent")
        rules.differentiate(operation)
    if output.owner not in rules.terms:
        raise ValueError("the output does not depend on what moves")
    derivative = rules.view(output)
    tape.stage += 1
    varying = {direction.owner}
    for operation in tape.operations:
        if any(tracer.owner in varying for tracer in operation.tracers):
            operation.stage = tape.stage
            varying.add(operation.out.owner)
    return derivative


class _Rules:
    def __init__(self, tape: Tape, start: Tracer, direction: Tracer) -> None:
        self.tape, self.dtype, self.axes = tape, direction.dtype, direction.ndim - start.ndim
        self.directions = direction.shape[: self.axes]
        self.terms: dict[Owner, Terms] = {start.owner: [(1, direction)]}
        self.writes_by_owner: dict[Owner, list[Tracer]] = {}

    def differentiate(self, operation: Operation) -> None:
        """Note the operation's tangent, if one of its operands has one."""
        function, operands, out = operation.function, operation.operands, operation.out
        moving = [isinstance(operand, Tracer) and operand.owner in self.terms for operand in operands]
        if function is np.copyto:
            self._copy(operands[0], out, moving[0])
        elif not any(moving):
            return
        elif function is np.matmul:
            self._set(out, [(1, self._product(operands, moving, out))])
        elif operation.keywords:
            # A maximum over the units has the mean derivative of the units that attain it.
            (x,) = operands
            hit = _where(x == out, out)
            derivative: Any = sum_over_units(hit / sum_over_units(hit) * self.view(x))
            self._set(out, [(1, derivative)])
        elif out.dtype.kind != "f":
            # Whole numbers are multiplied only where they are the bits of a float, times 0 or 1. Others, and truth values, jump.
            if function is np.multiply:
                floats = f"f{out.itemsize}"
                pairs = zip(reversed(operands), moving, strict=True)
                self._elementwise(out, operands, [other.astype(floats) if moves else None for other, moves in pairs])
        elif function in DERIVATIVES:
            rules = zip(DERIVATIVES[function], moving, strict=True)
            self._elementwise(out, operands, [rule(out, *operands) if rule and moves else None for rule, moves in rules])
        else:
            function_names = ", ".join(function.__name__ for function in DERIVATIVES)
            raise ValueError(f"np.{function.__name__} has no tangent rule, allowed: {function_names}, matmul")

    def _set(self, out: Tracer, terms: Terms) -> None:
        if not out.is_owner():
            raise ValueError("a tangent is known for results of their own, not for a part of an array that is written into")
        self.terms[out.owner] = terms

    def _elementwise(self, out: Tracer, operands: Iterable[Any], coefficients: Iterable[Any]) -> None:
        terms: dict[int, tuple[Any, Tracer]] = {}
        for operand, coefficient in zip(operands, coefficients, strict=True):
            if coefficient is None:
                continue
            for factor, base in self._terms_of(operand):
                weight = _times(coefficient, factor)
                term = terms.get(id(base))
                terms[id(base)] = weight if term is None else term[0] + weight, base
        if terms:
            self._set(out, list(terms.values()))

    def _terms_of(self, operand: Tracer) -> Terms:
        return self.terms[operand.owner] if operand.is_owner() else [(1, self.view(operand))]

    def _copy(self, source: Any, place: Tracer, moves: bool) -> None:
        """Note the tangent of a copy to a part of an array. It is 0 where the source has no tangent."""
        owner = place.owner
        if not moves and owner not in self.terms:
            self.writes_by_owner.setdefault(owner, []).append(place)
            return
        if owner not in self.terms:
            self.terms[owner] = [(1, self._new(owner))]
        for unmoved_place in self.writes_by_owner.pop(owner, []):
            self.tape.copy(self.view(unmoved_place), 0)
        self.tape.copy(self.view(place), self.view(source) if moves else 0)

    def _product(self, operands: tuple[Any, ...], moving: list[bool], out: Tracer) -> Any:
        left, right = operands
        parts = []
        if moving[0]:
            parts.append(self._lifted(self.view(left), out.ndim) @ right)
        if moving[1]:
            parts.append(left @ self._lifted(self.view(right), out.ndim))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def view(self, tracer: Tracer) -> Tracer:
        """Return the tangent of an array as one array."""
        derivative = self._summed(tracer.owner)
        if tracer.is_owner():
            return derivative
        address = derivative.address + tracer.address - tracer.owner.address
        shape, strides = (*self.directions, *tracer.shape), (*derivative.array.strides[: self.axes], *tracer.array.strides)
        return Tracer(self.tape, derivative.owner, array_at(address, shape, strides, self.dtype, derivative.array), address)

    def _summed(self, owner: Owner) -> Tracer:
        """Return the sum of an owner's terms as one array with the owner's strides."""
        total: Any = None
        for coefficient, base in self.terms[owner]:
            base = self._lifted(base, owner.array.ndim)
            if isinstance(coefficient, int) and abs(coefficient) == 1:
                if total is None:
                    total = base if coefficient == 1 else -base
                else:
                    total = total + base if coefficient == 1 else total - base
            else:
                total = coefficient * base if total is None else total + coefficient * base
        like = (*self.directions, *owner.array.shape), owner.array.strides
        if (total.shape, total.array.strides[self.axes :]) != like:
            total, part = self._new(owner), total
            self.tape.copy(total, part)
        self.terms[owner] = [(1, total)]
        return total

    def _new(self, owner: Owner) -> Tracer:
        axes = [*range(self.axes), *(axis + self.axes for axis in axes_by_stride(owner.array))]
        return self.tape.new((*self.directions, *owner.array.shape), self.dtype, axes)

    def _lifted(self, derivative: Tracer, ndim: int) -> Tracer:
        """Return a derivative with as many axes inserted after its directions as a result with `ndim` axes needs."""
        missing = ndim + self.axes - derivative.ndim
        return derivative[(slice(None),) * self.axes + (None,) * missing] if missing > 0 else derivative


def _times(one: Any, other: Any) -> Any:
    if isinstance(one, int) and one == 1:
        return other
    return one if isinstance(other, int) and other == 1 else one * other
