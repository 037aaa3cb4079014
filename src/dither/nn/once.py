"""``Embeddings``: what all blocks of a DiT embed alike, made once in a call of the model.

DiT of diffusers embeds the timestep and the label in every block, and once more behind them, by the same parameters where the
original has one embedder (see ``dither.stages.share``). That is a share of a small model's time, and on GPUs a dozen launches
for each block. Who reads the same parameters and the same tensors gets the first one's answer. Nothing is kept when the call
of the model ends, and nothing is remembered outside of one.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, LabelEmbedding, TimestepEmbedding, Timesteps
from torch import Tensor, nn

from dither.nn.borrowed import Borrowed
from dither.nn.feed_forward import is_unwatched

__all__ = ["Embeddings", "Once", "embed_once"]


class Once:
    """The last answer within a call of a model, and what it is of. A copy, also in another process, holds none."""

    def __init__(self) -> None:
        self._within = False
        self._last: tuple[tuple[Any, ...], Tensor] | None = None

    def begin(self, *_: Any) -> None:
        """A call of the model begins; nothing happens in a graph, whose compiler sees for itself what is the same."""
        if not torch.compiler.is_compiling():
            self._within, self._last = True, None

    def end(self, *_: Any) -> None:
        """It ends."""
        if not torch.compiler.is_compiling():
            self._within, self._last = False, None

    def answer(self, of: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """That of before, if it is of these very objects, or a new one."""
        last = self._last
        if last is not None and len(last[0]) == len(of) and all(a is b for a, b in zip(last[0], of, strict=True)):
            return last[1]
        made = make()
        if self._within:
            self._last = (of, made)
        return made

    def __reduce__(self) -> tuple[type["Once"], tuple[()]]:
        return Once, ()


class Embeddings(CombinedTimestepLabelEmbeddings):
    """In place of an embedder of diffusers, with the modules that it has.

    Args:
        whole: the other.
        once: of the model.
    """

    def __init__(self, whole: CombinedTimestepLabelEmbeddings, once: Once) -> None:
        nn.Module.__init__(self)  # not the embedder's: there are modules already
        self.__dict__.update(whole.__dict__)
        self.once = once

    def forward(self, timestep: Tensor, class_labels: Tensor, hidden_dtype: torch.dtype | None = None) -> Tensor:
        """(B,) and (B,) to (B, D), as diffusers' embedder."""

        def make() -> Tensor:
            made: Tensor = super(Embeddings, self).forward(timestep, class_labels, hidden_dtype)
            return made

        parts = None if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.training else _parts(self)
        return make() if parts is None else self.once.answer((timestep, class_labels, hidden_dtype, *parts), make)


def embed_once(model: nn.Module) -> None:
    """Let all embedders of timestep and label of a model that read the same parameters answer once in a call of it."""
    found = [
        (name, module) for name, module in model.named_modules() if type(module) is CombinedTimestepLabelEmbeddings
    ]
    once = Once()
    for name, module in found:
        model.set_submodule(name, Embeddings(module, once))
    if found:
        model.register_forward_pre_hook(once.begin)
        model.register_forward_hook(once.end)


def _parts(embedder: Any) -> tuple[Any, ...] | None:
    """What the answer follows from besides the arguments; None where it may follow from more, or where someone looks on."""
    time, label = embedder.timestep_embedder, embedder.class_embedder
    sinusoids = _owner(embedder.time_proj)
    if type(label) is not LabelEmbedding or not is_unwatched(embedder.modules()):
        return None
    table = _owner(label.embedding_table)
    if type(time) is nn.Identity:  # a table of timesteps stands for both
        learned = (sinusoids, table)
        said: tuple[Any, ...] = ()
    elif type(time) is TimestepEmbedding and type(sinusoids) is Timesteps and type(time.act) is nn.SiLU:
        if time.cond_proj is not None or time.post_act is not None:
            return None
        learned = (_owner(time.linear_1), _owner(time.linear_2), table)
        said = (sinusoids.num_channels, sinusoids.flip_sin_to_cos, sinusoids.downscale_freq_shift, sinusoids.scale)
    else:
        return None
    return (*learned, sys.intern(repr(said))) if is_unwatched(learned) else None


def _owner(module: nn.Module) -> nn.Module:
    """Whose parameters it reads."""
    return module.owner if isinstance(module, Borrowed) else module
