"""A shop's event log, drawn from a seed: what the data gate is tried on, and how to break it.

Each week has events of three relations: users view and buy items and follow users. Items and users
are as popular as Zipf says, prices and seconds are log-normal, each hour of the day has its share.
Weeks differ as real ones do: some users and items are new, popularity wanders, no two days are
equally busy. So what a gate calls drift must be more than that.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from partitions.config import SourceConfig
from partitions.gate.data_files import Input

DAY_S = 86_400
START_DAY = 20_454  # 2026-01-01
DAYS = 7  # of a batch
ENDPOINTS = {"viewed": ("user", "item"), "bought": ("user", "item"), "follows": ("user", "user")}
_SHARES = {"viewed": 0.72, "bought": 0.18, "follows": 0.1}
_WORDS = ["café", "thé", "mug", "pâté", "lamp", "señal", "book", "übung"]
_DEVICES = ["android", "ios", "web"]
_NEW = 0.02  # of the users and items each week


@dataclass(frozen=True)
class Shop:
    """Who there is. plain: keys are numbers, and users and items share them."""

    seed: int = 1
    num_users: int = 20_000
    num_items: int = 5_000
    plain: bool = False

    def week(self, number: int, rows: int, seed: int | None = None) -> pa.Table:
        """The events of one week. seed: another draw from the same week."""
        rng = np.random.default_rng([self.seed, number, seed or 0])
        lasting = np.random.default_rng(self.seed)
        users, user_p = self._popular(lasting, rng, self.num_users, number, 0.8)
        items, item_p = self._popular(lasting, rng, self.num_items, number, 1.0)
        price = np.exp(lasting.normal(3.0, 0.8, int(self.num_items * 3)))
        rel = rng.choice(len(_SHARES), rows, p=list(_SHARES.values()))
        lhs, rhs = rng.choice(users, rows, p=user_p), rng.choice(items, rows, p=item_p)
        weight = np.exp(rng.normal(3.2, 1.0, rows))  # seconds of a view
        bought = rel == 1
        weight[bought] = price[rhs[bought]] * rng.choice([0.8, 1, 1], int(bought.sum()))
        follows = rel == 2
        rhs[follows] = rng.choice(users, int(follows.sum()), p=user_p)
        weight[follows] = rng.integers(1, 6, int(follows.sum()))
        same = follows & (lhs == rhs)
        rhs[same] = users[(np.searchsorted(users, rhs[same]) + 1) % len(users)]
        return pa.table(
            {
                "lhs": self.keys("user", lhs),
                "rel": pa.array(list(_SHARES)).take(pa.array(rel)),
                "rhs": pc.if_else(
                    pa.array(follows), self.keys("user", rhs), self.keys("item", rhs)
                ),
                "weight": np.round(weight, 2).astype(np.float32),
                "timestamp": self._times(rng, number, rows),
                "device": pa.array(_DEVICES).take(pa.array(rng.choice(3, rows, p=[0.5, 0.3, 0.2]))),
            }
        )

    def _popular(
        self,
        lasting: np.random.Generator,
        rng: np.random.Generator,
        count: int,
        number: int,
        slope: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Who is there in this week, and the share of each in the events."""
        p = 1 / np.arange(1, count + 1) ** slope
        ids = lasting.permutation(count)
        newer = int(count * _NEW)
        moved = rng.integers(count // 50, count, newer)  # the most popular stay
        ids[moved] = count + newer * number + np.arange(newer)
        order = np.argsort(ids)
        p *= np.exp(rng.normal(0, 0.1, count))
        return ids[order], p[order] / p.sum()

    def _times(self, rng: np.random.Generator, number: int, rows: int) -> NDArray[np.int64]:
        days = np.exp(rng.normal(0, 0.1, DAYS))
        hours = 1.2 + np.sin((np.arange(24) - 9) / 24 * 2 * np.pi)
        hours *= np.exp(rng.normal(0, 0.05, 24))
        day = START_DAY + DAYS * number + rng.choice(DAYS, rows, p=days / days.sum())
        hour = rng.choice(24, rows, p=hours / hours.sum())
        return np.asarray(day * DAY_S + hour * 3600 + rng.integers(0, 3600, rows))

    def keys(self, entity: str, ids: NDArray[np.int64]) -> pa.Array:
        most = int(ids.max(initial=0)) + 1
        if self.plain:
            names = [str(1000 + i) for i in range(most)]
        elif entity == "user":
            names = [f"u{i:05}" for i in range(most)]
        else:
            names = [f"item-{i}-{_WORDS[i % len(_WORDS)]}" for i in range(most)]
        return pa.array(names).take(pa.array(ids))


def end_of(number: int) -> int:
    """The last second of a week: when its batch is checked."""
    return (START_DAY + DAYS * (number + 1)) * DAY_S - 1


# --- files ----------------------------------------------------------------------------------------


def write(table: pa.Table, folder: Path, form: str = "parquet", files: int = 2) -> list[Input]:
    """The table as several files. form: parquet, arrow, tsv or tsv.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    step = -(-len(table) // files)
    for part in range(files):
        path, rows = folder / f"part-{part}.{form}", table.slice(part * step, step)
        if form == "parquet":
            pq.write_table(rows, path)
            continue
        if form == "arrow":
            with pa.ipc.new_file(str(path), rows.schema) as writer:
                writer.write_table(rows)
            continue
        with path.open("wb") if form == "tsv" else gzip.open(path, "wb", 1) as file:
            file.write("\t".join(table.column_names).encode() + b"\n")  # pyarrow would quote it
            options = pyarrow.csv.WriteOptions(
                include_header=False, delimiter="\t", quoting_style="none"
            )
            pyarrow.csv.write_csv(rows, file, options)
    columns = {name: name for name in table.column_names}
    return [Input(folder, SourceConfig(path=f"*.{form}"), dict(columns), None)]


def cut(path: Path, share: float = 0.6) -> None:
    """Keep only the first bytes of a file, as a broken copy would."""
    data = path.read_bytes()
    size = int(len(data) * share)
    while data[size - 1 : size] in (b"\n", b"\t"):  # the end of a line would not show
        size -= 1
    path.write_bytes(data[:size])


# --- faults ---------------------------------------------------------------------------------------


def _where(table: pa.Table, mask: NDArray[np.bool_], column: str, values: pa.Array) -> pa.Table:
    """The table with other values of a column in some rows."""
    at = table.column_names.index(column)
    old = table.column(column).combine_chunks()
    return table.set_column(at, column, pc.if_else(pa.array(mask), values.cast(old.type), old))


def _relation(table: pa.Table, name: str) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(table.column("rel"), name).to_numpy())


def wrong_unit(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Prices in cents."""
    cents = pc.multiply(table.column("weight").combine_chunks(), pa.scalar(100.0, pa.float32()))
    return _where(table, _relation(table, "bought"), "weight", cents)


def sentinel(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """-1 for 3 % of the weights."""
    some = rng.random(len(table)) < 0.03
    return _where(table, some, "weight", pa.array(np.full(len(table), -1.0)))


def swapped(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """lhs as rhs and rhs as lhs."""
    names = {"lhs": "rhs", "rhs": "lhs"}
    moved = table.rename_columns([names.get(name, name) for name in table.column_names])
    return moved.select(table.column_names)


def tenfold(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Each event ten times."""
    return pa.concat_tables([table] * 10).combine_chunks()


def dropped(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """No purchases."""
    return table.filter(pc.not_equal(table.column("rel"), "bought"))


def late(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The last day has not arrived."""
    last = pc.max(table.column("timestamp")).as_py() // DAY_S * DAY_S
    return table.filter(pc.less(table.column("timestamp"), last))


def garbled(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """A quarter of the events has been read as Latin-1 and written as UTF-8."""
    some = rng.random(len(table)) < 0.25
    for name in ("rhs", "device"):
        coded = table.column(name).combine_chunks().dictionary_encode()
        words = [word.encode().decode("latin-1") for word in coded.dictionary.to_pylist()]
        if name == "device" and words == coded.dictionary.to_pylist():
            words = [f"{word}\ufffd" for word in words]
        table = _where(table, some, name, pa.array(words).take(coded.indices))
    return table


def constant(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """All weights are 1."""
    return _where(table, np.ones(len(table), bool), "weight", pa.array(np.ones(len(table))))


def mixed(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """2 % of the weights are text."""
    at = table.column_names.index("weight")
    text = table.column("weight").combine_chunks().cast(pa.string())
    strange = pa.array(["n/a", "12,50", "free"]).take(pa.array(rng.integers(0, 3, len(table))))
    some = pa.array(rng.random(len(table)) < 0.02)
    return table.set_column(at, "weight", pc.if_else(some, strange, text))


def wrong_type(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The sellers' ids, who are users, in place of a fifth of the items bought."""
    some = _relation(table, "bought") & (rng.random(len(table)) < 0.2)
    other = table.column("lhs").combine_chunks().take(pa.array(rng.permutation(len(table))))
    return _where(table, some, "rhs", other)


def hub(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """A robot views one item: 15 % of the views are of it."""
    some = _relation(table, "viewed") & (rng.random(len(table)) < 0.15)
    item = table.filter(pc.equal(table.column("rel"), "viewed")).column("rhs")[7].as_py()
    return _where(table, some, "rhs", pa.array([item] * len(table)))


def unchanged(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The fault is one of files: see `cut`."""
    return table


Fault = Callable[[pa.Table, np.random.Generator], pa.Table]

# What is broken -> (the anomaly it must be called, how to break it, the form of file it shows in).
FAULTS: dict[str, tuple[str, Fault, str]] = {
    "wrong unit": ("wrong_unit", wrong_unit, "parquet"),
    "-1 sentinel": ("sentinel_value", sentinel, "parquet"),
    "swapped columns": ("swapped_columns", swapped, "parquet"),
    "tenfold duplicates": ("duplicates", tenfold, "parquet"),
    "dropped relation": ("missing_relation", dropped, "parquet"),
    "late day": ("late_data", late, "parquet"),
    "encoding break": ("encoding_break", garbled, "parquet"),
    "constant column": ("constant_column", constant, "parquet"),
    "truncated file": ("truncated_file", unchanged, "parquet"),
    "mixed types": ("mixed_types", mixed, "tsv"),
    "id off by one type": ("wrong_entity_type", wrong_type, "parquet"),
    "hub explosion": ("hub_explosion", hub, "parquet"),
}
