"""A version's model card: what it was made of, how good it is, what the gate said of it.

card.json has all of it; CARD.md is the same for people.
"""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from embedsvc.config import ModelConfig, OutputConfig, TrainConfig
from embedsvc.evaluation.gate import Decision
from partitions import durable
from partitions.graph import Graph

FORMAT_VERSION = 1
CARD, PAGE = "card.json", "CARD.md"
_SOFTWARE = ("embedsvc", "torch", "numpy", "numba", "pyarrow", "faiss-cpu", "onnxruntime")
_NO_FIGURES = ("settings", "by_relation", "by_degree", "through")
_BIG = 20  # more sources than that are counted on the page


def files(
    name: str,
    created: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    decision: Decision,
) -> dict[str, bytes]:
    """By path. data: `data_of` a graph, or what a ranker's rows are; metrics: as embedsvc eval left
    them, empty where it did not run."""
    card = durable.without_nan(_card(name, created, data, settings, metrics, decision))
    return {CARD: durable.json_bytes(card), PAGE: _page(card, decision).encode()}


def data_of(graph: Graph) -> dict[str, Any]:
    manifest = graph.manifest
    return {
        "graph_digest": graph.digest,
        "entities": {name: graph.num_entities(name) for name in graph.entity_types},
        "edges": {
            split: {
                relation.name: counts[at]
                for at, relation in enumerate(manifest.relations)
                if counts[at]
            }
            for split, counts in manifest.relation_edges.items()
        },
        "skipped_rows": manifest.skipped_rows,
        "sources": [
            {key: source[key] for key in ("path", "bytes", "sha256") if key in source}
            for source in manifest.sources
        ],
    }


def _card(
    name: str,
    created: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    decision: Decision,
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": (settings.get("run") or {}).get("dir", ""),
        "version": name,
        "created": created,
        "data": dict(data),
        "config_digest": hashlib.sha256(durable.json_bytes(settings)).hexdigest(),
        "settings": _differing(settings),
        "seeds": dict(_seeds(settings)),
        "software": _software(),
        "metrics": dict(metrics),
        "gate": decision.as_json(),
    }


def _differing(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What of the model and its training is not the default."""
    from embedsvc.ranking.config import RankerConfig  # which brings torch along

    tables = {"model": ModelConfig, "output": OutputConfig, "train": TrainConfig}
    found = {}
    for table, model in {**tables, "ranker": RankerConfig}.items():
        default = model().model_dump(mode="json")
        given = settings.get(table) or {}
        found[table] = {key: part for key, part in given.items() if part != default.get(key)}
    return {table: part for table, part in found.items() if part}


def _seeds(settings: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, int]]:
    for key, part in settings.items():
        if key == "seed":
            yield f"{where}{key}", part
        elif isinstance(part, Mapping):
            yield from _seeds(part, f"{where}{key}.")


def _software() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # another build of it has another name
            continue
    return found


# --- the page -------------------------------------------------------------------------------------


def _page(card: Mapping[str, Any], decision: Decision) -> str:
    lines = [f"# {card['name']} {card['version']}", "", f"Made {card['created']}.", ""]
    lines += ["## The gate", "", *_gate(decision), ""]
    lines += ["## How good it is", "", *_metrics(card["metrics"]), ""]
    lines += ["## Data", "", *_data(card["data"]), ""]
    lines += ["## Settings", "", f"- config.json has sha256 {card['config_digest'][:16]} as read"]
    for table, part in card["settings"].items():
        lines.append(f"- [{table}] {', '.join(f'{key} = {_brief(v)}' for key, v in part.items())}")
    lines += [f"- {name} = {seed}" for name, seed in card["seeds"].items()]
    software = ", ".join(f"{name} {number}" for name, number in card["software"].items())
    return "\n".join([*lines, "", "## Software", "", software, ""])


def _gate(decision: Decision) -> list[str]:
    lines = ["It was let live." if decision.promoted else "It was **not** let live."]
    if decision.compared_with is not None:
        lines[0] += f" It was compared with {decision.compared_with}."
    if not decision.sentences:
        lines[0] += " There are no conditions but the golden queries."
    lines += ["", *(f"- {sentence}" for sentence in decision.sentences)]
    if decision.use is not None:
        lines.append(f"- use {decision.use} of {decision.max_uses} of this test set")
    for name, count in decision.askers.items():
        lines.append(f"- {count:,} users of {decision.split} were asked about {name}")
        if left_out := decision.left_out.get(name, 0):
            lines.append(f"- {left_out:,} more have no figure: nothing to find, or of one kind")
    return lines


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    rows = list(_figures(metrics))
    if not rows:
        return ["It was not evaluated: embedsvc eval does that."]
    return ["| metric | value | 95 % |", "|---|---|---|", *rows]


def _figures(metrics: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """What has an interval, and bare numbers but for those that say how it was measured."""
    if "metrics" in metrics:  # of lists: the same once more beside it
        metrics = {**metrics["metrics"], **(metrics.get("catalogue") or {})}
    for key, part in metrics.items():
        name = f"{where}{key}"
        if isinstance(part, float) and where:
            yield f"| {_cell(name)} | {part:.4f} | |"
        elif isinstance(part, Mapping) and {"value", "low", "high"} <= set(part):
            value, low, high = (part[end] for end in ("value", "low", "high"))
            if value is not None:
                between = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
                yield f"| {_cell(name)} | {value:.4f} | {between} |"
        elif isinstance(part, Mapping) and key not in _NO_FIGURES:
            yield from _figures(part, f"{name} ")


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, part in data.items():
        if key == "sources" and len(part) > _BIG:
            total = sum(source.get("bytes", 0) for source in part)
            lines.append(f"- {len(part):,} files, {total:,} bytes: card.json has their digests")
        elif key == "sources":
            lines += [
                f"- {source['path']}: {source['bytes']:,} bytes, sha256 "
                f"{source.get('sha256', 'not known')[:16]}"
                for source in part
            ]
        elif isinstance(part, Mapping):
            lines.append(f"- {key}: {', '.join(_counts(part))}")
        else:
            lines.append(f"- {key.replace('_', ' ')}: {part}")
    return lines


def _counts(part: Mapping[str, Any]) -> Iterator[str]:
    for name, found in part.items():
        if isinstance(found, Mapping):
            yield f"{name} ({', '.join(_counts(found)) or 'none'})"
        else:
            yield f"{found:,} {name}" if isinstance(found, int) else f"{name} {found[:16]}"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
