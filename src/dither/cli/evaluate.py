"""``dither eval`` and ``dither compare``: quantized models beside their original."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from dither.cli import show
from dither.cli.console import (
    FAILED_GATE,
    check_target,
    command_line,
    errors,
    note,
    out,
    progress_bars,
    progress_lines,
    resumable,
    write,
    write_json,
)
from dither.cli.options import Batch, Guidance, Labels, Prompts, Seed, Steps, ToJson, labels_of
from dither.errors import BadValue

__all__ = ["ABOUT", "COMPARE", "EVAL", "judge"]

EVAL, COMPARE = "eval", "compare"
ABOUT = {
    EVAL: "Compare a quantized model with its original: same seeds, intervals, true bytes.",
    COMPARE: "Compare several quantized models with one original, and rank those that the pictures tell apart.",
}


class Where(str, Enum):
    """Executors by their names on the command line."""

    LOCAL = "local"
    PROCESSES = "processes"
    RAY = "ray"


class Told(str, Enum):
    """Forms of progress."""

    BARS = "bars"
    JSON = "json"


Against = Annotated[str, typer.Option(help="the full-precision model, or its samples as .npz")]
Pictures = Annotated[int, typer.Option("-n", help="pictures from each model")]
Floor = Annotated[
    int, typer.Option(help="full-precision pictures drawn again: other batch size, other seeds; 0 for none")
]
Follow = Annotated[int, typer.Option(help="pictures that are followed step by step; 0 for none")]
Features = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="more Frechet distances: inception, dinov2[:FOLDER], clip[:FOLDER], zoo:NAME"),
]
Metric = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="more metrics: lpips, clip-score[:FOLDER], image-reward:PYTHON, external:COMMAND, vbench:Q.json,FP.json"
    ),
]
Reference = Annotated[Optional[Path], typer.Option(help="real pictures or their statistics in ADM's layout, .npz")]  # noqa: UP045
Timed = Annotated[bool, typer.Option(help="time the denoisers by turns")]
Store = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="folder that keeps finished batches, for later runs too; by default one beside the results"),
]
Executor = Annotated[Where, typer.Option(help="where batches are drawn")]
Workers = Annotated[int, typer.Option(help="processes or actors")]
Threads = Annotated[Optional[int], typer.Option(help="threads of each worker; all cores, shared, by default")]  # noqa: UP045
Address = Annotated[Optional[str], typer.Option(help="of an existing Ray cluster; a local one by default")]  # noqa: UP045
Shard = Annotated[Optional[str], typer.Option(help="i/n: do this machine's share of the batches, and stop")]  # noqa: UP045
ToHtml = Annotated[Optional[Path], typer.Option("--html", help="write a report page here")]  # noqa: UP045
ToCsv = Annotated[Optional[Path], typer.Option("--csv", help="write a table here")]  # noqa: UP045
ToMarkdown = Annotated[Optional[Path], typer.Option("--markdown", help="write a table here")]  # noqa: UP045
FailIf = Annotated[Optional[list[str]], typer.Option(help="such as 'psnr<30'; exit code 1 if so")]  # noqa: UP045
Tell = Annotated[Told, typer.Option("--progress", help="bars for people, or JSON lines on standard error")]


@dataclass(frozen=True)
class _Targets:
    """Files to write."""

    json: Path | None
    html: Path | None
    csv: Path | None
    markdown: Path | None

    def check(self) -> None:
        for option, path in (("--json", self.json), ("--html", self.html), ("--csv", self.csv)):
            check_target(option, path)
        check_target("--markdown", self.markdown)

    def write(self, whole: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        from dither.measure.export import to_csv, to_markdown
        from dither.report import render

        if self.json is not None:
            write_json(self.json, whole)
        if self.html is not None:
            write(self.html, render([whole]).encode("utf-8", "replace"))
        if self.csv is not None:
            write(self.csv, to_csv(results).encode())
        if self.markdown is not None:
            write(self.markdown, to_markdown(results).encode())

    def store(self) -> Path | None:
        """Where batches wait while the first of the files is not written."""
        first = next((path for path in (self.json, self.html, self.csv, self.markdown) if path is not None), None)
        return None if first is None else first.with_name(f"{first.name}.partial")


def judge(
    context: typer.Context,
    folders: Annotated[list[str], typer.Argument(help="a checkpoint that dither wrote, or samples as .npz")],
    against: Against,
    n: Pictures = 256,
    seed: Seed = 0,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    classes: Labels = None,
    prompts: Prompts = None,
    batch_size: Batch = 64,
    noise_floor: Floor = 32,
    trajectory: Follow = 16,
    features: Features = None,
    metric: Metric = None,
    reference: Reference = None,
    speed: Timed = True,
    store: Store = None,
    executor: Executor = Where.LOCAL,
    workers: Workers = 2,
    threads: Threads = None,
    ray_address: Address = None,
    shard: Shard = None,
    json_file: ToJson = None,
    html: ToHtml = None,
    csv: ToCsv = None,
    markdown: ToMarkdown = None,
    fail_if: FailIf = None,
    progress: Tell = Told.BARS,
) -> None:
    """Both commands: ``eval`` judges one model and writes its results, ``compare`` any number and how they rank."""
    single = context.info_name == EVAL
    with errors():
        from dither.measure import Asked

        if single and len(folders) > 1:
            raise BadValue(f"'dither eval' judges one model, and {len(folders)} are named: use 'dither compare'")
        labels = tuple(labels_of(classes, prompts))
        asked = Asked(
            n, seed, steps, guidance, batch_size, labels, noise_floor, trajectory, 24,
            tuple(features or ()), tuple(metric or ()), reference, speed,
        )  # fmt: skip
        place = _Place(executor, workers, threads, ray_address, shard, store)
        targets = _Targets(json_file, html, csv, markdown)
        whole = _judge(folders, against, asked, place, targets, fail_if or (), progress)
        if whole is None:
            return
        results = whole["results"]
        targets.write(results[0] if single else whole, results)
        place.clean(targets)
        out.print(show.verdict(results[0]) if single else show.comparison(whole))
    _gate(results, fail_if or ())


@dataclass(frozen=True)
class _Place:
    """Where the work is done and kept, as the options say it."""

    executor: Where
    workers: int
    threads: int | None
    ray_address: str | None
    shard: str | None
    store: Path | None

    def made(self) -> Any:
        """The executor."""
        import torch

        from dither.scale import InProcess, Processes, RayActors

        if self.ray_address is not None and self.executor is not Where.RAY:
            raise BadValue("--ray-address belongs to --executor ray")
        if self.threads is not None and self.threads < 1:
            raise BadValue(f"--threads {self.threads}: must be at least 1")
        if self.executor is Where.LOCAL:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return InProcess()
        if self.workers < 1:
            raise BadValue(f"--workers {self.workers}: must be at least 1")
        threads = self.threads or max(1, torch.get_num_threads() // self.workers)
        if self.executor is Where.RAY:
            return RayActors(self.workers, threads, self.ray_address)
        return Processes(self.workers, threads)

    def share(self) -> tuple[int, int] | None:
        """--shard as (i, n), counted from 0."""
        if self.shard is None:
            return None
        i, _, n = self.shard.partition("/")
        if not (i.isascii() and n.isascii() and i.isdigit() and n.isdigit() and int(i) < int(n)):
            raise BadValue(f"--shard '{self.shard}': write i/n, such as 0/4 to 3/4")
        if self.store is None:
            raise BadValue("--shard needs --store, a folder that all machines share")
        return int(i), int(n)

    def folder(self, targets: _Targets) -> Path | None:
        """The store."""
        return self.store if self.store is not None else targets.store()

    def clean(self, targets: _Targets) -> None:
        """Forget the batches that only waited for the results."""
        if self.store is None and (folder := targets.store()) is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _judge(
    folders: Sequence[str],
    against: str,
    asked: Any,
    place: _Place,
    targets: _Targets,
    fail_if: Sequence[str],
    told: Told,
) -> dict[str, Any] | None:
    """The comparison, or None when only a share of the work was done."""
    from dither.measure import Running, draw_shard
    from dither.measure import compare as measure
    from dither.measure.samples import compare_samples, is_samples

    _check_conditions(fail_if)
    targets.check()
    share, executor, folder = place.share(), place.made(), place.folder(targets)
    with (progress_lines if told is Told.JSON else progress_bars)() as progress:
        if is_samples(against) or any(map(is_samples, folders)):
            return compare_samples(folders, against, asked, progress, command_line())
        running = Running(executor, folder, progress, note)
        if share is not None:
            outcome = draw_shard(folders, against, asked, running, share)
            found, failed = outcome.computed + outcome.reused, len(outcome.failures)
            out.print(
                f"shard {place.shard}: {found} batches stored, {failed} failed, {outcome.left} left to other shards"
            )
            return None
        with resumable(lambda: _way_on(folder)):
            return measure(folders, against, asked, running, command_line())


def _way_on(folder: Path | None) -> str:
    """What of a run that ended early is kept; a folder without a batch is removed."""
    if folder is None or not folder.is_dir():
        return ""
    if count := sum(1 for _ in folder.rglob("*.safetensors")):
        return f"; {count} finished batches are kept in '{folder}', and the same command goes on from there"
    shutil.rmtree(folder, ignore_errors=True)
    return ""


def _check_conditions(conditions: Sequence[str]) -> None:
    """A typing error should not cost an evaluation."""
    from dither.evaluation import parse_condition
    from dither.measure import MEASURED

    for condition in conditions:
        if (path := parse_condition(condition).path).partition(".")[0] not in MEASURED:
            raise BadValue(f"the condition '{condition}' names '{path}', which is not among {', '.join(MEASURED)}")


def _gate(results: Sequence[Mapping[str, Any]], conditions: Sequence[str]) -> None:
    from dither.evaluation import check

    failures: list[str] = []
    with errors():
        for result in results:
            name = f"{result['checkpoint']}: " if len(results) > 1 else ""
            failures += [f"{name}{failure}" for failure in check(result, conditions)]
    for failure in failures:
        out.print(f"[bold red]failed:[/] {failure}")
    if failures:
        raise typer.Exit(FAILED_GATE)
