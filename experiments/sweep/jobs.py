"""The jobs of a sweep: their configs, what differs between them, what each is called and found by."""

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
from experiments.sweep.checks import check_alike, check_run

MOST_TITLE = 120


class Jobs:
    """The jobs, each of which has been checked; raises UserError for the first that cannot be run.

    jobs: every job's config, in the job's own context, and its folder. count: how many there will be, 0 for as many as these.

    configs, fingerprints: one a job. keys: those whose values differ between the jobs.
    machine_reason: why the machine is not the one that was asked for, "" where it is.
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
        """More jobs, of a search; raises UserError as the first ones do."""
        new = [self._checked(cfg, folder) for cfg, folder in jobs]
        if not self.configs:
            check_tracking(new[0].tracking)
        # A job's own process may find what is relative, or a time of day, elsewhere.
        new = [replace(config, tracking=with_absolute_uri(config.tracking)) for config in new]
        check_alike([*self.configs[:1], *new])
        self.configs += new
        self.keys = differing_keys([flatten(config) for config in self.configs])

    def _checked(self, cfg: DictConfig, folder: str) -> Config:
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
        """The numbers of the jobs that are not an earlier one again."""
        first = {mark: job for job, mark in reversed(list(enumerate(self.fingerprints)))}
        return sorted(first.values())

    @property
    def measure(self) -> Measure:
        """What the runs are judged by."""
        return MEASURES[self.configs[0].sweep.measure]

    @property
    def name(self) -> str:
        """`depth x rate, 48 runs`"""
        return sweep_name(self.keys, self.count)

    def title(self) -> str:
        """The sweep in words: `depth 2 to 33 x rate 0.003 to 1, 48 runs on digits`."""
        runs = [flatten(config) for config in self.configs]
        axes = [f"{word} {_span([run[key] for run in runs if key in run])}" for word, key in short_names(self.keys).items()]
        data = [] if "dataset.name" in self.keys else [f"on {self.configs[0].dataset.name}"]
        title = " ".join([sweep_name([], len(runs)), *data])
        return f"{' x '.join(axes)[:MOST_TITLE]}, {title}" if axes else title

    def summary(self) -> str:
        """`48 runs over network.depth (6 values), optimizer.learning_rate (8 values)`"""
        runs = [flatten(config) for config in self.configs]
        counts = {key: len({str(run.get(key)) for run in runs}) for key in self.keys}
        over = ", ".join(f"{key} ({count} values)" for key, count in counts.items())
        if self.count > len(runs):
            return f"{self.count} runs over {', '.join(self.keys)}, {len(runs)} at a time"
        return f"{len(runs)} runs over {over}" if over else "1 run"

    def values(self) -> dict[str, str]:
        """Every key of what is trained -> its values in the sweep, each once, in the order of the jobs."""
        runs = [flatten(config) for config in self.configs]
        keys = dict.fromkeys(key for run in runs for key in run if key.partition(".")[0] not in RECORD_GROUPS)
        return {key: ",".join(dict.fromkeys(str(run[key]) for run in runs if key in run)) for key in keys}

    def name_of(self, job: int) -> str:
        """The name of a job's run."""
        return run_name(self.configs[job], self.keys)

    def tags_of(self, job: int) -> dict[str, str]:
        """What a job's run is found by."""
        return tags_of_run(self.fingerprints[job], job, cell_name(self.configs[job], self.keys))


def _span(values: Sequence[Any]) -> str:
    """`0.003 to 1` of numbers, where they are more than three; of other values each one."""
    distinct = list(dict.fromkeys(str(value) if isinstance(value, list) else value for value in values))
    if len(distinct) > 3 and all(isinstance(value, int | float) for value in distinct):
        distinct = [min(distinct), max(distinct)]
        return " to ".join(map(format_value, distinct))
    return ", ".join(map(format_value, distinct))
