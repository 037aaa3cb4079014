"""The tables of docs/cpu.md and the README's table of speed, from ``results/cpu_*.json``."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.cpu.goals import FASTER, best, goals, libraries
from benchmarks.markdown import Result, ratio, result, table

__all__ = ["TABLES"]

PARTS = ("layers", "models", "zoo")
"""In which other libraries take part."""
README = ("bfloat16", "W8A8", "W8A8 in bfloat16", "W4A8", "W2A8, trellis")
ALONE = "weights alone"


def speed() -> str:
    """For the README: blocks, models and pictures, and few ways."""
    data = [result(f"cpu_{part}") for part in ("models", "zoo")]
    lines = []
    for part in data:
        for row in part["rows"]:
            name = best(row, libraries(part))
            peer = "" if name is None else f"{ratio(row[FASTER][name])}: {name}"
            lines.append([row["case"], str(row["threads"]), *cells(row, README), peer])
    header = ["times faster than float32", "threads", *README, "the fastest of others"]
    return table(header, lines) + "\n" + explained(data[0])


def of_ways(part: str, wanted: Callable[[Result], bool], names: Callable[[str], bool]) -> str:
    """Every way of a part's rows, beside the number of threads."""
    data = result(f"cpu_{part}")
    rows = [row for row in data["rows"] if wanted(row)]
    ways = [way for way in ways_of(rows) if way not in data["peers"] and names(way)]
    lines = [[row["case"], str(row["threads"]), *cells(row, ways)] for row in rows]
    return table(["times faster than float32", "threads", *ways], lines) + "\n" + explained(data)


def few(row: Result) -> bool:
    """Whether weights alone are quantized in some way of this row."""
    return any(way.endswith(ALONE) for way in row[FASTER])


def modulation(row: Result) -> bool:
    """Whether weights alone are quantized in every way of this row."""
    return few(row) and "W8A8" not in row[FASTER]


def layers() -> str:
    """Layers whose inputs are quantized."""
    return of_ways("layers", lambda row: not modulation(row), lambda way: not way.endswith(ALONE))


def attention() -> str:
    """Attention by itself, with its errors."""
    data = result("cpu_attention")
    ways = ways_of(data["rows"])
    lines = []
    for row in data["rows"]:
        errors = row["relative_error_to_float32"]
        shown = [f"{cell}; {errors[way]:.1e}" for way, cell in zip(ways, cells(row, ways), strict=True)]
        lines.append([row["case"], str(row["threads"]), *shown])
    return table(["times faster than float32; relative error", "threads", *ways], lines) + "\n" + explained(data)


def layers_of_few_rows() -> str:
    """Layers of few rows, which read weights most of the time."""
    return of_ways("layers", few, lambda way: way.endswith(ALONE) or way.startswith("bfloat16"))


def peers() -> str:
    """Other libraries, and beside them the fastest way of ours with 8 bits."""
    parts = [result(f"cpu_{part}") for part in PARTS]
    rows = [row for data in parts for row in data["rows"] if best(row, data["peers"]) is not None]
    known = {name: told for data in parts for name, told in data["peers"].items()}
    names = [name for name in known if any(name in row[FASTER] or name in row.get("missing", {}) for row in rows)]
    lines = []
    for row in rows:
        ours = best(row, [way for way in row[FASTER] if way.startswith("W8")])
        shown = "" if ours is None else f"{ratio(row[FASTER][ours])}: {ours}"
        lines.append([row["case"], str(row["threads"]), shown, *cells(row, names)])
    about = "; ".join(f"{name}{versions(known[name]['versions'])}: {known[name]['how']}" for name in names)
    return table(["times faster than float32", "threads", "dither, 8 bits", *names], lines) + (
        f"\n{about}. {reasons(rows)}{explained(parts[0])}"
    )


def versions(found: Mapping[str, str]) -> str:
    """In brackets."""
    return f" ({', '.join(f'{package} {number}' for package, number in found.items())})" if found else ""


def reasons(rows: Iterable[Result]) -> str:
    """Why peers are not there, each reason once."""
    told = dict.fromkeys(f"{name} ({why})" for row in rows for name, why in row.get("missing", {}).items())
    return f"n/a: {'; '.join(told)}. " if told else ""


def ways_of(rows: Iterable[Result]) -> list[str]:
    """All names that some row has."""
    return list(dict.fromkeys(way for row in rows for way in row[FASTER]))


def cells(row: Result, names: Sequence[str]) -> list[str]:
    """Ratios to float32; n/a where a peer does not run; nothing where nobody asked."""
    found = row[FASTER]
    return [ratio(found[n]) if n in found else "n/a" if n in row.get("missing", {}) else "" for n in names]


def explained(data: Result) -> str:
    """How it was measured."""
    return (
        f"Median [quartiles] of {data['method'].partition(';')[0]}; baseline: the same module in float32, eager torch. "
        f"{data['cpu']}, {data['instructions']}, torch {data['versions']['torch']}.\n"
    )


def met() -> str:
    """What was wanted, and what is measured."""
    return table(["figure", "floor", "goal", "1 thread", "2 threads"], goals()) + (
        "\nMedians over the cases that a figure speaks of, and the worst of them behind it. Quotients of medians.\n"
    )


def memory() -> str:
    """A model of DiT-XL/2's size in fresh processes."""
    data = result("cpu_memory")
    lines = []
    for row in data["loaded"]:
        less = row["times_less_than_float32"]
        moments = [row["before"], row["loaded"], row["called"]]
        lines.append(
            [
                row["what"],
                megabytes(row["file_bytes"]),
                *(f"{megabytes(m['rss'])} ({megabytes(m['anonymous'])})" for m in moments),
                megabytes(row["called"]["file"]),
                f"{less['model']:.2f}x",
                f"{less['process']:.2f}x",
            ]
        )
    header = ["", "file", "before", "loaded", "after a call", "of that, mapped files"]
    header += ["model, times less", "process, times less"]
    return table(header, lines) + (
        f"\nMB of 10^6 bytes in memory, anonymous memory in brackets. Model: after a call, less what the process had before. "
        f"{data['model']}, {data['parameters'] / 1e6:.0f} M parameters.\n"
    )


def memory_in_process() -> str:
    """The same, quantized where it is."""
    data = result("cpu_memory")
    moments = ("before", "float32", "quantized", "called")
    lines = [
        [row["what"], *(megabytes(row[m]["rss"]) for m in moments), megabytes(row["quantized"]["peak"])]
        for row in data["quantized_in_process"]
    ]
    header = ["", "before", "float32, after a call", "quantized", "after a call of it", "peak until quantized"]
    return table(header, lines) + "\nMB in memory of one process that loads float32 and quantizes it where it is.\n"


def megabytes(count: int) -> str:
    """MB."""
    return f"{count / 1e6:,.0f}"


TABLES: Mapping[str, Callable[[], str]] = {
    "speed": speed,
    "cpu-goals": met,
    "cpu-layers": layers,
    "cpu-few-rows": layers_of_few_rows,
    "cpu-models": lambda: of_ways("models", lambda row: True, lambda way: True),
    "cpu-zoo": lambda: of_ways("zoo", lambda row: True, lambda way: True),
    "cpu-attention": attention,
    "cpu-peers": peers,
    "cpu-memory": memory,
    "cpu-memory-in-process": memory_in_process,
}
