"""A SQLite store whose folder was moved: MLflow keeps where artifacts lie as absolute places, and has no way to change them."""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACT_FOLDER = "mlartifacts"
# Where MLflow keeps places of artifacts.
PLACES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def local(place: str) -> Path | None:
    """The folder that an artifact URI names, None for one on a server."""
    parts = urlsplit(place)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def beside(file: Path, folder: Path) -> Path | None:
    """The folder as it lies beside the SQLite file now, None where it does not: the longest end of its path that is there.

    folder: of a run's artifacts, where they were recorded; its last two parts, the run's id and `artifacts`, are its own.
    """
    candidates = (file.parent.joinpath(*folder.parts[start:]) for start in range(1, len(folder.parts) - 1))
    return next((found for found in candidates if found.is_dir()), None)


def relocate(file: Path) -> list[str]:
    """Record in a SQLite store that its artifacts lie beside it, where the folders that it has recorded are gone.

    Only the folders that this package makes beside a store are changed, `.../mlartifacts`. Returns a line for each.
    """
    here = file.parent / ARTIFACT_FOLDER
    lines = []
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as store, store:
        for (place,) in store.execute("select distinct artifact_location from experiments").fetchall():
            folder = local(place or "")
            if folder is None or folder.name != ARTIFACT_FOLDER or folder == here or folder.exists():
                continue
            for table, columns in PLACES.items():
                for column in columns:
                    store.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "
                        f"where {column} = ? or substr({column}, 1, ?) = ? || '/'",
                        (here.as_uri(), len(place) + 1, place, len(place) + 1, place),
                    )
            lines.append(f"{file} was moved: its artifacts, recorded in {folder}, are those in {here} from now on")
    return lines
