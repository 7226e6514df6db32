"""LSHSoftmax: a softmax over a million classes whose step looks at a few thousand of them.

    layer = LSHSoftmax(128, 1_000_000, frequencies=counts)
    output, loss = layer(tower(events), next_item)
    loss.backward()                             # the classes learn here, the tower's .grad is set
    scores, items = layer.topk(tower(events), 10)

The idea is that of "Deep Networks With Large Output Spaces" (Vijayanarasimhan et al. 2015, arXiv
1412.7479): only classes that score high matter to the softmax, and an index finds those. Three
things are not the paper's: the most frequent classes are always looked at, samples stand for the
rest so that Z is estimated without bias (active.py), and the index may be a learnt one.

Letters: B batch, C classes, D dimension, K answers, T labels of a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedsvc.outputs import chunked
from embedsvc.outputs.active import Chooser, Correction, estimate
from embedsvc.outputs.chunked import TopK
from embedsvc.outputs.full import FullSoftmax, Products, check_k
from embedsvc.outputs.fused import FusedStep
from embedsvc.outputs.retrievers import RETRIEVERS, Retriever
from embedsvc.outputs.sampling import SAMPLERS, LogUniform, key_of
from embedsvc.outputs.saved import Saved
from embedsvc.outputs.sparse import (
    Active,
    Floats,
    Ids,
    SparseStep,
    Workspace,
)
from partitions.errors import ConfigError, DataError

_TOUCHES_A_CLASS = 8  # before a retriever built of random rows is built of what was learnt


class LSHSoftmax(FullSoftmax):
    """A FullSoftmax whose training step looks at targets, head, retrieved classes and samples.

    head: so many of the most frequent classes are looked at in every step, and in every answer.
    samples: draws a step, of the others, shared by the batch; sampler: None is "unigram", in
    proportion to frequency^0.75, where there are frequencies, and else "log_uniform".
    retriever: proposes classes outside the head, the `retrieved` best of each row of a batch, which
    all rows then look at, and answers topk; None: none are retrieved, and answers are exact.
    train_probes: how hard it looks; None: as hard as a step can afford (`Retriever.hard`).
    frequencies: [C], at least 0, in any unit, of which head and sampler make an order (of equals,
    the lower number first; 0 counts as the least positive one); None: classes are numbered in the
    order of their frequency. correction: "log_q", or "none" for the 2015 behaviour.

    The loss in training is an estimate: log Z_hat for log Z (active.py). In eval mode, and in
    `log_prob`, it is exact. If all classes are looked at, both are the same.
    With one seed, the same calls and as many threads, runs are equal bit for bit.
    fused=False: weight and bias get sparse gradients. On a device other than the CPU, the retriever
    is a scan of all classes there.
    The retriever is built from the weights at its first use, and again when much has been learnt
    since: in training after 8 touches a class, then whenever that number has doubled, and in eval
    mode if it has doubled when an answer is asked for. auto_rebuild=False: only by `rebuild`, which
    whoever changes weights other than by training, loading or adding classes calls in any case.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        *,
        retriever: str | dict[str, Any] | None = "partition",
        head: int = 1024,
        retrieved: int = 12,
        train_probes: int | None = None,
        auto_rebuild: bool = True,
        samples: int = 1024,
        sampler: str | dict[str, Any] | None = None,
        frequencies: Tensor | NDArray[Any] | None = None,
        bias: bool = True,
        fused: bool = True,
        optimizer: str | dict[str, Any] = "rowwise_adagrad",
        lr: float = 0.1,
        products: Products = "float32",
        correction: Correction = "log_q",
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            in_features,
            n_classes,
            bias=bias,
            fused=fused,
            optimizer=optimizer,
            lr=lr,
            products=products,
            threads=threads,
            seed=seed,
        )
        _check(head, retrieved, samples, train_probes, correction)
        _check_sampler(sampler, known=frequencies is not None)
        self.head, self.retrieved, self.samples = head, retrieved, samples
        self.train_probes, self.auto_rebuild = train_probes, auto_rebuild
        self.correction: Correction = correction
        self._settings |= {
            "retriever": retriever,
            "head": head,
            "retrieved": retrieved,
            "train_probes": train_probes,
            "auto_rebuild": auto_rebuild,
            "samples": samples,
            "sampler": sampler,
            "correction": correction,
        }
        self._sampler = sampler
        self._retriever: Retriever | None = None
        self._is_built = False
        self._bound_at, self._bound_rows = 0, 0
        self._pinned: Ids | None = None  # the head that the retriever knows
        if retriever is not None:
            spec = {"name": retriever} if isinstance(retriever, str) else retriever
            self._retriever = RETRIEVERS.build({"seed": seed, **spec})
            self._retriever.threads = self.threads
        self._chooser: Chooser | None = None
        self._touched: list[Active] = []  # by the optimizer of an unfused layer, perhaps
        self._version = 0  # of the weights, as torch counts, which knows of no fused step
        self.register_buffer("num_steps", torch.zeros(1, dtype=torch.int64))
        # Updates of rows outside the head: in all, and before the retriever was last built.
        self.register_buffer("num_touches", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("frequencies", torch.empty(0, dtype=torch.float64))
        self.num_steps: Tensor
        self.num_touches: Tensor
        self.frequencies: Tensor
        if frequencies is not None:
            self.set_frequencies(frequencies)

    @property
    def retriever(self) -> Retriever | None:
        return self._retriever

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, head={self.head}, retrieved={self.retrieved}, "
            f"samples={self.samples}, correction={self.correction}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies, whose rows lie elsewhere, or by chance where these did."""
        return self.__dict__ | {"_bound_at": 0}

    # --- training

    def _log_prob_in_training(self, hidden_BD: Tensor, targets_BT: Tensor) -> Tensor:
        if self.fused:
            return super()._log_prob_in_training(hidden_BD, targets_BT)
        active = self._choose(hidden_BD.detach(), targets_BT.cpu().numpy())
        ids, shift, at = (
            torch.from_numpy(x).to(hidden_BD.device) for x in (active.ids, active.shift, active.at)
        )
        if self._built():
            self._touched.append(active)
        rows = functional.embedding(ids, self.weight, sparse=True)
        bias = None
        if self.bias is not None:
            bias = self.bias.gather(0, ids, sparse_grad=True)
        return estimate(hidden_BD, rows, bias, shift.to(hidden_BD), at)

    def _begin(self, hidden: Floats, targets: NDArray[np.int64], space: Workspace) -> FusedStep:
        active = self._choose(torch.from_numpy(hidden), targets)
        update = self._optimizer.update(self.lr)
        step = SparseStep.begin(
            self._table(), update, self._halves, hidden, active, space, self.threads
        )
        return _Touching(step, self)

    def _choose(self, hidden_BD: Tensor, targets: NDArray[np.int64]) -> Active:
        retrieved = np.empty(0, np.int64)
        if self._retriever is not None and self.retrieved and self.num_live > self.head:
            if hidden_BD.device.type == "cpu":
                if self._has_learnt(_TOUCHES_A_CLASS):
                    self.rebuild()
                retrieved = self._ready(self._retriever).hard(
                    hidden_BD.contiguous().numpy(), self.retrieved, self.train_probes
                )
            else:
                self._is_built = False
                retrieved = self._by_scan(hidden_BD)
        step = int(self.num_steps)
        self.num_steps += 1
        active = self._ranks().choose(targets, retrieved, key_of(self.seed, step))
        self.num_touches[0] += len(active.others)
        return active

    def _has_learnt(self, least: int) -> bool:
        """Whether to build the retriever anew, now that a class has been touched that often."""
        now, before = (int(x) for x in self.num_touches)
        return self.auto_rebuild and now >= max(least * self.num_live, 2 * before)

    def _by_scan(self, hidden_BD: Tensor) -> Ids:
        """What a retriever that misses none would find, wherever the weights are."""
        weight, k = self.weight.detach(), self.retrieved
        found = chunked.topk(hidden_BD, weight, self.bias, self.removed, k).indices
        return np.asarray(found.unique().cpu().numpy())

    def _ranks(self) -> Chooser:
        if self._chooser is None:
            num = self.n_classes
            frequencies = np.arange(num, 0, -1.0)
            order = np.arange(num)
            if len(self.frequencies):
                frequencies = self.frequencies.cpu().numpy()
                order = np.argsort(-frequencies, kind="stable")
                frequencies = frequencies[order]
            if len(self.removed):
                live = self.removed.cpu().numpy()[order] == 0
                order, frequencies = order[live], frequencies[live]
            sampler = "unigram" if len(self.frequencies) else "log_uniform"
            self._chooser = Chooser(
                SAMPLERS.build(self._sampler or sampler),
                order,
                frequencies,
                self.head,
                self.samples,
                self.correction,
            )
        return self._chooser

    def set_frequencies(self, frequencies: Tensor | NDArray[Any]) -> None:
        """Order head and sampler anew; the classes' numbers stay. O(C log C)."""
        if not isinstance(frequencies, Tensor):
            frequencies = torch.from_numpy(np.array(frequencies, np.float64))
        values = frequencies.detach().to("cpu", torch.float64)
        if values.shape != (self.n_classes,) or not bool((values.isfinite() & (values >= 0)).all()):
            raise DataError(
                f"frequencies must be {self.n_classes} finite numbers of at least 0, one a class."
            )
        positive = values[values > 0]
        least = positive.min() if len(positive) else torch.tensor(1.0, dtype=torch.float64)
        self.frequencies = torch.where(values > 0, values, least).to(self.num_steps.device)
        self._chooser = None

    # --- retriever

    def _built(self) -> Retriever | None:
        """The retriever, if there is one to keep up."""
        if self.weight.device.type != "cpu":
            self._is_built = False
        return self._retriever if self._is_built else None

    def _ready(self, retriever: Retriever) -> Retriever:
        """Built, where the weights are now, and with the head pinned."""
        weight, bias = self._rows()
        head = self._ranks().head
        if not self._is_built:
            retriever.fit(weight, bias)
            self.num_touches[1] = self.num_touches[0]
            retriever.remove(np.flatnonzero(self.removed.numpy()))
            self._is_built, self._pinned = True, None
            self._bound_at, self._bound_rows = weight.ctypes.data, len(weight)
            self._version = self.weight._version
        self._bind(retriever)
        if self._pinned is not head:
            retriever.pin(head)
            self._pinned = head
        if self._version != self.weight._version:  # before, an optimizer is still to come
            none = np.empty(0, np.int64)
            ids = np.concatenate([none, *(active.others for active in self._touched)])
            far = np.concatenate([none, *(active.goals for active in self._touched)])
            retriever.touch(np.unique(ids), np.unique(far))
            self._touched, self._version = [], self.weight._version
        return retriever

    def _bind(self, retriever: Retriever) -> None:
        weight, bias = self._rows()
        if self._bound_at != weight.ctypes.data or self._bound_rows != len(weight):
            retriever.rebind(weight, bias)
        self._bound_at, self._bound_rows = weight.ctypes.data, len(weight)

    def _rows(self) -> tuple[Floats, Floats | None]:
        if self.weight.dtype != torch.float32:
            raise ConfigError(f"A retriever works in float32, found {self.weight.dtype}.")
        return self._arrays()

    def rebuild(self) -> None:
        """Build the retriever from scratch."""
        self._is_built, self._touched = False, []
        if self._retriever is not None and self.num_live > self.head:
            self._ready(self._retriever)

    # --- answers

    @torch.no_grad()
    def topk(
        self, hidden: Tensor, k: int, exact: bool = False, candidates: int | None = None
    ) -> TopK:
        """The k classes with the highest scores: [B, k] or [k]; all, if there are no more.

        Of the head and of what the retriever finds for each row, scored exactly; a row for which
        these are fewer than k is answered by a scan. candidates: how many a retriever of hashes
        proposes (default: 8 k, at least 256). exact: of all classes. Scores are <w, x> + b; indices
        are classes. In eval mode, `partition` answers from a copy of the rows.
        """
        check_k(k)
        if candidates is not None and candidates < 1:
            raise DataError(f"candidates is {candidates}; it must be at least 1.")
        if (
            (exact or self._retriever is None)
            or self.num_live <= self.head
            or self.weight.device.type != "cpu"
        ):
            return super().topk(hidden, k)
        hidden_BD = self._checked(hidden).contiguous()
        if not self.training and self._has_learnt(1):
            self.rebuild()
        k = min(k, self.num_live)
        limit = max(256, 8 * k) if candidates is None else candidates
        retriever = self._ready(self._retriever)
        ids, scores = retriever.top(hidden_BD.numpy(), k, limit, settled=not self.training)
        found = TopK(torch.from_numpy(scores), torch.from_numpy(ids))
        if (ids < 0).any():
            short = (found.indices < 0).any(1)
            right = chunked.topk(hidden_BD[short], self.weight, self.bias, self.removed, k)
            found.values[short], found.indices[short] = right
        return TopK(found.values[0], found.indices[0]) if hidden.dim() == 1 else found

    # --- classes come and go

    def add_classes(
        self,
        weights: int | Tensor,
        bias: Tensor | None = None,
        frequencies: Tensor | NDArray[Any] | None = None,
    ) -> range:
        """Append classes, as FullSoftmax does; without frequencies they count as the rarest."""
        if frequencies is not None and not len(self.frequencies):
            raise ConfigError("The other classes have no frequencies: set_frequencies first.")
        before, count = (
            self.frequencies.cpu(),
            weights if isinstance(weights, int) else len(weights),
        )
        new = torch.empty(0)
        if len(before):
            given = before.min().expand(max(count, 0)) if frequencies is None else frequencies
            new = torch.as_tensor(given).to(before)
            if new.shape != (count,) or not bool((new.isfinite() & (new >= 0)).all()):
                raise DataError(
                    f"frequencies must be {count} finite numbers of at least 0, one a new class."
                )
        added = super().add_classes(weights, bias)
        self._chooser = None
        if len(before):
            self.set_frequencies(torch.cat([before, new]))
        if (retriever := self._built()) and len(added):
            self._bind(retriever)
            retriever.add(np.arange(added.start, added.stop))
        return added

    def remove_classes(self, ids: Tensor | Sequence[int]) -> None:
        before = self.removed.cpu().numpy().copy()
        super().remove_classes(ids)
        self._chooser = None
        if retriever := self._built():
            now = self.removed.numpy()
            new = now > before if len(before) else now > 0
            self._bind(retriever)
            retriever.remove(np.flatnonzero(new))

    # --- state

    def get_extra_state(self) -> dict[str, Tensor]:
        """What the retriever keeps; empty before its first use."""
        retriever = self._built()
        if retriever is None:
            return {}
        state = self._ready(retriever).state()
        return {name: torch.from_numpy(array.copy()) for name, array in state.items()}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self._load_retriever({name: tensor.cpu().numpy() for name, tensor in state.items()})

    def _load_retriever(self, state: dict[str, NDArray[Any]]) -> None:
        self._chooser, self._touched, self._is_built = None, [], False
        if state and self._retriever is not None:
            weight, bias = self._rows()
            self._retriever.rebind(weight, bias)
            try:
                self._retriever.load_state(state)
            except KeyError:  # of another retriever: this one is built anew
                return
            self._is_built, self._pinned = True, None
            self._bound_at, self._bound_rows = weight.ctypes.data, len(weight)
            self._version = self.weight._version

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "frequencies" in state_dict:
            self.frequencies = self.frequencies.new_zeros(len(state_dict[prefix + "frequencies"]))
        self._chooser = None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _arrays_to_save(self) -> dict[str, NDArray[Any]]:
        retriever = {f"retriever.{k}": v.numpy() for k, v in self.get_extra_state().items()}
        return super()._arrays_to_save() | retriever

    @classmethod
    def _made_of(cls, saved: Saved, threads: int | None) -> "LSHSoftmax":
        retriever = {
            name.removeprefix("retriever."): array.copy()
            for name, array in saved.arrays.items()
            if name.startswith("retriever.")
        }
        frequencies = saved.arrays["frequencies"]
        layer = cls(
            saved.arrays["weight"].shape[1],
            len(saved.arrays["weight"]),
            frequencies=frequencies if len(frequencies) else None,
            threads=threads,
            **saved.settings,
        )
        layer._take(saved)
        layer._load_retriever(retriever)
        return layer


def _check(
    head: int, retrieved: int, samples: int, train_probes: int | None, correction: str
) -> None:
    for name, number in (("head", head), ("retrieved", retrieved), ("samples", samples)):
        if number < 0:
            raise ConfigError(f"{name} is {number}; it must be at least 0.")
    if train_probes is not None and train_probes < 1:
        raise ConfigError(f"train_probes is {train_probes}; it must be at least 1.")
    if correction not in ("log_q", "none"):
        raise ConfigError(f'correction is {correction!r}; it must be "log_q" or "none".')


def _check_sampler(sampler: str | dict[str, Any] | None, *, known: bool) -> None:
    """known: whether frequencies are."""
    wants = SAMPLERS.build(sampler or "log_uniform")
    if not known and not isinstance(wants, LogUniform):
        raise ConfigError(f"The sampler {sampler} needs frequencies.")


class _Touching:
    """A SparseStep after which the retriever hears which rows have changed."""

    def __init__(self, step: SparseStep, layer: LSHSoftmax) -> None:
        self._step, self._layer = step, layer
        self.log_prob = step.log_prob

    def finish(self, weight: Floats, wanted: bool) -> Floats | None:
        grad = self._step.finish(weight, wanted)
        layer, active = self._layer, self._step.active
        if retriever := layer._built():
            layer._ready(retriever).touch(active.others, active.goals)
        return grad
