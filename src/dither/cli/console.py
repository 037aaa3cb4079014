"""What every command shares: one line for an error, exit codes, progress, and JSON that is written whole."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dither.errors import DitherError

__all__ = ["FAILED_GATE", "WRONG_INPUT", "errors", "out", "progress_bars", "write_json"]

FAILED_GATE = 1
WRONG_INPUT = 2

out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turns what a user can cause into one sentence on standard error and exit code 2. Bugs keep their traceback."""
    try:
        yield
    except DitherError as e:
        _fail(str(e))
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was left behind (quantize --resume goes on where it stopped)")
    except OSError as e:
        where = f"'{e.filename}': " if e.filename else ""
        _fail(f"{where}{e.strerror or e}")


def _fail(sentence: str) -> None:
    _err.print(f"[bold red]error:[/] {_escape(sentence)}")
    sys.exit(WRONG_INPUT)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A callable (what, done, total) that shows one bar for each ``what``; on a pipe, a line when each is complete."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=_err, disable=not _err.is_terminal) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)
            if done == total and not _err.is_terminal:
                _err.print(f"{what}: {total} of {total}")

        yield show


def write_json(path: Path, value: Any) -> None:
    """Written beside its place and moved there, so that a reader never sees half of it."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(half, path)
    except ValueError as e:
        raise DitherError(f"'{path}': the results hold a number that JSON cannot: {e}") from None
    finally:
        half.unlink(missing_ok=True)
