import json
import subprocess
import sys

import numpy as np
import pytest

# Which library comes first in the process differs with the order of the imports.
IMPORTS = ["import numpy, scipy.linalg", "import scipy.linalg, sklearn.linear_model, numpy"]


@pytest.mark.parametrize("imports", IMPORTS)
def test_the_blas_that_is_recorded_is_numpys_own(imports):
    code = f"{imports}\nimport json\nfrom experiments.run.environment import environment\nprint(json.dumps(environment()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    built_with = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert json.loads(done.stdout)["blas"] == f"openblas {built_with['version']}"
