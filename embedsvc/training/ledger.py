"""The ledger: one line a bucket in the log and in metrics.jsonl, and a bar on a terminal.

A line of an evaluation has no bucket. For TensorBoard what is written is told to `Curves` too.
"""

import json
import logging
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from embedsvc.training.tensorboard import Curves
from partitions import durable
from partitions.schedule import Lease

logger = logging.getLogger(__name__)

_OF_A_BUCKET = ("edges", "edges_per_s", "loss", "wait_s")  # what every record of one has


class Ledger:
    """Use as a context manager; `metrics` may be a file that earlier runs began."""

    def __init__(
        self, metrics: Path, num_epochs: int, *, edge: str = "edge", bucket: str = "bucket"
    ) -> None:
        """edge, bucket: what the log and the bar call them; `metrics` has them by these names."""
        self.metrics, self.num_epochs = metrics, num_epochs
        self._edge, self._bucket = edge, bucket
        self.num_edges = 0
        self.train_s = 0.0
        self.last_loss = float("nan")
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn(f"{{task.completed:,}}/{{task.total:,}} {edge}s"),
            TextColumn("{task.fields[rate]:,.0f}/s  loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._curves: Curves | None = None
        _drop_torn_line(metrics)

    def go_on_from(self, epoch: int, num_done: int) -> None:
        """Forget what was trained and not committed, which will come again; what is committed is
        whole epochs, and buckets of the next. Lines that can't be read stay as they are."""
        lines = self.metrics.read_bytes().splitlines(True) if self.metrics.exists() else []
        kept = [line for line in lines if _counts(_record_of(line), epoch, num_done)]
        if len(kept) < len(lines):
            with durable.replacing(self.metrics) as file:
                file.writelines(kept)

    def draw_curves(self, epoch: int, num_done: int) -> None:
        """For TensorBoard, from what is committed on: whole epochs, and buckets of the next."""
        try:
            records = read_records(self.metrics) if self.metrics.exists() else []
            self._curves = Curves(self.metrics.parent, records, epoch, num_done)
        except Exception as error:
            self._go_without_curves(error)

    def __enter__(self) -> "Ledger":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def open(self, lease: Lease, num_edges: int, edges_to_do: int) -> None:
        """A bucket begins; edges_to_do: of all epochs, this bucket included, for the bar."""
        self._lease, self._start = lease, perf_counter()
        self._bucket_edges, self._bucket_loss, self._bucket_size = 0, 0.0, num_edges
        epoch = f"{lease.epoch + 1}/{self.num_epochs}"
        if self._task is None:
            self._task = self._bar.add_task("", total=edges_to_do, epoch=epoch, rate=0.0, loss=0.0)
        self._bar.update(self._task, epoch=epoch)

    def add(self, num_edges: int, loss: float) -> None:
        self._bucket_edges += num_edges
        self._bucket_loss += loss
        seconds = perf_counter() - self._start
        assert self._task is not None
        self._bar.update(
            self._task,
            advance=num_edges,
            rate=self._bucket_edges / max(seconds, 1e-9),
            loss=self._bucket_loss / max(self._bucket_edges, 1),
        )

    def close(self, done: int, num_buckets: int, wait_s: float, lr: float) -> None:
        """The bucket is trained; it may not be committed yet. lr: in the middle of it."""
        seconds = perf_counter() - self._start
        self.num_edges += self._bucket_edges
        self.train_s += seconds
        self.last_loss = self._bucket_loss / max(self._bucket_edges, 1)
        lease = self._lease
        record: dict[str, Any] = {
            "epoch": lease.epoch + 1,
            "bucket": [lease.bucket.lhs, lease.bucket.rhs],
            "done": done,
            "buckets": num_buckets,
            "edges": self._bucket_edges,
            "edges_per_s": round(self._bucket_edges / max(seconds, 1e-9)),
            "loss": self.last_loss,
            "wait_s": round(wait_s, 4),
            "lr": lr,
            "token": lease.token,
        }
        self._record(record)
        if self._bar.disable:
            logger.info(
                "epoch=%d/%d %s=(%d,%d) done=%d/%d %ss_per_s=%d loss=%.4f wait_s=%.2f",
                lease.epoch + 1,
                self.num_epochs,
                self._bucket,
                *lease.bucket,
                done,
                num_buckets,
                self._edge,
                record["edges_per_s"],
                self.last_loss,
                wait_s,
            )

    def judged(self, epoch: int, metric: str, value: float) -> None:
        """The commit that ends `epoch`, counted from 1, was evaluated."""
        self._record({"epoch": epoch, metric: value})

    def judged_before(self, metric: str, history: Iterable[tuple[int, float]]) -> None:
        """What a kill kept from being recorded of evaluations; before `draw_curves`."""
        records = read_records(self.metrics) if self.metrics.exists() else []
        known = {record["epoch"] for record in records if metric in record}
        for epoch, value in history:
            if epoch not in known:
                self.judged(epoch, metric, value)

    def _record(self, record: dict[str, Any]) -> None:
        record["time"] = round(time.time(), 3)
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._curves is not None:
            try:
                self._curves.add(record)
            except Exception as error:
                self._go_without_curves(error)

    def _go_without_curves(self, error: Exception) -> None:
        """Whatever it is, a training of days is worth more; the next run draws them anew."""
        self._curves = None
        logger.warning(
            "no more curves for TensorBoard in this run: %s: %s", type(error).__name__, error
        )


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """What a ledger wrote. Lines that no ledger wrote, or a broken disk altered, are left out,
    which is said."""
    lines = metrics.read_bytes().splitlines()
    read = [_record_of(line) for line in lines]
    bad = [number for number, record in enumerate(read, start=1) if record is None]
    if bad:
        _warn_once(
            f"{metrics}: {len(bad)} lines can't be read and are left out, "
            f"the first is line {bad[0]}"
        )
    return [record for record in read if record is not None]


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _record_of(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8, or not JSON
        return None
    if not isinstance(record, dict):
        return None
    bucket = record.get("bucket", [0, 0])
    whole = isinstance(bucket, list) and [type(at) for at in bucket] == [int, int]
    wanted = {"epoch"} | ({"done", *_OF_A_BUCKET} if "bucket" in record else set())
    numbers = [record.get(key) for key in wanted | (record.keys() - {"bucket"})]
    whole &= all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    return record if whole and type(record["epoch"]) is int else None


def _counts(record: dict[str, Any] | None, epoch: int, num_done: int) -> bool:
    """Whether a line is of no bucket, or of one that is committed."""
    if record is None or "bucket" not in record:
        return True
    return bool((record["epoch"] - 1, record["done"]) <= (epoch, num_done))


def _drop_torn_line(metrics: Path) -> None:
    """Cut what a kill in mid-write left at the end of the file."""
    if metrics.exists():
        with metrics.open("rb+") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
