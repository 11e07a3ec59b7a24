"""The studies: theory and the measurements of a sweep in one picture. They may import neither MLflow, sweep nor the commands.

A sweep names its study in `sweep.study`; each study has a preset of the same name in conf/experiment.
"""

from experiments.pictures.studies import boundary, curvature, noise, scaling, start, warm_up
from experiments.pictures.studies.study import ObservedRun, Study, Verdict

STUDIES: dict[str, Study] = (
    start.STUDIES | curvature.STUDIES | scaling.STUDIES | warm_up.STUDIES | noise.STUDIES | boundary.STUDIES
)

__all__ = ["STUDIES", "ObservedRun", "Study", "Verdict"]
