"""A weight of codewords whose assignments are learned (VQ4DiT, arXiv 2408.17131, section 3.2).

    W_v = sum_j r_vj C[a_vj],   r_v = softmax(z_v)        a_v: the n words nearest to sub-vector v, Eq. 5 and 6

z begins at 0 (the paper) or with r_j in proportion to 1 / distance (the release). The candidates are found once. What is
soft never leaves the stage: ``harden`` takes the candidate of the largest ratio, and that is what is stored.

The backward pass gathers the words again instead of holding n copies of the weight.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dither.numerics import nearest_words, pack, sub_vectors, unpack_indices, words_dtype
from dither.spec import Codebook

__all__ = ["SoftCodes"]

NEAR = 1e-5
"""Added to distances, so that a sub-vector that is a word has a ratio (the release's value)."""


class SoftCodes:
    """The assignments and words of one weight.

    Args:
        w: (N, K) float32.
        fmt: of the codes.
        tensors: stored ones that it begins with: words, and scales of rows.
        candidates: n; 1 leaves the assignments of ``tensors``.
        inverse: ratios begin in proportion to 1 / distance; otherwise all alike.
    """

    def __init__(self, w: Tensor, fmt: Codebook, tensors: Mapping[str, Tensor], candidates: int, inverse: bool) -> None:
        self.fmt, self.shape = fmt, (int(w.shape[0]), int(w.shape[1]))
        self.scale = tensors.get("scale")
        self.words = nn.Parameter(tensors["codebook"].float().clone())
        self.codes = unpack_indices(tensors, fmt, self.shape[1]).reshape(-1)  # (V,)
        self.candidates: Tensor | None = None
        self.logits: nn.Parameter | None = None
        self.settled: Tensor | None = None
        if candidates > 1:
            found, distance = nearest_words(sub_vectors(w, fmt, self.scale), self.words.detach(), candidates)
            self.candidates = found.to(torch.uint8 if fmt.size <= 1 << 8 else torch.int32)  # (V, n)
            last = distance[:, -1:].sqrt()
            start = torch.log(last / (distance.sqrt() + NEAR) + NEAR) if inverse else torch.zeros_like(distance)
            if inverse:
                start[:, -1] = 0
            self.logits = nn.Parameter(start)
            self.settled = torch.zeros(len(found), dtype=torch.bool, device=w.device)

    @property
    def hard(self) -> bool:
        """Whether every assignment is made."""
        return self.logits is None

    def value(self) -> Tensor:
        """(N, K) float32."""
        if self.logits is None:
            flat = _Looked.apply(self.words, self.codes)  # type: ignore[no-untyped-call]
        else:
            flat = _Mixed.apply(self.logits, self.words, self.candidates)  # type: ignore[no-untyped-call]
        w: Tensor = flat.view(self.shape)
        return w if self.scale is None else w * self.scale

    def penalty(self, absolute: bool) -> Tensor | None:
        """Mean over sub-vectors that are not settled of sum_j r (1 - r), or of sum_j 1 - |2r - 1| (Eq. 9); None: all are."""
        if self.logits is None or self.settled is None:
            return None
        r = torch.softmax(self.logits, 1)
        each = (1 - (2 * r - 1).abs() if absolute else r * (1 - r)).sum(1)
        free = ~self.settled
        return (each * free).sum() / free.sum().clamp(min=1)

    @torch.no_grad()
    def settle(self, limit: float) -> float:
        """Make the assignments whose ratio exceeds a limit final, without gradient; the share of those that are."""
        if self.logits is None or self.settled is None:
            return 1.0
        best, index = torch.softmax(self.logits, 1).max(1)
        fresh = (best > limit) & ~self.settled
        final = torch.full_like(self.logits[fresh], -torch.inf)
        self.logits[fresh] = final.scatter_(1, index[fresh, None], 0.0)
        self.settled |= fresh
        return float(self.settled.float().mean())

    @torch.no_grad()
    def harden(self) -> Tensor | None:
        """Take the best candidates; how many sub-vectors took their first, second, ... nearest word; None: all are made."""
        if self.logits is None or self.candidates is None:
            return None
        best = self.logits.argmax(1, keepdim=True)
        self.codes = self.candidates.gather(1, best)[:, 0]
        places = torch.bincount(best[:, 0], minlength=self.logits.shape[1])
        self.logits = self.candidates = self.settled = None
        return places

    def stored(self) -> dict[str, Tensor]:
        """``codes``, ``codebook`` and, with scales of rows, ``scale``. Soft assignments are hardened first."""
        if not self.hard:
            raise RuntimeError("soft assignments are no codes: harden() comes first")
        indices = self.codes.view(self.shape[0], -1)
        made = {
            "codes": pack(indices, self.fmt.bits, signed=False),
            "codebook": self.words.detach().to(words_dtype(self.fmt)),
        }
        return made if self.scale is None else {**made, "scale": self.scale}

    def state(self) -> dict[str, Tensor]:
        """All that changes."""
        out: dict[str, Tensor] = {"words": self.words, "codes": self.codes}
        for key, tensor in (("candidates", self.candidates), ("logits", self.logits), ("settled", self.settled)):
            if tensor is not None:
                out[key] = tensor
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.words.data.copy_(state["words"])
        self.codes = state["codes"].to(self.words.device)
        if self.logits is not None and "logits" in state:
            assert self.candidates is not None
            assert self.settled is not None
            self.logits.data.copy_(state["logits"])
            self.candidates.copy_(state["candidates"])
            self.settled.copy_(state["settled"])
        else:
            self.logits = self.candidates = self.settled = None


def _gathered(words: Tensor, index: Tensor) -> Tensor:
    return words.index_select(0, index.int())


class _Mixed(torch.autograd.Function):
    """sum_j softmax(z)_j C[a_j]: (V, d) of logits (V, n), words (k, d), candidates (V, n)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor, candidates: Tensor) -> Tensor:
        r = torch.softmax(logits, 1)
        ctx.save_for_backward(r, words, candidates)
        out = r[:, :1] * _gathered(words, candidates[:, 0])
        for j in range(1, r.shape[1]):
            out.addcmul_(r[:, j : j + 1], _gathered(words, candidates[:, j]))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        r, words, candidates = ctx.saved_tensors
        to_logits = to_words = None
        if ctx.needs_input_grad[0]:
            each = [(g * _gathered(words, candidates[:, j])).sum(1) for j in range(r.shape[1])]
            dr = torch.stack(each, 1)
            to_logits = r * (dr - (r * dr).sum(1, keepdim=True))
        if ctx.needs_input_grad[1]:
            to_words = torch.zeros_like(words)
            for j in range(r.shape[1]):
                to_words += _added(words, candidates[:, j], g * r[:, j : j + 1])
        return to_logits, to_words, None


class _Looked(torch.autograd.Function):
    """C[a]: (V, d) of words (k, d) and codes (V,)."""

    @staticmethod
    def forward(ctx: Any, words: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(words, codes)
        return _gathered(words, codes)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        words, codes = ctx.saved_tensors
        return _added(words, codes, g), None


def _added(words: Tensor, codes: Tensor, g: Tensor) -> Tensor:
    """Sums of g (V, d) by code, (k, d)."""
    index = codes.long()
    columns = [torch.bincount(index, g[:, i], minlength=len(words)) for i in range(g.shape[1])]
    return torch.stack(columns, 1).to(words.dtype)
