"""What record.json says of a record that waits, checked as a whole where it is read: it may be damaged, or a stranger's."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.run import bounded

# Unix time, for three thousand years.
Seconds = Annotated[float, Field(ge=0, le=1e11)]


class Tags(BaseModel):
    """What a run is found by; there may be more."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, str]

    job: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Waiting(BaseModel):
    """A record that waits.

    uri: of the store that it belongs to, null as in a config. experiment: MLflow's name for it. owner: of the sweep, see
    `experiments.record.ownership`, "" where none is known.
    """

    model_config = ConfigDict(strict=True)

    uri: str | None
    experiment: str
    owner: Annotated[str, Field(pattern=r"^[0-9a-f]*$")] = ""


class RunRecord(Waiting):
    """A trained run. parent: its sweep's run, "" where it has none. started, ended: Unix time in seconds. rung: where stopped."""

    name: str
    tags: Tags
    parent: Annotated[str, Field(pattern=r"^\w*$")]
    outcome: Literal["trained", "stuck", "diverged", "stopped"]
    started: Seconds
    ended: Seconds
    rung: Annotated[int, Field(ge=0)] = 0


class SweepRecord(Waiting):
    """The end of a sweep's own run. reason: what ended one that is not FINISHED. axes: the swept keys and their values."""

    run_id: Annotated[str, Field(pattern=r"^\w+$")]
    status: Literal["FINISHED", "FAILED", "KILLED"]
    reason: str = ""
    axes: dict[str, str]


def read(file: Path, is_of_sweep: bool) -> RunRecord | SweepRecord:
    """The record that a record.json holds; raises ValueError, in one line, for anything else, and OSError."""
    kind = SweepRecord if is_of_sweep else RunRecord
    try:
        return kind.model_validate_json(bounded.read_text(file))
    except ValidationError as error:
        found = error.errors()[0]
        raise ValueError(": ".join([".".join(str(part) for part in found["loc"]) or "it", found["msg"]])) from None
