"""A stored weight whose codes, scales and words are tuned straight through its rounding, whatever its format.

    W = e^l (Q(u) + u - [u])        Q(u): what the codes nearest to u stand for, anew every few steps; [.]: without gradient

u begins at what the codes stand for, so that nothing is changed where nothing is gained; a weight's gradients must agree for
a while to carry it into another cell. It is counted in root mean squares of its row, and a trust region keeps it near its
beginning. l (one for each scale) and the words of a codebook learn with it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dither.numerics import decode, recode, words_dtype
from dither.spec import Codebook, Format

__all__ = ["Straight"]


class Straight:
    """One weight.

    Args:
        fmt: of the codes.
        tensors: stored ones.
        shape: (N, K).
        trust: how far u may go, in root mean squares of its row.
        codes: they are tuned too; otherwise there is no u.
    """

    def __init__(
        self, fmt: Format, tensors: Mapping[str, Tensor], shape: tuple[int, int], trust: float, codes: bool = True
    ) -> None:
        self.fmt, self.tensors, self.trust, self.shape = fmt, dict(tensors), trust, shape
        self.rounded = self.start = decode(self.tensors, fmt, shape)  # (N, K)
        self.unit = self.rounded.square().mean(1, keepdim=True).sqrt()  # (N, 1)
        self.moved = nn.Parameter(torch.zeros_like(self.rounded)) if codes else None
        self.log = nn.Parameter(torch.zeros_like(self.tensors["scale"].float())) if "scale" in tensors else None
        self.words = nn.Parameter(tensors["codebook"].float().clone()) if isinstance(fmt, Codebook) else None

    def value(self) -> Tensor:
        """(N, K) float32."""
        w = self.rounded
        if self.words is not None:
            w = decode({**self.tensors, "codebook": self.words}, self.fmt, self.shape)
        if self.moved is not None:
            u = self.moved * self.unit
            w = w + u - u.detach()
        if self.log is None:
            return w
        rows, groups = self.log.shape
        factor = self.log.exp()[..., None].expand(rows, groups, self.shape[1] // groups).reshape(rows, -1)
        return w * factor

    @torch.no_grad()
    def refresh(self) -> None:
        """The codes nearest to u, where they are tuned."""
        if self.moved is None:
            return
        self.moved.clamp_(-self.trust, self.trust)
        if self.words is not None:
            self.tensors["codebook"] = self._stored(self.words)
        self.tensors = recode(self.start + self.moved * self.unit, self.tensors, self.fmt)
        self.rounded = decode(self.tensors, self.fmt, self.shape)

    def stored(self) -> dict[str, Tensor]:
        """The format's tensors, as they now are."""
        out = dict(self.tensors)
        if self.words is not None:
            out["codebook"] = self._stored(self.words)
        if self.log is not None:
            scale = self.tensors["scale"]
            out["scale"] = (scale.float() * self.log.detach().exp()).to(scale.dtype)
        return out

    def _stored(self, words: Tensor) -> Tensor:
        """A copy, in the dtype that the format stores."""
        assert isinstance(self.fmt, Codebook)
        return words.detach().to(words_dtype(self.fmt), copy=True)

    def state(self) -> dict[str, Tensor]:
        """All that changes."""
        return {**{f"stored.{k}": t for k, t in self.tensors.items()}, **self.learning()}

    def learning(self) -> dict[str, nn.Parameter]:
        """``moved``, ``log`` and ``words``, as far as there are any."""
        found = {"moved": self.moved, "log": self.log, "words": self.words}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        device = self.rounded.device
        self.tensors = {k.removeprefix("stored."): t.to(device) for k, t in state.items() if k.startswith("stored.")}
        self.rounded = decode(self.tensors, self.fmt, self.shape)
        for key, tensor in self.learning().items():
            tensor.copy_(state[key])
