"""The start of a Wide & Deep model: what an earlier one learnt of what means the same in both.

A table is copied where its ids mean what they did, a column where its numbers do
(partitions.features.continued), a task by its label. All else begins anew, and is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from embedsvc.ranking.slots import SlotTable
from embedsvc.ranking.wide_deep import Body, WideDeep
from partitions.features import Features
from partitions.features.continued import same_dense, same_slots


@dataclass(frozen=True)
class Known:
    """What two models have in common."""

    slots: frozenset[str]  # whose ids mean the same as far as they go
    dense: frozenset[str]
    tasks: list[tuple[int, int]]  # (task now, the same before)
    left_out: list[str]  # in words

    @classmethod
    def of(
        cls, now: Features, before: Features, labels: list[str], labels_before: list[str]
    ) -> "Known":
        slots, dense = same_slots(now, before), same_dense(now, before)
        tasks = [
            (at, labels_before.index(name))
            for at, name in enumerate(labels)
            if name in labels_before
        ]
        left_out = [f"the label {name} is new" for name in labels if name not in labels_before]
        had = {slot.name for slot in before.layout.slots}
        for slot in now.layout.slots:
            if slot.name not in had:
                left_out.append(f"{slot.name} is new")
            elif slot.name not in slots:
                left_out.append(f"the ids of {slot.name} have another meaning")
        for name in now.layout.dense:
            if name not in before.layout.dense:
                left_out.append(f"the number {name} is new")
            elif name not in dense:
                left_out.append(f"the number {name} has another scale")
        return cls(slots, dense, tasks, left_out)


def start_from(model: WideDeep, earlier: WideDeep, known: Known) -> list[str]:
    """Begin where `earlier` ended. Returns what was not copied, in words."""
    left_out = list(known.left_out)
    before = {table.slot.name: table for table in earlier.slots.tables}
    inputs = set(known.dense)  # of the body, which mean the same
    for table in model.slots.tables:
        if table.slot.name not in known.slots:
            continue
        old = before[table.slot.name]
        _start_weights(table, old, known)
        if not table.dim or not old.dim:
            continue
        if table.dim != old.dim or model.deep.row_optimizer != earlier.deep.row_optimizer:
            what = "width" if table.dim != old.dim else "optimizer"
            left_out.append(f"the embeddings of {table.slot.name} have another {what}")
            continue
        num = min(old.slot.size, table.slot.size)
        # Both or none: a row whose state is all 0 counts as one that training never met.
        table.values[:num], table.state[:num] = old.values[:num], old.state[:num]
        inputs |= {f"{table.slot.name}[{at}]" for at in range(table.dim)}
    _start_numbers(model, earlier, known)
    return left_out + _start_body(model, earlier, known, inputs)


def _start_weights(table: SlotTable, old: SlotTable, known: Known) -> None:
    if not table.wide.shape[1] or not old.wide.shape[1]:
        return
    num = min(old.slot.size, table.slot.size)
    for now, then in known.tasks:
        table.wide[:num, now] = old.wide[:num, then]


def _start_numbers(model: WideDeep, earlier: WideDeep, known: Known) -> None:
    """The wide part's weights of numbers, and its bias."""
    before = {name: at for at, name in enumerate(earlier.wide.dense)}
    for now, then in known.tasks:
        model.bias[:, now] = earlier.bias[:, then]
        for at, name in enumerate(model.wide.dense):
            if name in before and name in known.dense:
                model.wide_dense[at, now] = earlier.wide_dense[before[name], then]


@torch.no_grad()
def _start_body(model: WideDeep, earlier: WideDeep, known: Known, same: set[str]) -> list[str]:
    """Layers of equal form; of the first one the columns of inputs that are the same, of the heads
    the tasks that both have."""
    if not isinstance(model.body, Body) or not isinstance(earlier.body, Body):
        none = model.body is None or earlier.body is None
        return [] if none else ["two towers begin anew"]
    left_out = []
    places = {name: at for at, name in enumerate(earlier.inputs)}
    shared = [
        (at, places[name])
        for at, name in enumerate(model.inputs)
        if name in places and name in same
    ]
    mine, its = (dict(body.named_parameters()) for body in (model.body, earlier.body))
    first = next(iter(mine))
    for name, parameter in mine.items():
        rows = known.tasks if name.startswith("heads.") else _all(len(parameter))
        old = its.get(name)
        if old is None or (not name.startswith("heads.") and len(old) != len(parameter)):
            left_out.append(f"the layers' {name} has another form")
        elif name == first:
            _copy(parameter, old, rows, shared)
        elif parameter.shape[1:] == old.shape[1:]:
            _copy(parameter, old, rows, _all(parameter.shape[1]) if parameter.dim() > 1 else None)
        else:
            left_out.append(f"the layers' {name} has another form")
    return left_out


def _all(num: int) -> list[tuple[int, int]]:
    return [(at, at) for at in range(num)]


def _copy(
    parameter: Tensor,
    old: Tensor,
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]] | None,
) -> None:
    """rows, columns: (place now, place before); None: there are no columns."""
    here, there = _places(rows)
    if columns is None:
        parameter[here] = old[there]
        return
    across, from_across = _places(columns)
    parameter[here[:, None], across] = old[there[:, None], from_across]


def _places(pairs: list[tuple[int, int]]) -> Iterator[Tensor]:
    return (torch.tensor([pair[i] for pair in pairs]).long() for i in (0, 1))
