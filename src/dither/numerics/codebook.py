"""The ``Codebook`` format: vector quantization of a weight (VQ4DiT, arXiv 2408.17131, section 3).

``d`` consecutive input channels form a sub-vector; each is stored as the index of one of ``k`` codewords, which the
whole layer shares:

    W (N, K) = C[A]     A (N, K / d) indices of ceil(log2 k) bits, packed     C (k, d) float32, or float16 (``half``)

With ``row_scale`` a row is first divided by its root mean square ``s`` (N, 1), and ``W = s C[A]``; the fit then weighs
each sub-vector by ``s^2``, so that it still minimises the squared error of W.

The fit is Lloyd's k-means. Its start draws words with probability proportional to the squared distance to the nearest
word drawn so far (k-means++, Arthur and Vassilvitskii 2007), in at most 64 rounds. It sees at most 256 sub-vectors for
each word, drawn evenly, unless it is told to see all; the final assignment sees all of them.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dither.errors import BadFormat, BadValue
from dither.numerics.checks import require_finite, require_matrix
from dither.numerics.integer import divisor
from dither.numerics.pack import pack, packed_width, unpack
from dither.spec import Codebook

__all__ = [
    "assign",
    "codebook_layout",
    "decode_codebook",
    "encode_codebook",
    "fit_codebook",
    "nearest_words",
    "recode_codebook",
    "sub_vectors",
    "unpack_indices",
    "words_dtype",
]

_ROUNDS = 64
_POINTS_PER_WORD = 256
_CHUNK = 1 << 22  # distances held at once, 16 MiB


def codebook_layout(fmt: Codebook, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K)."""
    rows, count = require_matrix(shape)
    vectors = _vectors(count, fmt)
    if fmt.size > rows * vectors:
        raise BadFormat(f"{fmt}: {fmt.size} words for the {rows * vectors} sub-vectors of a weight of {rows} x {count}")
    out: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "codes": ((rows, packed_width(vectors, fmt.bits)), torch.uint8),
        "codebook": ((fmt.size, fmt.dim), words_dtype(fmt)),
    }
    return {**out, "scale": ((rows, 1), torch.float32)} if fmt.row_scale else out


def words_dtype(fmt: Codebook) -> torch.dtype:
    """What codewords are stored in."""
    return torch.float16 if fmt.half else torch.float32


def encode_codebook(
    w: Tensor, fmt: Codebook, codebook: Tensor | None = None, seed: int = 0, iterations: int = 25, sampled: bool = True
) -> dict[str, Tensor]:
    """Quantize a weight (N, K) to the nearest codewords.

    Args:
        w: the weight.
        fmt: the format.
        codebook: words (size, dim) to use; found by k-means when absent.
        seed: of the k-means start.
        iterations: of Lloyd, at most.
        sampled: fit to an even sample of 256 sub-vectors for each word; otherwise to all.

    Returns:
        ``codes`` uint8 (N, ceil(K / d b / 8)), ``codebook`` float32 or float16 (k, d);
        with row scales also ``scale`` float32 (N, 1).

    Raises:
        BadFormat: not a matrix, a sub-vector length that does not divide K, or a codebook of another shape.
        BadValue: NaN or infinity.
    """
    rows, count = require_matrix(w.shape)
    vectors = _vectors(count, fmt)
    require_finite(w)
    w = w.detach().float()
    scale = w.square().mean(1, keepdim=True).sqrt()  # (N, 1)
    points = sub_vectors(w, fmt, scale if fmt.row_scale else None)
    if codebook is None:
        weights = scale.square().expand(rows, vectors).flatten() if fmt.row_scale else torch.ones_like(points[:, 0])
        codebook = fit_codebook(points, weights, fmt.size, seed, iterations, sampled)
    if tuple(codebook.shape) != (fmt.size, fmt.dim):
        raise BadFormat(f"codebook of shape {tuple(codebook.shape)}: {fmt} needs ({fmt.size}, {fmt.dim})")
    codebook = codebook.to(words_dtype(fmt))
    if not bool(torch.isfinite(codebook).all()):
        raise BadValue(f"{fmt}: a word is too large for float16")
    indices = assign(points, codebook.float())[0].view(rows, vectors)
    out = {"codes": pack(indices, fmt.bits, signed=False), "codebook": codebook}
    return {**out, "scale": scale} if fmt.row_scale else out


def decode_codebook(tensors: Mapping[str, Tensor], fmt: Codebook, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the stored tensors stand for."""
    rows, count = require_matrix(shape)
    indices = unpack_indices(tensors, fmt, count)  # (N, K / d)
    w = tensors["codebook"].float()[indices.long()].view(rows, count)
    return w * tensors["scale"].float() if fmt.row_scale else w


def recode_codebook(w: Tensor, tensors: Mapping[str, Tensor], fmt: Codebook) -> dict[str, Tensor]:
    """The words nearest to w (N, K) under the scales that are stored."""
    indices = assign(sub_vectors(w.float(), fmt, tensors.get("scale")), tensors["codebook"].float())[0]
    return {**tensors, "codes": pack(indices.view(len(w), -1), fmt.bits, signed=False)}


def sub_vectors(w: Tensor, fmt: Codebook, scale: Tensor | None) -> Tensor:
    """What words stand for, (V, d): the sub-vectors of w (N, K), each row by its scale (N, 1) where rows have one."""
    return (w if scale is None else w / divisor(scale.float())).reshape(-1, fmt.dim)


def unpack_indices(tensors: Mapping[str, Tensor], fmt: Codebook, count: int) -> Tensor:
    """Codeword indices (N, K / d) of a weight with K = ``count``: uint8, or int32 above 8 bits."""
    return unpack(tensors["codes"], fmt.bits, _vectors(count, fmt), signed=False)


def assign(points: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest word of each point (P, d) in a codebook (k, d), in chunks: indices int64 (P,), squared distances (P,)."""
    best, index = [], []
    for part, scores in _scored(points, codebook):
        score, i = scores.max(1)
        best.append((part.square().sum(1) - 2 * score).clamp(min=0.0))
        index.append(i)
    return torch.cat(index), torch.cat(best)


def nearest_words(points: Tensor, codebook: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest words of each point (P, d), nearest first, in chunks: int64 and squared distances, (P, count)."""
    best, index = [], []
    for part, scores in _scored(points, codebook):
        score, i = scores.topk(count, 1)
        best.append((part.square().sum(1, keepdim=True) - 2 * score).clamp(min=0.0))
        index.append(i)
    return torch.cat(index), torch.cat(best)


def _scored(points: Tensor, codebook: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of the points (c, d), each with p.c - |c|^2 / 2 (c, k): |p - c|^2 = |p|^2 - 2 (p.c - |c|^2 / 2)."""
    half = codebook.square().sum(1) / 2
    for part in torch.split(points, max(_CHUNK // len(codebook), 1)):
        yield part, torch.addmm(-half, part, codebook.T)


def fit_codebook(
    points: Tensor, weights: Tensor, size: int, seed: int = 0, iterations: int = 25, sampled: bool = True
) -> Tensor:
    """Weighted k-means of points (P, d) with weights (P,) into ``size`` words (size, d).

    With fewer distinct points than words, some words repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    if sampled and len(points) > size * _POINTS_PER_WORD:
        # Evenly spread over the whole weight, with a random offset inside each step: no two draws coincide.
        edges = torch.linspace(0, len(points), size * _POINTS_PER_WORD + 1, dtype=torch.float64)
        offset = torch.rand(len(edges) - 1, generator=generator, dtype=torch.float64)
        keep = (edges[:-1] + offset * edges.diff()).long().clamp(max=len(points) - 1).to(points.device)
        points, weights = points[keep], weights[keep]
    words = _start(points, weights, size, generator)
    before = torch.full((len(points),), -1, device=points.device)
    for _ in range(iterations):
        index, distance = assign(points, words)
        if torch.equal(index, before):
            break
        words = _means(points, weights, index, distance, words)
        before = index
    return words


def _start(points: Tensor, weights: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """k-means++ in rounds: draw words by weighted squared distance, update the distances, draw again."""
    each = -(-size // _ROUNDS)
    distance = torch.ones_like(weights)
    words = points[:0]
    while len(words) < size:
        draw = min(each if len(words) else 1, size - len(words))
        mass = (weights * distance).double().cpu()
        if float(mass.sum()) == 0:  # every point is a word already
            mass = torch.ones_like(mass)
        total = mass.cumsum(0)
        at = torch.rand(draw, generator=generator, dtype=torch.float64) * total[-1]
        chosen = torch.searchsorted(total, at, right=True).clamp(max=len(points) - 1).to(points.device)
        fresh = points[chosen]
        near = assign(points, fresh)[1]
        distance = torch.minimum(distance, near) if len(words) else near
        words = torch.cat([words, fresh])
    return words


def _means(points: Tensor, weights: Tensor, index: Tensor, distance: Tensor, words: Tensor) -> Tensor:
    """One Lloyd update. Words that nobody chose move onto the points that are served worst."""
    mass = torch.zeros(len(words), device=points.device).index_add_(0, index, weights)
    total = torch.zeros_like(words).index_add_(0, index, points * weights[:, None])
    words = torch.where((mass > 0)[:, None], total / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None], words)
    empty = (mass == 0).nonzero()[:, 0]
    if len(empty):
        cost, worst = (weights * distance).topk(min(len(empty), len(points)))
        worst = worst[cost > 0]
        words[empty[: len(worst)]] = points[worst]
    return words


def _vectors(count: int, fmt: Codebook) -> int:
    """Sub-vectors of a row."""
    if count % fmt.dim:
        raise BadFormat(f"sub-vector length {fmt.dim} does not divide the {count} input channels")
    return count // fmt.dim
