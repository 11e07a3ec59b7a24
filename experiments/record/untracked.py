"""A store, and the runs in it, when nothing is to be recorded."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Untracked:
    """Does what `tracking.Store`, its `page` and `run.Run` are asked, and keeps none of it."""

    run_id = token = ""
    next_steps = ()
    runs_at_once = 1
    ended = True

    @property
    def page(self) -> "Untracked":
        """A page that is not there."""
        return self

    def at_once(self, *calls: Callable[[], Any]) -> list[Any]:
        """What they return."""
        return [call() for call in calls]

    def begin(self, *arguments: Any) -> "Untracked":
        """A run that is not recorded."""
        return self

    def begin_runs(self, runs: Sequence[Any], parent: str) -> "list[Untracked]":
        """`begin` for each."""
        return [self for _ in runs]

    def together(self, runs: Sequence[Any]) -> list[Sequence[Any]]:
        """Each by itself."""
        return [[run] for run in runs]

    def begin_sweep(self, *arguments: Any) -> "tuple[Untracked, dict[tuple[int, str], tuple[float, str]]]":
        """A sweep that is not recorded, of which nothing is there."""
        return self, {}

    def finished(self, *arguments: Any) -> None:
        """Nothing is there."""

    def tags_of(self, *arguments: Any) -> dict[int, dict[str, str]]:
        """Nothing is there."""
        return {}

    def check_owner(self) -> None:
        """It is nobody else's."""

    def close(self, *arguments: Any) -> None:
        """Nothing."""

    def beating(self) -> "contextlib.AbstractContextManager[None]":
        """No signs of life."""
        return contextlib.nullcontext()

    def save_view(self, *arguments: Any) -> None:
        """Nothing."""

    def progress(self, *runs: Any) -> None:
        """Nothing."""

    def finish(self, *trained: Any) -> None:
        """Nothing."""

    def fail(self, *arguments: Any) -> None:
        """Nothing."""

    def describe(self, params: dict[str, str], values: dict[str, float] | None = None, step: int = 0) -> None:
        """Nothing."""

    def note(self, markdown: str) -> None:
        """Nothing."""

    def keep(self, folder: Path, below: str = "") -> None:
        """Nothing."""

    def end(self, status: str = "FINISHED") -> None:
        """Nothing."""
