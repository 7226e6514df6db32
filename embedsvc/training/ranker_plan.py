"""The memory plan of `[ranker]`: what training will take at most, said before it is taken."""

from dataclasses import dataclass

from embedsvc.outputs.sparse import ROW_OPTIMIZERS
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import Encoding
from partitions.errors import ConfigError
from partitions.features import Slot
from partitions.memory import available_bytes

_PROCESS_BYTES = 560_000_000  # interpreter, libraries and compiled kernels, as measured
_COPIES = 4  # of a window: as read, of which the file's pages count, end to end, and shuffled


@dataclass(frozen=True)
class RankerPlan:
    """Bytes, by what they are for."""

    tables: int  # of which pages are taken where ids were met
    window: int
    batch: int
    commit: int  # which ids were met
    process: int = _PROCESS_BYTES

    @property
    def total(self) -> int:
        return self.tables + self.window + self.batch + self.commit + self.process

    def __str__(self) -> str:
        mb = {name: value / 1e6 for name, value in vars(self).items()}
        return (
            f"memory plan: at most {self.total / 1e6:,.0f} MB (tables {mb['tables']:,.0f}, taken "
            f"as ids are met, window of rows {mb['window']:,.0f}, batch {mb['batch']:,.0f}, "
            f"commit {mb['commit']:,.0f}, process {mb['process']:,.0f})"
        )

    def check(self, memory_mb: int | None) -> None:
        """ConfigError where the plan can't fit."""
        available = available_bytes(memory_mb)
        if self.total <= available:
            return
        remedies = {
            "tables": ("tables", "a larger min_count, fewer buckets, a smaller ranker.deep.dim"),
            "window": ("rows that are shuffled", "fewer features"),
            "commit": ("commits", "a larger min_count, fewer buckets"),
            "batch": ("work on a batch", "a smaller ranker.batch_size"),
        }
        largest = max(remedies, key=lambda part: int(getattr(self, part)))
        what, remedy = remedies[largest]
        raise ConfigError(
            f"Training plans for {self.total / 1e6:,.0f} MB and {available / 1e6:,.0f} MB are "
            f"free. Beside the program itself, {self.process / 1e6:,.0f} MB, most of it is for "
            f"{what}, {getattr(self, largest) / 1e6:,.0f} MB: use {remedy}, or raise "
            "train.memory_mb."
        )


def plan_ranker(encoding: Encoding, config: RankerConfig, window_rows: int) -> RankerPlan:
    """window_rows: most rows that are shuffled at once."""
    layout, tasks = encoding.features.layout, len(config.labels)
    tables = sum(slot.size * _bytes_an_id(config, layout.crosses, slot) for slot in layout.slots)
    width = sum(config.deep.dim_of(slot.name, layout.crosses) for slot in layout.slots)
    width += len(layout.dense)
    hidden = sum(config.deep.hidden) if config.deep.enabled else 0
    # Inputs and their gradients, units before and after ReLU and their gradients.
    batch = config.batch_size * 4 * (4 * width + 4 * hidden + 4 * tasks + 2 * len(layout.slots))
    rows = min(window_rows, encoding.num_rows)
    # A byte an id of the largest slot, and the numbers of those that were met.
    largest = max((slot.size for slot in layout.slots), default=0)
    commit = largest + 8 * min(largest, encoding.num_rows)
    return RankerPlan(tables, int(_COPIES * rows * encoding.bytes_a_row), batch, commit)


def _bytes_an_id(config: RankerConfig, crosses: frozenset[str], slot: Slot) -> int:
    dim = config.deep.dim_of(slot.name, crosses)
    state = ROW_OPTIMIZERS.build(config.deep.row_optimizer).state_width if dim else 0
    chosen = config.wide.features
    inside = config.wide.enabled and (chosen is None or slot.name in chosen)
    return 4 * (dim + state) + 8 * len(config.labels) * inside
