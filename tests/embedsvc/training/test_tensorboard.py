"""What TensorBoard reads is what metrics.jsonl says, once."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.training.ledger import read_records
from embedsvc.training.report import write
from embedsvc.training.tensorboard import FOLDER, Curves, _masked_crc
from embedsvc.training.trainer import METRICS, train
from partitions.graph import Graph

MakeGraph = Callable[..., Graph]
Point = tuple[str, int, float]  # tag, step, value
MODEL = ModelConfig(dim=4)
CONFIG = TrainConfig(
    epochs=1,
    lr_schedule={"name": "linear", "epochs": 4},
    early_stopping={"patience": 9},
    buffer=3,
    threads=1,
    tensorboard=True,
)


def event_class() -> Any:
    """TensorFlow's Event, as far as it is written, by the protobuf library."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")

    def message(name: str, **fields: tuple[int, int, str | None, bool]) -> None:
        made = file.message_type.add(name=name)
        for key, (number, kind, type_name, repeated) in fields.items():
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            made.field.add(name=key, number=number, type=kind, label=label, type_name=type_name)

    one = field.TYPE_MESSAGE
    message(
        "Value", tag=(1, field.TYPE_STRING, None, False), value=(2, field.TYPE_FLOAT, None, False)
    )
    message("Summary", value=(1, one, ".t.Value", True))
    message("SessionLog", status=(1, field.TYPE_INT32, None, False))
    message(
        "Event",
        wall_time=(1, field.TYPE_DOUBLE, None, False),
        step=(2, field.TYPE_INT64, None, False),
        file_version=(3, field.TYPE_STRING, None, False),
        summary=(5, one, ".t.Summary", False),
        session_log=(7, one, ".t.SessionLog", False),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


EVENT = event_class()


def events(folder: Path) -> list[Any]:
    [path] = (folder / FOLDER).iterdir()
    data, found = path.read_bytes(), []
    while data:
        [length] = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert data[8:12] == _masked_crc(data[:8])
        assert data[12 + length : 16 + length] == _masked_crc(body)
        found.append(EVENT.FromString(body))
        data = data[16 + length :]
    return found


def points(folder: Path) -> list[Point]:
    first, start, *others = events(folder)
    assert first.file_version == "brain.Event:2" and start.session_log.status == 1
    return [(v.tag, event.step, v.value) for event in others for v in event.summary.value]


def wanted(records: list[dict[str, Any]]) -> list[Point]:
    found: list[Point] = []
    step = 0
    for record in records:
        if "bucket" in record:
            step += record["edges"]
            names = ("loss", "edges_per_s", "wait_s", "lr")
            found += [(name, step, float(np.float32(record[name]))) for name in names]
        else:
            found.append(("validation/mrr", step, float(np.float32(record["mrr"]))))
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    edges = [(f"a{i % 20}", "r", f"b{i * 7 % 30}") for i in range(120)]
    splits = {"train": edges[:100], "valid": edges[100:]}
    return make_graph(splits, {"r": ("a", "b")}, {"a": 2, "b": 2})


def test_the_checksum_is_crc_32c() -> None:
    crc = 0xE3069283  # of these digits, as catalogues of checksums have it
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _masked_crc(b"123456789") == struct.pack("<I", masked)


def test_a_run_and_its_resumption_are_one_curve(graph: Graph, tmp_path: Path) -> None:
    """Between the two a bucket was trained, but not committed, and the line after it was torn."""
    train(graph, tmp_path, MODEL, CONFIG)
    before = records(tmp_path)
    assert points(tmp_path) == wanted(before)
    assert [r for r in before if "mrr" in r] and len(before) == 5
    lost = before[0] | {"epoch": 2, "loss": 99.0}
    with (tmp_path / METRICS).open("a") as file:
        file.write(json.dumps(lost) + '\n{"epoch": 2, "buck')
    train(graph, tmp_path, MODEL, CONFIG.model_copy(update={"epochs": 2}))
    found = records(tmp_path)  # the lost one is not among them
    assert len(found) == 10 and found[:5] == before
    assert points(tmp_path) == wanted(found)
    rates = [record["lr"] for record in found if "lr" in record]
    assert rates == sorted(rates, reverse=True) and 0.05 < rates[-1] < rates[0] < 0.1


DAMAGED = [
    b"\0" * 200,
    b"\xff\xfe",
    b'{"epoch": 1, "bu',
    b"3",
    b"[" * 100_000,
    b'{"mrr": 0.5}',
    b'{"epoch": 1, "mrr": "high"}',
    b'{"epoch": 1, "bucket": [0, 0]}',
    b'{"epoch": 1, "bucket": 3, "done": 1, "edges": 1, "edges_per_s": 1, "loss": 1, "wait_s": 0}',
]


def test_a_damaged_line_stops_neither_a_training_nor_the_report(
    graph: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(graph, tmp_path, MODEL, CONFIG)
    path = tmp_path / METRICS
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], *DAMAGED, *lines[1:], b""]))
    sound = [json.loads(line) for line in lines]
    assert read_records(path) == sound
    train(graph, tmp_path, MODEL, CONFIG.model_copy(update={"epochs": 2}))
    [said] = [r.getMessage() for r in caplog.records if "can't be read" in r.getMessage()]
    assert said == f"{path}: 9 lines can't be read and are left out, the first is line 2"
    found = read_records(path)
    assert len(found) == 10 and found[:5] == sound
    assert points(tmp_path) == wanted(found)
    with path.open("ab") as file:
        file.write(b"\0" * 200)
    assert "Validation mrr" in write(tmp_path, "run", {}).read_text()


def test_curves_that_can_not_be_drawn_stop_no_training(
    graph: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    train(graph, tmp_path, MODEL, CONFIG)
    assert len(read_records(tmp_path / METRICS)) == 5
    assert "no more curves for TensorBoard in this run: FileExistsError" in caplog.text

    def full(*_: object) -> None:
        raise OSError("no room")

    (tmp_path / FOLDER).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curves, "add", full)
        train(graph, tmp_path, MODEL, CONFIG.model_copy(update={"epochs": 2}))
    assert len(read_records(tmp_path / METRICS)) == 10 and "OSError: no room" in caplog.text


def test_without_the_setting_there_are_no_event_files(graph: Graph, tmp_path: Path) -> None:
    train(graph, tmp_path, MODEL, CONFIG.model_copy(update={"tensorboard": False}))
    assert not (tmp_path / FOLDER).exists()


def test_of_what_was_trained_twice_the_last_counts(tmp_path: Path) -> None:
    def bucket(epoch: int, done: int, loss: float) -> dict[str, Any]:
        return {"epoch": epoch, "bucket": [0, done], "done": done, "edges": 10, "loss": loss}

    lines = [
        bucket(1, 1, 5.0),
        bucket(1, 2, 4.0),  # a kill; another bucket comes second then
        bucket(1, 2, 3.0),
        {"epoch": 1, "mrr": 0.25},
        {"epoch": 1, "mrr": 0.25},
        bucket(2, 1, 2.0),
        bucket(2, 2, 1.0),  # not committed
    ]
    curves = Curves(tmp_path, lines, epoch=1, num_done=1)
    curves.add(bucket(2, 2, 0.5))
    assert points(tmp_path) == [
        ("loss", 10, 5.0),
        ("loss", 20, 3.0),
        ("validation/mrr", 20, 0.25),
        ("loss", 30, 2.0),
        ("loss", 40, 0.5),
    ]


def test_tensorboard_reads_it(graph: Graph, tmp_path: Path) -> None:
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulators = pytest.importorskip(module, reason="TensorBoard is no part of the set-up")
    train(graph, tmp_path, MODEL, CONFIG)
    read = accumulators.EventAccumulator(str(tmp_path / FOLDER))
    read.Reload()
    found = [(t, e.step, e.value) for t in read.Tags()["scalars"] for e in read.Scalars(t)]
    assert sorted(found) == sorted(wanted(records(tmp_path)))
