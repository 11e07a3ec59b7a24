"""The schema of record.json, which describes a record in the outbox. The file may be damaged, or written by somebody else."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.run import bounded

# Unix time in seconds, for three thousand years.
Seconds = Annotated[float, Field(ge=0, le=1e11)]


class Tags(BaseModel):
    """The tags of a run. `job`, by which its sweep finds it, is required; others are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, str]

    job: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class WaitingRecord(BaseModel):
    """A record in the outbox.

    uri: of the store that it belongs to, null as in a config. experiment: the name of its MLflow experiment.
    owner: the token of the sweep's owner, see `experiments.record.ownership`, "" where it is unknown.
    """

    model_config = ConfigDict(strict=True)

    uri: str | None
    experiment: str
    owner: Annotated[str, Field(pattern=r"^[0-9a-f]*$")] = ""


class RunRecord(WaitingRecord):
    """A trained run.

    parent: the id of its sweep's run, "" where it has none. started, ended: Unix time in seconds.
    rung: at which halving has stopped it, 0 where it was not stopped.
    """

    name: str
    tags: Tags
    parent: Annotated[str, Field(pattern=r"^\w*$")]
    outcome: Literal["trained", "stuck", "diverged", "stopped"]
    started: Seconds
    ended: Seconds
    rung: Annotated[int, Field(ge=0)] = 0


class SweepRecord(WaitingRecord):
    """The end of a sweep's parent run.

    reason: why it was ended, "" where it is FINISHED. axes: the swept keys and their values.
    """

    run_id: Annotated[str, Field(pattern=r"^\w+$")]
    status: Literal["FINISHED", "FAILED", "KILLED"]
    reason: str = ""
    axes: dict[str, str]


def read(file: Path, is_sweep_record: bool) -> RunRecord | SweepRecord:
    """Read a record.json. Raises ValueError, in one line, for an invalid file, and OSError where it cannot be opened."""
    record_class = SweepRecord if is_sweep_record else RunRecord
    try:
        return record_class.model_validate_json(bounded.read_text(file))
    except ValidationError as error:
        first_error = error.errors()[0]
        raise ValueError(": ".join([".".join(str(part) for part in first_error["loc"]) or "it", first_error["msg"]])) from None
