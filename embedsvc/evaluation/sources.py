"""Sources of lists (lists.py): a checkpoint, a published version, and what is most popular.

All score every rhs. Candidates stream in tiles, so that memory follows tiles and answers, not
entities.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.edge_ids import Ids
from embedsvc.evaluation.lists import Found
from embedsvc.evaluation.topk import Best
from embedsvc.graph.comparators import COMPARATORS, Comparator
from embedsvc.graph.operators import OPERATORS
from embedsvc.ranking.sequences import Sequences, histories
from embedsvc.ranking.tower_onnx import FEATURES, HISTORY, QUERY
from embedsvc.trained import Trained
from embedsvc.training.asker_features import AskerFeatures
from embedsvc.training.askers import known_before
from partitions.errors import DataError
from partitions.graph import Graph, slots_of
from partitions.published import TOWER, TOWER_FEATURES, PublishedRelation, PublishedVersion

if TYPE_CHECKING:
    import onnxruntime

_TILE_QUERIES = 512
_TILE_CANDIDATES = 4_096  # a tile of scores: 8 MB


class OfPopularity:
    """The same for all: the rhs with the most training edges, the lower id first."""

    def __init__(self, popularity: Ids) -> None:
        self._popularity = popularity

    def top(self, lhs: Ids, k: int, left_out: sp.csr_matrix) -> Found:
        """Of the k + m most popular, where m is the most that anybody leaves out, k remain."""
        most = k + int(np.diff(left_out.indptr).max(initial=0))
        order = np.argsort(-self._popularity, kind="stable")[:most]
        ids, scores = np.full((len(lhs), k), -1), np.full((len(lhs), k), -np.inf, np.float32)
        for row in range(len(lhs)):
            had = left_out.indices[left_out.indptr[row] : left_out.indptr[row + 1]]
            new = order[~np.isin(order, had)][:k]
            ids[row, : len(new)], scores[row, : len(new)] = new, self._popularity[new]
        return Found(ids, scores)


class OfCheckpoint:
    """What a trained model scores highest; trained: as it was before the split that is judged."""

    def __init__(self, trained: Trained, relation: str) -> None:
        self._trained = trained
        self._rel = trained.graph.relation_id(relation)

    @torch.no_grad()
    def top(self, lhs: Ids, k: int, left_out: sp.csr_matrix) -> Found:
        trained, graph = self._trained, self._trained.graph
        relation, model = graph.relations[self._rel], trained.model
        rel = torch.full((len(lhs),), self._rel, dtype=torch.int64)
        query_BD = model.move(trained.gather(relation.lhs, lhs), rel)
        starts = graph.starts[relation.rhs]
        best = Best(len(lhs), k)
        for at, slot in enumerate(slots_of(graph.entity_types[relation.rhs])):
            vectors = torch.from_numpy(trained.vectors(slot))
            _compare(model.comparator, query_BD, vectors, int(starts[at]), left_out, best)
        return Found(best.ids, best.scores)


class OfVersion:
    """What a published version scores highest, exactly, by the vectors in it.

    Entities are matched by key. Whom the version does not know gets an empty list; what it knows
    and the graph does not is never listed. Both are counted: unknown_lhs, unknown_rhs. Where
    [output] learnt a tower, it is asked about what each had before `split`: the vectors that are
    published are made of all events, of those held out too.
    """

    def __init__(self, version: PublishedVersion, graph: Graph, relation: str, split: str) -> None:
        described = version.manifest.relation(relation)
        self.version, self.graph, self.relation = version, graph, described
        self._lhs_row = _rows_by_id(version, graph, described.lhs)
        rhs_row = _rows_by_id(version, graph, described.rhs)
        self._rhs_id = np.flatnonzero(rhs_row >= 0)
        self._rhs_row = rhs_row[self._rhs_id]
        self.unknown_lhs = int(np.sum(self._lhs_row < 0))
        self.unknown_rhs = version.manifest.entities(described.rhs).num_rows - len(self._rhs_id)
        self._tower = _Tower.of(version, graph, described, rhs_row, split)

    @cached_property
    def _comparator(self) -> Comparator:
        index = self.version.manifest.entities(self.relation.rhs).indexes["score"]
        scale = {"scale": index.scale} if index.metric == "cos" else {}
        return COMPARATORS.build({"name": index.metric, **scale})

    @torch.no_grad()
    def queries(self, lhs: Ids) -> Tensor:
        """float32 [len(lhs), D], of those that are known."""
        if self._tower is not None:
            return torch.from_numpy(self._tower.queries(lhs))
        vectors = self.version.vectors(self.relation.lhs)
        x = torch.from_numpy(np.array(vectors[self._lhs_row[lhs]]))
        params = self.version.operator_params(self.relation.name)
        operator = OPERATORS.build(self.relation.operator)
        moved: Tensor = operator(
            x, torch.zeros(0) if params is None else torch.from_numpy(np.array(params))
        )
        return moved

    @torch.no_grad()
    def top(self, lhs: Ids, k: int, left_out: sp.csr_matrix) -> Found:
        known = np.flatnonzero(self._lhs_row[lhs] >= 0)
        query_BD = self.queries(lhs[known])
        vectors = self.version.vectors(self.relation.rhs)
        best, left_out = Best(len(known), k), left_out[known][:, self._rhs_id].sorted_indices()
        for first in range(0, len(self._rhs_id), _TILE_CANDIDATES):
            rows = self._rhs_row[first : first + _TILE_CANDIDATES]
            tile = torch.from_numpy(np.array(vectors[rows]))
            _compare(self._comparator, query_BD, tile, first, left_out, best)
        ids = np.full((len(lhs), k), -1, np.int64)
        scores = np.full((len(lhs), k), -np.inf, np.float32)
        ids[known] = np.where(best.ids < 0, -1, np.append(self._rhs_id, 0)[best.ids])
        scores[known] = best.scores
        return Found(ids, scores)


@dataclass(frozen=True)
class _Tower:
    """tower.onnx, and what each lhs had."""

    session: "onnxruntime.InferenceSession"
    histories: Sequences  # of the graph's ids
    rhs_row: Ids  # of each of these: its row in the version, or -1
    features: Ids | None  # [lhs, F]; None: it knows none

    @staticmethod
    def of(
        version: PublishedVersion,
        graph: Graph,
        relation: PublishedRelation,
        rhs_row: Ids,
        split: str,
    ) -> "_Tower | None":
        """None: published vectors are of training alone."""
        output = json.loads(bytes(version.file("config.json"))).get("output") or {}
        if output.get("kind") is None or relation.lhs == relation.rhs:
            return None
        if TOWER not in version.manifest.files:
            raise DataError(
                f"{version.name} has no {TOWER}, and its vectors of {relation.lhs} are made of all "
                "events, of those held out too: judge the checkpoint with embedsvc eval."
            )
        import onnxruntime  # 17 MB, which trainers, who import this module, do without

        session = onnxruntime.InferenceSession(
            bytes(version.file(TOWER)), providers=["CPUExecutionProvider"]
        )
        found = histories(graph, relation.name, known_before(split))
        features = None
        if TOWER_FEATURES in version.manifest.files:
            numbered = json.loads(bytes(version.file(TOWER_FEATURES)))
            values = sorted(
                ((at, name, value) for name, own in numbered.items() for value, at in own.items())
            )
            pairs = [(name, value) for _, name, value in values]
            features = AskerFeatures.encode(graph, relation.lhs, list(numbered), pairs).ids
        return _Tower(session, found, rhs_row, features)

    def queries(self, lhs: Ids) -> NDArray[np.float32]:
        sizes = np.diff(self.histories.starts)[lhs]
        parts = [np.empty((0, self.session.get_outputs()[1].shape[1]), np.float32)]
        for first in range(0, len(lhs), _TILE_QUERIES):
            block = slice(first, first + _TILE_QUERIES)
            longest = max(1, int(sizes[block].max()))
            ids = self.histories.newest(lhs[block], longest)
            rows = np.where(ids < 0, -1, self.rhs_row[ids])
            asked = {HISTORY: rows}
            if self.features is not None:
                asked[FEATURES] = self.features[lhs[block]]
            parts += self.session.run([QUERY], asked)
        return np.concatenate(parts)


def _rows_by_id(version: PublishedVersion, graph: Graph, entity_type: str) -> NDArray[np.int64]:
    """Of each entity of the graph: its row in the version, -1 where it is not there."""
    keys = version.keys(entity_type).column("key")
    wanted = graph.all_keys(entity_type)
    found = pc.index_in(wanted.cast(keys.type), value_set=keys)
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def _compare(
    comparator: Comparator,
    query_BD: Tensor,
    candidate_ND: Tensor,
    first_id: int,
    left_out: sp.csr_matrix,
    best: Best,
) -> None:
    """Candidates first_id and on; a tile at a time, so that scores stay in the cache."""
    for first, tile in _tiles(candidate_ND, _TILE_CANDIDATES):
        for query, block in _tiles(query_BD, _TILE_QUERIES):
            scores = comparator.blocks(block, tile).contiguous().numpy()
            best.add(scores, left_out, query, first_id + first)


def _tiles(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(rows), size):
        yield first, rows[first : first + size]
