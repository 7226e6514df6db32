"""The exact twin: a batch's loss is what the docstrings say it is, edge by edge."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedsvc.config import ModelConfig
from embedsvc.graph.batches import Batch, Batcher, Group
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.losses import LOSSES, REGULARIZERS
from embedsvc.graph.model import (
    BatchVectors,
    GraphModel,
    RelationParameters,
    _dropped,
    batch_loss,
)
from embedsvc.graph.operators import OPERATORS
from partitions.edges import Edges
from partitions.errors import ConfigError
from partitions.schema import Slot

KINDS = list(product(list(OPERATORS), list(COMPARATORS), list(LOSSES), [False, True]))
# With alpha = 0 the weights of negatives are constants, so that differences of values see them so.
GRADIENT_SPECS = {"self_adversarial": {"name": "self_adversarial", "alpha": 0.0}}
NUM_RELATIONS, NUM_LHS, NUM_RHS = 3, 6, 5
LHS, RHS = Slot("user", 0), Slot("item", 2)


def build(
    operator: str,
    comparator: str,
    loss: Any,
    reciprocal: bool,
    *,
    dim: int = 4,
    regularizer: str | None = None,
) -> GraphModel:
    operators = {operator: OPERATORS.build(operator)}
    return GraphModel(
        dim=dim,
        operators=operators,
        operator_of=(operator,) * NUM_RELATIONS,
        comparator=COMPARATORS.build(comparator),
        loss=LOSSES.build(loss),
        regularizer=REGULARIZERS.build(regularizer) if regularizer else None,
        reciprocal=reciprocal,
        parameters=RelationParameters.initial(operators, NUM_RELATIONS, dim, reciprocal),
    )


def a_batch(
    model: GraphModel,
    *,
    num_edges: int = 11,
    chunk_size: int = 4,
    num_uniform: int = 3,
    weighted: bool = False,
) -> Batch:
    """Few entities, so that chunks repeat them and draw an edge's own end as a negative."""
    rng = np.random.default_rng(num_edges)
    edges = Edges(
        rng.integers(0, NUM_LHS, num_edges).astype(np.uint32),
        rng.integers(0, NUM_RELATIONS, num_edges).astype(np.uint8),
        rng.integers(0, NUM_RHS, num_edges).astype(np.uint32),
        rng.random(num_edges).astype(np.float32) if weighted else None,
    )
    groups = [Group(LHS, RHS, name) for name in model.operator_of]
    batcher = Batcher(
        groups,
        {LHS: NUM_LHS, RHS: NUM_RHS},
        batch_size=100,
        chunk_size=chunk_size,
        num_uniform=num_uniform,
        chunk_by_relation=model.moves_candidates,
    )
    [batch] = batcher.batches(edges, rng)
    return batch


def random_tables(model: GraphModel) -> SimpleNamespace:
    """float64: vectors of both entity types, operator parameters of both directions."""
    generator = torch.Generator().manual_seed(8)
    [operator] = model.operators.values()
    shapes = {
        "lhs": (NUM_LHS, model.dim),
        "rhs": (NUM_RHS, model.dim),
        "forward": (NUM_RELATIONS, operator.num_params(model.dim)),
        "reverse": (NUM_RELATIONS, operator.num_params(model.dim)),
    }
    return SimpleNamespace(
        **{
            name: torch.randn(shape, dtype=torch.float64, generator=generator)
            for name, shape in shapes.items()
        }
    )


def gathered(model: GraphModel, batch: Batch, tables: SimpleNamespace) -> BatchVectors:
    return BatchVectors(
        tables.lhs[batch.lhs_KC],
        tables.rhs[batch.rhs_KC],
        tables.lhs[batch.neg_lhs_KU],
        tables.rhs[batch.neg_rhs_KU],
        tables.forward[batch.rel_KC],
        tables.reverse[batch.rel_KC] if model.reciprocal else None,
    )


def loop_loss(
    plain: SimpleNamespace,
    kind: tuple[str, str, str, bool],
    batch: Batch,
    tables: SimpleNamespace,
    in_batch: bool,
    regularizer: str | None = None,
) -> float:
    """The loss of a batch, one score at a time."""
    operator, comparator, loss, reciprocal = kind
    move, score, cost = (
        plain.operators[operator],
        plain.comparators[comparator],
        plain.losses[loss],
    )
    vector = {name: table.tolist() for name, table in vars(tables).items()}
    total = 0.0
    for chunk in range(len(batch.lhs_KC)):
        real = np.flatnonzero(batch.real_KC[chunk]).tolist()
        for edge in real:
            lhs, rel, rhs = (
                int(part[chunk, edge]) for part in (batch.lhs_KC, batch.rel_KC, batch.rhs_KC)
            )
            forward, reverse = vector["forward"][rel], vector["reverse"][rel]

            def others(drawn: Any, ends: Any, own: int) -> list[int]:
                found = [int(e) for e in drawn[chunk]]  # noqa: B023
                if in_batch:
                    found += [int(ends[chunk, other]) for other in real]  # noqa: B023
                return [e for e in found if e != own]

            moved = move(vector["lhs"][lhs], forward)
            pos = score(moved, vector["rhs"][rhs])
            neg = [
                score(moved, vector["rhs"][e]) for e in others(batch.neg_rhs_KU, batch.rhs_KC, rhs)
            ]
            edge_loss = cost(pos, neg)

            wrong_lhs = others(batch.neg_lhs_KU, batch.lhs_KC, lhs)
            if reciprocal:
                back = move(vector["rhs"][rhs], reverse)
                pos = score(back, vector["lhs"][lhs])
                neg = [score(back, vector["lhs"][e]) for e in wrong_lhs]
            else:
                neg = [
                    score(move(vector["lhs"][e], forward), vector["rhs"][rhs]) for e in wrong_lhs
                ]
            edge_loss += cost(pos, neg)

            if regularizer:
                parts = [vector["lhs"][lhs], vector["rhs"][rhs], forward]
                parts += [reverse] if reciprocal else []
                if operator == "rotate":  # the modulus of a rotation is 1, whatever its angles
                    parts = parts[:2]
                edge_loss += sum(plain.regularizers[regularizer](p) for p in parts if p)
            total += edge_loss * float(batch.weight_KC[chunk, edge])
    return total


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
@pytest.mark.parametrize("in_batch", [False, True], ids=["drawn", "in_batch"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_the_loss_of_a_batch_equals_a_plain_loop(
    kind: tuple[str, str, str, bool], in_batch: bool, weighted: bool, plain: SimpleNamespace
) -> None:
    model = build(*kind)
    batch = a_batch(model, weighted=weighted)
    assert not batch.real_KC.all() and len(batch.lhs_KC) > 1  # padding and several chunks
    tables = random_tables(model)
    found = batch_loss(model, batch, gathered(model, batch, tables), in_batch)
    assert found.item() == pytest.approx(
        loop_loss(plain, kind, batch, tables, in_batch), rel=1e-10, abs=1e-10
    )


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("regularizer", list(REGULARIZERS))
def test_regularized_losses_equal_a_plain_loop(
    regularizer: str, operator: str, reciprocal: bool, plain: SimpleNamespace
) -> None:
    kind = (operator, "dot", "softmax", reciprocal)
    model = build(*kind, regularizer=regularizer)
    batch, tables = a_batch(model, weighted=True), random_tables(model)
    found = batch_loss(model, batch, gathered(model, batch, tables), True)
    assert found.item() == pytest.approx(
        loop_loss(plain, kind, batch, tables, True, regularizer), rel=1e-10
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_the_loss_of_a_batch_has_the_gradient_of_its_values(
    kind: tuple[str, str, str, bool],
) -> None:
    operator, comparator, name, reciprocal = kind
    loss = GRADIENT_SPECS.get(name, name)
    model = build(operator, comparator, loss, reciprocal, dim=2, regularizer="n3")
    batch = a_batch(model, num_edges=3, chunk_size=3, num_uniform=1, weighted=True)
    tables = random_tables(model)
    given = gathered(model, batch, tables)
    # Gradients reach leaves of the batch's own: rows of tables are gathered outside.
    parts = [p for p in vars(given).values() if p is not None and p.numel()]
    names = [n for n, p in vars(given).items() if p is not None and p.numel()]

    def cost(*leaves: Tensor) -> Tensor:
        vectors = BatchVectors(**(vars(given) | dict(zip(names, leaves, strict=True))))
        return batch_loss(model, batch, vectors, True)

    if not model.moves_candidates:
        assert torch.autograd.gradcheck(cost, [p.requires_grad_() for p in parts])
        return
    # A chunk shares its relation here: candidates are moved by the parameters of its first edge,
    # so the parameters enter as one row per relation.
    table = tables.forward.clone().requires_grad_()

    def shared(forward: Tensor, *leaves: Tensor) -> Tensor:
        vectors = dict(zip(names, leaves, strict=False))
        vectors |= {"forward_KCP": forward[batch.rel_KC]}
        return batch_loss(model, batch, BatchVectors(**(vars(given) | vectors)), True)

    leaves = [p.requires_grad_() for n, p in zip(names, parts, strict=True) if n != "forward_KCP"]
    assert torch.autograd.gradcheck(shared, [table, *leaves])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_the_loss_and_its_gradient_are_finite_for_equal_vectors(
    kind: tuple[str, str, str, bool],
) -> None:
    """All distances 0, all scores tied, in float32: what a start at scale 0 would look like."""
    model = build(*kind)
    batch = a_batch(model)
    for value in (0.0, 100.0):
        tables = random_tables(model)
        leaves = SimpleNamespace(
            lhs=torch.full_like(tables.lhs, value).float().requires_grad_(),
            rhs=torch.full_like(tables.rhs, value).float().requires_grad_(),
            forward=tables.forward.float().requires_grad_(),
            reverse=tables.reverse.float().requires_grad_(),
        )
        loss = batch_loss(model, batch, gathered(model, batch, leaves), True)
        loss.backward()
        assert torch.isfinite(loss)
        for leaf in vars(leaves).values():
            assert leaf.grad is None or torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("in_batch", [False, True])
def test_an_edge_whose_every_negative_is_itself_costs_what_it_costs_alone(in_batch: bool) -> None:
    model = build("identity", "dot", "softmax", False)
    batch = a_batch(model, num_edges=1, chunk_size=2, num_uniform=2)
    same = Batch(
        **vars(batch)
        | {
            "neg_lhs_KU": np.repeat(batch.lhs_KC[:, :1], 2, axis=1),
            "neg_rhs_KU": np.repeat(batch.rhs_KC[:, :1], 2, axis=1),
        }
    )
    tables = random_tables(model)
    assert batch_loss(model, same, gathered(model, same, tables), in_batch).item() == 0


@pytest.mark.parametrize("reciprocal", [False, True])
def test_move_applies_each_relations_own_operator(reciprocal: bool, plain: SimpleNamespace) -> None:
    operators = {name: OPERATORS.build(name) for name in OPERATORS}
    parameters = RelationParameters.initial(operators, len(operators), 4, reciprocal)
    generator = torch.Generator().manual_seed(2)
    for values in parameters.values.values():
        values.normal_(generator=generator)
    model = GraphModel(
        4,
        operators,
        tuple(operators),
        COMPARATORS.build("dot"),
        LOSSES.build("softmax"),
        None,
        reciprocal,
        parameters,
    )
    rel = torch.tensor([3, 0, 2, 1, 1, 3, 0, 4, 5, 6, 4])
    x = torch.randn(11, 4, generator=generator)
    for reverse in (False, True) if reciprocal else (False,):
        moved = model.move(x, rel, reverse=reverse)
        for row, r in enumerate(rel.tolist()):
            name = list(operators)[r]
            table = f"{name}.reverse" if reverse else name
            wanted = plain.operators[name](x[row].tolist(), parameters.values[table][r].tolist())
            torch.testing.assert_close(moved[row], torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_the_model_is_built_as_the_config_says(make_graph: Any) -> None:
    edges = {"train": [("a", "likes", "b"), ("a", "owns", "b")]}
    graph = make_graph(edges, {"likes": ("e", "e"), "owns": ("e", "e")})
    config = ModelConfig(
        dim=6,
        operators={"owns": "translation"},
        reciprocal=True,
        comparator={"name": "cos", "scale": 10.0},
        loss={"name": "ranking", "margin": 0.2},
        regularizer={"name": "n3", "weight": 0.5},
    )
    model = GraphModel.build(config, graph)
    assert model.operator_of == ("identity", "translation")
    assert set(model.parameters.values) == {
        "identity", "identity.reverse", "translation", "translation.reverse",
    }  # fmt: skip
    assert model.comparator == COMPARATORS.build({"name": "cos", "scale": 10.0})
    assert model.loss == LOSSES.build({"name": "ranking", "margin": 0.2})
    assert model.regularizer == REGULARIZERS.build({"name": "n3", "weight": 0.5})
    assert not model.moves_candidates
    assert GraphModel.build(config.model_copy(update={"reciprocal": False}), graph).moves_candidates
    assert not GraphModel.build(ModelConfig(), graph).moves_candidates


def test_operators_begin_at_random_where_asked(make_graph: Any) -> None:
    relations = dict.fromkeys(("likes", "owns", "knows"), ("e", "e"))
    graph = make_graph({"train": [("a", name, "b") for name in relations]}, relations)
    config = ModelConfig(dim=1000, operator="complex_diagonal", reciprocal=True)
    still = GraphModel.build(config, graph, 1).parameters.values["complex_diagonal"]
    assert torch.equal(still, torch.tensor([1.0] * 500 + [0.0] * 500).repeat(3, 1))

    config = config.model_copy(update={"operator_init_scale": 0.5})
    values = GraphModel.build(config, graph, 1).parameters.values
    assert sorted(values) == ["complex_diagonal", "complex_diagonal.reverse"]
    for table in values.values():  # 5 sigma of 3,000 numbers
        assert abs(table.mean()) < 5 * 0.5 / 3000**0.5
        assert table.std() == pytest.approx(0.5, rel=5 / 6000**0.5)
    assert not torch.equal(*values.values())
    again, other = (GraphModel.build(config, graph, seed).parameters.values for seed in (1, 2))
    assert torch.equal(again["complex_diagonal"], values["complex_diagonal"])
    assert not torch.equal(other["complex_diagonal"], values["complex_diagonal"])

    one = make_graph({"train": [("a", "owns", "b")]}, {"owns": ("e", "e")})
    alone = GraphModel.build(config, one, 1).parameters.values["complex_diagonal"]
    place = [relation.name for relation in graph.relations].index("owns")
    assert torch.equal(alone[0], values["complex_diagonal"][place])


def test_an_operator_for_an_unknown_relation_is_refused(make_graph: Any) -> None:
    graph = make_graph({"train": [("a", "likes", "b")]}, {"likes": ("e", "e")})
    with pytest.raises(ConfigError, match=r"lieks is not a relation. Did you mean likes\?"):
        GraphModel.build(ModelConfig(operators={"lieks": "diagonal"}), graph)


def test_parameters_come_back_as_they_were_saved() -> None:
    saved, empty = (
        build("diagonal", "dot", "softmax", True),
        build("diagonal", "dot", "softmax", True),
    )
    for table in (*saved.parameters.values.values(), *saved.parameters.state.values()):
        table.normal_()
    empty.parameters.load({name: a.copy() for name, a in saved.parameters.arrays().items()})
    for name, array in saved.parameters.arrays().items():
        assert np.array_equal(empty.parameters.arrays()[name], array)


def test_scores_are_corrected_where_a_batch_tells_expected_counts(plain: SimpleNamespace) -> None:
    model = build("diagonal", "dot", "sampled_softmax", True)
    rng = np.random.default_rng(3)
    batch = a_batch(model, num_edges=3, chunk_size=3, num_uniform=2)
    log_q_lhs, log_q_rhs = (rng.standard_normal((1, 5)).astype(np.float32) for _ in range(2))
    counted = replace(batch, log_q_lhs=log_q_lhs, log_q_rhs=log_q_rhs)
    tables = random_tables(model)
    v = gathered(model, counted, tables)
    sides = (
        (v.lhs_KCD, v.forward_KCP, v.rhs_KCD, v.neg_rhs_KUD, batch.rhs_KC, batch.neg_rhs_KU),
        (v.rhs_KCD, v.reverse_KCP, v.lhs_KCD, v.neg_lhs_KUD, batch.lhs_KC, batch.neg_lhs_KU),
    )
    wanted = 0.0
    for (x, p, true, drawn, ids, drawn_ids), log_q in zip(
        sides, (log_q_rhs, log_q_lhs), strict=True
    ):
        assert p is not None
        vectors, names = torch.cat([true[0], drawn[0]]), [*ids[0], *drawn_ids[0]]
        for c in range(3):
            score = (vectors @ (x[0, c] * p[0, c])).tolist()
            others = [
                s - q for s, q, n in zip(score, log_q[0], names, strict=True) if n != names[c]
            ]
            wanted += plain.losses["softmax"](score[c], others)
    assert batch_loss(model, counted, v, True).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("reciprocal", [False, True])
def test_dropout_depends_on_the_batchs_seed_alone(operator: str, reciprocal: bool) -> None:
    plain = build(operator, "dot", "logistic", reciprocal)
    dropping = replace(plain, dropout=0.5, relation_dropout=0.25)
    batch, tables = a_batch(plain), random_tables(plain)

    def loss(model: GraphModel, seed: int) -> float:
        seeded = replace(batch, seed=seed)
        return batch_loss(model, seeded, gathered(model, seeded, tables), True).item()

    assert loss(dropping, 1) == loss(dropping, 1)
    assert len({loss(dropping, seed) for seed in range(5)}) == 5
    assert loss(plain, 1) == loss(plain, 2)
    assert loss(replace(plain, dropout=1e-9), 1) == pytest.approx(loss(plain, 1))


def test_dropout_keeps_the_mean_of_sums() -> None:
    """A ranking loss far above its hinge is linear in the scores; lhs and rhs drop on their own."""
    linear = {"name": "ranking", "margin": 1e3}
    model = replace(build("diagonal", "dot", linear, True), dropout=0.3, relation_dropout=0.4)
    batch = a_batch(model, num_edges=4)
    tables = random_tables(model)
    v = gathered(model, batch, tables)
    wanted = batch_loss(replace(model, dropout=0, relation_dropout=0), batch, v, False).item()
    found = [batch_loss(model, replace(batch, seed=s), v, False).item() for s in range(4000)]
    error = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(wanted, abs=5 * error)
    assert np.std(found) > 0.1


def test_dropped_angles_turn_nothing_and_the_others_are_kept() -> None:
    model = replace(build("rotate", "dot", "softmax", True), relation_dropout=0.5)
    batch, tables = a_batch(model), random_tables(model)
    v = gathered(model, batch, tables)
    dropped = _dropped(model, batch, v)
    assert torch.equal(dropped.lhs_KCD, v.lhs_KCD)
    kept = dropped.forward_KCP == v.forward_KCP
    assert (dropped.forward_KCP[~kept] == 0).all() and 0.2 < kept.float().mean() < 0.8


def test_relation_weights_are_taken_from_the_config(make_graph: Any) -> None:
    edges = {"train": [("a", "likes", "b"), ("a", "owns", "b")]}
    graph = make_graph(edges, {"likes": ("e", "e"), "owns": ("e", "e")})
    model = GraphModel.build(ModelConfig(relation_weights={"owns": 2.5}), graph)
    assert model.relation_weights is not None and model.relation_weights.tolist() == [1.0, 2.5]
    assert GraphModel.build(ModelConfig(), graph).relation_weights is None
    with pytest.raises(ConfigError, match=r"\[model.relation_weights\] own is not a relation"):
        GraphModel.build(ModelConfig(relation_weights={"own": 2}), graph)
