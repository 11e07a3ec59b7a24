"""Pictures, in matplotlib: colour-blind safe, log scales where the quantity spans decades."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.pictures.report import MOST, Report, Row, shown

DIVERGED = "#d55e00"


def save_map(file: Path, report: Report) -> None:
    """The sweep's tables as maps of the final training loss."""
    tables = report.tables()
    figure = Figure(figsize=(7, 4.2 * len(tables)), layout="constrained")
    losses = [row.loss for row in report.rows if math.isfinite(row.loss) and row.loss > 0]
    scale = LogNorm(max(min(losses, default=1e-3), 1e-8), max([*losses, 1e-2]))
    for axes, (name, cells) in zip(figure.subplots(len(tables), squeeze=False).flat, tables.items(), strict=True):
        _draw(axes, report, cells, scale)
        axes.set_title(name or f"final training loss, {len(report.rows)} runs: {report.outcomes}", fontsize=10)
    figure.savefig(file, dpi=120)


def _draw(axes: Axes, report: Report, cells: dict[tuple[object, object], list[Row]], scale: LogNorm) -> None:
    downs, acrosses = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    losses = np.full((len(downs), len(acrosses)), np.nan)
    for (down, across), runs in cells.items():
        place = downs.index(down), acrosses.index(across)
        finite = [row.loss for row in runs if math.isfinite(row.loss)]
        losses[place] = sum(finite) / len(finite) if finite else np.nan
        if len(acrosses) > MOST or len(downs) > MOST:
            continue
        text = f"{losses[place]:.2g}" if finite else "diverged"
        bold = any(row is report.best for row in runs)
        light = bool(finite) and scale(losses[place]) < 0.5
        axes.text(
            place[1],
            place[0],
            f"[{text}]" if bold else text,
            ha="center",
            va="center",
            fontsize=8 if finite else 6.5,
            fontweight="bold" if bold else "normal",
            color="white" if light else "black",
        )
    axes.set_facecolor(DIVERGED)
    image = axes.imshow(np.maximum(losses, scale.vmin or 0), norm=scale, cmap="viridis", aspect="auto")
    for axis, values in ((axes.xaxis, acrosses), (axes.yaxis, downs)):
        labelled = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST)).round().astype(int))
        axis.set_ticks(labelled, [shown(values[place]) for place in labelled])
    axes.set_xlabel(_words(report.across))
    axes.set_ylabel(_words(report.down))
    axes.figure.colorbar(image, ax=axes, label="final training loss")


def _words(key: str) -> str:
    return {"network.depth": "depth (blocks)", "optimizer.learning_rate": "learning rate"}.get(key, key)
