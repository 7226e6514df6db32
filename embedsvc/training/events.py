"""What `[output]` learns from: sequences of a graph's entities, and examples made of them.

The classes are the rhs entities of one relation. Those on its other side, if they are of another
type, are who asks (askers.py).
"""

from dataclasses import dataclass, replace
from typing import Protocol

from embedsvc.config import OutputConfig
from embedsvc.ranking.examples import EXAMPLES, Examples, NextItem
from embedsvc.ranking.sequences import Sequences, histories, walks
from embedsvc.training.asker_features import check_features
from partitions.errors import ConfigError, DataError, did_you_mean
from partitions.graph import Graph
from partitions.registry import Registry
from partitions.schema import RelationType


class Source(Protocol):
    """Sequences of a relation's rhs. The constructor's arguments are the config keys."""

    def num_items(self, graph: Graph, relation: RelationType) -> tuple[int, int]:
        """At most so many sequences, and items in all of them."""

    def read(self, graph: Graph, relation: RelationType, seed: int) -> Sequences: ...


SEQUENCES: Registry[Source] = Registry("kind of sequences")


@SEQUENCES.add("histories")
@dataclass(frozen=True)
class Histories:
    """The rhs of each lhs, in the order of time."""

    def num_items(self, graph: Graph, relation: RelationType) -> tuple[int, int]:
        rel = graph.relation_id(relation.name)
        num_edges = graph.manifest.relation_edges["train"][rel]
        return graph.num_entities(relation.lhs), num_edges

    def read(self, graph: Graph, relation: RelationType, seed: int) -> Sequences:
        return histories(graph, relation.name)


@SEQUENCES.add("walks")
@dataclass(frozen=True)
class Walks:
    """Random walks from each class along the relation, or along all of the graph's; classes that
    they pass are kept."""

    length: int = 40  # nodes, the start included
    per_entity: int = 10  # walks
    all_relations: bool = False

    def __post_init__(self) -> None:
        if self.length < 2 or self.per_entity < 1:
            raise ConfigError(
                f"walks: expected length of 2 or more and per_entity of 1 or more, found "
                f"{self.length} and {self.per_entity}."
            )

    def num_items(self, graph: Graph, relation: RelationType) -> tuple[int, int]:
        num = graph.num_entities(relation.rhs) * self.per_entity
        return num, num * self.length

    def read(self, graph: Graph, relation: RelationType, seed: int) -> Sequences:
        names = None if self.all_relations else [relation.name]
        return walks(graph, names, relation.rhs, self.length, self.per_entity, seed)


@dataclass(frozen=True)
class Events:
    relation: RelationType
    examples: Examples
    sequences: Sequences
    num_examples: int

    @property
    def classes(self) -> str:
        """The entity type."""
        return self.relation.rhs

    @staticmethod
    def read(graph: Graph, output: OutputConfig, seed: int) -> "Events":
        relation = relation_of(graph, output)
        examples: Examples = EXAMPLES.build(output.examples)
        if output.features and isinstance(examples, NextItem):
            examples = replace(examples, first=True)  # what is known of him before all events
        source = SEQUENCES.build(output.sequences)
        sequences = source.read(graph, relation, seed)
        num_examples = examples.num_examples(sequences)
        if not num_examples:
            raise DataError(
                f"{graph.path} has no sequence of {relation.name} longer than 1 in its training "
                "edges: nothing follows anything. Import more, lower graph.holdout, or set "
                "output.sequences to walks."
            )
        return Events(relation, examples, sequences, num_examples)


def relation_of(graph: Graph, output: OutputConfig) -> RelationType:
    """The one that is learnt. ConfigError or DataError where it can't be."""
    names = [relation.name for relation in graph.relations]
    name = output.relation
    if name is None and len(names) > 1:
        raise ConfigError(f"[output] relation is missing: choose one of {', '.join(names)}.")
    name = names[0] if name is None else name
    if name not in names:
        raise ConfigError(
            f"[output] names the relation {name}, which {graph.path} does not have. "
            f"{did_you_mean(name, names)}"
        )
    relation = graph.relations[names.index(name)]
    for end in (relation.lhs, relation.rhs):
        if graph.entity_types[end].features is not None:
            raise ConfigError(
                f"[output] does not cover entities made of features, as {end} is: remove "
                f"graph.entities.{end}.features, or [output]."
            )
    if graph.num_entities(relation.rhs) < 2:
        raise DataError(
            f"{graph.path} has {graph.num_entities(relation.rhs)} {relation.rhs} entities: a "
            "softmax chooses among at least 2."
        )
    check_features(graph, relation, output.features)
    return relation
