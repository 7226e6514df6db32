"""A version's model card: what it was made of, how good it is, what the gate said of it.

card.json has all of it; CARD.md is the same for people.
"""

import hashlib
import json
import platform
import unicodedata
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
_OF_LINKS = {"mrr": "MRR", "hits1": "Hits@1", "hits3": "Hits@3", "hits10": "Hits@10"}
_OF_LINKS |= {"mean_rank": "mean rank"}
_OF_CLICKS = {"gauc": "AUC within users", "log_loss": "log loss", "calibration": "calibration"}
_OF_CLICKS |= {"ece": "expected calibration error"}
_LET_LIVE = "When it was made the gate let it live."
_NOT_LIVE = (
    "When it was made the gate did **not** let it live; `published/gate.jsonl` says what came of "
    "it later."
)
_MARKS = frozenset("\\`*[]|")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
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
    card = {
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
    card = durable.without_nan(card)
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


def _differing(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What of the model and its training is not the default."""
    from embedsvc.ranking.config import RankerConfig  # which brings torch along

    tables = {"model": ModelConfig, "output": OutputConfig, "train": TrainConfig}
    found = {}
    for table, model in {**tables, "ranker": RankerConfig}.items():
        default = model().model_dump(mode="json")
        given = settings.get(table) or {}
        found[table] = {key: part for key, part in given.items() if part != default.get(key)}
    stopping = found.get("train", {}).get("early_stopping")
    if stopping and settings.get("ranker"):  # judged by AUC, of all rows
        found["train"]["early_stopping"] = {
            key: part for key, part in stopping.items() if key not in ("metric", "max_edges")
        }
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
    lines = [f"# {_cell(card['name'])} {card['version']}", "", f"Made {card['created']}.", ""]
    lines += ["## The gate", "", *_gate(decision), ""]
    lines += ["## How good it is", "", *_metrics(card["metrics"]), ""]
    lines += ["## Data", "", *_data(card["data"]), ""]
    lines += ["## Settings", "", f"- config.json has sha256 {card['config_digest'][:16]} as read"]
    for table, part in card["settings"].items():
        lines += [
            f"- {_cell(said)}" for key, v in part.items() for said in _dotted(f"{table}.{key}", v)
        ]
    lines += [f"- {_cell(name)} = {seed}" for name, seed in card["seeds"].items()]
    software = ", ".join(f"{name} {number}" for name, number in card["software"].items())
    return "\n".join([*lines, "", "## Software", "", software, ""])


def _gate(decision: Decision) -> list[str]:
    # As of that moment: a version never changes, and the gate can be asked again.
    lines = [_LET_LIVE if decision.promoted else _NOT_LIVE]
    if decision.compared_with is not None:
        lines[0] += f" It was compared with {decision.compared_with}."
    if not decision.sentences:
        lines[0] += " There are no conditions but the golden queries."
    lines += ["", *(f"- {_cell(sentence)}" for sentence in decision.sentences)]
    if decision.use is not None:
        lines.append(f"- use {decision.use} of {decision.max_uses} of this test set")
    for name, count in decision.askers.items():
        lines.append(f"- {count:,} users of {decision.split} were asked about {_cell(name)}")
        if left_out := decision.left_out.get(name, 0):
            lines.append(f"- {left_out:,} more have no figure: nothing to find, or of one kind")
    return lines


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    found = metrics.get("evaluation") or metrics  # a ranker's lies one deeper
    rows = [
        *(row for name, one in (found.get("recommend") or {}).items() for row in _lists(name, one)),
        *(row for name, one in (found.get("labels") or {}).items() for row in _clicks(name, one)),
        *_links(found.get("links") or {}),
        *_labels(found.get("classify") or {}),
    ]
    if not rows:
        return ["It was not evaluated: embedsvc eval does that."]
    split = found.get("split") or found.get("settings", {}).get("split")
    columns = ["metric", "value", "95 %", "most popular"]
    if not any(row[3] for row in rows):
        columns, rows = columns[:3], [row[:3] for row in rows]
    lines = [f"By the {split} split.", ""] if split else []
    if (of := metrics.get("evaluation_of")) is not None:
        lines = [*lines[:1], f"Of the variant {of}, before it was made smaller.", ""]
    table = [columns, ["---"] * len(columns), *([_cell(row[0]), *row[1:]] for row in rows)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in table)]


Row = list[str]  # metric, value, interval, of the most popular


def _row(name: str, value: Any, ends: Any = None, popular: Any = None) -> Iterator[Row]:
    """None where there is no such figure. ends: a mapping with low and high."""
    if not isinstance(value, float | int) or value != value:
        return
    low, high = (None, None) if ends is None else (ends.get("low"), ends.get("high"))
    between = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    yield [name, f"{value:.4f}", between, "" if popular is None else f"{popular:.4f}"]


def _lists(relation: str, one: Mapping[str, Any]) -> Iterator[Row]:
    popular = one.get("popular") or {}
    for name, found in (one.get("metrics") or {}).items():
        yield from _row(f"{relation} {name}", found["value"], found, popular.get(name))
    for name, value in (one.get("catalogue") or {}).items():
        yield from _row(f"{relation} {name}", value)


def _clicks(label: str, one: Mapping[str, Any]) -> Iterator[Row]:
    ends = {end: one.get(f"auc_{end}") for end in ("low", "high")}
    yield from _row(f"{label} AUC", one.get("auc"), ends)
    for key, name in _OF_CLICKS.items():
        yield from _row(f"{label} {name}", one.get(key))


def _links(one: Mapping[str, Any]) -> Iterator[Row]:
    for key, name in _OF_LINKS.items():
        yield from _row(f"links {name}", one.get(key), (one.get("intervals") or {}).get(key))


def _labels(one: Mapping[str, Any]) -> Iterator[Row]:
    for found in one.get("shares") or ():
        taught = f"labels taught by {found['share']:.0%}:"
        for key, name in (("micro_f1", "micro-F1"), ("macro_f1", "macro-F1"), ("auc", "AUC")):
            if (part := found.get(key)) is not None:
                yield from _row(f"{taught} {name}", part["value"], part)


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, part in data.items():
        if key == "sources" and len(part) > _BIG:
            total = sum(source.get("bytes", 0) for source in part)
            lines.append(f"- {len(part):,} files, {total:,} bytes: card.json has their digests")
        elif key == "sources":
            lines += [
                f"- {_cell(source['path'])}: {source['bytes']:,} bytes{_digest(source)}"
                for source in part
            ]
        elif isinstance(part, Mapping):
            lines.append(f"- {key}: {', '.join(_counts(part))}")
        else:
            lines.append(f"- {key.replace('_', ' ')}: {part}")
    return lines


def _digest(source: Mapping[str, Any]) -> str:
    return f", sha256 {source['sha256'][:16]}" if source.get("sha256") else ""


def _counts(part: Mapping[str, Any]) -> Iterator[str]:
    for name, found in part.items():
        if isinstance(found, Mapping):
            yield f"{_cell(name)} ({', '.join(_counts(found)) or 'none'})"
        else:
            said = _cell(name)
            yield f"{found:,} {said}" if isinstance(found, int) else f"{said} {found[:16]}"


def _dotted(where: str, value: Any) -> Iterator[str]:
    """`key = value` as in the file, whole, of a table each of its keys. Unset ones are not said."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _dotted(f"{where}.{key}", part)
    elif value is not None:
        yield f"{where} = {json.dumps(value, ensure_ascii=False)}"


def _cell(text: str) -> str:
    """A name from outside as Markdown that shows it and does nothing else, on one line."""
    return "".join(map(_escaped, text))


def _escaped(one: str) -> str:
    if one in _MARKS:
        return f"\\{one}"
    if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp"):  # line ends, bidi controls
        return f"U+{ord(one):04X}"
    return _ENTITIES.get(one, one)
