"""Kill a resumable run at random moments, worker first, then driver, and see whether the resumed result is bit-identical.

    python -m benchmarks.kills
    python -m benchmarks.kills -- dither eval ... --executor processes --store {work}/store --json {work}/eval.json

The command runs once undisturbed. Then it is started again and again in another folder: a random worker gets SIGKILL at a
random moment, later the driver does, and its workers must vanish by themselves. When a run ends before it is killed, its
result is compared and the next one begins in a new folder. After the last round the run is resumed to its end. What is
compared: every stored file, byte for byte, and the results, apart from fields that name times and places.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.common import RESULTS, environment, write_result

MODEL = "zoo:digits"
VANISH_S = 60.0
"""How long workers may take to notice that their driver is gone."""
VOLATILE = ("commands", "command", "date", "seconds", "speed", "created", "executor", "memory")


@dataclass(frozen=True)
class Round:
    """One disturbed start.

    Args:
        at_work: whether moments count from the first job that was finished, and not from the first worker's start.
        worker_s: when a worker was killed; None when the run ended before.
        driver_s: when the driver was killed; likewise.
        stored: files in the store then.
        orphans: processes that outlived their driver for too long.
    """

    at_work: bool
    worker_s: float | None
    driver_s: float | None
    stored: int
    orphans: int


def count(folder: Path) -> int:
    """Finished files of a store."""
    return len(_files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*.safetensors") if ".half" not in f.parts)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every finished file of a store."""
    return {str(f.relative_to(folder)): sha256(f.read_bytes()).hexdigest() for f in _files(folder)}


def disturb(command: Sequence[str], store: Path, rng: random.Random, longest_s: float) -> Round:
    """Start the command, kill one of its workers, then itself, within ``longest_s`` of its first sign of life."""
    before = count(store)
    at_work = rng.random() < 0.5
    first, second = sorted(rng.uniform(0, longest_s) for _ in range(2))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        driver = psutil.Process(run.pid)
        while run.poll() is None and not (count(store) > before if at_work else workers_of(driver)):
            time.sleep(0.02)
        start = time.monotonic()
        killed: list[float | None] = [None, None]
        family: list[psutil.Process] = []
        for k, moment in enumerate((first, second)):
            while run.poll() is None and time.monotonic() - start < moment:
                time.sleep(0.005)
            if run.poll() is not None:
                break
            family = workers_of(driver)
            if k == 0 and not family:
                continue  # it has not replaced the last one yet, or needs none any more
            _kill(driver if k else rng.choice(family))
            killed[k] = round(time.monotonic() - start, 3)
        run.wait()
    _, alive = psutil.wait_procs(family, VANISH_S)
    for orphan in alive:
        _kill(orphan)
    return Round(at_work, killed[0], killed[1], count(store), len(alive))


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Its spawned workers; multiprocessing's resource tracker is none."""
    found = []
    for child in _children(driver):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def _children(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return driver.children()
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


@dataclass(frozen=True)
class Trial:
    """A command that is killed and resumed.

    Args:
        command: of a work folder; it stores under ``work/store`` and goes on where it was.
        result: of a work folder, what must be equal in the end besides the stored files.
        longest_s: the latest kill, counted from a sign of life.
    """

    command: Callable[[Path], Sequence[str]]
    result: Callable[[Path], Any]
    longest_s: float

    def finish(self, work: Path) -> tuple[dict[str, str], Any]:
        """Run to the end, undisturbed."""
        subprocess.run(self.command(work), check=True, stdout=subprocess.DEVNULL)
        return contents(work / "store"), self.result(work)

    def disturbed(self, work: Path, rounds: int, seed: int, wanted: tuple[dict[str, str], Any]) -> dict[str, Any]:
        """Kill at ``rounds`` pairs of random moments, resume to the end, and compare with ``wanted``."""
        rng = random.Random(seed)
        done: list[Round] = []
        ends: list[bool] = []
        place = work / "0"
        place.mkdir(parents=True)
        while sum(r.driver_s is not None for r in done) < rounds:
            done.append(disturb(self.command(place), place / "store", rng, self.longest_s))
            if done[-1].driver_s is None:  # it came to its end before
                ends.append(self.finish(place) == wanted)
                place = work / str(len(ends))
                place.mkdir()
            if len(done) > 10 * rounds:
                raise RuntimeError(f"the command ends too soon to be killed: give less than {self.longest_s:g} s")
        ends.append(self.finish(place) == wanted)
        return {
            "rounds": [asdict(r) for r in done],
            "driver_kills": rounds,
            "worker_kills": sum(r.worker_s is not None for r in done),
            "results": len(ends),
            "identical": sum(ends),
            "orphans": sum(r.orphans for r in done),
        }


def steady(results: Any) -> Any:
    """Results without the fields that name times and places."""
    if isinstance(results, Mapping):
        return {k: steady(v) for k, v in results.items() if k not in VOLATILE}
    return [steady(v) for v in results] if isinstance(results, list) else results


def evaluation_of(small: Path) -> list[str]:
    """Quantize a zoo model into ``small``, and give the command that evaluates it in many small batches."""
    subprocess.run(["dither", "quantize", MODEL, "-o", str(small), "--recipe", "rtn", "--bits", "w4a8"], check=True)
    asked = f"dither eval {small} --against {MODEL} -n 64 --batch-size 2 --steps 10 --noise-floor 8 --trajectory 0 --no-speed"
    return shlex.split(
        f"{asked} --executor processes --workers 2 --threads 1 --store {{work}}/store --json {{work}}/eval.json"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds from a sign of life to the latest kill")
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json")
    text = "with {work} for a folder; it writes {work}/store and {work}/eval.json; by default, of a small zoo model"
    parser.add_argument("command", nargs="*", help=text)
    options = parser.parse_args()

    def result(work: Path) -> Any:
        return steady(json.loads((work / "eval.json").read_text(encoding="utf-8")))

    with TemporaryDirectory() as folder:
        words = options.command or evaluation_of(Path(folder) / "small")

        def command(work: Path) -> list[str]:
            return [word.replace("{work}", str(work)) for word in words]

        whole = Path(folder) / "undisturbed"
        whole.mkdir()
        start = time.monotonic()
        wanted = Trial(command, result, 0).finish(whole)
        seconds = time.monotonic() - start
        print(f"{len(wanted[0])} files in {seconds:.1f} s undisturbed", file=sys.stderr)
        found = Trial(command, result, options.longest).disturbed(Path(folder), options.rounds, options.seed, wanted)
    shown = shlex.join(["python", "-m", "benchmarks.kills", *sys.argv[1:]])
    write_result(options.out, {"files": len(wanted[0]), "seconds": round(seconds, 1), **found, **environment(shown, 1)})
    if found["identical"] < found["results"] or found["orphans"]:
        sys.exit("a resumed result differs, or a worker outlived its driver")


if __name__ == "__main__":
    main()
