"""Distances between two batches, and how large they get by chance alone. Pure numpy.

p, q: shares, float64 [k] each, summing to 1 (or all 0). n, m: the sizes of the two batches.

A threshold below the noise would only sound alarms, so each distance has its noise: at least three
times what is expected where nothing drifted, and never reached by chance more than about once in
ten thousand comparisons (tests/partitions/test_drift.py simulates both).
"""

import numpy as np
from numpy.typing import NDArray

_TAIL = 9.0  # exp(-9) = 1.2e-4: how often noise may pass a threshold


def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    total = counts.sum()
    return counts / total if total else np.zeros(len(counts))


def l_infinity(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """max over i of |p[i] - q[i]|."""
    return float(np.abs(p - q).max()) if len(p) else 0.0


def expected_l_infinity(p: NDArray[np.float64], n: float, m: float) -> float:
    """sqrt(2 v ln k (1/n + 1/m)), v = max of p (1 - p): both batches drawn from the shares p.

    The maximum of k normal variables of variance v (1/n + 1/m), as Data Validation for Machine
    Learning (2019) suggests, for two samples. k = 1 gives 0.
    """
    variance = float((p * (1 - p)).max()) if len(p) else 0.0
    return float(np.sqrt(2 * variance * np.log(max(len(p), 1)) * (1 / n + 1 / m)))


def l_infinity_noise(p: NDArray[np.float64], n: float, m: float) -> float:
    """max(3 x expected, 4.5 standard errors of the largest share) + 4 / min(n, m).

    The second term is for few values, where three times the mean is no rare event; the last for
    values seen a handful of times, which are not normal.
    """
    if not n or not m:
        return 1.0
    variance = float((p * (1 - p)).max()) if len(p) else 0.0
    spread = 4.5 * float(np.sqrt(variance * (1 / n + 1 / m)))
    return min(1.0, max(3 * expected_l_infinity(p, n, m), spread) + 4 / min(n, m))


def jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p || mid) / 2 + KL(q || mid) / 2 in bits, mid = (p + q) / 2: from 0 to 1."""
    mid = (p + q) / 2
    total = 0.0
    for one in (p, q):
        some = one > 0
        total += float(np.sum(one[some] * np.log2(one[some] / mid[some]))) / 2
    return max(total, 0.0)


def expected_jensen_shannon(k: int, n: float, m: float) -> float:
    """(k - 1) (1/n + 1/m) / (8 ln 2) bits, k bins in use, nothing drifted.

    For p and q close to each other, KL(p || mid) = sum of (p - mid)^2 / (2 mid) nats to second
    order, and p - mid = (p - q) / 2 = mid - q, so JS = sum of (p - q)^2 / (8 mid). Under no drift
    E (p - q)^2 = mid (1 - mid) (1/n + 1/m), and sum of (1 - mid) = k - 1.
    """
    return max(k - 1, 0) * (1 / n + 1 / m) / (8 * np.log(2))


def jensen_shannon_noise(k: int, n: float, m: float) -> float:
    """The larger of 3 x expected and the 1 - e^-9 quantile; k: bins in use.

    8 ln 2 JS / (1/n + 1/m) is chi-squared with d = k - 1 degrees of freedom, which exceeds
    d + 2 sqrt(d x) + 2 x with probability at most e^-x (Laurent and Massart 2000, lemma 1).
    """
    if not n or not m:
        return 1.0
    free = max(k - 1, 0)
    tail = free + 2 * np.sqrt(free * _TAIL) + 2 * _TAIL
    scale = (1 / n + 1 / m) / (8 * np.log(2))
    return min(1.0, max(3 * expected_jensen_shannon(k, n, m), float(tail * scale)))


def share_noise(share: float, n: float, m: float) -> float:
    """4.5 standard errors of the difference of two shares of n and m rows, + 4 / min(n, m)."""
    if not n or not m:
        return 1.0
    return min(1.0, 4.5 * float(np.sqrt(share * (1 - share) * (1 / n + 1 / m))) + 4 / min(n, m))


def most_likely(count: int, rows: int) -> float:
    """The largest share of rows that a batch with so many exceptions is likely to be drawn from:
    (count + 2.5 sqrt(count) + 4) / rows. None seen does not mean that there are none."""
    return min(1.0, (count + 2.5 * float(np.sqrt(count)) + 4) / rows) if rows else 0.0


def exceeds(count: int, rows: int, allowed: float) -> bool:
    """Whether so many exceptions are more than the share allowed explains in that many rows: three
    standard errors and one row beyond it. A share of 0 allows none."""
    expected = allowed * rows
    return count > expected + 3 * float(np.sqrt(expected)) + (1 if expected else 0)


# --- batches of different size ------------------------------------------------------------------
#
# Degrees, distinct keys and duplicates all grow with the size of a batch. So the larger batch is
# thinned to the smaller one's size: each row kept with probability `keep`, in expectation and so
# without any drawing. What had degree c then has a binomial one.


def _thinned(count: int, keep: float) -> NDArray[np.float64]:
    """float64 [count + 1]: the probabilities of Binomial(count, keep)."""
    if keep >= 1:
        return np.eye(1, count + 1, count)[0]
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    j = np.arange(count + 1)
    log_p = logs[-1] - logs - logs[::-1] + j * np.log(keep) + (count - j) * np.log1p(-keep)
    return np.exp(log_p)


NUM_DEGREE_BINS = 40
_SURE = (
    4096  # such degrees are taken to become count x keep: exact sums would cost time for nothing
)


def degree_histogram(counts: NDArray[np.int64], keep: float = 1.0) -> NDArray[np.float64]:
    """float64 [40]: how many keys have degree 2^b to 2^(b+1) - 1 once thinned; 0 counts nowhere."""
    out = np.zeros(NUM_DEGREE_BINS)
    for count, times in zip(*np.unique(counts, return_counts=True), strict=True):
        if keep >= 1 or count >= _SURE:
            size = count * keep
            if size >= 1:
                out[int(np.log2(size))] += times
            continue
        p = _thinned(int(count), keep)
        bins = np.log2(np.arange(1, count + 1)).astype(np.int64)
        out += times * np.bincount(bins, p[1:], minlength=NUM_DEGREE_BINS)
    return out


def thinned_distinct(counts: NDArray[np.int64], keep: float) -> float:
    """How many of the keys with these counts are left: sum of 1 - (1 - keep)^count."""
    return float(np.sum(-np.expm1(counts * np.log1p(-min(keep, 1 - 1e-16)))))


def duplicate_share(counts: NDArray[np.int64], keep: float = 1.0) -> float:
    """The share of rows that repeat an earlier one, of distinct rows with these counts."""
    rows = keep * float(counts.sum())
    distinct = float(len(counts)) if keep >= 1 else thinned_distinct(counts, keep)
    return max(0.0, 1 - distinct / rows) if rows else 0.0


def duplicate_error(counts: NDArray[np.int64]) -> float:
    """Standard error of duplicate_share where `counts` are a sample of the distinct rows."""
    if len(counts) < 2:
        return 1.0
    mean = float(counts.mean())
    return float(counts.std() / np.sqrt(len(counts)) / mean**2)
