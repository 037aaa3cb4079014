"""Studies that tests of mixed precision use: one that counts, and the tiny pipeline's real ones."""

from collections.abc import Callable, Mapping

import jobs
import torch

from dither.stages import Job, StudySettings


class Counting:
    """Judges the answers of a sampler by squared error alone, and counts drawings."""

    def __init__(self, draw: Callable[[], torch.Tensor], roles: tuple[str, ...] = ()) -> None:
        self.draw, self.roles, self.drawn, self.begun = draw, roles, 0, 0
        self.full: torch.Tensor | None = None

    @property
    def metrics(self) -> Mapping[str, str]:
        return dict.fromkeys(self.roles, "largest difference")

    def begin(self) -> None:
        if self.full is None:
            self.begun += 1
            self.full = self.draw()

    def losses(self) -> Mapping[str, float]:
        self.drawn += 1
        off = self.draw() - self.full
        return {"mse": float(off.square().mean()), **dict.fromkeys(self.roles, float(off.abs().max()))}


class Kept(dict):
    """A store in memory, which can stop a run before it takes in its next piece."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most = most

    def put(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if len(self) >= self.most:
            raise KeyboardInterrupt
        self[name] = {k: v.clone() for k, v in tensors.items()}


def job(pipe, bits: str = "w4a8", steps: int = 4, store: Kept | None = None) -> tuple[Job, list[Counting]]:
    """A job on a tiny pipeline, whose studies are counted."""
    made, studies = jobs.job(pipe.transformer, bits), []

    def study(settings: StudySettings) -> Counting:
        studies.append(Counting(lambda: jobs.sample(pipe, (0, 3), steps), tuple(settings.judges)))
        return studies[-1]

    made.study, made.store = study, store
    return made, studies
