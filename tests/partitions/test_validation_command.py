"""`embedsvc validate`: what it prints, and its exit codes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from partitions import commands
from scripts import event_log
from scripts.event_log import Shop

SHOP = Shop(num_users=1_000, num_items=300)
ROWS = 10_000


def put(folder: Path, table: pa.Table) -> None:
    event_log.write(table.drop_columns(["device"]), folder / "data", "tsv")


CONFIG = """
[run]
dir = "run"
[graph]
data = "data"
[graph.entities.user]
[graph.entities.item]
[graph.relations]
viewed = { lhs = "user", rhs = "item" }
bought = { lhs = "user", rhs = "item" }
follows = { lhs = "user", rhs = "user" }
[[graph.inputs]]
path = "*.tsv"
columns = { lhs = "lhs", rel = "rel", rhs = "rhs", weight = "weight", timestamp = "timestamp" }
"""


def command(*arguments: str, columns: str = "120") -> tuple[int, str]:
    app = typer.Typer()
    app.command()(commands.validate)
    done = CliRunner().invoke(app, ["graph.toml", *arguments], env={"COLUMNS": columns})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 2, str(done.exception)  # as partitions.cli does
    return done.exit_code, done.output


def test_a_relation_that_the_config_lacks_is_for_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.toml").write_text(CONFIG)
    put(tmp_path, SHOP.week(0, ROWS))
    command("--as-of", "2026-01-07")
    table = SHOP.week(0, ROWS)
    some = pa.array(np.arange(ROWS) % 100 == 0)
    rel = pa.compute.if_else(some, "wished", table["rel"])
    put(tmp_path, table.set_column(1, "rel", rel))
    code, text = command("--as-of", "2026-01-07")
    assert code == 1 and "unknown_relation" in text
    assert 'name it, or "*", in [graph.relations], or mend the data.' in text
    assert "To accept them" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_distances_are_whole_lines_where_a_table_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.toml").write_text(CONFIG)
    put(tmp_path, SHOP.week(0, ROWS))
    command("--as-of", "2026-01-07")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    code, text = command("--as-of", "2026-01-07", "--distances", columns="80")
    lines = [line for line in text.splitlines() if "number_drift" in line]
    assert code == 0 and len(lines) == 3
    (bought,) = [line for line in lines if "weight of bought" in line]
    assert bought.startswith("number_drift: distribution of weight of bought: observed 0, expected")
    assert bought.endswith("0% of its limit")


def test_the_command_tells_by_exit_code_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.toml").write_text(CONFIG)
    put(tmp_path, SHOP.week(0, ROWS))
    code, text = command("--as-of", "2026-01-07")
    assert code == 0 and "inferred run/schema.toml from them. Please review it." in text
    put(tmp_path, SHOP.week(1, ROWS))
    code, text = command("--as-of", "2026-01-14", "--distances")
    assert code == 0 and "no anomaly" in text and "nearest to its limit" in text
    put(tmp_path, event_log.sentinel(SHOP.week(2, ROWS), np.random.default_rng(1)))
    code, text = command("--as-of", "2026-01-21")
    assert code == 1 and "sentinel_value" in text
    assert "[columns.weight] min = -1.0  # now 0.0" in text
    code, text = command("--as-of", "2026-01-21", "--accept")
    assert code == 0 and "accepted" in text
    assert command("--as-of", "2026-01-21")[0] == 0
    assert command("--as-of", "2026-01-25")[0] == 1  # late
    (tmp_path / "data" / "part-0.tsv").write_bytes(b"lhs\trel\trhs\tweight\n")
    code, text = command("--as-of", "2026-01-21")
    assert code == 2 and "missing_column" in text
    code, text = command("--as-of", "yesterday")
    assert code == 2 and "--as-of yesterday is no date" in text
