"""Put the sections together into one file that loads nothing, and proves it.

The page's content policy is `default-src 'none'` with pictures from `data:` only, and style and script by the hash
of what is inlined here: a browser refuses anything else, whatever a results file may contain. Templates escape every
value by themselves; only this library's own style, script and JSON data are put in as they are.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dither.errors import BadCheckpoint
from dither.report import (
    allocation,
    balance,
    bits,
    curves,
    dots,
    doubts,
    pareto,
    sections,
    sensitivity,
    tables,
    verdict,
)
from dither.report.axes import COLOURS, DASHES, SHAPES
from dither.report.entries import Book, Entry, open_book
from dither.report.load import Results, check_results, load, text

__all__ = ["render", "write"]

STYLES = ("base.css", "pictures.css", "tables.css", "charts.css", "maps.css", "print.css")
SCRIPTS = ("core.js", "comparer.js", "tables.js", "charts.js", "heatmap.js", "ranges.js", "sheet.js", "start.js")


def render(results: Sequence[Results]) -> str:
    """Write one page for one or more results, as `dither eval --json` and `dither compare --json` save them.

    Raises:
        BadCheckpoint: no result was given, or one of them is neither an evaluation nor a comparison.
    """
    if not results:
        raise BadCheckpoint("a report needs at least one result.")
    for index, result in enumerate(results):
        check_results(result, f"result {index + 1}")
    book = open_book(results)
    style = "\n".join(_static(name) for name in STYLES)
    script = '"use strict";\n(() => {\n' + "\n".join(_static(name) for name in SCRIPTS) + "})();\n"
    data = [{"heatmap": sections.heatmap(e.result), "ranges": sections.ranges(e.result)} for e in book.entries]
    return _environment().get_template("page.html").render(
        title=_title(book),
        style=style,
        script=script,
        style_hash=_digest(style),
        script_hash=_digest(script),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        overview=_overview(book) if len(book.entries) > 1 else None,
        articles=[_article(book, entry) for entry in book.entries],
    )  # fmt: skip


def write(results_paths: Sequence[str | Path], out_html: str | Path) -> None:
    """Read results files and write the page; on any error the output is left as it was.

    Raises:
        BadCheckpoint: a file cannot be read or is not a result, or the page cannot be written; it is named.
    """
    page = render([load(path) for path in results_paths])
    out = Path(out_html)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(page.encode("utf-8", "replace"))  # JSON may hold lone surrogates, UTF-8 may not
        os.replace(partial, out)
    except OSError as error:
        raise BadCheckpoint(f"cannot write {str(out)!r}: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _article(book: Book, entry: Entry) -> dict[str, Any]:
    """All that the templates show of one result; what is empty they leave out."""
    result, alone = entry.result, len(book.entries) == 1
    return {
        "index": entry.index,
        "title": " · ".join(part for part in (text(result, "model"), entry.name) if part),
        "name": entry.name,
        "verdict": verdict.verdict(result),
        "cautions": verdict.cautions(entry),
        "cards": verdict.cards(result),
        "pictures": sections.pictures(result),
        "comparison": tables.comparison(book) if alone else None,
        "strips": dots.psnr_strips(result),
        "guards": doubts.guards(result),
        "curves": curves.step_charts([entry]),
        "curve_notes": verdict.trajectory_notes(result),
        "heatmap": sections.heatmap(result) is not None,
        "bits": bits.bits_charts(result),
        "allocation": allocation.allocation(result),
        "sensitivity": sensitivity.sensitivity(result),
        "balance": balance.balance(result),
        "ranges": sections.ranges(result) is not None,
        "plan": sections.plan(result),
        "reproduction": sections.reproduction(result),
    }


def _overview(book: Book) -> dict[str, Any]:
    """All that the templates show of several results together."""
    charts = pareto.pareto_charts(book)
    return {
        "count": len(book.entries),
        "front": verdict.front_sentence(book),
        "cautions": verdict.shared_cautions(book),
        "pareto": charts,
        "comparison": tables.comparison(book),
        "matrices": doubts.matrices(book),
        "curves": curves.step_charts(book.entries),
        "pictures": sum(bool(sections.pictures(entry.result)) for entry in book.entries) > 1,
    }


@cache
def _environment() -> Environment:
    """Templates compiled once; what they are given decides the page."""
    environment = Environment(
        loader=PackageLoader("dither.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(shapes=SHAPES, colours=COLOURS, dashes=DASHES)
    return environment


def _title(book: Book) -> str:
    if len(book.entries) > 1:
        return f"{len(book.entries)} results"
    return " · ".join(part for part in (text(book.entries[0].result, "model"), book.entries[0].name) if part)


def _static(name: str) -> str:
    return resources.files("dither.report").joinpath("static").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
