"""What an append must leave as it is: places, relations, attributes, features, times."""

from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.graph import Graph


def check(base: Graph, config: GraphConfig) -> None:
    """DataError where the config would change what the graph has."""
    if config.own_buckets is not None:
        raise DataError(
            "graph.own_buckets can't be appended: they are a whole graph. Import with --replace, "
            "or name what is new under [[graph.inputs]]."
        )
    if base.manifest.partitioning != "hash":
        raise DataError(
            f"{base.path} was partitioned elsewhere, by a rule that is not known here, so new keys "
            "have no partition. Partition the grown graph there, and import it with --replace."
        )
    for name, known in base.entity_types.items():
        if name not in config.entities:
            raise DataError(
                f"{base.path} has entities of type {name}, the config none: an append can't "
                f"take them away. Put [graph.entities.{name}] back."
            )
        entity = config.entities[name]
        if known.num_partitions != entity.partitions:
            raise DataError(
                f"{base.path} has {known.num_partitions} partitions of {name}, the config "
                f"{entity.partitions}: they can't change. Set "
                f"graph.entities.{name}.partitions back, or import anew with --replace."
            )
        _check_attributes(base, config, name)
        features = entity.features.type if entity.features else None
        if known.features != features:
            raise DataError(
                f"{base.path} has {known.features or 'no type'} for the features of {name}, the "
                f"config {features or 'none'}: that can't change. Put "
                f"graph.entities.{name}.features back, or import anew with --replace."
            )
    for relation in base.relations:
        found = config.relations.get(relation.name) or config.relations.get("*")
        if found is None or (found.lhs, found.rhs) != (relation.lhs, relation.rhs):
            raise DataError(
                f"{base.path} has the relation {relation.name} from {relation.lhs} to "
                f"{relation.rhs}, the config another or none: an append can't change it. Put "
                f"[graph.relations.{relation.name}] back, or import anew with --replace."
            )
    timed = {"timestamp" in source.resolved_columns for source in config.inputs}
    if base.has_times is not None and timed != {base.has_times}:
        one, other = ("has", "have none") if base.has_times else ("has no", "have them")
        raise DataError(
            f"{base.path} {one} timestamps and the config's inputs {other}: all of a graph's "
            "edges carry a time or none does. Mend graph.inputs, or import anew with --replace."
        )


def _check_attributes(base: Graph, config: GraphConfig, name: str) -> None:
    old, attributes = base.attributes(name), config.entities[name].attributes
    before = set(old.column_names) if old is not None else set()
    now = set(attributes.columns) - {"key"} if attributes is not None else set()
    if before != now:
        raise DataError(
            f"{base.path} has the attributes {', '.join(sorted(before)) or 'none'} of {name}, "
            f"the config {', '.join(sorted(now)) or 'none'}: they can't change. Put "
            f"[graph.entities.{name}.attributes] back, or import anew with --replace."
        )
