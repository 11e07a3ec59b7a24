"""The file of a page: markup, style, script and the libraries that it draws with, in one."""

import html
import json
from pathlib import Path
from string import Template
from typing import Any

ASSETS = Path(__file__).parent / "assets"
# In the order in which they are run.
SCRIPTS = ("d3.min.js", "plot.min.js", "content.js", "charts.js", "page.js")


def page(content: dict[str, Any]) -> str:
    """The page that draws that content, see `page.content`."""
    title = content["question"] or content["name"]
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        style=_asset("page.css"),
        content=_inside_script(json.dumps(content, allow_nan=False)),
        scripts="\n".join(f"<script>{_asset(name)}</script>" for name in SCRIPTS),
    )


def _inside_script(text: str) -> str:
    """JSON that no browser takes for the end of a script, whatever is in its texts."""
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
