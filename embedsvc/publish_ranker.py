"""A trained ranker -> a published version: graph, encoders, golden rows, and what each step of
making it smaller cost.

The graph is made of the checkpoint as it is; with `prune` again of layers that learnt on with fewer
weights; with `quantize` once more, in int8. Each is judged by the validation rows and timed on the
rows that a request has; the last one is published.

A version goes live only after the written files, read back as a server reads them, say of the
golden rows what training's model says: to 1e-5, and in int8 as far off as it was when it was made;
and the gate lets it.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
from numpy.typing import NDArray

from embedsvc import card
from embedsvc.config import PublishConfig
from embedsvc.evaluation.clicks import auc
from embedsvc.evaluation.gate import Decision
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import TRAIN, VALID, About, examples, open_encoded
from embedsvc.ranking.onnx_export import export
from embedsvc.ranking.quantization import quantized
from embedsvc.ranking.trained import TrainedRanker
from embedsvc.release import Judge, conclude, ungated
from embedsvc.training.pruning import prune
from partitions import published, ranker_files
from partitions.encoded import BLOCK_ROWS, EncodedFile, Labelled
from partitions.errors import ConfigError, DataError
from partitions.features import Encoded
from partitions.published import Manifest, PublishedVersion
from partitions.ranker_files import LOGIT, PROBABILITY, RankerFiles, fed

GOLDEN_ROWS, GOLDEN_OF = 1000, 1_000_000  # so many, evenly of the first so many
TOLERANCE = 1e-5
REQUEST_ROWS, CALLS = 200, 200
_SCORED_ROWS = 8192  # at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Variant:
    """What one graph is worth, and what it takes. auc: by label, of the validation rows, None where
    there are none; cpu_ms: of the one thread that computes REQUEST_ROWS encoded rows."""

    name: str
    bytes: int
    auc: dict[str, float | None]
    auc_cost: dict[str, float | None]  # what it lost against the graph of the checkpoint
    p50_cpu_ms: float
    p99_cpu_ms: float
    zeros: float | None = None  # share of the layers' weights


@dataclass(frozen=True)
class Rows:
    """encoded: the run's folder of encoded rows; config: of the run as it is set now."""

    encoded: Path
    config: RankerConfig

    def open(self, split: str, trained: TrainedRanker) -> EncodedFile | None:
        if not getattr(self.config, split):
            return None
        about, path = About.read(self.encoded), self.encoded / f"{split}.arrow"
        if about is None or split not in about.files or not path.exists():
            raise DataError(f"{path} is missing: run embedsvc train, which encodes ranker.{split}.")
        if split == VALID and not about.is_of(self.config, VALID):
            raise DataError(
                f"{self.encoded} holds other rows than ranker.valid names now: run embedsvc train, "
                "which encodes them again, and trains on only if epochs are left."
            )
        return open_encoded(self.encoded, about, split, trained.features)

    @property
    def data(self) -> dict[str, Any]:
        """For the card. Names, bytes and times of files: what tells whether they changed."""
        about = About.read(self.encoded)
        known = {} if about is None else about.wanted["files"]
        return {
            "training_rows": None if about is None else about.num_rows,
            "sources": [
                {"path": f"{split}: {name}", "bytes": size, "modified_ns": modified}
                for split, files in known.items()
                for name, size, modified in files
            ],
            "encoded_sha256": {}
            if about is None
            else {split: file.sha256 for split, file in about.files.items()},
        }

    def raw(self, trained: TrainedRanker) -> Iterator[pa.RecordBatch]:
        """The columns that features read, of validation rows, or else of those learnt from."""
        files = {split: getattr(self.config, split) for split in (TRAIN, VALID)}
        config = trained.config.model_copy(update=files)
        wanted = sorted({spec.column or name for name, spec in config.features.items()})
        for part in examples(config, VALID if config.valid else TRAIN):
            yield part.rows.select(wanted).replace_schema_metadata(None)


def publish(
    trained: TrainedRanker,
    rows: Rows,
    root: Path,
    config: PublishConfig,
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    judge: Judge | None = None,
) -> tuple[Manifest, list[Variant], Decision]:
    """Write the next version under `root`, check it, make it the live one if `judge` lets it.

    Mutates `trained` where it is pruned. Raises DataError where the check fails: there is no
    version then. The live one stays as it was.
    """
    _check_place(root)
    golden = _golden_rows(rows.raw(trained))
    metrics = sources_of(trained, evaluation)
    graph, variants = _made(trained, rows, config, golden)
    with published.new_version(root) as draft:
        folder = draft.folder / ranker_files.FOLDER
        folder.mkdir()
        metrics |= {"variants": [asdict(variant) for variant in variants]}
        if len(variants) > 1:
            metrics |= {"evaluation_of": variants[0].name}  # not of the one that is served
        _write(folder, trained, graph, golden, config, metrics)
        draft.write_json("config.json", settings)
        draft.write_json("metrics.json", metrics)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = draft.finish(
            created=created,
            dim=0,
            comparator="dot",
            graph_digest="",
            entity_types=[],
            relations=[],
        )
        _check_golden(folder)
        version = PublishedVersion(manifest, published.disk(draft.folder))
        decision = ungated(root) if judge is None else judge(version, draft.folder)
        manifest = draft.add(
            manifest, card.files(draft.name, created, rows.data, settings, metrics, decision)
        )
    conclude(root, manifest.version, decision, config.keep)
    return manifest, variants, decision


def sources_of(trained: TrainedRanker, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a version says of the checkpoint that it was made of."""
    return {
        "checkpoint": trained.digest,
        "evaluation": {key: value for key, value in evaluation.items() if key != "seconds"},
        "calibration": trained.calibration_digest,
    }


def _check_place(root: Path) -> None:
    """ConfigError where a graph's version is live: it would be served no more."""
    try:
        live = published.read_manifest(root, published.current(root))
    except DataError:  # none, or a damaged one: publishing mends it
        return
    if live.entity_types:
        raise ConfigError(
            f"{root} holds {live.version}, a graph's: give the [ranker] a [run] dir of its own."
        )


# --- graphs ---------------------------------------------------------------------------------------


def _made(
    trained: TrainedRanker, rows: Rows, config: PublishConfig, golden: pa.RecordBatch
) -> tuple[onnx.ModelProto, list[Variant]]:
    """The graph to publish, and what it and those before it are worth."""
    valid = rows.open(VALID, trained)
    encoded = trained.features.encode(golden)
    judge = _Judge(trained.config.labels, valid, encoded)
    graph = _agreeing(trained, encoded)
    variants = [judge("as trained", graph)]
    if config.prune is not None:
        zeros = _prune(trained, rows, valid, config)
        graph = _agreeing(trained, encoded)
        variants.append(judge(f"pruned {config.prune:g}", graph, zeros))
    if config.quantize is not None:
        graph = quantized(graph)
        variants.append(judge(config.quantize, graph))
    return graph, variants


def _prune(
    trained: TrainedRanker, rows: Rows, valid: EncodedFile | None, config: PublishConfig
) -> float:
    learnt = rows.open(TRAIN, trained)
    assert learnt is not None and config.prune is not None
    size, seed = trained.config.batch_size, trained.seed
    zeros = prune(trained.model, learnt, config.prune, config.prune_epochs, size, seed)
    if valid is not None:
        trained.calibration = trained.calibrated_by(valid)
    return zeros


def _agreeing(trained: TrainedRanker, golden: Encoded) -> onnx.ModelProto:
    graph = export(trained.model, trained.calibration)
    gap = _gap(_said(_session(graph.SerializeToString()), golden), trained.probabilities(golden))
    if not gap <= TOLERANCE:
        raise DataError(
            f"The exported ranker is off by {gap:.3g} from the model of training: it is not "
            "published. Report this with the config."
        )
    return graph


class _Judge:
    def __init__(self, labels: list[str], valid: EncodedFile | None, request: Encoded) -> None:
        self._labels, self._valid = labels, valid
        places = np.arange(REQUEST_ROWS) % max(len(request), 1)
        self._request = fed(request.take(places))
        self._first: dict[str, float | None] | None = None

    def __call__(self, name: str, graph: onnx.ModelProto, zeros: float | None = None) -> Variant:
        content = graph.SerializeToString()
        session = _session(content)
        found = self._auc(session)
        first = self._first = self._first or found
        cost = {
            label: None if now is None or (was := first[label]) is None else was - now
            for label, now in found.items()
        }
        p50, p99 = self._ms(session)
        return Variant(name, len(content), found, cost, p50, p99, zeros)

    def _auc(self, session: onnxruntime.InferenceSession) -> dict[str, float | None]:
        if self._valid is None:
            return dict.fromkeys(self._labels)
        logits, labels, weights = [], [], []
        for piece in _pieces(self._valid):
            logits.append(session.run([LOGIT], fed(piece.rows))[0])
            labels.append(piece.labels)
            weights.append(piece.weight)
        said, right, weight = (
            np.concatenate(parts).astype(np.float64) for parts in (logits, labels, weights)
        )
        found: dict[str, float | None] = {}
        for task, name in enumerate(self._labels):
            known = ~np.isnan(right[:, task])
            value = auc(said[known, task], right[known, task], weight[known])
            found[name] = None if np.isnan(value) else float(value)
        return found

    def _ms(self, session: onnxruntime.InferenceSession) -> tuple[float, float]:
        taken = []
        for _ in range(CALLS + CALLS // 10):
            start = time.thread_time()  # what else the machine does is none of the graph's cost
            session.run([PROBABILITY], self._request)
            taken.append(1000 * (time.thread_time() - start))
        p50, p99 = np.percentile(taken[CALLS // 10 :], [50, 99])
        return round(float(p50), 4), round(float(p99), 4)


def _pieces(rows: EncodedFile) -> Iterator[Labelled]:
    for at in range(0, len(rows), BLOCK_ROWS):
        block = rows.read(at, min(at + BLOCK_ROWS, len(rows)))
        for first in range(0, len(block.weight), _SCORED_ROWS):
            yield block.slice(first, min(first + _SCORED_ROWS, len(block.weight)))


def _session(graph: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _said(session: onnxruntime.InferenceSession, rows: Encoded) -> Floats:
    return np.asarray(session.run([PROBABILITY], fed(rows))[0], np.float64)


def _gap(found: Floats, right: Floats) -> float:
    return float(np.abs(found - right).max(initial=0.0))


# --- files ----------------------------------------------------------------------------------------


def _golden_rows(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch:
    held, count = [], 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        if count >= GOLDEN_OF:
            break
    # Files of one split may differ in types: what a batch can't join, it can't be golden with.
    same = [batch for batch in held if batch.schema.equals(held[0].schema)]
    table = pa.Table.from_batches(same)
    places = np.unique(np.linspace(0, len(table) - 1, min(GOLDEN_ROWS, len(table))).astype(int))
    return table.take(pa.array(places)).combine_chunks().to_batches()[0]


def _write(
    folder: Path,
    trained: TrainedRanker,
    graph: onnx.ModelProto,
    golden: pa.RecordBatch,
    config: PublishConfig,
    metrics: Mapping[str, Any],
) -> None:
    content = graph.SerializeToString()
    (folder / ranker_files.MODEL).write_bytes(content)
    trained.features.save(folder)
    encoded = trained.features.encode(golden)
    right = trained.probabilities(encoded)
    ranker_files.write_golden(folder, golden, right)
    ranker_files.finish(
        folder,
        labels=trained.config.labels,
        inputs=ranker_files.inputs_of(trained.features.layout),
        features_digest=trained.features.digest,
        options=config.model_dump(include={"prune", "prune_epochs", "quantize"}),
        metrics=metrics,
        golden_gap=_gap(_said(_session(content), encoded), right),
    )


def _check_golden(folder: Path) -> None:
    """Ask the written files what golden.arrow asks, from raw rows on."""
    files = RankerFiles(folder)
    rows, right = files.golden()
    gap = _gap(_said(_session(str(files.model)), files.features.encode(rows)), right)
    if not gap <= max(TOLERANCE, files.about.golden_gap):
        raise DataError(
            f"The golden rows are answered off by {gap:.3g} from the written version: it is not "
            "published. Report this with the config."
        )
