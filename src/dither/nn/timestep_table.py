"""``TimestepTable``: a timestep embedder as rows of a table, one for each whole timestep (TFMQ-DM, arXiv 2311.16503).

    emb = table[t],      t in 0 .. T - 1

Modules of diffusers that embed the timestep project it to sinusoids (``time_proj``) and these by an MLP
(``timestep_embedder``). The table stands in the place of the former, which receives the timestep as it came, before it is
cast to a dtype that may not hold it; nothing is left to be done by the latter. Embedders that give the same, as the copies
that DiT of diffusers has in each block, read one table.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dither.clock import Last
from dither.errors import BadModel, BadValue
from dither.nn.borrowed import Borrowed, owner_of
from dither.spec import TableSpec

__all__ = [
    "EMBEDDER",
    "TimestepTable",
    "embedding_width",
    "put_table",
    "table_tensor",
    "timestep_tables",
]

PLACE, EMBEDDER = "time_proj", "timestep_embedder"
"""Where the table stands among a module's own, and the MLP that it makes superfluous."""


class TimestepTable(nn.Module):
    """Looks timesteps up.

    Args:
        rows: timesteps 0 to ``rows - 1``.
        width: D of an embedding.
        device, dtype: of the empty table, which is in full precision and is cast with the model.
        last: remembers the timesteps that were checked last; one for all tables of a model, as all are asked for the same.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        last: Last | None = None,
    ) -> None:
        super().__init__()
        self.last = last or Last()
        self.table = nn.Parameter(torch.empty(rows, width, device=device, dtype=dtype), requires_grad=False)

    @property
    def spec(self) -> TableSpec:
        """What it stands for in a plan."""
        return TableSpec(len(self.table))

    def load(self, values: Tensor) -> "TimestepTable":
        """Take these values (T, D) as the table, without a copy."""
        self.table = nn.Parameter(values, requires_grad=False)
        return self

    def forward(self, timestep: Tensor) -> Tensor:
        """(B,) to (B, D). BadValue if a timestep is not one of the table's."""
        return self.table[self._rows(timestep).to(self.table.device)]

    def _rows(self, timestep: Tensor) -> Tensor:
        """Timesteps as int64 row numbers. The check waits for the device, so it is made once for all blocks."""
        count = len(self.table)
        if torch.compiler.is_compiling():
            return cast(Tensor, _rows_in_graph(timestep, count))
        if timestep.is_inference():  # its changes are not counted
            return _rows(timestep, count)
        rows = self.last.get(timestep, key := str(count).encode())
        if rows is None:
            rows = _rows(timestep, count)
            self.last.put(timestep, key, rows)
        return rows

    def extra_repr(self) -> str:
        """Its shape."""
        return "rows={}, width={}".format(*self.table.shape)


def _rows(timestep: Tensor, count: int) -> Tensor:
    """Timesteps as int64 row numbers; BadValue if there is one in between or outside."""
    rows = timestep.long()
    bad = (rows != timestep) | (rows < 0) | (rows >= count)
    if bool(bad.any()):
        raise BadValue(
            f"timestep {float(timestep[bad].reshape(-1)[0]):g}: this model's timestep embedder is a table of the whole "
            f"timesteps 0 to {count - 1}; use a scheduler whose timesteps these are, or quantize without 'precompute'"
        )
    return rows


@torch.library.custom_op("dither::timestep_rows", mutates_args=())
def _rows_in_graph(timestep: Tensor, count: int) -> Tensor:
    """The same for compiled graphs, which cannot look into it: an operator may not return its input."""
    return _rows(timestep, count).clone()


@_rows_in_graph.register_fake
def _(timestep: Tensor, count: int) -> Tensor:
    return torch.empty_like(timestep, dtype=torch.int64)


def timestep_tables(model: nn.Module) -> dict[str, TableSpec]:
    """What timestep embedders of a model have become, by the names of the modules that had them."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, TimestepTable):
            found[name] = module.spec
        elif isinstance(module, Borrowed) and isinstance(module.owner, TimestepTable):
            found[name] = TableSpec(module.owner.spec.rows, _embedder(module.name))
    return {_embedder(name): spec for name, spec in found.items()}


def _embedder(place: str) -> str:
    """Whose table it is."""
    return place.removesuffix(f".{PLACE}")


def table_tensor(name: str) -> str:
    """Name of the tensor that an embedder's own table is stored under."""
    return f"{name}.{PLACE}.table"


def embedding_width(module: nn.Module) -> int:
    """Width D of what a module's timestep embedder gives. BadModel if it has none."""
    parts: dict[str, Any] = dict(module.named_children())
    if PLACE in parts and isinstance(table := owner_of(parts[PLACE]), TimestepTable):
        return int(table.table.shape[1])
    last = dict(parts[EMBEDDER].named_children()).get("linear_2") if PLACE in parts and EMBEDDER in parts else None
    if not isinstance(last, nn.Linear):
        raise BadModel(f"a {type(module).__name__} embeds no timestep")
    return last.out_features


def put_table(
    model: nn.Module,
    name: str,
    spec: TableSpec,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> TimestepTable | Borrowed:
    """Put an empty table in the place of a module's timestep embedder, or that of another, which must be there already."""
    module = model.get_submodule(name)
    table: TimestepTable | Borrowed
    if spec.same_as:
        owner = f"{spec.same_as}.{PLACE}"
        table = Borrowed(model.get_submodule(owner), owner)
    else:
        last = next((m.last for m in model.modules() if isinstance(m, TimestepTable)), None)
        table = TimestepTable(spec.rows, embedding_width(module), device, dtype, last)
    setattr(module, PLACE, table.train(module.training))
    setattr(module, EMBEDDER, nn.Identity())
    return table
