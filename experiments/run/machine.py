"""`machine=portable` gives the same bits on every x86-64 processor with AVX2; `machine=native` uses this processor's own code.

OpenBLAS and NumPy choose their code by the processor when NumPy is imported, unless two environment variables choose it.
A command that trains therefore restarts itself once with these variables set, before NumPy is imported; the processes that it
starts inherit them. Nothing at the top of this file may import NumPy.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blocks.machine import Machine

MACHINES = ("portable", "native")
# NumPy's targets and OpenBLAS's kernels -> the newest processor feature that each needs, by its name in /proc/cpuinfo.
TARGETS = {"X86_V3": "avx2", "X86_V4": "avx512vl", "AVX512_ICL": "avx512_vbmi2", "AVX512_SPR": "avx512_fp16"}
KERNELS = {
    "Nehalem": "sse4_2",
    "Sandybridge": "avx",
    "Haswell": "avx2",
    "Zen": "avx2",
    "SkylakeX": "avx512vl",
    "Cooperlake": "avx512_bf16",
    "Sapphirerapids": "amx_bf16",
}
# The modules whose process itself trains: the commands, and a job of SLURM.
COMMANDS = (
    *("experiments.train", "experiments.trainability", "experiments.reproduce", "experiments.verify"),
    "submitit.core._submit",
)


def variables(kernel: str, targets: Iterable[str]) -> dict[str, str]:
    """Return the environment variables with which OpenBLAS uses that kernel, and NumPy those targets and no other."""
    disabled_targets = [target for target in TARGETS if target not in targets]
    return {"OPENBLAS_CORETYPE": kernel, "NPY_DISABLE_CPU_FEATURES": " ".join(disabled_targets)}


PORTABLE_VARIABLES = variables("Haswell", ["X86_V3"])
# The same as a user types them in front of a command.
PORTABLE_PREFIX = " ".join(f"{name}={shlex.quote(value)}" for name, value in PORTABLE_VARIABLES.items())
ORIGINAL_VARIABLES = "DEPTH_LABORATORY_CALLER"
# The values of the variables before this process restarted itself, None where it has not, and the reason why it then restarted
# without them. The processes that this one starts must not see it.
_original_variables: dict[str, str | None] | None
_original_variables, _fallback_reason = json.loads(os.environ.pop(ORIGINAL_VARIABLES, '[null, ""]'))
# A command may change its environment, but a restart uses the one that it was started with.
_start_environ = dict(os.environ)


def start_portable() -> None:
    """Restart this process with the portable variables, unless it has them, cannot use them, or has `machine=native` typed.

    This is the first statement of `python -m experiments.COMMAND`, and does nothing in any other process: `sys.argv` begins with
    `-m` until Python has found the command's module. Where the config has another `machine`, `set_machine` corrects it.
    """
    if sys.argv[:1] != ["-m"] or sys.orig_argv[-len(sys.argv)].removeprefix("-m") not in COMMANDS:
        return
    if _original_variables is None and not portable_variables() and has_avx2() and "machine=native" not in sys.argv:
        _restart(PORTABLE_VARIABLES)
    if _original_variables is not None and portable_variables():
        try:
            import numpy  # noqa: F401
        except RuntimeError:
            _restart(_original_variables, "this NumPy was built for newer processors alone")


def set_machine(choice: str) -> str:
    """Make this process compute as the config's `machine=choice` says, by a restart of the command where that is necessary.

    Returns "", or, where the process cannot be portable and is native instead, the reason in one line.
    It must be called before anything is created.
    """
    from blocks.machine import Machine

    if choice == "native":
        if _original_variables is not None and portable_variables():
            _restart(_original_variables)
        return ""
    machine = Machine.current()
    if machine.is_portable:
        # A process that this one starts may run on another processor.
        os.environ.update(PORTABLE_VARIABLES)
        return ""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name in COMMANDS:
        if _original_variables is None and not portable_variables() and has_avx2():
            _restart(PORTABLE_VARIABLES)
        if _original_variables is not None and portable_variables() and not _fallback_reason:
            _restart(_original_variables, _reason_not_portable(machine))
    return f"machine=portable cannot be had here, it is trained native: {_fallback_reason or _reason_not_portable(machine)}"


def portable_variables() -> dict[str, str]:
    """Return the portable variables where this process's environment has them, else an empty mapping."""
    return PORTABLE_VARIABLES if PORTABLE_VARIABLES.items() <= os.environ.items() else {}


def recorded_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a process of this machine computes as the process that a record describes.

    They are empty where this process already does. environment: the record's, which somebody else may have written.
    Raises ValueError, which names what the processor lacks, where it cannot.
    """
    from blocks.machine import Machine

    machine, kernel, recorded_targets = Machine.current(), environment.get("blas_kernel"), environment.get("simd")
    if kernel not in KERNELS or (kernel == machine.kernel and recorded_targets in (None, " ".join(machine.targets))):
        return {}
    # Version 0.5.0 recorded no targets: NumPy used all targets of the processor.
    targets = (
        (list(TARGETS) if "avx512" in KERNELS[kernel] else ["X86_V3"]) if recorded_targets is None else recorded_targets.split()
    )
    required_flags = [KERNELS[kernel], *(TARGETS.get(target, target) for target in targets if recorded_targets is not None)]
    missing_flags = [flag for flag in dict.fromkeys(required_flags) if flag not in processor_flags()]
    if missing_flags:
        raise ValueError(
            f"it was trained with OpenBLAS's kernel {kernel} and NumPy's targets {' '.join(targets)}, which need a processor "
            f"with {', '.join(missing_flags)}; --tolerance compares with what this one has"
        )
    if _fallback_reason and variables(kernel, targets) == PORTABLE_VARIABLES:
        raise ValueError(f"it was trained portable, and {_fallback_reason}; --tolerance compares with what this one has")
    return variables(kernel, targets)


def has_avx2() -> bool:
    """Return whether this is known to be an x86-64 processor with AVX2."""
    return TARGETS["X86_V3"] in processor_flags()


@cache
def processor_flags() -> frozenset[str]:
    """Return the features of an x86 processor, as Linux names them; empty where they are not known."""
    try:
        with open("/proc/cpuinfo") as lines:
            return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return frozenset()


def _reason_not_portable(machine: "Machine") -> str:
    """Return why a process with that kernel and those targets is not portable."""
    from blocks.machine import PORTABLE

    if platform.machine() not in ("x86_64", "AMD64"):
        return f"it needs an x86-64 processor with AVX2, this one is {platform.machine()}"
    if not machine.blas.startswith("openblas"):
        return f"it needs a NumPy with OpenBLAS, this one has {machine.blas}"
    if not has_avx2():
        return "it needs an x86-64 processor with AVX2, which this one is not known to have"
    if (machine.kernel, machine.targets) == PORTABLE:
        return f"on this processor {machine.blas} adds up in an order of its own, as 0.3.34 does with AMD's AVX-512"
    return f"NumPy is {machine} and stays so; a process is portable that is started with {PORTABLE_PREFIX}"


def _restart(values: Mapping[str, str | None], reason: str = "") -> None:
    """Replace this process by its command, started again with those variables.

    values: a variable's value, None to leave the variable out. reason: why the new process is not portable, "" where it is.
    """
    original = (
        _original_variables
        if _original_variables is not None
        else {name: _start_environ.get(name) for name in PORTABLE_VARIABLES}
    )
    entries = {**_start_environ, **values, ORIGINAL_VARIABLES: json.dumps([original, reason])}
    sys.stdout.flush()
    sys.stderr.flush()
    environ = {name: value for name, value in entries.items() if value is not None}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
