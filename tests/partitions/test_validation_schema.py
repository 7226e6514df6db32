"""schema.toml: it reads back, says what is wrong with it, and edits keep a person's hand."""

import tomllib
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.errors import ConfigError, DataError
from partitions.gate import data_schema
from partitions.gate.anomalies import rounded_up
from partitions.gate.data_schema import (
    ColumnRules,
    DataSchema,
    EntityRules,
    GraphRules,
    RelationRules,
    as_toml,
    parse,
)
from partitions.gate.schema_edits import Edit, combined, edited

SCHEMA = DataSchema(
    graph=GraphRules(rows=(10, 1000)),
    columns={
        "lhs": ColumnRules(type="key"),
        "weight": ColumnRules(type="number", min=-1.5, max=1e300, distinct=(2, 9), drift=0.05),
        "stars": ColumnRules(type="number", values=[0.5, 1.0, 5.0]),
        "device": ColumnRules(type="category", values=["web", 'a"b', "é"], broken=0.0),
        "timestamp": ColumnRules(type="timestamp", earliest=date(2026, 1, 2), max_lag_days=0),
    },
    entities={"user": EntityRules(count=(1, 9), prefix="u", characters=["digits"], length=(1, 9))},
    relations={"/a b/c.d": RelationRules(lhs="user", rhs="user", share=(0.1, 1.0))},
)

HAND_EDITED = """\
format_version = 1
graph = { rows = [1, 10] }

[columns.weight]
type = "number"   # in euros
# Anna, 3 May: nothing dearer than a car
max = 20000.0     # seen 1999.0

[columns.device]
type = "category"
values = [
    "web",  # the shop
    "ios",
]
"""


def test_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(as_toml(SCHEMA, {("columns", "weight", "max"): "7"}), "utf-8")
    assert data_schema.read(path).schema == SCHEMA
    assert "max = 1e+300  # Numbers: largest allowed; seen 7" in path.read_text()


@given(st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=5), max_size=3), max_size=3))
def test_any_name_and_value_survives_the_file(found: dict[str, list[str]]) -> None:
    schema = DataSchema(
        graph=GraphRules(rows=(0, 1)),
        columns={name: ColumnRules(type="category", values=v) for name, v in found.items()},
        entities={name: EntityRules(count=(0, 1), prefix=name) for name in found},
        relations={name: RelationRules(lhs=name, rhs=name) for name in found},
    )
    assert parse(as_toml(schema, {}), "x") == schema


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[graph]", "s.toml: [graph] rows is missing."),
        ("[graph]\nrow = [1, 2]", "s.toml: [graph] row is not a rule. Did you mean rows?"),
        ("[graph]\nrows = [1, 2]\n[colums]", "s.toml: colums is not a rule. Did you mean columns?"),
        (
            '[graph]\nrows = [1, 2]\n[columns.w]\ntype = "number"\nmim = 3',
            "s.toml: [columns.w] mim is not a rule. Did you mean min?",
        ),
        (
            "[graph]\nrows = [1, 2]\n[drift]\nhubs = 0.1",
            "s.toml: [drift] hubs is not a rule. Did you mean hub?",
        ),
        (
            '[graph]\nrows = [1, 2]\n[relations.r]\nlhs = "user"\nrhs = "item"\n'
            "[entities.users]\ncount = [1, 2]",
            "s.toml: relations.r names the entity type user. Did you mean users?",
        ),
        (
            "[graph]\nrows = [1, 2]\nduplicates = 7",
            "s.toml: [graph] duplicates = 7: input should be less than or equal to 1.",
        ),
        ("[graph", "s.toml is not valid TOML: "),
    ],
)
def test_a_mistake_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "s.toml")
    assert str(caught.value).startswith(sentence)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Run embedsvc validate to infer it"):
        data_schema.read(tmp_path / "schema.toml")


def test_rules_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SCHEMA.graph.rows = (1, 2)


# --- edits ----------------------------------------------------------------------------------------


def test_an_edit_changes_its_line_and_nothing_else() -> None:
    edit = Edit(("columns", "weight"), "max", 30_000.0)
    assert str(edit) == "[columns.weight] max = 30000.0"
    text = edited(HAND_EDITED, [edit], "s.toml")
    assert text == HAND_EDITED.replace("max = 20000.0", "max = 30000.0")


def test_an_edit_adds_a_line_or_a_table_that_is_not_there() -> None:
    edits = [
        Edit(("columns", "weight"), "min", -1.0),
        Edit(("entities", "new type"), "count", (1, 2)),
        Edit(("columns", "weight"), "drift", 0.5),
    ]
    text = edited(HAND_EDITED, edits, "s.toml")
    found = tomllib.loads(text)
    assert found["columns"]["weight"] == {
        "type": "number",
        "max": 20_000.0,
        "min": -1.0,
        "drift": 0.5,
    }
    assert found["entities"]["new type"]["count"] == [1, 2]
    assert "# Anna, 3 May: nothing dearer than a car" in text


def test_an_edit_of_an_array_over_several_lines_replaces_it() -> None:
    edit = Edit(("columns", "device"), "values", ["ios", "tv", "web"])
    found = tomllib.loads(edited(HAND_EDITED, [edit], "s.toml"))
    assert found["columns"]["device"]["values"] == ["ios", "tv", "web"]
    assert found["columns"]["weight"]["max"] == 20_000.0


def test_an_edit_without_a_value_takes_the_rule_away() -> None:
    edits = [Edit(("columns", "device"), "values", None), Edit(("columns", "x"), "max", None)]
    assert [str(edit) for edit in edits][:1] == ["[columns.device] no values"]
    assert tomllib.loads(edited(HAND_EDITED, edits, "s.toml"))["columns"] == {
        "weight": {"type": "number", "max": 20_000.0},
        "device": {"type": "category"},
    }


def test_what_can_not_be_edited_is_said() -> None:
    with pytest.raises(ConfigError):
        edited(HAND_EDITED, [Edit(("graph",), "rows", (1, 20))], "s.toml")


def test_edits_of_one_rule_become_the_one_that_accepts_them_all() -> None:
    table = ("columns", "x")
    edits = [
        *(Edit(table, "max", v) for v in (3.0, 5.0)),
        *(Edit(table, "min", v) for v in (-3.0, -5.0)),
        *(Edit(table, "distinct", v) for v in ((1, 5), (3, 9))),
        *(Edit(table, "values", v) for v in (["a"], ["b"])),
        *(Edit(table, "presence", v) for v in (0.5, 0.2)),
    ]
    assert {edit.key: edit.value for edit in combined(edits)} == {
        "max": 5.0,
        "min": -5.0,
        "distinct": (1, 9),
        "values": ["a", "b"],
        "presence": 0.2,
    }


@given(st.floats(1e-9, 1e9), st.integers(2, 4))
def test_a_number_rounded_up_is_not_below(value: float, digits: int) -> None:
    found = rounded_up(value, digits)
    assert value <= found <= value * (1 + 2 * 10.0 ** (1 - digits))
    assert len(f"{found:.12e}".split("e")[0].replace(".", "").rstrip("0")) <= digits
