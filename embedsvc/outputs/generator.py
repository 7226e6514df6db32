"""Classes whose right answers are known: for tests and benchmarks of large outputs.

Class c has a mean mu_c, a direction of length 1, and a probability p_c. An example of it is
x = mu_c + noise, normal with variance sigma^2 = noise^2 / D in each coordinate, so that the
noise's length is about `noise`. The posterior of the class is then exactly a softmax of

    <w_c, x> + b_c,   w_c = mu_c / sigma^2,   b_c = log p_c - |mu_c|^2 / (2 sigma^2),

so these are the weights that training on endless examples ends with. After finitely many, rare
classes are not yet there: `seen` examples, n_c = p_c * seen of them of class c, shrink w_c by
n_c / (n_c + 1), and what an average query of the class loses by that is taken off the bias too.

With clusters, means are leaves of a tree: every node is its parent plus a step of its own, the
leaves' steps being the shortest, and nodes have unequally many children, since data does. A tree
suits a partition; without clusters, means are independent directions, which suits none.
Frequencies are Zipf's (in an order that has nothing to do with the tree), or flat.

Letters: C classes, D dimension, N examples.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Frequencies = Literal["zipf", "flat"]

_CHUNK = 65_536  # rows worked on at a time: 32 MB at D = 128


@dataclass(frozen=True)
class Generator:
    """The same for the same settings, on any machine of one numpy version."""

    num_classes: int
    dim: int = 128
    frequencies: Frequencies = "zipf"
    clusters: bool = True
    noise: float = 1.0
    seen: float | None = None  # examples; unset: endless
    exponent: float = 1.0  # of Zipf's law
    levels: int = 3  # of the tree; the last one is of leaves
    seed: int = 0

    @cached_property
    def probability_C(self) -> Floats:
        """Adds up to 1."""
        if self.frequencies == "flat":
            return np.full(self.num_classes, 1 / self.num_classes, np.float32)
        weight = 1 / np.arange(1, self.num_classes + 1, dtype=np.float64) ** self.exponent
        self._rng(0).shuffle(weight)
        return (weight / weight.sum()).astype(np.float32)

    @cached_property
    def mean_CD(self) -> Floats:
        """Of length 1."""
        rng = self._rng(1)
        parents = np.zeros((1, self.dim), np.float32)
        levels = self.levels if self.clusters else 1
        for level in range(1, levels + 1):
            leaves = level == levels
            count = self.num_classes if leaves else round(self.num_classes ** (level / levels))
            shares = rng.gamma(2.0, size=len(parents))
            parent = rng.choice(len(parents), count, p=shares / shares.sum())
            nodes = np.empty((count, self.dim), np.float32)
            for begin in range(0, count, _CHUNK):
                chunk = nodes[begin : begin + _CHUNK]
                rng.standard_normal(out=chunk, dtype=np.float32)
                chunk *= np.float32(0.8 ** (level - 1) / self.dim**0.5)
                chunk += parents[parent[begin : begin + _CHUNK]]
                if leaves:
                    chunk /= np.linalg.norm(chunk, axis=1, keepdims=True)
            parents = nodes
        return parents

    def weights(self) -> tuple[Floats, Floats]:
        """weight float32 [C, D] and bias float32 [C], as trained."""
        precision = np.float32(self.dim / self.noise**2)
        kept_C = np.ones(self.num_classes, np.float32)
        if self.seen is not None:
            count_C = self.probability_C * np.float32(self.seen)
            kept_C = count_C / (count_C + 1)
        weight_CD = self.mean_CD * (kept_C * precision)[:, None]
        bias_C = np.log(self.probability_C) - kept_C * (precision / 2)
        return weight_CD, bias_C

    def examples(self, num: int, seed: int = 0) -> tuple[Floats, Ids]:
        """x float32 [N, D] and their classes int64 [N]; another seed gives others."""
        rng = self._rng(2, seed)
        bounds = self._cumulative_C
        target_N = np.searchsorted(bounds, rng.random(num) * bounds[-1], side="right")
        target_N = np.minimum(target_N, self.num_classes - 1).astype(np.int64)
        x_ND = rng.standard_normal((num, self.dim), np.float32)
        x_ND *= np.float32(self.noise / self.dim**0.5)
        x_ND += self.mean_CD[target_N]
        return x_ND, target_N

    @cached_property
    def _cumulative_C(self) -> NDArray[np.float64]:
        return np.cumsum(self.probability_C, dtype=np.float64)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


def exact_top(
    weight_CD: Floats, bias_C: Floats | None, query_QD: Floats, k: int
) -> tuple[Ids, Floats]:
    """The k best classes of each query, best first, and their scores: [Q, min(k, C)] each.

    All classes are scored, a chunk of them at a time: never more than 2^25 scores in memory.
    """
    query = torch.from_numpy(query_QD)
    num_classes = len(weight_CD)
    k = min(k, num_classes)
    chunk = max(1, 2**25 // max(1, len(query_QD)))
    scores, ids = [], []
    for begin in range(0, num_classes, chunk):
        part = query @ torch.from_numpy(weight_CD[begin : begin + chunk]).T
        if bias_C is not None:
            part += torch.from_numpy(bias_C[begin : begin + chunk])
        best, place = part.topk(min(k, part.shape[1]))
        scores.append(best)
        ids.append(place + begin)
    best, place = torch.cat(scores, 1).topk(k)
    return torch.cat(ids, 1).gather(1, place).numpy(), best.numpy()
