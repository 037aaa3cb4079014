"""What the kernels are meant to reach, and whether the committed results do."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median

from benchmarks.markdown import Result, result

__all__ = ["FASTER", "GOALS", "Goal", "best", "goals", "libraries", "quotient"]

FASTER = "times_faster_than_float32"
TORCH = ("float32, compiled", "bfloat16", "bfloat16, compiled")
"""What torch itself does faster than float32 without quantizing: to be beaten too."""
MANY = 256
"""Rows from which a layer multiplies more than it reads."""


@dataclass(frozen=True)
class Goal:
    """A figure.

    Args:
        figure: what it is.
        part: of the results.
        floor, goal: what it should be at least; or at most, where ``floor`` is the larger one.
        of: the figure of a row; None where the row does not speak of it.
    """

    figure: str
    part: str
    floor: float
    goal: float
    of: Callable[[Result], float | None]

    def verdict(self, value: float) -> str:
        """Which of both a value reaches."""
        sign = 1 if self.goal >= self.floor else -1
        if sign * value >= sign * self.goal:
            return "goal"
        return "floor" if sign * value >= sign * self.floor else "missed"


def quotient(name: str, base: str) -> Callable[[Result], float | None]:
    """How many times faster one way is than another."""

    def of(row: Result) -> float | None:
        found = {"float32": 1.0, **{way: times["median"] for way, times in row[FASTER].items()}}
        return found[name] / found[base] if name in found and base in found else None

    return of


def slower(name: str, base: str) -> Callable[[Result], float | None]:
    """How many times longer one way takes than another."""
    return quotient(base, name)


def where(case: str, of: Callable[[Result], float | None]) -> Callable[[Result], float | None]:
    """A figure of the cases alone whose name contains this."""
    return lambda row: of(row) if case in row["case"] else None


def many(of: Callable[[Result], float | None]) -> Callable[[Result], float | None]:
    """A figure of layers of many rows alone."""
    return lambda row: of(row) if row["shape"][0] >= MANY else None


def best(row: Result, names: Collection[str]) -> str | None:
    """The fastest of these in a row."""
    return max((n for n in names if n in row[FASTER]), key=lambda n: row[FASTER][n]["median"], default=None)


def libraries(data: Result) -> list[str]:
    """Names of what others do, in a result."""
    return [*data["peers"], *TORCH]


def against_peers(row: Result) -> float | None:
    """Our fastest way with 8 bits against the fastest of other libraries."""
    ours = best(row, [way for way in row[FASTER] if way.startswith("W8")])
    theirs = best(row, row["libraries"])
    return None if ours is None or theirs is None else quotient(ours, theirs)(row)


_MODEL, _CALL, _FEW = "28 blocks", "denoiser", "modulation"
GOALS = (
    Goal("W8A8, whole model, against float32", "models", 3.3, 4.0, where(_MODEL, quotient("W8A8", "float32"))),
    Goal("the same, attention too", "models", 3.3, 4.0, where(_MODEL, quotient("W8A8, attention too", "float32"))),
    Goal("W8A8, whole model, against bfloat16", "models", 1.6, 2.0, where(_MODEL, quotient("W8A8", "bfloat16"))),
    Goal("the same in bfloat16", "models", 1.6, 2.0, where(_MODEL, quotient("W8A8 in bfloat16", "bfloat16"))),
    Goal("small DiT (zoo:fashion), against float32", "zoo", 3.0, 3.8, where(_CALL, quotient("W8A8", "float32"))),
    Goal("time of W4A8 over W8A8, layers", "layers", 1.15, 1.03, many(slower("W4A8", "W8A8"))),
    Goal("the same in groups of 128", "layers", 1.20, 1.08, many(slower("W4A8, groups of 128", "W8A8"))),
    Goal("W3A8 trellis, layers, against float32", "layers", 3.0, 4.5, many(quotient("W3A8, trellis", "float32"))),
    Goal("W2A8 trellis", "layers", 3.0, 4.5, many(quotient("W2A8, trellis", "float32"))),
    Goal("W2A8 universal words", "layers", 3.0, 4.5, many(quotient("W2A8, universal words", "float32"))),
    Goal("time rotated over not, W8A8, layers", "layers", 1.15, 1.05, many(slower("W8A8, rotated", "W8A8"))),
    Goal("the same, W4A8", "layers", 1.15, 1.05, many(slower("W4A8, rotated", "W4A8"))),
    Goal(
        "modulation, 2 rows, W4 against bfloat16",
        "layers",
        2,
        4,
        where(_FEW, quotient("W4, weights alone", "bfloat16")),
    ),
    Goal("layers against the fastest library", "layers", 1.0, 1.3, against_peers),
    Goal("block and model against the fastest library", "models", 1.0, 1.3, against_peers),
    Goal("zoo:fashion against the fastest library", "zoo", 1.0, 1.3, against_peers),
)
MEMORY = {"W8": (3.0, 3.6), "W4": (4.5, 6.0), "W2": (6.0, 9.0)}
"""Floor and goal of times less memory than float32."""


def goals() -> list[list[str]]:
    """Lines of the table: figure, floor, goal, and what is measured with 1 and 2 threads."""
    lines = []
    for goal in GOALS:
        data = result(f"cpu_{goal.part}")
        measured = [{**row, "libraries": libraries(data)} for row in data["rows"]]
        shown = [told(goal, [row for row in measured if row["threads"] == threads]) for threads in (1, 2)]
        lines.append([goal.figure, *(f"{limit:.2f}x" for limit in (goal.floor, goal.goal)), *shown])
    return lines + memory_lines()


def told(goal: Goal, rows: list[Result]) -> str:
    """Median of a figure with its verdict, and the worst."""
    values = [value for row in rows if (value := goal.of(row)) is not None]
    if not values:
        return "not measured"
    middle = median(values)
    worst = min(values) if goal.goal >= goal.floor else max(values)
    behind = f", worst {worst:.2f}x" if len(values) > 1 else ""
    return f"{middle:.2f}x ({goal.verdict(middle)}){behind}"


def memory_lines() -> list[list[str]]:
    """The same for memory, which threads do not matter to."""
    lines = []
    for row in result("cpu_memory")["loaded"]:
        if row["what"] in MEMORY:
            floor, goal = MEMORY[row["what"]]
            less = row["times_less_than_float32"]["model"]
            verdict = Goal("", "memory", floor, goal, lambda row: None).verdict(less)
            figure = f"resident memory of DiT-XL/2, {row['what']}, times less"
            lines.append([figure, f"{floor:.2f}x", f"{goal:.2f}x", f"{less:.2f}x ({verdict})", ""])
    return lines
