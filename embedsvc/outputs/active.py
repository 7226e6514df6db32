"""Which classes a training step looks at, and what they say about all others.

    active set = targets of the batch + dense frequent head + retrieved + shared samples

The first three are certain, A: whatever is drawn, they are there, for all rows of the batch (the
target of one row is as certain for another). Of n draws with replacement from the chances q of the
tail, those that hit a certain class are dropped, and duplicates are merged: what is left is S. A
class c outside A is in S with the probability

    pi[c] = 1 - (1 - q[c])^n

whatever A is, since A never depends on the draws: that is what conditioning on the certain set
comes to. So with scores z[c] = <w[c], x> + b[c], the Horvitz-Thompson estimate

    Z_hat = sum over A of exp(z[c]) + sum over S of exp(z[c]) / pi[c]

has E[Z_hat] = sum over A + sum over all others of pi[c] exp(z[c]) / pi[c] = Z, exactly and for
every row (the draws must be able to give every class outside A: q > 0). In scores it is the log-Q
correction (Bengio and Senecal 2008, Jean et al. 2015): z[c] - log pi[c] for samples, z[c] for the
rest. log(1 - (1 - q)^n) rather than log(n q), since duplicates are merged.

The loss is log Z_hat - z[target]. Its mean is below the true one by Jensen's gap, about
Var(Z_hat) / (2 Z^2): it closes as head and retriever cover more of the mass, and with 1/n.

correction = "none" takes no logarithm off: the softmax over the active set alone, as the 2015 paper
(arXiv 1412.7479) and SLIDE have it. Then a class pays for every draw as if it were all classes.

Letters: A active classes, B batch, C classes, D dimension, T labels of a row.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.outputs import kernels
from embedsvc.outputs.sampling import Sampler
from embedsvc.outputs.sparse import Active, Ids

Correction = Literal["log_q", "none"]


class Chooser:
    """Chooses the active set.

    order: the class of each rank, the most frequent one first, without removed ones; frequencies:
    as many, by rank. head: how many ranks are looked at in every step; afterwards, which classes.
    """

    def __init__(
        self,
        sampler: Sampler,
        order: Ids,
        frequencies: NDArray[np.float64],
        head: int,
        samples: int,
        correction: Correction,
    ) -> None:
        head = min(head, len(order))
        sampler.fit(frequencies, head)
        self._sampler, self._order = sampler, order
        self._samples, self._correction = samples, correction
        self.head = order[:head]
        self._head_slots = np.empty(0, np.int32)
        self._slots = self._head_slots

    def choose(self, targets: NDArray[np.int64], retrieved: Ids, key: np.uint64) -> Active:
        """targets: [B, T], -1 where there is none; retrieved: none of them removed."""
        ranks, chances = self._sampler.draw(self._samples, key)
        most = len(self.head) + targets.size + len(retrieved) + len(ranks)
        if len(self._slots) < 2 * most:
            self._slots = np.empty(1 << (2 * most - 1).bit_length(), np.int32)
            self._head_slots = np.empty_like(self._slots)
            kernels.fill_slots(self.head, self._head_slots)
        ids, shift = np.empty(most, np.int64), np.empty(most, np.float32)
        at = np.empty(targets.shape, np.int64)
        count = kernels.collect(
            self.head,
            self._head_slots,
            targets,
            retrieved,
            self._order[ranks],
            chances,
            self._samples,
            self._slots,
            ids,
            shift,
            at,
        )
        if self._correction == "none":
            shift[:] = 0
        return Active(ids[:count], shift[:count], at, len(self.head))


def estimate(
    hidden_BD: Tensor, weight_AD: Tensor, bias_A: Tensor | None, shift_A: Tensor, at_BT: Tensor
) -> Tensor:
    """log-probability [B] of each row's targets, by Z_hat; the mean over its labels, 0 if none.

    weight_AD, bias_A: of the active classes; shift_A: log pi, 0 for certain ones. at_BT: places of
    the targets among the active, -1 where there is none. Differentiable in the first three.
    """
    scores = hidden_BD @ weight_AD.T - shift_A
    if bias_A is not None:
        scores = scores + bias_A
    label = scores.gather(1, at_BT.clamp(min=0))
    log_prob = label - scores.logsumexp(1, keepdim=True)
    there = at_BT >= 0
    return torch.where(there, log_prob, 0.0).sum(1) / there.sum(1).clamp(min=1)
