"""Calls of NumPy, one after another, without what NumPy does between them: with the extra `compiled`, in the same bits.

A call of NumPy finds types, shapes and room, then runs a loop over numbers, or BLAS's product; at width 16 the finding
takes three quarters of the time. NumPy lends its loops (`numpy.ufunc._get_strided_loop`): a program holds every call's
loop and addresses as a row of a table, and a few lines of machine code, llvmlite's, go from row to row.
"""

import ctypes
import re
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from blocks.arrays import Array, Call
from blocks.tape.addresses import address_of

# A dtype, a shape, strides, and whether there are numbers, each where a loop may read it.
Kind = tuple[np.dtype, tuple[int, ...], tuple[int, ...], bool]
# Rows of the table for operands that lie at address 0, and what they point to.
Walk = tuple[Array, Sequence[object]]
# The version of what NumPy lends; one that lends something else has another name.
CAPSULE = b"numpy_1.24_ufunc_call_info"
# A row: loop, context, auxiliary data; addresses of its lengths and of its strides; how often it is called; the operands'
# addresses at the first call, and how far they are from call to call. Loops may move the addresses they are given: a copy.
ROW, OPERANDS = 14, 4
MACHINE_CODE = """
%row = type <{ ptr, ptr, ptr, ptr, ptr, i64, <4 x i64>, <4 x i64> }>

define void @run(ptr %first, i64 %rows) {
begin:
  %operands = alloca <4 x i64>
  br label %each_row
each_row:
  %at = phi ptr [ %first, %begin ], [ %behind, %row_done ]
  %row = load %row, ptr %at, align 8
  %loop = extractvalue %row %row, 0
  %context = extractvalue %row %row, 1
  %auxiliary = extractvalue %row %row, 2
  %lengths = extractvalue %row %row, 3
  %strides = extractvalue %row %row, 4
  %calls = extractvalue %row %row, 5
  %addresses = extractvalue %row %row, 6
  %steps = extractvalue %row %row, 7
  br label %each_call
each_call:
  %here = phi <4 x i64> [ %addresses, %each_row ], [ %there, %each_call ]
  %called = phi i64 [ 0, %each_row ], [ %called_1, %each_call ]
  store <4 x i64> %here, ptr %operands
  call i32 %loop(ptr %context, ptr %operands, ptr %lengths, ptr %strides, ptr %auxiliary)
  %there = add <4 x i64> %here, %steps
  %called_1 = add i64 %called, 1
  %calls_done = icmp eq i64 %called_1, %calls
  br i1 %calls_done, label %row_done, label %each_call
row_done:
  %behind = getelementptr %row, ptr %at, i64 1
  %end = getelementptr %row, ptr %first, i64 %rows
  %rows_done = icmp eq ptr %behind, %end
  br i1 %rows_done, label %done, label %each_row
done:
  ret void
}
"""


class _Operand(NamedTuple):
    """An array of a call."""

    array: Array
    address: int
    kind: Kind


Row = tuple[Walk, Sequence[_Operand]]


def program(calls: Sequence[Call]) -> list[Call]:
    """Calls that do what `calls` do, one after another, in the same bits: those that NumPy lends its loops for are one.

    calls: partials of ufuncs, products and copies, with their arrays, those for the results among them; whatever else is
        called as it is. Of floating-point errors NumPy warns in the latter alone.
    """
    machine = _machine()
    if machine is None:
        return list(calls)
    parts: list[Call] = []
    seen: dict[int, _Operand] = {}
    all_pairs = [(call, _rows(call, seen)) for call in calls]
    walks = {id(walk): walk for _, rows in all_pairs for walk, _ in rows}
    held = [*walks.values(), *(operand.array for operand in seen.values())]
    for known, series in groupby(all_pairs, lambda pair: bool(pair[1])):
        pairs = list(series)
        rows = [row for _, rows in pairs for row in rows]
        parts += [_Program(machine, _table(rows), held)] if known else [call for call, _ in pairs]
    return parts


class _Program:
    """A table that the machine code reads. held: all that it points to."""

    def __init__(self, machine: "_Machine", table: Array, held: Sequence[object]) -> None:
        self.machine, self.table, self.held = machine, table, held
        self.place = address_of(self.table), len(self.table)

    def __call__(self) -> None:
        self.machine.run(*self.place)


def joined(calls: Sequence[Call]) -> list[Call]:
    """The same calls, programs that follow each other as one."""
    parts: list[Call] = []
    for call in calls:
        before = parts[-1] if parts else None
        if isinstance(before, _Program) and isinstance(call, _Program):
            parts[-1] = _Program(call.machine, np.concatenate([before.table, call.table]), [before.held, call.held])
        else:
            parts.append(call)
    return parts


def _table(rows: Sequence[Row]) -> Array:
    """The rows with their operands' addresses in them."""
    tables = [table for (table, _), _ in rows]
    addresses = [[*(operand.address for operand in operands), *[0] * (OPERANDS - len(operands))] for _, operands in rows]
    table = np.concatenate(tables)
    table[:, 6 : 6 + OPERANDS] += np.repeat(addresses, list(map(len, tables)), axis=0)
    return table


def _rows(call: Call, seen: dict[int, _Operand]) -> list[Row]:
    """The call's loops with their operands; none where NumPy lends none that does the same."""
    rows = [_row(*step, seen) for step in _ufuncs(call)]
    return [] if None in rows else [row for row in rows if row is not None]


def _ufuncs(call: Call) -> list[tuple[np.ufunc, tuple[Any, ...]]]:
    """The ufuncs that do the same as a call, with their arguments; none where that is not known."""
    if not isinstance(call, partial):
        return []
    function, arguments, keywords = call.func, call.args, call.keywords
    if isinstance(function, np.ufunc) and keywords.keys() <= {"out"}:
        return [(function, (*arguments, *keywords.values()))]
    if function is np.copyto and not keywords:
        return [(np.positive, arguments[::-1])]
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, np.ndarray) and name == "dot":
        return [(np.matmul if owner.ndim == 2 else np.vecdot, (owner, *arguments))]
    if owner is np.maximum and name == "reduce" and keywords.keys() == {"axis", "keepdims", "out"} and keywords["axis"] == -2:
        (values,), out = arguments, keywords["out"]
        first, *others = (values[..., unit : unit + 1, :] for unit in range(values.shape[-2]))
        return [(np.positive, (first, out)), *((np.maximum, (out, other, out)) for other in others)]
    return []


def _row(ufunc: np.ufunc, arguments: Sequence[Any], seen: dict[int, _Operand]) -> Row | None:
    """The loop over these operands; None where NumPy would convert or copy one of them first, or refuse them."""
    # A Python number has the type of the floats beside it; NumPy's own have theirs.
    floats = next(
        (argument.dtype for argument in arguments if isinstance(argument, np.ndarray) and argument.dtype.kind == "f"), None
    )
    operands = [_operand(argument, floats if type(argument) in (int, float) else None, seen) for argument in arguments]
    walk = _walk(ufunc, tuple(operand.kind for operand in operands))
    return None if walk is None or not _lie_well(operands) else (walk, operands)


def _operand(argument: Any, dtype: np.dtype | None, seen: dict[int, _Operand]) -> _Operand:
    """seen: by id, all arrays so far: to ask NumPy for an address takes longer than all else."""
    array = np.asarray(argument, dtype)
    if id(array) not in seen:
        kind = array.dtype, array.shape, array.strides, bool(array.size) and array.flags.aligned
        seen[id(array)] = _Operand(array, address_of(array), kind)
    return seen[id(array)]


@lru_cache(1024)
def _walk(ufunc: np.ufunc, kinds: tuple[Kind, ...]) -> Walk | None:
    """The row of operands of these kinds that all lie at address 0; None as in `_row`.

    One row, unless there are more than two axes that can not be gone through as one.
    """
    core = _core(ufunc)
    if not len(kinds) == len(core) <= OPERANDS or not all(aligned for *_, aligned in kinds):
        return None
    loop = _loop(ufunc, tuple(dtype for dtype, *_ in kinds))
    axes = [len(shape) - len(names) for (_, shape, *_), names in zip(kinds, core, strict=True)]
    if loop is None or min(axes) < 0:
        return None
    whole = kinds[-1][1][: axes[-1]]
    strides = np.zeros((len(whole), OPERANDS), np.int64)
    lengths: dict[str, int] = {}
    core_strides: list[int] = []
    for number, ((_, shape, steps, _), outer, names) in enumerate(zip(kinds, axes, core, strict=True)):
        own = shape[:outer]
        if outer > len(whole) or any(n not in (1, most) for n, most in zip(own[::-1], whole[::-1], strict=False)):
            return None
        strides[len(whole) - outer :, number] = [0 if n == 1 else step for n, step in zip(own, steps, strict=False)]
        core_strides += steps[outer:]
        for name, length in zip(names, shape[outer:], strict=True):
            if lengths.setdefault(name, length) != length:
                return None

    *rest, (calls, apart), (count, inner) = _merged(whole, strides)
    offsets = np.zeros((1, OPERANDS), np.int64)
    for length, step in rest:
        offsets = (offsets[:, None] + np.arange(length)[:, None] * step).reshape(-1, OPERANDS)
    walk = np.empty((len(offsets), ROW), np.int64)
    walk[:, :3] = loop.pointers
    pointed = np.array([count, *lengths.values()], np.int64), np.array([*inner[: len(kinds)], *core_strides], np.int64)
    walk[:, 3:5] = [address_of(numbers) for numbers in pointed]
    walk[:, 5], walk[:, 6 : 6 + OPERANDS], walk[:, 6 + OPERANDS :] = calls, offsets, apart
    return walk, (loop, *pointed)


def _lie_well(operands: Sequence[_Operand]) -> bool:
    """Whether a loop may go through them as they lie: the result's array is another, or the very same."""
    *inputs, out = operands

    def apart(operand: _Operand) -> bool:
        same = operand is out or (operand.address == out.address and operand.kind[1:] == out.kind[1:])
        return same or not np.may_share_memory(operand.array, out.array)

    return out.array.flags.writeable and all(map(apart, inputs))


def _merged(shape: tuple[int, ...], strides: Array) -> list[tuple[int, Array]]:
    """(length, strides of the operands), axis by axis, two at least; those joined that lie behind each other in all operands."""
    axes: list[tuple[int, Array]] = []
    for length, step in zip(shape, strides, strict=True):
        if axes and (axes[-1][1] == length * step).all():
            axes[-1] = axes[-1][0] * length, step
        elif length > 1:
            axes.append((length, step))
    return [(1, np.zeros(OPERANDS, np.int64))] * (2 - len(axes)) + axes


@cache
def _core(ufunc: np.ufunc) -> list[list[str]]:
    """The names of every operand's last axes, which the loop goes through itself."""
    if ufunc.signature is None:
        return [[]] * ufunc.nargs
    return [re.findall(r"\w+", operand) for operand in re.findall(r"\(([^)]*)\)", ufunc.signature)]


class _Loop:
    """What NumPy lends of a ufunc for certain types.

    pointers: to the loop, its context and its auxiliary data, which live as long as the capsule does.
    """

    def __init__(self, ufunc: Any, capsule: object) -> None:
        ufunc._get_strided_loop(capsule)
        self.capsule = capsule
        address = _pointer(capsule, CAPSULE)
        self.pointers = tuple((ctypes.c_int64 * 3).from_address(address))
        self.needs_python = ctypes.c_bool.from_address(address + ctypes.sizeof(ctypes.c_int64 * 3)).value


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_size_t


@cache
def _loop(ufunc: Any, dtypes: tuple[np.dtype, ...]) -> _Loop | None:
    """None where types would have to be converted, or the loop needs Python."""
    try:
        resolved, capsule = ufunc._resolve_dtypes_and_context((*dtypes[: ufunc.nin], *[None] * ufunc.nout))
    except TypeError:
        return None
    if resolved != dtypes:
        return None
    loop = _Loop(ufunc, capsule)
    return None if loop.needs_python else loop


class _Machine:
    """The machine code, which lives as long as this does.

    run: `run(address of the first row, number of rows)`
    """

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple().create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(MACHINE_CODE), target)
        self.engine.finalize_object()
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self.run = run(self.engine.get_function_address("run"))


@cache
def _machine() -> _Machine | None:
    """None without llvmlite, or with a NumPy that lends its loops otherwise."""
    try:
        _loop(np.add, (np.dtype(np.float64),) * 3)
        return _Machine()
    except (ImportError, AttributeError, ValueError):
        return None
