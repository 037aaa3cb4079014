"""What every command shares: one line for an error, exit codes, progress, and JSON that is written whole."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dither.errors import DitherError

__all__ = [
    "FAILED_GATE",
    "WRONG_INPUT",
    "check_target",
    "command_line",
    "errors",
    "note",
    "out",
    "progress_bars",
    "progress_lines",
    "resumable",
    "write",
    "write_json",
]

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
        _fail("interrupted; nothing half-written was left behind")
    except OSError as e:
        where = f"'{e.filename}': " if e.filename else ""
        _fail(f"{where}{e.strerror or e}")


@contextlib.contextmanager
def resumable(way_on: Callable[[], str]) -> Iterator[None]:
    """Whatever ends a run early, its sentence says how to go on.

    Args:
        way_on: called once, when it ends early: keeps or removes what is half done, and gives the end of the sentence.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise DitherError(f"interrupted{way_on()}") from None
    except DitherError as e:
        raise type(e)(f"{str(e).removesuffix('.')}{way_on()}") from e
    except BaseException:
        way_on()
        raise


def _fail(sentence: str) -> None:
    one_line = " ".join(sentence.split()).removesuffix(".")  # libraries that we quote write paragraphs
    _err.print(f"[bold red]error:[/] {escape(one_line)}")
    sys.exit(WRONG_INPUT)


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


@contextlib.contextmanager
def progress_lines() -> Iterator[Callable[[str, int, int], None]]:
    """The same for machines: each call is one line of JSON on standard error."""

    def show(what: str, done: int, total: int) -> None:
        print(
            json.dumps({"event": "progress", "what": what, "done": done, "total": total}), file=sys.stderr, flush=True
        )

    yield show


def note(sentence: str) -> None:
    """Something that people should know, beside the progress."""
    _err.print(f"[yellow]note:[/] {escape(sentence)}")


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["dither", *sys.argv[1:]])


def check_target(option: str, path: Path | None, suffix: str = "") -> None:
    """Refuse, before any work, a file that could not be written after it. Makes its folder."""
    if path is None:
        return
    if path.is_dir():
        raise DitherError(f"{option} '{path}' is a folder, not a file to write")
    if suffix and path.suffix.lower() != suffix:
        raise DitherError(f"{option} '{path}': its name must end in {suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise DitherError(f"{option} '{path}': its folder cannot be written")


def write(path: Path, data: bytes) -> None:
    """Written beside its place and moved there, so that a reader never sees half of it."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        half.write_bytes(data)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``write`` of a value as JSON, which has no NaN."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError as e:
        raise DitherError(f"'{path}': the results hold a number that JSON cannot: {e}") from None
    write(path, f"{text}\n".encode())
