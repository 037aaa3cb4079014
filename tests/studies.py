"""Studies that tests of searches use: one that counts, and one whose losses add up."""

from collections.abc import Callable, Mapping
from itertools import product

import jobs
import torch

from dither.nn import QLinear
from dither.spec import Act, Int
from dither.stages import Assign, Job, Stage, StudySettings
from dither.stages.granularity import Genome, Limits, Problem, problem_of


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


class Additive:
    """Loses by the group size of each layer's input as the model is now, added up; and keeps what it saw."""

    def __init__(self, model: torch.nn.Module, table: Mapping[str, Mapping[int, float]]) -> None:
        self.model, self.table, self.begun = model, table, 0
        self.seen: list[tuple[int, ...]] = []

    @property
    def metrics(self) -> Mapping[str, str]:
        return {}

    def begin(self) -> None:
        self.begun += 1
        assert not any(isinstance(m, QLinear) for m in self.model.modules())

    def losses(self) -> Mapping[str, float]:
        sizes = {name: self.model.get_submodule(name).spec.act.grid.group for name in self.table}
        self.seen.append(tuple(sizes.values()))
        return {"mse": sum(self.table[name][size] for name, size in sizes.items())}


GROUPED = Assign(weight=Int(4, group=8), act=Act(Int(8, group=8)))
SIZES = (16, 8, 4)


def searched(stage: Stage, seed: int = 0, store: Kept | None = None) -> tuple[Job, list[Additive], list[StudySettings]]:
    """The job after a stage that searches among ``SIZES`` from groups of 8, with random losses."""
    pipe = jobs.pipeline()
    made, studies, asked = jobs.job(pipe.transformer, seed=seed), [], []
    make = torch.Generator().manual_seed(1)

    def study(settings: StudySettings) -> Additive:
        studies.append(Additive(pipe.transformer, table))
        asked.append(settings)
        return studies[-1]

    made.study, made.store = study, store
    with torch.no_grad():
        GROUPED.run(made)
        table = {
            n: dict(zip(SIZES, torch.rand(3, generator=make).mul(3).exp().tolist(), strict=True)) for n in made.specs
        }
        stage.run(made)
    return made, studies, asked


def problem() -> Problem:
    """That of ``searched``."""
    made, _ = job(jobs.pipeline())
    GROUPED.run(made)
    return problem_of(made, "test", SIZES, Limits())


def allowed() -> dict[Genome, tuple[int, ...]]:
    """The sizes of each layer that keep the limits, by genome."""
    asked = problem()
    every = (g for g in product(range(len(SIZES)), repeat=len(asked.units)) if asked.allows(g))
    return {g: tuple(asked.sizes(g).values()) for g in every}


def total(study: Additive, sizes: tuple[int, ...]) -> float:
    """The loss of a size for each layer."""
    return sum(entry[size] for entry, size in zip(study.table.values(), sizes, strict=True))


def groups(job: Job) -> tuple[int, ...]:
    """Of each layer, as promised."""
    return tuple(spec.weight.group for spec in job.specs.values())
