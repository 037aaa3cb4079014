"""Inception Score of class logits, by the convention of ADM's evaluator, with its standard error.

    IS = exp( mean_i KL(p_i || q) ),     p_i = softmax(logits_i),  q = mean_i p_i        (Salimans 2016, arXiv 1606.03498)

ADM (arXiv 2105.05233) cuts the pictures into splits of 5000 in file order, without a shuffle, and gives the mean over
splits; its logits are those of the 2015 Inception *without* the bias of the last layer, which is the extractor's affair.
A shorter last split counts as much as a whole one there, so here it must itself hold enough pictures.

**Standard error.** log IS = H(q) - mean_i H(p_i), so the influence of picture i on log IS is exactly KL_i - mean KL. By
the delta method, with S splits of n_s pictures and N in all,

    IF_i = N / (S n_s) IS_s (KL_i - mean_s KL),        SE = sd(IF) / sqrt(N)

and two sets drawn from the same seeds are compared by the spread of the difference of their influences.

**Bias.** q is estimated from the same pictures, so E[log IS_n] = log IS - b/n with b = (sum_k E[p_k^2] / q_k - 1) / 2, at
most (K - 1) / 2 for K classes. `inception_score` keeps it, as the field does; `inception_score_difference` removes it.

**Too few.** A split needs 10 pictures a class, but never more than ADM's 5000: the bias of log IS is then below 0.05, or 0.1
for the 1000 classes of ImageNet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from dither.errors import BadValue
from dither.evaluation.checks import TooFewSamples, feature_rows
from dither.evaluation.protocol import Float64

__all__ = ["SPLIT", "InceptionScore", "inception_score", "inception_score_difference", "pictures_needed"]

SPLIT = 5000
PER_CLASS = 10


@dataclass(frozen=True)
class InceptionScore:
    """Mean and population standard deviation over splits, and the standard error of the mean by the delta method."""

    mean: float
    std: float
    se: float
    splits: int


@dataclass(frozen=True)
class _Split:
    score: float
    log_bias: float  # how far E[log score] lies below the truth, to first order
    divergences: Float64  # KL_i - mean KL (n,)


def pictures_needed(classes: int) -> int:
    """Fewest pictures of a split whose score means anything with this number of classes."""
    return min(SPLIT, PER_CLASS * classes)


def inception_score(logits: npt.NDArray[Any], *, split: int = SPLIT) -> InceptionScore:
    """Inception Score of class logits (N, K), in splits of `split` pictures in the order given.

    Raises:
        TooFewSamples: a split holds fewer than `pictures_needed(K)` pictures.
    """
    splits = list(_splits(logits, split))
    scores = np.array([part.score for part in splits])
    influences = _influences(splits)
    se = float(influences.std(ddof=1) / np.sqrt(len(influences)))
    return InceptionScore(float(scores.mean()), float(scores.std()), se, len(splits))


def inception_score_difference(
    quantized: npt.NDArray[Any], full: npt.NDArray[Any], *, split: int = SPLIT
) -> tuple[float, float]:
    """Score of `quantized` minus score of `full` (N, K), without their 1/n bias, and its paired standard error.

    Row i of both comes from the same seed.
    """
    if quantized.shape != full.shape:
        raise BadValue(f"logits of shape {quantized.shape} and {full.shape} cannot be paired.")
    ours, theirs = list(_splits(quantized, split)), list(_splits(full, split))
    difference = np.mean([_unbiased(a) - _unbiased(b) for a, b in zip(ours, theirs, strict=True)])
    influences = _influences(ours) - _influences(theirs)
    return float(difference), float(influences.std(ddof=1) / np.sqrt(len(influences)))


def _splits(logits: npt.NDArray[Any], split: int) -> Iterator[_Split]:
    classes = logits.shape[1] if logits.ndim == 2 else 1
    needed = pictures_needed(classes)
    if split < needed:
        raise BadValue(f"a split of {split} pictures is too small for {classes} classes: it needs {needed}.")
    if classes < 2:
        raise BadValue(f"the Inception Score needs logits of shape (N, K >= 2), got {logits.shape}.")
    for start in range(0, max(len(logits), 1), split):
        part = logits[start : start + split]
        if start and len(part) < needed:
            raise TooFewSamples(
                f"the Inception Score's last split holds {len(part)} of {len(logits)} samples and needs at least {needed}: "
                f"take a multiple of {split}."
            )
        yield _measure(feature_rows(part, "the Inception Score", needed))


def _measure(logits: Float64) -> _Split:
    log_p = special.log_softmax(logits, axis=1)  # (n, K)
    log_q = special.logsumexp(log_p, axis=0) - np.log(len(log_p))  # (K,)
    p, ratio = np.exp(log_p), log_p - log_q
    divergences = np.sum(p * ratio, axis=1)  # (n,)
    spread = np.sum(p * np.exp(ratio), axis=1).mean() - 1  # sum_k E[p_k^2] / q_k - 1
    mean = divergences.mean()
    return _Split(float(np.exp(mean)), float(spread / (2 * (len(p) - 1))), divergences - mean)


def _influences(splits: list[_Split]) -> Float64:
    total = sum(len(part.divergences) for part in splits)
    weights = [total / (len(splits) * len(part.divergences)) for part in splits]
    return np.concatenate([w * part.score * part.divergences for w, part in zip(weights, splits, strict=True)])


def _unbiased(part: _Split) -> float:
    """Score without the bias of q, and without that of exp, which is convex, of a mean with a spread."""
    variance = part.divergences.var(ddof=1) / len(part.divergences)
    return float(part.score * np.exp(part.log_bias - variance / 2))
