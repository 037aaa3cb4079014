"""Put the sections together into one file that loads nothing, and proves it.

The page's content policy is `default-src 'none'` with pictures from `data:` only, and style and script by the hash
of what is inlined here: a browser refuses anything else, whatever a results file may contain.
"""

import base64
import contextlib
import hashlib
import json
import os
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from dither.errors import BadCheckpoint
from dither.report import sections
from dither.report.charts import drift_chart, psnr_chart
from dither.report.compare import comparison, result_name
from dither.report.form import escape
from dither.report.load import Results, check_results, load, text

__all__ = ["render", "write"]


def render(results: Sequence[Results]) -> str:
    """Write one page for one or more evaluation results, as `dither eval --json` saves them.

    Raises:
        BadCheckpoint: no result was given, or one of them is not an evaluation result.
    """
    if not results:
        raise BadCheckpoint("a report needs at least one result.")
    for index, result in enumerate(results):
        check_results(result, f"result {index + 1}")
    style, script = _package_file("page.css"), _package_file("page.js")
    data = [sections.heatmap_data(result) for result in results]
    return string.Template(_package_file("page.html")).substitute(
        title=escape(_title(results)),
        style=style,
        script=script,
        style_hash=_digest(style),
        script_hash=_digest(script),
        overview=_overview(results),
        articles="".join(
            _article(result, index, comparison([result]) if len(results) == 1 else "")
            for index, result in enumerate(results)
        ),
        data=json.dumps(data).replace("<", "\\u003c"),
    )


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


def _article(result: Results, index: int, size_and_quality: str) -> str:
    """All sections of one result; a section with nothing to show is left out."""
    parts = [
        ("Pictures", "same seeds, full precision beside quantized", sections.pictures(result)),
        ("Size and quality", "", size_and_quality),
        ("How close is every picture", "", psnr_chart(result)),
        ("Layers over timesteps", "where the error comes from", sections.heatmap(result)),
        ("Drift", "how far the latents stray from full precision, step by step", drift_chart(result)),
        ("The plan", "what was done to each layer", sections.plan(result)),
        ("How to reproduce", "", sections.reproduce(result)),
    ]
    body = "".join(
        f"<section><h2>{title}{f' <small>{about}</small>' if about else ''}</h2>{content}</section>"
        for title, about, content in parts
        if content
    )
    head = f"<h1>{escape(_name(result))}</h1>{sections.verdict(result)}{sections.cards(result)}"
    return f'<article data-result="{index}">{head}{body}</article>'


def _overview(results: Sequence[Results]) -> str:
    """For several results: the table of all, and buttons that choose the one whose sections are shown."""
    if len(results) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-result="{index}" aria-pressed="{"true" if index == 0 else "false"}">'
        f"{escape(result_name(result))}</button>"
        for index, result in enumerate(results)
    )
    tabs = f'<nav class="tabs" aria-label="choose a result">{buttons}</nav>'
    return f"<h1>{len(results)} results</h1><section>{comparison(results)}</section>{tabs}"


def _name(result: Results) -> str:
    return " · ".join(part for part in (text(result, "model"), result_name(result)) if part)


def _title(results: Sequence[Results]) -> str:
    return _name(results[0]) if len(results) == 1 else f"{len(results)} results"


def _package_file(name: str) -> str:
    return resources.files("dither.report").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
