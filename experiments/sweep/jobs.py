"""The jobs of a sweep: their configs, the keys in which they differ, and the names and tags of their runs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from experiments.record import check_tracking
from experiments.record.address import with_absolute_uri
from experiments.record.identity import RECORD_GROUPS, fingerprint
from experiments.run.composition import parse_config, with_machine
from experiments.run.config import Config, UserError
from experiments.run.folder import check_folder
from experiments.run.job import tags_of_run
from experiments.run.measure import MEASURES, Measure
from experiments.run.naming import cell_name, differing_keys, flatten, format_value, run_name, short_names, sweep_name
from experiments.sweep.checks import check_equal_settings, check_run

MAX_AXES_LENGTH = 120


class Jobs:
    """The checked jobs of a sweep. Raises UserError for the first job that cannot be run.

    jobs: every job's config, in the job's own context, and its folder.
    count: the number of jobs that a search will have; 0 where these are all jobs.

    configs, fingerprints: one for each job. keys: the keys whose values differ between the jobs.
    machine_reason: why this process has another machine than the config, "" where it has not.
    """

    def __init__(self, jobs: Iterable[tuple[DictConfig, str]], count: int = 0) -> None:
        self.configs: list[Config] = []
        self.fingerprints: list[str] = []
        self.machine, self.machine_reason = "", ""
        self.keys: list[str] = []
        self.extend(jobs)
        self.count = count or len(self.configs)

    def __len__(self) -> int:
        return len(self.configs)

    def extend(self, jobs: Iterable[tuple[DictConfig, str]]) -> None:
        """Add more jobs of a search. Raises UserError for the first that cannot be run."""
        new = [self._check_job(cfg, folder) for cfg, folder in jobs]
        if not self.configs:
            check_tracking(new[0].tracking)
        # A relative path, or a path with a time of day, could be another one in a job's own process.
        new = [replace(config, tracking=with_absolute_uri(config.tracking)) for config in new]
        check_equal_settings([*self.configs[:1], *new])
        self.configs += new
        self.keys = differing_keys([flatten(config) for config in self.configs])

    def _check_job(self, cfg: DictConfig, folder: str) -> Config:
        """Check a job, add its fingerprint, and return its config. Raises UserError where the job cannot be run."""
        config, number = parse_config(cfg), len(self.fingerprints)
        if self.machine not in ("", config.machine):
            raise UserError(
                f"machine differs between job 0 and job {number}: {self.machine!r} and {config.machine!r}; "
                "the processes of a sweep have one, it must be the same"
            )
        self.machine = config.machine
        config, self.machine_reason = with_machine(config)
        self.fingerprints.append(fingerprint(config, check_run(config).dataset.digest))
        check_folder("hydra.sweep.subdir", folder)
        return config

    @property
    def distinct(self) -> list[int]:
        """The numbers of the jobs that do not repeat an earlier job."""
        first_jobs = {job_fingerprint: job for job, job_fingerprint in reversed(list(enumerate(self.fingerprints)))}
        return sorted(first_jobs.values())

    @property
    def measure(self) -> Measure:
        """The measure by which the runs are compared."""
        return MEASURES[self.configs[0].sweep.measure]

    @property
    def name(self) -> str:
        """The name of the sweep, such as `depth x rate, 48 runs`."""
        return sweep_name(self.keys, self.count)

    def title(self) -> str:
        """Return the title of the sweep, such as `depth 2 to 33 x rate 0.003 to 1, 48 runs on digits`."""
        runs = [flatten(config) for config in self.configs]
        axes = [f"{word} {_span([run[key] for run in runs if key in run])}" for word, key in short_names(self.keys).items()]
        data = [] if "dataset.name" in self.keys else [f"on {self.configs[0].dataset.name}"]
        title = " ".join([sweep_name([], len(runs)), *data])
        return f"{' x '.join(axes)[:MAX_AXES_LENGTH]}, {title}" if axes else title

    def summary(self) -> str:
        """Return a line such as `48 runs over network.depth (6 values), optimizer.learning_rate (8 values)`."""
        runs = [flatten(config) for config in self.configs]
        counts = {key: len({str(run.get(key)) for run in runs}) for key in self.keys}
        axes = ", ".join(f"{key} ({count} values)" for key, count in counts.items())
        if self.count > len(runs):
            return f"{self.count} trials over {', '.join(self.keys)}, proposed {len(runs)} at a time"
        return f"{len(runs)} runs over {axes}" if axes else "1 run"

    def values(self) -> dict[str, str]:
        """Return every key that says what is trained -> its values in the sweep, each once, in the order of the jobs."""
        runs = [flatten(config) for config in self.configs]
        keys = dict.fromkeys(key for run in runs for key in run if key.partition(".")[0] not in RECORD_GROUPS)
        return {key: ",".join(dict.fromkeys(str(run[key]) for run in runs if key in run)) for key in keys}

    def name_of(self, job: int) -> str:
        """Return the name of a job's run."""
        return run_name(self.configs[job], self.keys)

    def tags_of(self, job: int) -> dict[str, str]:
        """Return the tags of a job's run, by which it is found."""
        return tags_of_run(self.fingerprints[job], job, cell_name(self.configs[job], self.keys))


def _span(values: Sequence[Any]) -> str:
    """Return `0.003 to 1` for more than three numbers, else the list of all values."""
    distinct = list(dict.fromkeys(str(value) if isinstance(value, list) else value for value in values))
    if len(distinct) > 3 and all(isinstance(value, int | float) for value in distinct):
        distinct = [min(distinct), max(distinct)]
        return " to ".join(map(format_value, distinct))
    return ", ".join(map(format_value, distinct))
