"""The null object of the record, for `tracking.enabled=false`."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Untracked:
    """A store, its page and its runs in one object. It has the methods of `Store`, `Page` and `Run`, but records nothing."""

    run_id = token = ""
    next_steps = ()
    runs_at_once = 1
    has_ended = True

    @property
    def page(self) -> "Untracked":
        """The page, which shows nothing."""
        return self

    def call_concurrently(self, *calls: Callable[[], Any]) -> list[Any]:
        """Make the calls one after another, and return their results."""
        return [call() for call in calls]

    def begin(self, *arguments: Any) -> "Untracked":
        """Return a run that is not recorded."""
        return self

    def begin_runs(self, runs: Sequence[Any], parent: str) -> "list[Untracked]":
        """Return one run that is not recorded for each of `runs`."""
        return [self for _ in runs]

    def transactions(self, runs: Sequence[Any]) -> list[Sequence[Any]]:
        """Return groups of one run each."""
        return [[run] for run in runs]

    def begin_sweep(self, *arguments: Any) -> "tuple[Untracked, dict[tuple[int, str], tuple[float, str]]]":
        """Return a parent run that is not recorded, and no finished jobs."""
        return self, {}

    def finished_job(self, *arguments: Any) -> None:
        """Return None: no job was recorded as finished."""

    def tags_of(self, *arguments: Any) -> dict[int, dict[str, str]]:
        """Return no tags."""
        return {}

    def check_owner(self) -> None:
        """Do nothing: no other process can take the run over."""

    def close(self, *arguments: Any) -> None:
        """Do nothing."""

    def heartbeats(self) -> "contextlib.AbstractContextManager[None]":
        """Return a context that sends no heartbeats."""
        return contextlib.nullcontext()

    def save_view(self, *arguments: Any) -> None:
        """Do nothing."""

    def progress(self, *runs: Any) -> None:
        """Do nothing."""

    def finish(self, *trained: Any) -> None:
        """Do nothing."""

    def fail(self, *arguments: Any) -> None:
        """Do nothing."""

    def log_summary(self, params: dict[str, str], metrics: dict[str, float] | None = None, step: int = 0) -> None:
        """Do nothing."""

    def set_description(self, markdown: str) -> None:
        """Do nothing."""

    def log_artifacts(self, folder: Path, artifact_path: str = "") -> None:
        """Do nothing."""

    def end(self, status: str = "FINISHED") -> None:
        """Do nothing."""
