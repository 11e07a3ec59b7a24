"""`machine=portable`, the same bits on every x86-64 processor with AVX2, or `native`, this processor's own code.

OpenBLAS and NumPy choose their code as NumPy is imported, by the processor, unless two variables of the environment say which.
A command that trains therefore starts itself again once, before NumPy is imported, with these variables held; the processes
that it starts inherit them. Nothing at the top here may import NumPy.
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
# NumPy's targets and OpenBLAS's kernels -> what /proc/cpuinfo calls the newest thing that they need of the processor.
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
# What trains in its own process: the commands, and a job of SLURM.
COMMANDS = (
    *("experiments.train", "experiments.trainability", "experiments.reproduce", "experiments.verify"),
    "submitit.core._submit",
)


def variables(kernel: str, targets: Iterable[str]) -> dict[str, str]:
    """Under which OpenBLAS has that kernel, and NumPy those of its targets and no other."""
    off = [target for target in TARGETS if target not in targets]
    return {"OPENBLAS_CORETYPE": kernel, "NPY_DISABLE_CPU_FEATURES": " ".join(off)}


HELD = variables("Haswell", ["X86_V3"])
# As a user types them.
TYPED = " ".join(f"{name}={shlex.quote(value)}" for name, value in HELD.items())
CALLER = "DEPTH_LABORATORY_CALLER"
# What the variables were before this process started itself again, None where it has not, and why it is without them again.
# What it starts must not see that.
_caller: dict[str, str | None] | None
_caller, _reason = json.loads(os.environ.pop(CALLER, '[null, ""]'))
# A command changes its environment on its way, but starts again as it was started.
_environ = dict(os.environ)


def begin() -> None:
    """Start this process again with the variables held, unless it has them, cannot, or is told `machine=native`.

    For `python -m experiments.COMMAND`, of a command that trains, as its first statement: Python writes `-m` in place of the
    command's name until it has found it. Where the config says otherwise in the end, `settle` puts it right.
    """
    if sys.argv[:1] != ["-m"] or sys.orig_argv[-len(sys.argv)].removeprefix("-m") not in COMMANDS:
        return
    if _caller is None and not held() and has_avx2() and "machine=native" not in sys.argv:
        _start_again(HELD)
    if _caller is not None and held():
        try:
            import numpy  # noqa: F401
        except RuntimeError:
            _start_again(_caller, "this NumPy was built for newer processors alone")


def settle(asked: str) -> str:
    """Make this process compute as `machine=asked` says: "", or where it cannot be portable, and is native, why in one line.

    A command is started again where that helps. To be called before anything is made.
    """
    from blocks.machine import Machine

    if asked == "native":
        if _caller is not None and held():
            _start_again(_caller)
        return ""
    here = Machine.here()
    if here.is_portable:
        # A process that it starts may be on another processor.
        os.environ.update(HELD)
        return ""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name in COMMANDS:
        if _caller is None and not held() and has_avx2():
            _start_again(HELD)
        if _caller is not None and held() and not _reason:
            _start_again(_caller, _obstacle(here))
    return f"machine=portable cannot be had here, it is trained native: {_reason or _obstacle(here)}"


def held() -> dict[str, str]:
    """The variables where this process's environment holds them, for those that it starts elsewhere; else none."""
    return HELD if HELD.items() <= os.environ.items() else {}


def as_recorded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a process of this machine computes as one did that a record describes; none: as this one does.

    environment: the record's, a stranger's perhaps. Raises ValueError with what the processor would need.
    """
    from blocks.machine import Machine

    here, kernel, recorded = Machine.here(), environment.get("blas_kernel"), environment.get("simd")
    if kernel not in KERNELS or (kernel == here.kernel and recorded in (None, " ".join(here.targets))):
        return {}
    # Version 0.5.0 did not record targets: NumPy had all that the processor has.
    targets = (list(TARGETS) if "avx512" in KERNELS[kernel] else ["X86_V3"]) if recorded is None else recorded.split()
    needed = [KERNELS[kernel], *(TARGETS.get(target, target) for target in targets if recorded is not None)]
    missing = [flag for flag in dict.fromkeys(needed) if flag not in flags()]
    if missing:
        raise ValueError(
            f"it was trained with OpenBLAS's kernel {kernel} and NumPy's targets {' '.join(targets)}, which need a processor "
            f"with {', '.join(missing)}; --tolerance compares with what this one has"
        )
    if _reason and variables(kernel, targets) == HELD:
        raise ValueError(f"it was trained portable, and {_reason}; --tolerance compares with what this one has")
    return variables(kernel, targets)


def has_avx2() -> bool:
    """Whether this is known to be an x86-64 processor with AVX2."""
    return TARGETS["X86_V3"] in flags()


@cache
def flags() -> frozenset[str]:
    """What an x86 processor can do, in Linux's words; nothing where that is not known."""
    try:
        with open("/proc/cpuinfo") as lines:
            return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return frozenset()


def _obstacle(here: "Machine") -> str:
    """Why a process that computes so is not portable."""
    from blocks.machine import PORTABLE

    if platform.machine() not in ("x86_64", "AMD64"):
        return f"it needs an x86-64 processor with AVX2, this one is {platform.machine()}"
    if not here.blas.startswith("openblas"):
        return f"it needs a NumPy with OpenBLAS, this one has {here.blas}"
    if not has_avx2():
        return "it needs an x86-64 processor with AVX2, which this one is not known to have"
    if (here.kernel, here.targets) == PORTABLE:
        return f"on this processor {here.blas} adds up in an order of its own, as 0.3.34 does with AMD's AVX-512"
    return f"NumPy is {here} and stays so; a process is portable that is started with {TYPED}"


def _start_again(values: Mapping[str, str | None], reason: str = "") -> None:
    """This process becomes the one that it was when it started, with those variables; None is without."""
    before = _caller if _caller is not None else {name: _environ.get(name) for name in HELD}
    changed = {**_environ, **values, CALLER: json.dumps([before, reason])}
    sys.stdout.flush()
    sys.stderr.flush()
    environ = {name: value for name, value in changed.items() if value is not None}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
