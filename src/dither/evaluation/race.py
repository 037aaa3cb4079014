"""Find the best of many candidates with few evaluations: successive halving on common random numbers.

All candidates are judged on growing prefixes of one list of jobs, the same seeds and prompts for each, so that they are
compared pair by pair; independent seeds would put the spread between pictures into every comparison. After each round

- a candidate is out for good when a rival is surely better: its confidence sequence of paired differences has left
  zero, at alpha / (candidates - 1), so that the truly best one is lost with probability alpha at most, however many
  rounds are looked at (``sequences``; a t-test repeated every round would be wrong far more often);
- of the rest, only the better half goes on (Jamieson and Talwalkar: arXiv 1502.07943). This is a budget, not a proof,
  and the result says which of the two ended each candidate.

Values are higher-is-better and without heavy tails: PSNR in dB, or minus the log of an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np

from dither.errors import BadValue
from dither.evaluation.protocol import Float64
from dither.evaluation.sequences import ConfidenceSequence, Verdict

__all__ = ["Fate", "RaceResult", "halving_rounds", "race"]

Candidate = TypeVar("Candidate")
Evaluate = Callable[[Candidate, range], Float64]
Progress = Callable[[int, int, str], None]


class Fate(Enum):
    """What became of a candidate."""

    WON = "won"
    BEHIND = "behind"  # ran to the end, its mean is lower, nothing surer can be said
    WORSE = "worse"  # surely worse than a rival
    HALVED = "halved"  # left behind by the budget


@dataclass(frozen=True)
class RaceResult:
    """Outcome of a race; all tuples are in the order of the candidates.

    Attributes:
        winner: index of the candidate with the highest mean among those that ran to the end.
        fates: what became of each.
        means: mean of each over the jobs that it was given.
        used: how many jobs that were.
        evaluations: of all candidates together.
    """

    winner: int
    fates: tuple[Fate, ...]
    means: tuple[float, ...]
    used: tuple[int, ...]
    evaluations: int


def halving_rounds(candidates: int, jobs: int, first: int = 16) -> tuple[int, ...]:
    """Lengths of the prefixes: twice as many jobs each time the candidates are halved; the last is all `jobs`."""
    if candidates < 1 or not 1 <= first <= jobs:
        raise BadValue(f"a race needs candidates and 1 <= first <= jobs, got {candidates}, {first} and {jobs}.")
    halvings = max(0, candidates - 1).bit_length()
    lengths = [min(jobs, first << i) for i in range(halvings)]
    return tuple(sorted({*lengths, jobs}))


def race(
    candidates: Sequence[Candidate],
    evaluate: Evaluate[Candidate],
    rounds: Sequence[int],
    *,
    alpha: float = 0.05,
    progress: Progress | None = None,
) -> RaceResult:
    """Run the race.

    Args:
        candidates: what is compared; only `evaluate` looks into them.
        evaluate: `evaluate(candidate, jobs)` gives the values (len(jobs),) of these jobs, higher is better. It must not
            depend on what ran before. A race resumes by running it again with an `evaluate` that remembers.
        rounds: ascending lengths of the prefixes, such as `halving_rounds` gives.
        alpha: probability that the truly best candidate is ruled out as worse.
        progress: called as `progress(rounds done, of rounds, what)`.

    Raises:
        BadValue: no candidates, rounds that do not ascend, or values of a wrong shape or not finite.
    """
    if not candidates or not rounds or any(b <= a for a, b in zip([0, *rounds], rounds, strict=False)):
        raise BadValue(f"a race needs candidates and ascending rounds, got {len(candidates)} and {list(rounds)}.")
    field = _Field(len(candidates), alpha)
    for done, stop in enumerate(rounds):
        jobs = range(rounds[done - 1] if done else 0, stop)
        field.add({i: _values(evaluate(candidates[i], jobs), len(jobs), i) for i in field.alive})
        field.drop_worse()
        if done < len(rounds) - 1:
            field.halve()
        if progress is not None:
            progress(done + 1, len(rounds), f"{len(field.alive)} of {len(candidates)} candidates left")
        if len(field.alive) == 1:
            break
    return field.result()


class _Field:
    """The candidates in a race: their values so far, a confidence sequence for each pair, and who is still in."""

    def __init__(self, count: int, alpha: float) -> None:
        self.alive = list(range(count))
        self.values: list[list[Float64]] = [[] for _ in range(count)]
        self.fates = [Fate.BEHIND] * count
        self.alpha = alpha / max(1, count - 1)
        self.pairs: dict[tuple[int, int], ConfidenceSequence] = {}

    def add(self, values: dict[int, Float64]) -> None:
        """The next jobs' values of all that are alive."""
        for i, row in values.items():
            self.values[i].append(row)
        for i in self.alive:
            for j in self.alive:
                if i < j:
                    pair = self.pairs.setdefault((i, j), ConfidenceSequence(self.alpha))
                    pair.add(values[i] - values[j])

    def drop_worse(self) -> None:
        for (i, j), pair in self.pairs.items():
            if pair.verdict is Verdict.BETTER:
                self._drop(j, Fate.WORSE)
            elif pair.verdict is Verdict.WORSE:
                self._drop(i, Fate.WORSE)

    def halve(self) -> None:
        order = sorted(self.alive, key=lambda i: (-self.mean(i), i))
        for i in order[(len(order) + 1) // 2 :]:
            self._drop(i, Fate.HALVED)

    def _drop(self, i: int, fate: Fate) -> None:
        if i in self.alive and len(self.alive) > 1:
            self.alive.remove(i)
            self.fates[i] = fate

    def mean(self, i: int) -> float:
        return float(np.concatenate(self.values[i]).mean())

    def result(self) -> RaceResult:
        winner = min(self.alive, key=lambda i: (-self.mean(i), i))
        self.fates[winner] = Fate.WON
        used = tuple(sum(len(part) for part in parts) for parts in self.values)
        means = tuple(self.mean(i) for i in range(len(self.values)))
        return RaceResult(winner, tuple(self.fates), means, used, sum(used))


def _values(values: Float64, count: int, candidate: int) -> Float64:
    x = np.asarray(values, dtype=np.float64)
    if x.shape != (count,) or not np.isfinite(x).all():
        raise BadValue(
            f"candidate {candidate} gave values of shape {x.shape}, not {(count,)}, or some that are not finite."
        )
    return x
