"""The memory plan: what training will take, said before it is taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from embedsvc.config import ModelConfig, NegativesConfig, TrainConfig
from embedsvc.graph import every
from embedsvc.graph.bags import bags_bytes, bags_of, featurised
from embedsvc.graph.device import is_used
from embedsvc.graph.fast import RUN_EDGES, num_cores, uncovered
from embedsvc.graph.losses import LOSSES, SampledSoftmaxLoss
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.optimizers import form_of
from embedsvc.graph.products import fast_bfloat16, room_bytes
from embedsvc.training import room
from partitions.errors import ConfigError
from partitions.graph import Graph
from partitions.memory import PANDAS_BYTES, available_bytes
from partitions.schema import SPLITS, Bucket, Slot

_PROCESS_BYTES = 440_000_000  # interpreter and libraries: 425 to 445 MB where it was measured
_JUDGED = 32_768  # edges that evaluation ranks at once
_TILE_BYTES = 64 << 20  # of scores, and masks of their size


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by what they are for."""

    tables: int
    prefetch: int  # tables loaded ahead, or on their way out
    edges: int
    batch: int
    process: int = _PROCESS_BYTES + PANDAS_BYTES
    evaluation: int = 0  # at the end of an epoch, where early stopping asks for it
    device: int = 0  # of a GPU's own memory, which is not in the total

    @property
    def total(self) -> int:
        return sum(vars(self).values()) - self.device

    def __str__(self) -> str:
        mb = {name: value / 1e6 for name, value in vars(self).items()}
        return (
            f"memory plan: {self.total / 1e6:,.0f} MB (tables in memory {mb['tables']:,.0f}, "
            f"loaded ahead {mb['prefetch']:,.0f}, largest bucket {mb['edges']:,.0f}, "
            f"batch {mb['batch']:,.0f}, "
            + (f"evaluation {mb['evaluation']:,.0f}, " if self.evaluation else "")
            + f"process {mb['process']:,.0f})"
            + (f", and {mb['device']:,.0f} MB on the device" if self.device else "")
        )


def plan_memory(graph: Graph, model: ModelConfig, train: TrainConfig) -> MemoryPlan:
    form = form_of(model, train)
    row_bytes = form.row_bytes(model.dim)

    def table_bytes(slot: Slot) -> int:
        return graph.num_rows(slot) * row_bytes

    single = {t.name for t in graph.entity_types.values() if t.num_partitions == 1}
    pinned = sum(table_bytes(slot) for slot in graph.tables() if slot.entity_type in single)
    pinned += bags_bytes(bags_of(graph))
    others = sorted(
        (table_bytes(slot) for slot in graph.tables() if slot.entity_type not in single),
        reverse=True,
    )
    tables = pinned + sum(others[: train.buffer])
    ahead = sum(others[train.buffer :][: train.prefetch])
    bucket = max((graph.num_edges("train", b) for b in graph.buckets("train")), default=0)
    is_fast = _is_fast(graph, model, train)
    edges, batch = (_fast_bytes if is_fast else _exact_bytes)(bucket, graph, model, train)
    edges += max(map(partial(_file_bytes, graph), graph.buckets("train")), default=0)
    evaluation = 0
    if train.early_stopping is not None:
        largest = max(map(table_bytes, graph.slots()), default=0)
        judged = min(graph.num_edges("valid"), train.early_stopping.max_edges or 1 << 62)
        # Two tables as one follows the other, both ends and the moved one of each query, tiles.
        if train.precision != "float32":  # widened beside the table as it is read
            rows = max(map(graph.num_rows, graph.slots()), default=0)
            largest = largest // 2 + rows * model.dim * 4
        evaluation = 2 * largest + min(judged, _JUDGED) * 5 * model.dim * 4 + _TILE_BYTES
        if featurised(graph):  # features' vectors while entities' are made of them
            evaluation += largest
    device = 0
    if is_used(train):
        # One at a time is on its way: as it was read, beside the copy that is placed.
        moving = max(map(table_bytes, graph.tables()), default=0)
        if train.device == "cpu":
            ahead += moving
        else:
            device = tables + ahead + batch
            # Pinned memory is given out in powers of two. Batches are made here, trained there.
            tables, ahead, batch = 0, moving + (1 << moving.bit_length()), batch // 4
    return MemoryPlan(
        tables=tables,
        prefetch=ahead,
        edges=edges,
        batch=batch,
        evaluation=evaluation,
        device=device,
    )


def _is_fast(graph: Graph, model: ModelConfig, train: TrainConfig) -> bool:
    if train.step == "exact" or is_used(train) or featurised(graph):
        return False
    return uncovered(model, train, [relation.name for relation in graph.relations]) is None


def _file_bytes(graph: Graph, bucket: Bucket) -> int:
    """Of a bucket's columns in memory: its file, mapped; several files are copied to be joined."""
    files = graph.manifest.edge_files["train", bucket]
    size = sum(file.bytes for file in files)
    return size if len(files) == 1 else 2 * size


def _exact_bytes(
    bucket: int, graph: Graph, model: ModelConfig, train: TrainConfig
) -> tuple[int, int]:
    """Of a bucket's edges, and of a batch."""
    negatives, chunk_size = train.negatives, train.chunk_size
    operators = model.operators_in_use(relation.name for relation in graph.relations)
    matrices = any(OPERATORS[name].matrix for name in operators)
    drawn = negatives.uniform + negatives.degree
    if negatives.all:
        ends = {name for relation in graph.relations for name in (relation.lhs, relation.rhs)}
        slots = [slot for slot in graph.slots() if slot.entity_type in ends]
        drawn = max(map(graph.num_rows, slots), default=0)
        if not matrices and (model.reciprocal or operators == {"identity"}):
            chunk_size = train.batch_size  # as the step does
    chunks = max(1, train.batch_size // chunk_size)
    chunk_size = min(chunk_size, bucket)
    scores = chunks * chunk_size * (drawn + chunk_size * negatives.in_batch)
    rows = chunks * (2 * chunk_size + 2 * drawn) * model.dim
    rows += _feature_rows(graph, rows // model.dim) * model.dim
    rows += matrices * 2 * chunks * model.dim * model.dim
    largest = sorted(map(graph.num_rows, graph.slots()), reverse=True)[:2]
    corrects = isinstance(LOSSES.build(model.loss), SampledSoftmaxLoss)
    edges = batching_bytes(bucket, largest, negatives, corrects)
    return edges, 4 * (7 * scores + 6 * rows)  # values, masks, gradients and autograd's copies


def batching_bytes(
    num_edges: int, num_rows: Sequence[int], negatives: NegativesConfig, corrects: bool
) -> int:
    """Of a bucket's edges while batches are made of them, beside their file.

    num_rows: of the tables of both ends. corrects: whether the loss wants candidates' counts.
    """
    found = num_edges * (4 * 8 + 2)  # four int64 of shuffling, and the kind
    if negatives.all:
        return found
    if corrects and negatives.in_batch:  # how often each entity occurs, of both ends, and a sort
        found += num_edges * 28
    if negatives.degree:  # float64 sums over all rows, and while they are made, powers and counts
        found += 8 * sum(num_rows) + 16 * max(num_rows, default=0)
    return found


def _feature_rows(graph: Graph, entities: int) -> int:
    """At most so many distinct features have so many entities, if bags are of mean size."""
    found = 0
    for bags in bags_of(graph).values():
        sizes = len(bags.bags.features) / max(len(bags.bags), 1)
        found += min(graph.num_rows(bags.table), round(entities * sizes))
    return found


def _fast_bytes(
    bucket: int, graph: Graph, model: ModelConfig, train: TrainConfig
) -> tuple[int, int]:
    """Of a bucket's edges, and of what the threads work in."""
    order = 4 if len(graph.relations) == 1 else 8  # uint32; twice while sorted by relation
    chunks = -(-bucket // train.chunk_size) * 7 * 8  # some int64 a chunk, to cut the order
    chunk = min(train.chunk_size, bucket)
    rows = chunk + train.negatives.uniform
    work = 4 * (11 * rows * model.dim + 5 * chunk * model.dim + 3 * rows * chunk)
    halves = train.products == "bfloat16" and fast_bfloat16()
    if train.negatives.all:
        sizes = {slot.entity_type: 0 for slot in graph.slots()}
        for slot in graph.slots():
            sizes[slot.entity_type] = max(sizes[slot.entity_type], graph.num_rows(slot))
        work = max(
            every.bytes_of(sizes[r.lhs], sizes[r.rhs], chunk, model.dim, halves)
            for r in graph.relations
        )
    elif halves:
        work += room_bytes(rows, chunk, model.dim)
    # Of a run of chunks: its places and columns, and three more that wait.
    run = min(max(RUN_EDGES, chunk), bucket) * (3 * 8 + 4 * 4 + 3 * 4)
    threads = train.threads or num_cores()
    return bucket * order + chunks, threads * (work + run)


def advise(graph: Graph, model: ModelConfig, train: TrainConfig) -> list[str]:
    """The plan in lines for people, with the number of partitions that the memory wants."""
    plan = plan_memory(graph, model, train)
    available = available_bytes(train.memory_mb)
    form = form_of(model, train)
    row_bytes, vector_bytes = form.row_bytes(model.dim), form.vector_bytes(model.dim)
    own = {slot.entity_type for slot in graph.tables()}
    entities = {name: graph.num_entities(name) for name in graph.entity_types if name in own}
    tables = {name: count * row_bytes for name, count in entities.items()}
    lines = [
        f"{name}: {count:,} entities, vectors {count * vector_bytes / 1e6:,.1f} MB, "
        f"state {count * (row_bytes - vector_bytes) / 1e6:,.1f} MB, "
        f"{_partitions(graph.entity_types[name].num_partitions)}"
        for name, count in entities.items()
    ]
    lines += [
        f"{name}: {graph.num_entities(name):,} entities, made of {kind.features}"
        for name, kind in graph.entity_types.items()
        if kind.features is not None
    ]
    edges = sum(graph.num_edges(split) for split in SPLITS)
    lines.append(f"{edges:,} edges, {graph.num_edges('train'):,} of them for training")
    lines.append(str(plan))
    room = available - plan.batch - plan.edges - plan.process
    why, fits = refusal(plan, graph, model, train), sum(tables.values()) <= room
    if fits and why is None:
        lines.append(f"{available / 1e6:,.0f} MB are free: no partitioning needed")
    elif not fits and room > 0:
        # Each partition of a type is one table of the buffer; the largest type decides.
        parts = 2
        in_memory = train.buffer + train.prefetch
        while max(tables.values()) / parts * in_memory > room and parts < 1 << 16:
            parts *= 2
        lines.append(
            f"{available / 1e6:,.0f} MB are free: {parts} partitions of the largest type fit "
            f"with train.buffer = {train.buffer}"
        )
    if why is not None:
        lines.append(why)
    return lines


def _partitions(count: int) -> str:
    return f"{count} partition{'s' * (count > 1)}"


def check_memory(plan: MemoryPlan, graph: Graph, model: ModelConfig, train: TrainConfig) -> None:
    """ConfigError where the plan can't fit."""
    if (why := refusal(plan, graph, model, train)) is not None:
        raise ConfigError(why)


def refusal(plan: MemoryPlan, graph: Graph, model: ModelConfig, train: TrainConfig) -> str | None:
    """What most of a plan that can't fit is for and what would help; None where it fits."""
    parts = max(t.num_partitions for t in graph.entity_types.values())
    partitions = f"more partitions (now {parts})"
    drawn = "" if train.negatives.all else ", train.negatives.uniform"
    work = f"a smaller train.batch_size{drawn} or model.dim"
    if _is_fast(graph, model, train):
        work = f"a smaller train.chunk_size{drawn} or model.dim, fewer train.threads"
    if train.negatives.all:
        work = f"{partitions}, {work}"
    remedies = {
        "tables": ("tables in memory", f"{partitions}, a smaller train.buffer or model.dim"),
        "prefetch": ("tables loaded ahead", f"a smaller train.prefetch, {partitions}"),
        "edges": ("the largest bucket's edges", partitions),
        "batch": ("work on a batch", work),
        "evaluation": ("early stopping", f"a smaller train.early_stopping.max_edges, {partitions}"),
    }
    return room.refusal(plan, remedies, train.memory_mb)


def check_device(plan: MemoryPlan, free_bytes: int, graph: Graph) -> None:
    """ConfigError where the device's part can't fit into what it has free."""
    if plan.device <= free_bytes:
        return
    parts = max(t.num_partitions for t in graph.entity_types.values())
    raise ConfigError(
        f"Training plans for {plan.device / 1e6:,.0f} MB on the device and {free_bytes / 1e6:,.0f} "
        f"MB are free there. Use more partitions (now {parts}), a smaller train.buffer, "
        "train.prefetch, train.batch_size or model.dim, or set train.device=cpu."
    )
