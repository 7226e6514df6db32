"""The memory plan of `[ranker]`: what training will take at most, said before it is taken."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from embedsvc.outputs.sparse import ROW_OPTIMIZERS
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import Encoding
from embedsvc.ranking.layer_kernels import room_for
from embedsvc.ranking.slots import FEW
from embedsvc.ranking.trained import described
from embedsvc.training.room import refusal
from partitions.errors import ConfigError
from partitions.features import Features, Layout, Slot
from partitions.memory import PANDAS_BYTES

_PROCESS_BYTES = 525_000_000  # interpreter, libraries and compiled kernels, as measured
_COPIES = 4  # of a window: as read, of which the file's pages count, end to end, and shuffled
_VALUE_BYTES = 100  # of a vocabulary: its text, its fingerprint and where it stands
_HELD = {"adagrad": 2, "adam": 3}  # weights, and the optimizer's state


@dataclass(frozen=True)
class RankerPlan:
    """Bytes, by what they are for."""

    tables: int  # of which pages are taken where ids were met
    layers: int  # with their gradients and the optimizer's state
    window: int
    batch: int
    commit: int  # which ids were met
    vocabularies: int
    start: int  # the model of start_from, which is dropped before the first window is read
    process: int = _PROCESS_BYTES + PANDAS_BYTES

    @property
    def total(self) -> int:
        kept = self.tables + self.layers + self.vocabularies + self.process
        return kept + max(self.window + self.batch + self.commit, self.start)

    def __str__(self) -> str:
        mb = {name: value / 1e6 for name, value in vars(self).items()}
        start = f"start_from before the first window {mb['start']:,.0f}, " if self.start else ""
        return (
            f"memory plan: at most {self.total / 1e6:,.0f} MB (tables {mb['tables']:,.0f}, taken "
            f"as ids are met, layers {mb['layers']:,.0f}, vocabularies {mb['vocabularies']:,.0f}, "
            f"window of rows {mb['window']:,.0f}, batch {mb['batch']:,.0f}, commit "
            f"{mb['commit']:,.0f}, {start}process {mb['process']:,.0f})"
        )

    def check(self, memory_mb: int | None) -> None:
        """ConfigError where the plan can't fit."""
        remedies = {
            "tables": ("tables", "a larger min_count, fewer buckets, a smaller ranker.deep.dim"),
            "layers": ("layers", "fewer or smaller ranker.deep.hidden"),
            "vocabularies": ("vocabularies", "a larger min_count, or hashes"),
            "start": ("the model of start_from", "a smaller one"),
            "window": ("rows that are shuffled", "fewer features"),
            "commit": ("commits", "a larger min_count, fewer buckets"),
            "batch": ("work on a batch", "a smaller ranker.batch_size"),
        }
        if (why := refusal(self, remedies, memory_mb)) is not None:
            raise ConfigError(why)


def plan_ranker(
    encoding: Encoding, config: RankerConfig, window_rows: int, threads: int
) -> RankerPlan:
    """window_rows: most rows that are shuffled at once."""
    features, tasks = encoding.features, len(config.labels)
    layout = features.layout
    width = _width(layout, config)
    hidden = sum(config.deep.hidden) if config.deep.enabled else 0
    batch = 2 * config.batch_size * (tasks + len(layout.slots))
    if _written_out(config):  # inputs, sums by id; a thread's units of a block and of few ids
        units = config.deep.hidden[0] + tasks + 1
        few = sum(slot.size for slot in layout.slots if slot.size <= config.batch_size // FEW)
        batch += config.batch_size * (2 * width + 2 * tasks + 3 * len(layout.slots))
        batch += threads * room_for([width, *config.deep.hidden, tasks])
        batch += (threads + 2) * few * units
    else:  # inputs and their gradients, units before and after ReLU and their gradients
        batch += config.batch_size * (4 * width + 4 * hidden + 2 * tasks)
    rows = min(window_rows, encoding.num_rows)
    # A byte an id of the largest slot, and the numbers of those that were met.
    largest = max((slot.size for slot in layout.slots), default=0)
    return RankerPlan(
        tables=_tables(layout, config),
        layers=_layers(layout, config, threads),
        window=int(_COPIES * rows * encoding.bytes_a_row),
        batch=4 * batch,
        commit=largest + 8 * min(largest, encoding.num_rows),
        vocabularies=_vocabularies(features),
        start=_start(config.start_from) if config.start_from is not None else 0,
    )


def _start(folder: Path) -> int:
    config, features = described(folder)
    layout = features.layout
    return _tables(layout, config) + _layers(layout, config, None) + _vocabularies(features)


def _vocabularies(features: Features) -> int:
    kinds, slots = features.config.features, features.layout.slots
    known = (slot for slot in slots if slot.name in kinds and kinds[slot.name].kind == "category")
    return _VALUE_BYTES * sum(slot.size for slot in known)


def _written_out(config: RankerConfig) -> bool:
    """Whether the layers' step is (ranking/layers.py)."""
    deep = config.deep
    return bool(deep.enabled and deep.hidden and deep.towers is None and not deep.dropout)


def _layers(layout: Layout, config: RankerConfig, threads: int | None) -> int:
    """Weights and biases of the body or of both towers, as often as they are held; threads: None
    where nothing is learnt."""
    deep = config.deep
    if not deep.enabled:
        return 0
    ends = [] if deep.towers else [len(config.labels)]
    sides: Sequence[Collection[str] | None] = deep.towers or [None]
    count = 0
    for side in sides:
        sizes = [_width(layout, config, side), *deep.hidden, *ends]
        count += sum((before + 1) * after for before, after in pairwise(sizes))
    held = _HELD[deep.optimizer]
    if (
        threads is not None
    ):  # and gradients of each thread and a copy, or gradients and a step's own
        held += threads + 1 if _written_out(config) else 2
    return 4 * count * held


def _width(layout: Layout, config: RankerConfig, side: Collection[str] | None = None) -> int:
    """Numbers that the body reads, or a tower of these features."""
    slots = [slot.name for slot in layout.slots if side is None or slot.name in side]
    dims = sum(config.deep.dim_of(name, layout.crosses) for name in slots)
    return dims + len(layout.dense_of(config.deep.numbers if side is None else side))


def _tables(layout: Layout, config: RankerConfig) -> int:
    return sum(slot.size * _bytes_an_id(config, layout.crosses, slot) for slot in layout.slots)


def _bytes_an_id(config: RankerConfig, crosses: frozenset[str], slot: Slot) -> int:
    dim = config.deep.dim_of(slot.name, crosses)
    state = ROW_OPTIMIZERS.build(config.deep.row_optimizer).state_width if dim else 0
    chosen = config.wide.features
    inside = config.wide.enabled and (chosen is None or slot.name in chosen)
    return 4 * (dim + state) + 8 * len(config.labels) * inside
