"""evaluation.html of a ranker: how well its probabilities are ordered, whether they mean what they
say, for whom, and what changed since the live version."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedsvc import pages
from embedsvc.evaluation import changes
from embedsvc.evaluation.change_parts import row_parts
from embedsvc.evaluation.clicks import Clicks
from embedsvc.evaluation.compare import clicks_of_version, opened
from embedsvc.evaluation.rankers import USER_BINS
from embedsvc.evaluation.significance import Interval
from embedsvc.ranking.config import RankerConfig
from embedsvc.training import report as training_report
from embedsvc.training.ledger import read_records
from partitions import durable, published
from partitions.errors import InputError


@dataclass(frozen=True)
class Evaluated:
    """result: what evaluation.json holds; clicks: by label; config: of the run as it is now."""

    result: Mapping[str, Any]
    clicks: Mapping[str, Clicks]
    config: RankerConfig


def write(path: Path, title: str, found: Evaluated, live: Path) -> Path:
    """live: the folder of published versions, whether or not there are any."""
    with durable.replacing(path) as file:
        file.write(page(title, found, live, path.parent).encode())
    return path


def page(title: str, found: Evaluated, live: Path, checkpoint: Path) -> str:
    """checkpoint: the folder whose metrics.jsonl has what was measured between epochs."""
    parts = [pages.facts(_summary(found))]
    for label, one in found.result["labels"].items():
        parts += _label_parts(label, one, found.clicks[label].user is not None)
    measured = checkpoint / "metrics.jsonl"
    if measured.exists():
        parts += training_report.validation_plots(read_records(measured))
    parts += _drift_parts(found, live)
    return pages.page(title, parts)


def _summary(found: Evaluated) -> dict[str, str]:
    result, config = found.result, found.config
    facts = {
        "judged by": f"{result['rows']:,} {result['split']} rows",
        "labels": ", ".join(result["labels"]),
        "features": f"{len(config.features):,}, and {len(config.crosses):,} crosses",
        "calibration": config.calibration,
        "intervals draw": "rows" if config.user is None else f"users, by {config.user}",
        "checkpoint": str(result["checkpoint"])[:12],
    }
    unknown = {
        label: result["rows"] - one["rows"]
        for label, one in result["labels"].items()
        if one["rows"] < result["rows"]
    }
    if unknown:
        said = (f"{count:,} rows without {label}" for label, count in unknown.items())
        facts["left out"] = ", ".join(said)
    return facts


def _label_parts(label: str, one: Mapping[str, Any], has_users: bool) -> Iterator[str]:
    yield pages.heading(label)
    auc = pages.number(one["auc"])
    if "auc_low" in one:
        auc = pages.spread(Interval(one["auc"], one["auc_low"], one["auc_high"]))
    facts = {
        "rows": f"{one['rows']:,}, of which {one['positives']:,} are ones",
        "AUC": auc,
        "log loss": f"{pages.number(one['log_loss'])}; of saying the share of ones of every row "
        f"{pages.number(one['log_loss_of_share'])}",
        "mean probability / share of ones": pages.number(one["calibration"]),
        "expected calibration error": pages.number(one["ece"]),
    }
    if has_users:
        facts["AUC within users"] = (
            f"{pages.number(one['gauc'])}, of {one['gauc_users']:,} users with both, by rows"
        )
    yield pages.facts(facts)
    curve = one["curve"]
    bins = [
        pages.Bin(said, happened, round(weight))
        for said, happened, weight in zip(*curve.values(), strict=True)
    ]
    yield pages.calibration_plot(f"Calibration of {label}", bins)
    counts = one.get("auc_by_user", [])
    if sum(counts):
        yield pages.heading(f"Users by their AUC of {label}", 3)
        width = 1 / USER_BINS
        first = next(at for at, count in enumerate(counts) if count)
        rows = [
            (f"{at * width:.2f} to {(at + 1) * width:.2f}", float(count))
            for at, count in enumerate(counts)
        ]
        yield pages.bars(rows[first:], digits=0)


def _drift_parts(found: Evaluated, live: Path) -> Iterator[str]:
    if not (live / published.CURRENT).exists():
        return
    yield pages.heading("Since the live version")
    try:
        version = opened(live, "")
        made_of, result = version.metrics(), found.result
        if all(made_of.get(name) == result[name] for name in ("checkpoint", "calibration")):
            yield pages.note(f"{version.name} is live, and was made of this checkpoint.")
            return
        if not version.is_ranker:
            yield pages.note(f"{version.name} is no ranker.")
            return
        before = clicks_of_version(version, found.config, str(result["split"]))
    except InputError as error:
        yield pages.note(f"Nothing can be said of it: {error}")
        return
    created = version.version.manifest.created
    yield pages.note(f"{version.name}, published {created}, asked about the same rows.")
    for label, now in found.clicks.items():
        if label not in before:
            yield pages.note(f"{version.name} does not know the label {label}.")
        elif now.weight.sum() > 0:
            yield from row_parts(changes.row_change(label, before[label], now))
