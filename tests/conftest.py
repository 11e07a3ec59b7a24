"""The rules of the whole session: a silent numeric mistake is an error, BLAS has one thread, examples are the same every time.

Warnings are errors too: `filterwarnings` in pyproject.toml. The session computes as `machine=portable` does, unless the caller's
environment says otherwise:

    OPENBLAS_CORETYPE=SkylakeX NPY_DISABLE_CPU_FEATURES= python -m pytest tests/blocks        # the engine with AVX-512
"""

import os
import signal
import sys

# Read when JAX is imported: gradients are compared in float64, and what is compiled for one test is not worth optimizing.
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

from experiments.run.machine import PORTABLE_VARIABLES

# Read when NumPy is imported.
os.environ["OPENBLAS_CORETYPE"] = os.environ.get("OPENBLAS_CORETYPE", PORTABLE_VARIABLES["OPENBLAS_CORETYPE"])
os.environ["NPY_DISABLE_CPU_FEATURES"] = os.environ.get(
    "NPY_DISABLE_CPU_FEATURES", PORTABLE_VARIABLES["NPY_DISABLE_CPU_FEATURES"]
)

import absl.logging
import numpy as np
import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

# A shell's background job ignores SIGINT, and so would every command that a test starts; a terminal's commands do not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# optax brings absl, whose handler closes the stream that was standard error when it was made, as soon as Hydra sets up logging.
# Here that was pytest's file for what tests print, without which every later test fails.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Not underflow: a correct softmax underflows.
np.seterr(over="raise", divide="raise", invalid="raise")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """The number of threads can change a product's last bit."""
    with threadpool_limits(limits=1):
        yield
