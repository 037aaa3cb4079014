"""Cheap jobs that draw, raise, refuse or die on demand, for tests of executors. Workers import this: it stays small."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dither.errors import BadFormat, DitherError


@dataclass(frozen=True)
class Chores:
    """A ``MakeWorker``. Each attempt leaves the process's id in ``folder``."""

    folder: str

    def __call__(self):
        return self.work

    def work(self, job):
        first = len(attempts(self.folder, job)) == 0
        with (Path(self.folder) / f"{job['seed']}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        do = job.get("do", "draw")
        if do == "raise" or (do == "raise once" and first):
            raise ValueError(f"no luck with {job['seed']}")
        if do == "refuse":
            raise BadFormat("group 32 does not divide 48")
        if do == "die" or (do == "die once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "hang once" and first:
            time.sleep(600)
        time.sleep(job.get("sleep", 0.0))
        return drawn(job["seed"])


def drawn(seed):
    """Arrays of every shape and kind that travels."""
    rng = np.random.default_rng(seed)
    return {
        "pictures": rng.integers(0, 256, (2, 8, 8, 3), np.uint8),
        "features": np.asfortranarray(rng.normal(size=(3, 5))),
        "half": rng.normal(size=4).astype(np.float16),
        "big-endian": np.arange(seed, dtype=">i4"),  # of no element for seed 0
        "scalar": np.array(seed),
        "flags": rng.normal(size=6) > 0,
    }


def attempts(folder, job):
    """Process ids, one an attempt."""
    path = Path(folder) / f"{job['seed']}"
    return path.read_text().split() if path.exists() else []


@dataclass(frozen=True)
class Unbuildable:
    """A ``MakeWorker`` whose model cannot be built."""

    error: type[Exception]

    def __call__(self):
        raise self.error("no such model: 'nowhere'")


@dataclass(frozen=True)
class Stillborn:
    """A ``MakeWorker`` that kills its process."""

    def __call__(self):
        os._exit(3)


class Picky(DitherError):
    """An error that only its own constructor can build."""

    def __init__(self, layer, bits):
        super().__init__(f"layer '{layer}' cannot have {bits} bits")


@dataclass(frozen=True)
class Refusing:
    """A ``MakeWorker`` of workers that raise ``Picky``."""

    def __call__(self):
        return self.work

    def work(self, job):
        raise Picky("blocks.0", job["bits"])


@dataclass(frozen=True)
class Threads:
    """A ``MakeWorker`` of workers that count torch's threads."""

    def __call__(self):
        return self.work

    def work(self, job):
        import torch

        return {"threads": np.array(torch.get_num_threads())}
