"""``Embeddings``: what all blocks of a DiT embed alike, made once in a call of the model.

DiT of diffusers embeds the timestep and the label in every block, and once more behind them, by the same parameters where the
original has one embedder (see ``dither.stages.share``). That is a share of a small model's time, and on GPUs a dozen launches
for each block. Who reads the same parameters and the same tensors gets the first one's answer. Nothing is kept when the call
of the model ends, and nothing is remembered outside of one.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, LabelEmbedding, TimestepEmbedding, Timesteps
from torch import Tensor, nn

from dither.nn.borrowed import owner_of
from dither.nn.feed_forward import is_unwatched

__all__ = ["Embeddings", "Once"]


class Once:
    """The last answer within a call of a model, and what it is of. A copy, also in another process, holds none."""

    def __init__(self) -> None:
        self._within = False
        self._last: tuple[tuple[Any, ...], tuple[Any, ...], Tensor] | None = None

    def begin(self, *_: Any) -> None:
        """A call of the model begins; nothing happens in a graph, whose compiler sees for itself what is the same."""
        if not torch.compiler.is_compiling():
            self._within, self._last = True, None

    def end(self, *_: Any) -> None:
        """It ends."""
        if not torch.compiler.is_compiling():
            self._within, self._last = False, None

    def answer(self, of: tuple[Any, ...], settings: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """That of before, if it is of these very objects and of equal settings, or a new one."""
        if self._last is not None:
            objects, known, made = self._last
            if known == settings and len(objects) == len(of) and all(map(operator.is_, objects, of)):
                return made
        made = make()
        if self._within:
            self._last = (of, settings, made)
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
        if parts is None:
            return make()
        modules, settings = parts
        return self.once.answer((timestep, class_labels, hidden_dtype, *modules), settings, make)


def _parts(embedder: Any) -> tuple[tuple[nn.Module, ...], tuple[Any, ...]] | None:
    """Modules and settings that the answer follows from; None where it may follow from more, or where someone looks on."""
    time, label = embedder.timestep_embedder, embedder.class_embedder
    if type(label) is not LabelEmbedding or not is_unwatched(embedder.modules()):
        return None
    sinusoids, table = owner_of(embedder.time_proj), owner_of(label.embedding_table)
    modules: tuple[nn.Module, ...] = (sinusoids, table)
    settings: tuple[Any, ...] = ()
    if type(time) is not nn.Identity:  # else a table of timesteps stands for both
        if type(time) is not TimestepEmbedding or type(sinusoids) is not Timesteps or type(time.act) is not nn.SiLU:
            return None
        if time.cond_proj is not None or time.post_act is not None:
            return None
        modules = (owner_of(time.linear_1), owner_of(time.linear_2), table)
        settings = (sinusoids.num_channels, sinusoids.flip_sin_to_cos, sinusoids.downscale_freq_shift, sinusoids.scale)
    return (modules, settings) if is_unwatched(modules) else None
