"""The code that OpenBLAS and NumPy have chosen for this process's processor. The last bits of results depend on it."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

# The kernel and targets that every x86-64 processor with AVX2 can run, and the hash of their product in `_product`.
PORTABLE = "Haswell", ("X86_V3",)
PRODUCT = "fd9e02546b72edbec107e24e2bf196ac3a35e9cd124b2150897f5a3b240ee33a"


@dataclass(frozen=True)
class Machine:
    """The code behind every product, sum and exponential; chosen once, as NumPy is imported.

    numpy: its version. blas: NumPy's own BLAS and its version, "openblas 0.3.31".
    kernel: OpenBLAS's products, named after a processor: Haswell's need AVX2, SkylakeX's AVX-512.
    targets: NumPy's own code for newer processors, as far as it is in use: X86_V3 is AVX2, X86_V4 and AVX512_... are AVX-512.
    """

    numpy: str
    blas: str
    kernel: str
    targets: tuple[str, ...]

    @classmethod
    @cache
    def current(cls) -> "Machine":
        """Return the machine of this process."""
        blas = _blas()
        blas_name = f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}".strip()
        targets = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())
        return cls(np.__version__, blas_name, str(blas.get("architecture", "unknown")), tuple(targets))

    @property
    def is_portable(self) -> bool:
        """Whether trainings have the bits that they have on every x86-64 processor with AVX2."""
        return self.blas.startswith("openblas") and (self.kernel, self.targets) == PORTABLE and _product() == PRODUCT

    def __str__(self) -> str:
        name, targets = "portable" if self.is_portable else "native", " ".join(self.targets) or "none"
        return f"{name}: NumPy {self.numpy} with the targets {targets}, {self.blas} with the kernel {self.kernel}"


def _blas() -> dict[str, Any]:
    """Return NumPy's BLAS as threadpoolctl describes it. SciPy may have loaded another one."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return next((library for library in libraries if "numpy" in Path(library["filepath"]).parent.name), next(iter(libraries), {}))


@cache
def _product() -> str:
    """Return the hash of a product that sums over 400 numbers, which shows the order in which they are added.

    OpenBLAS adds numbers in blocks, of 320 in float32. On an AMD processor with AVX-512, version 0.3.34 uses larger blocks; with
    Haswell's kernels, which have no memory for these, it even crashes in float64 (OpenBLAS's issues 6013 and 6021).
    """
    values = np.float32(np.arange(2 * 8 * 400) * 7919 % 10007) / np.float32(10007) - np.float32(0.5)
    first, second = values.reshape(2, 8, 400)
    with threadpool_limits(1, user_api="blas"):
        return hashlib.sha256((first @ second.T).tobytes()).hexdigest()
