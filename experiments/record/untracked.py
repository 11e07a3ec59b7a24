"""A store, and the runs in it, when nothing is to be recorded."""

from pathlib import Path
from typing import Any


class Untracked:
    """Does what `tracking.Store` and `tracking.Run` are asked, and keeps none of it."""

    run_id = command = ""

    def begin(self, name: str, tags: dict[str, str], parent: str = "") -> "Untracked":
        """A run that is not recorded."""
        return self

    def progress(self, history: Any, steps: int) -> None:
        """Nothing."""

    def finish(self, trained: Any) -> None:
        """Nothing."""

    def describe(self, params: dict[str, str]) -> None:
        """Nothing."""

    def keep(self, folder: Path) -> None:
        """Nothing."""

    def end(self, status: str = "FINISHED") -> None:
        """Nothing."""
