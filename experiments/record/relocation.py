"""The relocation of a SQLite store whose folder was moved: MLflow stores absolute paths of artifacts, and cannot change them."""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACT_FOLDER = "mlartifacts"
# MLflow's tables -> the columns that hold artifact URIs.
ARTIFACT_COLUMNS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def local_folder(uri: str) -> Path | None:
    """Return the folder that an artifact URI names, None for artifacts on a server."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def folder_beside(file: Path, folder: Path) -> Path | None:
    """Return where a folder of artifacts lies now beside the moved SQLite file, None where it is not found.

    The longest end of the recorded path that exists beside the file is the folder.

    folder: the recorded path, whose last two parts are the run's id and `artifacts`.
    """
    candidates = (file.parent.joinpath(*folder.parts[start:]) for start in range(1, len(folder.parts) - 1))
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def relocate_artifacts(file: Path) -> list[str]:
    """Change the artifact URIs of a moved SQLite store to the folder beside it, where the recorded folders do not exist any more.

    Only folders that this package creates, `.../mlartifacts`, are changed. Returns a line for the user for each.
    """
    new_folder = file.parent / ARTIFACT_FOLDER
    lines = []
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as connection, connection:
        for (uri,) in connection.execute("select distinct artifact_location from experiments").fetchall():
            folder = local_folder(uri or "")
            if folder is None or folder.name != ARTIFACT_FOLDER or folder == new_folder or folder.exists():
                continue
            for table, columns in ARTIFACT_COLUMNS.items():
                for column in columns:
                    connection.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "
                        f"where {column} = ? or substr({column}, 1, ?) = ? || '/'",
                        (new_folder.as_uri(), len(uri) + 1, uri, len(uri) + 1, uri),
                    )
            lines.append(f"{file} was moved: its artifacts, recorded in {folder}, are those in {new_folder} from now on")
    return lines
