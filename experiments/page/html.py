"""The HTML of a page. It is one file, which contains the style, the scripts and the drawing libraries."""

import html
import json
from pathlib import Path
from string import Template
from typing import Any

ASSETS = Path(__file__).parent / "assets"
# The scripts in the order in which they run.
SCRIPTS = ("d3.min.js", "plot.min.js", "content.js", "charts.js", "page.js")


def render_page(content: dict[str, Any]) -> str:
    """Return the HTML of the page. content: what `page.content.page_content` returns."""
    title = content["question"] or content["name"]
    return Template(_read_asset("page.html")).substitute(
        title=html.escape(title),
        style=_read_asset("page.css"),
        content=_escape_script(json.dumps(content, allow_nan=False)),
        scripts="\n".join(f"<script>{_read_asset(name)}</script>" for name in SCRIPTS),
    )


def _escape_script(text: str) -> str:
    """Escape JSON so that no text in it can end the script element."""
    return text.replace("<", "\\u003c")


def _read_asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
