"""The studies: what is known, drawn over what a sweep has measured.

A sweep names its study in `sweep.study`; the presets of that name in conf/experiment ask for one each.
"""

from experiments.pictures.studies import boundary, curvature, noise, scaling, start, warm_up
from experiments.pictures.studies.study import Observed, Study, Verdict

STUDIES: dict[str, Study] = (
    start.STUDIES | curvature.STUDIES | scaling.STUDIES | warm_up.STUDIES | noise.STUDIES | boundary.STUDIES
)

__all__ = ["STUDIES", "Observed", "Study", "Verdict"]
