"""Where a layer stands in the network, read off its name: `transformer_blocks.3.attn1.to_q` is `attn1.to_q` of block 3."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dither.report.load import text

__all__ = ["block_of", "block_spans", "block_title", "inner_name", "layer_names"]

BLOCK = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


def block_of(row: Mapping[str, Any]) -> str:
    """Name of the block that a layer's row belongs to, or empty text."""
    found = BLOCK.match(text(row, "name") or "")
    return found[0] if found else ""


def inner_name(name: str) -> str:
    """What is left of a layer's name within its block."""
    found = BLOCK.match(name)
    return (name[found.end() :].lstrip(".") if found else name) or name


def block_title(first: str, last: str, several_lists: bool) -> str:
    """`3`, or `3–6` for neighbours; with the name of their list where a network has several; `other` outside of blocks."""
    start, end = (name.rpartition(".")[2] for name in (first, last))
    span = f"{start}–{end}" if first != last else start
    if several_lists and first:
        return f"{first.rpartition('.')[0].removesuffix('_blocks').replace('_', ' ')} {span}"
    return span or "other"


def block_spans(blocks: Sequence[str]) -> str:
    """`0, 2-5` for blocks of one list in order; names of lists before theirs where there are several."""
    lists: dict[str, list[int]] = {}
    for block in dict.fromkeys(block for block in blocks if block):
        prefix, _, place = block.rpartition(".")
        lists.setdefault(prefix, []).append(int(place))
    said = []
    for prefix, indices in lists.items():
        spans: list[list[int]] = []
        for index in sorted(indices):
            if spans and index == spans[-1][1] + 1:
                spans[-1][1] = index
            else:
                spans.append([index, index])
        shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
        said.append(f"{prefix} {shown}" if len(lists) > 1 else shown)
    return "; ".join(said) or "-"


def layer_names(rows: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]]) -> str:
    """Short words for layers of one block: their kinds where that names them all, else their names in the block.

    Args:
        rows: the layers to name.
        beside: all layers of the block; a kind that has others among them does not name these.
    """
    mine = {id(row) for row in rows}
    torn = {text(row, "kind") for row in beside if id(row) not in mine}
    said = []
    for row in rows:
        kind = text(row, "kind")
        said.append(kind if kind is not None and kind not in torn else inner_name(text(row, "name") or "a layer"))
    return ", ".join(dict.fromkeys(said))
