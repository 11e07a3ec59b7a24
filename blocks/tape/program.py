"""Programs: many calls of NumPy as one call, with the same bits. They need the extra `compiled`.

A call of NumPy first determines types, shapes and memory, and then runs a loop over numbers, or BLAS's product. At width 16 the
first part takes three quarters of the time. NumPy gives access to its loops (`numpy.ufunc._get_strided_loop`): a program has a
table with a row for every call, its loop and addresses, and a few lines of machine code from llvmlite run all rows.
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

# A dtype, a shape, strides, and whether the array has numbers that are aligned, so that a loop can read them.
Kind = tuple[np.dtype, tuple[int, ...], tuple[int, ...], bool]
# Rows of the table for operands at address 0, and the objects to which they point.
Walk = tuple[Array, Sequence[object]]
# The name of the structure by which NumPy gives access to a loop. Another structure would have another name.
CAPSULE = b"numpy_1.24_ufunc_call_info"
# A row has: loop, context, auxiliary data; the addresses of its lengths and of its strides; the number of calls; the operands'
# addresses at the first call, and their steps from call to call. A loop gets a copy of the addresses, since it may change them.
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
    """An operand of a call."""

    array: Array
    address: int
    kind: Kind


Row = tuple[Walk, Sequence[_Operand]]


def program(calls: Sequence[Call]) -> list[Call]:
    """Return calls with the same effect and the same bits, in which consecutive calls with known loops are one program.

    calls: partials of ufuncs, products and copies, with all their arrays. All other calls are returned as they are. NumPy warns
        of floating-point errors only in these.
    """
    machine = _machine()
    if machine is None:
        return list(calls)
    parts: list[Call] = []
    operands_by_id: dict[int, _Operand] = {}
    all_pairs = [(call, _rows(call, operands_by_id)) for call in calls]
    walks = {id(walk): walk for _, rows in all_pairs for walk, _ in rows}
    references = [*walks.values(), *(operand.array for operand in operands_by_id.values())]
    for is_lent, group in groupby(all_pairs, lambda pair: bool(pair[1])):
        pairs = list(group)
        rows = [row for _, rows in pairs for row in rows]
        parts += [_Program(machine, _table(rows), references)] if is_lent else [call for call, _ in pairs]
    return parts


class _Program:
    """A table that the machine code reads. references: all objects to which it points, so that they stay alive."""

    def __init__(self, machine: "_Machine", table: Array, references: Sequence[object]) -> None:
        self.machine, self.table, self.references = machine, table, references
        self.place = address_of(self.table), len(self.table)

    def __call__(self) -> None:
        self.machine.run(*self.place)


def joined(calls: Sequence[Call]) -> list[Call]:
    """Return the same calls, in which consecutive programs are one."""
    parts: list[Call] = []
    for call in calls:
        last = parts[-1] if parts else None
        if isinstance(last, _Program) and isinstance(call, _Program):
            parts[-1] = _Program(call.machine, np.concatenate([last.table, call.table]), [last.references, call.references])
        else:
            parts.append(call)
    return parts


def _table(rows: Sequence[Row]) -> Array:
    """Return the table of the rows, with their operands' addresses."""
    tables = [table for (table, _), _ in rows]
    addresses = [[*(operand.address for operand in operands), *[0] * (OPERANDS - len(operands))] for _, operands in rows]
    table = np.concatenate(tables)
    table[:, 6 : 6 + OPERANDS] += np.repeat(addresses, list(map(len, tables)), axis=0)
    return table


def _rows(call: Call, operands_by_id: dict[int, _Operand]) -> list[Row]:
    """Return the call's loops with their operands; an empty list where no loop has the same effect."""
    rows = [_row(*step, operands_by_id) for step in _ufuncs(call)]
    return [] if None in rows else [row for row in rows if row is not None]


def _ufuncs(call: Call) -> list[tuple[np.ufunc, tuple[Any, ...]]]:
    """Return the ufuncs with the same effect as a call, with their arguments; an empty list where none are known."""
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
        first, *other_units = (values[..., unit : unit + 1, :] for unit in range(values.shape[-2]))
        return [(np.positive, (first, out)), *((np.maximum, (out, other, out)) for other in other_units)]
    return []


def _row(ufunc: np.ufunc, arguments: Sequence[Any], operands_by_id: dict[int, _Operand]) -> Row | None:
    """Return the loop over these operands; None where NumPy would first convert or copy one of them, or refuse them."""
    operands = [_operand(argument, arguments, operands_by_id) for argument in arguments]
    walk = _walk(ufunc, tuple(operand.kind for operand in operands))
    return None if walk is None or not _can_run_in_place(operands) else (walk, operands)


def _operand(argument: Any, arguments: Sequence[Any], operands_by_id: dict[int, _Operand]) -> _Operand:
    """Return the operand for an argument. It is cached by id, since asking NumPy for an address takes most of the time.

    A Python number takes the dtype of the float arrays among the arguments; a number of NumPy has its own.
    """
    if id(argument) in operands_by_id:
        return operands_by_id[id(argument)]
    dtypes = [other.dtype for other in arguments if isinstance(other, np.ndarray) and other.dtype.kind == "f"]
    array = np.asarray(argument, dtypes[0] if dtypes and type(argument) in (int, float) else None)
    if id(array) not in operands_by_id:
        kind = array.dtype, array.shape, array.strides, bool(array.size) and array.flags.aligned
        operands_by_id[id(array)] = _Operand(array, address_of(array), kind)
    return operands_by_id[id(array)]


@lru_cache(1024)
def _walk(ufunc: np.ufunc, kinds: tuple[Kind, ...]) -> Walk | None:
    """Return the rows for operands of these kinds at address 0; None as in `_row`.

    There is one row, unless more than two axes remain after those that can be joined.
    """
    core = _core(ufunc)
    if not len(kinds) == len(core) <= OPERANDS or not all(aligned for *_, aligned in kinds):
        return None
    loop = _loop(ufunc, tuple(dtype for dtype, *_ in kinds))
    axes = [len(shape) - len(names) for (_, shape, *_), names in zip(kinds, core, strict=True)]
    if loop is None or min(axes) < 0:
        return None
    loop_shape = kinds[-1][1][: axes[-1]]
    strides = np.zeros((len(loop_shape), OPERANDS), np.int64)
    lengths: dict[str, int] = {}
    core_strides: list[int] = []
    for number, ((_, shape, steps, _), outer, names) in enumerate(zip(kinds, axes, core, strict=True)):
        dims = shape[:outer]
        if outer > len(loop_shape) or any(n not in (1, most) for n, most in zip(dims[::-1], loop_shape[::-1], strict=False)):
            return None
        strides[len(loop_shape) - outer :, number] = [0 if n == 1 else step for n, step in zip(dims, steps, strict=False)]
        core_strides += steps[outer:]
        for name, length in zip(names, shape[outer:], strict=True):
            if lengths.setdefault(name, length) != length:
                return None

    *outer_axes, (calls, call_steps), (count, inner) = _merged(loop_shape, strides)
    offsets = np.zeros((1, OPERANDS), np.int64)
    for length, step in outer_axes:
        offsets = (offsets[:, None] + np.arange(length)[:, None] * step).reshape(-1, OPERANDS)
    walk = np.empty((len(offsets), ROW), np.int64)
    walk[:, :3] = loop.pointers
    pointed_arrays = np.array([count, *lengths.values()], np.int64), np.array([*inner[: len(kinds)], *core_strides], np.int64)
    walk[:, 3:5] = [address_of(numbers) for numbers in pointed_arrays]
    walk[:, 5], walk[:, 6 : 6 + OPERANDS], walk[:, 6 + OPERANDS :] = calls, offsets, call_steps
    return walk, (loop, *pointed_arrays)


def _can_run_in_place(operands: Sequence[_Operand]) -> bool:
    """Return whether a loop may use the operands' memory: each input is the result's array itself, or does not overlap it."""
    *inputs, out = operands
    for operand in inputs:
        same = operand is out or (operand.address == out.address and operand.kind[1:] == out.kind[1:])
        if not same and np.may_share_memory(operand.array, out.array):
            return False
    return out.array.flags.writeable


def _merged(shape: tuple[int, ...], strides: Array) -> list[tuple[int, Array]]:
    """Return (length, strides of the operands) of at least two axes, after joining axes that are contiguous in all operands."""
    axes: list[tuple[int, Array]] = []
    for length, step in zip(shape, strides, strict=True):
        if axes and (axes[-1][1] == length * step).all():
            axes[-1] = axes[-1][0] * length, step
        elif length > 1:
            axes.append((length, step))
    return [(1, np.zeros(OPERANDS, np.int64))] * (2 - len(axes)) + axes


@cache
def _core(ufunc: np.ufunc) -> list[list[str]]:
    """Return the names of every operand's core axes, over which the loop itself runs."""
    if ufunc.signature is None:
        return [[]] * ufunc.nargs
    return [re.findall(r"\w+", operand) for operand in re.findall(r"\(([^)]*)\)", ufunc.signature)]


class _Loop:
    """The loop of a ufunc for certain dtypes.

    pointers: to the loop, its context and its auxiliary data, which are valid as long as the capsule exists.
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
    """Return the loop; None where dtypes would have to be converted, or where the loop needs Python."""
    try:
        resolved, capsule = ufunc._resolve_dtypes_and_context((*dtypes[: ufunc.nin], *[None] * ufunc.nout))
    except TypeError:
        return None
    if resolved != dtypes:
        return None
    loop = _Loop(ufunc, capsule)
    return None if loop.needs_python else loop


class _Machine:
    """The machine code, which is valid as long as this object exists.

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
    """Return the machine code; None without llvmlite, or with a NumPy whose loops are accessed in another way."""
    try:
        _loop(np.add, (np.dtype(np.float64),) * 3)
        return _Machine()
    except (ImportError, AttributeError, ValueError):
        return None
