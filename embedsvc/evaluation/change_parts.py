"""What changed, as parts of a page: of an evaluation's, and of a comparison's."""

from collections.abc import Iterator, Mapping

from embedsvc import pages
from embedsvc.evaluation.changes import EntityChange, ListChange, RowChange, VectorDrift


def list_parts(one: ListChange) -> Iterator[str]:
    yield pages.heading(f"Lists for {one.relation}", 3)
    said = [f"{one.num_asked:,} askers"]
    if one.without_old or one.without_new:
        said.append(
            f"{one.without_old:,} have no list in the old one, {one.without_new:,} none in the "
            "new one: 0 in each metric"
        )
    yield pages.note("; ".join(said) + ".")
    rows = [(name, change.difference) for name, change in one.metrics.items()]
    if any(less.low or less.high for _, less in rows):
        yield pages.dots(f"Differences of {one.relation}", rows, zero=True)
    yield pages.table(
        ("", "old", "new", "difference", "p", "adjusted"),
        [
            (
                name,
                *(pages.number(value) for value in (change.old, change.new)),
                pages.spread(change.difference),
                *(pages.number(p) for p in (change.p, change.adjusted)),
            )
            for name, change in one.metrics.items()
        ],
    )
    churn = one.churn
    shares = (churn.set_changed, churn.order_changed)
    set_changed, order_changed = (f"{100 * share:.1f} %" for share in shares)
    yield pages.facts(
        {
            f"top {churn.k} with other entities": f"{set_changed} of {churn.num_lists:,} lists",
            f"top {churn.k} in another order": f"{order_changed}, those included",
            "in both lists / in either": f"{pages.number(churn.jaccard, 3)} (mean Jaccard)",
        }
    )


def entity_parts(
    entities: Mapping[str, EntityChange], vectors: Mapping[str, VectorDrift]
) -> Iterator[str]:
    if not entities:
        return
    yield pages.heading("Entities and their vectors", 3)
    rows = []
    for name, change in entities.items():
        counts = (change.old, change.new, change.appeared, change.vanished)
        drift = vectors[name]
        rows.append((name, *(f"{count:,}" for count in counts), pages.number(drift.cosine, 3)))
    yield pages.table(("", "old", "new", "appeared", "vanished", "mean cosine"), rows)
    yield pages.note(
        "Cosine of an entity's old and new vector, the old ones turned as fits best: fitted on one "
        "half of a sample of those in both, judged on the other."
    )
    for name, drift in vectors.items():
        if drift.why:
            yield pages.note(f"{name}: no cosine, as {drift.why}.")


def row_parts(row: RowChange) -> Iterator[str]:
    yield pages.heading(f"Probabilities of {row.label}")
    units = f"{row.rows:,} rows; intervals draw rows"
    if row.users is not None:
        units = f"{row.rows:,} rows of {row.users:,} users; intervals draw users"
    yield pages.note(f"{units}. A lower log loss is better.")
    rows = row.figures
    yield pages.table(
        ("", "old", "new", "difference"),
        [(name, *map(pages.spread, intervals)) for name, intervals in rows.items()],
    )
    yield pages.dots(
        f"Differences of {row.label}",
        [(name, intervals[2]) for name, intervals in rows.items()],
        zero=True,
    )
    yield pages.facts({"mean change of a probability": pages.number(row.moved)})
