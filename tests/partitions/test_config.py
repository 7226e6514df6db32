"""partitions.config: typed settings, and mistakes named by file, table and nearest key."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from partitions.config import GraphConfig, RunConfig, Settings, SourceConfig, load
from partitions.errors import ConfigError

GOOD = """
[run]
dir = "runs/toy"

[graph]
data = "data"

[graph.entities.user]
partitions = 4

[graph.entities.movie]
attributes = {path = "movies.csv", columns = {key = 0, title = "title"}}

[graph.relations.likes]
lhs = "user"
rhs = "movie"

[[graph.inputs]]
path = "likes.tsv"
relation = "likes"

[[graph.inputs]]
path = "test.csv"
columns = {lhs = "from", rel = "by", rhs = "to", weight = 3}
split = "test"
"""


def loaded(folder: Path, text: str = GOOD, *overrides: str) -> Settings:
    (folder / "graph.toml").write_text(text)
    return load(folder / "graph.toml", overrides)


def graph_of(folder: Path, *overrides: str) -> GraphConfig:
    return loaded(folder, GOOD, *overrides).table("graph", GraphConfig)


def mistake(folder: Path, text: str, *overrides: str) -> str:
    """The sentence about the first mistake, less the file's name that every one begins with."""
    with pytest.raises(ConfigError) as caught:
        settings = loaded(folder, text, *overrides)
        settings.table("run", RunConfig)
        settings.table("graph", GraphConfig)
    message = str(caught.value)
    assert "\n" not in message
    name = str(folder / "graph.toml")
    assert message.startswith(name)
    assert message.endswith((".", "?"))
    return message.removeprefix(name)


def test_a_file_becomes_typed_frozen_tables(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    run, graph = settings.table("run", RunConfig), settings.table("graph", GraphConfig)
    assert run.dir == Path("runs/toy")
    assert [run.graph, run.checkpoint, run.published] == [
        Path("runs/toy") / name for name in ("graph", "checkpoint", "published")
    ]
    assert {name: e.partitions for name, e in graph.entities.items()} == {"user": 4, "movie": 1}
    assert graph.inputs[0].resolved_columns == {"lhs": 0, "rhs": 1}
    assert graph.inputs[1].resolved_columns == {
        "lhs": "from",
        "rel": "by",
        "rhs": "to",
        "weight": 3,
    }
    assert graph.entities["movie"].attributes.columns == {"key": 0, "title": "title"}  # type: ignore[union-attr]
    with pytest.raises(ValidationError, match="frozen"):
        graph.skip_bad = True  # type: ignore[misc]


def test_a_silent_file_gives_the_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").table("run", RunConfig) == RunConfig()
    assert loaded(tmp_path, "", "run.dir=x").table("run", RunConfig).dir == Path("x")


def test_positions_follow_the_order_lhs_rel_rhs(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, 'graph.inputs=[{path="e.tsv"}]')
    assert graph.inputs[0].resolved_columns == {"lhs": 0, "rel": 1, "rhs": 2}


def test_the_resolved_config_gives_the_same_config_again(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    assert GraphConfig.model_validate(graph.model_dump(mode="json")) == graph


# --- mistakes in the file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[run]", "[rum]", ": [rum] is not a table. Did you mean run?"),
        ("dir =", "dri =", ": [run] dri is not a setting. Did you mean dir?"),
        ("data =", "dat =", ": [graph] dat is not a setting. Did you mean data?"),
        (
            "partitions",
            "partitons",
            ": [graph.entities.user] partitons is not a setting. Did you mean partitions?",
        ),
        (
            'lhs = "user"',
            'lsh = "user"',
            ": [graph.relations.likes] lsh is not a setting. Did you mean lhs?",
        ),
        (
            "relation = ",
            "relatoin = ",
            ": [graph.inputs.0] relatoin is not a setting. Did you mean relation?",
        ),
        ("split =", "splt =", ": [graph.inputs.1] splt is not a setting. Did you mean split?"),
        (
            "attributes = {path",
            "attributes = {pth",
            ": [graph.entities.movie.attributes] pth is not a setting. Did you mean path?",
        ),
        (
            "columns = {lhs",
            "columns = {lsh",
            ": [graph.inputs.1.columns] lsh is not a setting. Did you mean lhs?",
        ),
        (
            "[graph.entities.user]",
            "[graph.entity.user]",
            ": [graph] entity is not a setting. Did you mean entities?",
        ),
        (
            "[graph.relations.likes]",
            "[graph.holdout]\nvald = 0.1\n[graph.relations.likes]",
            ": [graph.holdout] vald is not a setting. Did you mean valid?",
        ),
    ],
)
def test_an_unknown_key_names_its_table_and_the_nearest_key(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    assert GOOD.count(old) >= 1
    assert mistake(tmp_path, GOOD.replace(old, new, 1)) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "graph.entities.user.partitions=0",
            ": [graph.entities.user] partitions = 0: input should be greater than or equal to 1.",
        ),
        (
            "graph.entities.user.partitions=many",
            ": [graph.entities.user] partitions = 'many': expected a whole number.",
        ),
        (
            "graph.entities.user.partitions=1.5",
            ": [graph.entities.user] partitions = 1.5: expected a whole number.",
        ),
        (
            "graph.entities.user=3",
            ": [graph.entities] user = 3: it is a table of settings. Set one of them: "
            "graph.entities.user.partitions, graph.entities.user.expected, ",
        ),
        ("graph.skip_bad=maybe", ": [graph] skip_bad = 'maybe': expected true or false."),
        ("graph.holdout.valid=1.5", ": [graph.holdout] valid = 1.5: input should be less than 1."),
        (
            "graph.holdout.seed=-1",
            ": [graph.holdout] seed = -1: input should be greater than or equal to 0.",
        ),
        ("graph.inputs=[]", ": [graph] inputs is missing: name at least one, or set own_buckets."),
        ("graph.inputs=e.tsv", ": [graph] inputs = 'e.tsv': expected a list, in square brackets."),
        ('graph.inputs=[{relation="likes"}]', ": [graph.inputs.0] path is missing."),
        (
            'graph.inputs=[{path="x", format="xml"}]',
            ": [graph.inputs.0] format = 'xml': input should be 'text', 'parquet', 'arrow' or "
            "'json'.",
        ),
        (
            'graph.inputs=[{path="x", delimiter=""}]',
            ": [graph.inputs.0] delimiter = '': string should have at least 1 character.",
        ),
        (
            'graph.inputs=[{path="x", encoding="utf-9"}]',
            ": [graph.inputs.0.encoding] there is no text encoding named utf-9.",
        ),
        (
            'graph.inputs=[{path="x", columns={lhs=0, rel=1, rhs=-2}}]',
            ": [graph.inputs.0.columns.rhs] a column is a name or a position counted from 0, "
            "found -2.",
        ),
        (
            'graph.inputs=[{path="x", columns={lhs=0, rel=1, rhs=0.5}}]',
            ": [graph.inputs.0.columns.rhs] a column is a name or a position counted from 0, "
            "found 0.5.",
        ),
        (
            'graph.inputs=[{path="x", columns={lhs=0, rhs=1}}]',
            ": [graph.inputs.0] columns does not map rel.",
        ),
        (
            'graph.inputs=[{path="x", relation="likes", columns={lhs=0, rhs=1, rel=2}}]',
            ": [graph.inputs.0] the relation is given twice: as `relation` and as a column.",
        ),
        ("graph.relations.likes={lhs='user'}", ": [graph.relations.likes] rhs is missing."),
        (
            "graph.entities.movie.attributes.columns={title=1}",
            ": [graph.entities.movie.attributes] columns must map `key`, "
            "such as {key = 0, title = 1}.",
        ),
    ],
)
def test_a_wrong_value_names_its_place(tmp_path: Path, override: str, sentence: str) -> None:
    found = mistake(tmp_path, GOOD, override)
    assert found.startswith(sentence) if not sentence.endswith((".", "?")) else found == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "graph.relations.likes.rhs=moive",
            "relations.likes names the entity type moive, which is not under [graph.entities]. "
            "Did you mean movie?",
        ),
        (
            "graph.entities.movie.partitions=3",
            "every entity type has 1 partition or the same number of them, found 3, 4.",
        ),
        (
            'graph.inputs=[{path="e.tsv", relation="lieks"}]',
            "the input e.tsv is of relation lieks, which is not under [graph.relations]. "
            "Did you mean likes?",
        ),
        (
            'graph.holdout.relations=["liks"]',
            "holdout.relations names liks, which is not a relation. Did you mean likes?",
        ),
        (
            'graph.entities={"a/b"={}}',
            "entities.a/b: a type's name is made of letters, digits, - and _.",
        ),
        (
            "graph.entities.usr.expected=1000",
            "entities.usr is a type that no relation names. Did you mean user?",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_named(
    tmp_path: Path, override: str, sentence: str
) -> None:
    assert mistake(tmp_path, GOOD, override) == f": [graph] {sentence}"


@pytest.mark.parametrize(
    ("holdout", "sentence"),
    [
        ("{valid=0.5, test=0.5}", "holdout.valid + holdout.test leave nothing to train on."),
        ("{test=0.1, last=true}", "hold out by shares, by time or the last edges: one of them."),
        ("{valid_after=2, test_after=1}", "valid_after must not be later than test_after."),
        ('{by="lhs"}', "by says which edges a share takes: set valid or test to a share."),
        (
            '{by="edge", last=true}',
            "by says which edges a share takes: set valid or test to a share.",
        ),
    ],
)
def test_a_holdout_that_contradicts_itself_is_refused(
    tmp_path: Path, holdout: str, sentence: str
) -> None:
    assert mistake(tmp_path, GOOD, f"graph.holdout={holdout}") == f": [graph.holdout] {sentence}"


def test_any_relation_may_be_named_where_a_star_takes_all(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        'graph.relations={"*"={lhs="user", rhs="movie"}}',
        'graph.inputs=[{path="e.tsv", relation="whatever"}]',
        'graph.holdout.relations=["other"]',
    )
    assert graph.inputs[0].relation == "whatever"


def test_a_wrong_value_says_what_to_write(tmp_path: Path) -> None:
    """In the words of a config file, not of the library that checks it."""
    for override in ("user=3", "user.partitions=ten", "user.features=true", "user.partitions=[]"):
        found = mistake(tmp_path, GOOD, f"graph.entities.{override}")
        assert "input should" not in found and "instance of" not in found, found


def test_a_missing_table_is_named_by_its_first_missing_key(tmp_path: Path) -> None:
    assert mistake(tmp_path, "") == ": [graph] entities is missing."


@pytest.mark.parametrize("text", ["graph = 3", "[[graph]]\ndata = 'x'"])
def test_a_value_where_a_table_belongs_is_named(tmp_path: Path, text: str) -> None:
    assert mistake(tmp_path, text) == ": graph must be a table: [graph]."


@pytest.mark.parametrize("content", [b"[run", b"dir = ", b"\xff\xfe", b"[run]\n[run]\n"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "graph.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'graph.toml'} is not valid TOML: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, what in [(tmp_path / "x.toml", "missing"), (tmp_path, "a folder")]:
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value) == f"{path} is {what}: name a TOML file with your settings."


# --- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("graph.entities.user.partitions=8", ["entities", "user", "partitions"], 8),
        ("graph.holdout.valid=0.25", ["holdout", "valid"], 0.25),
        ("graph.holdout.valid = 0.25", None, None),
        ("graph.skip_bad=true", ["skip_bad"], True),
        ("graph.data=some/where", ["data"], "some/where"),
        ('graph.data="a b"', ["data"], "a b"),
        ("graph.data='3'", ["data"], "3"),
        ("graph.data=a=b", ["data"], "a=b"),
        ('graph.holdout.relations=["likes"]', ["holdout", "relations"], ["likes"]),
        ('graph.holdout={test=0.1,relations=["likes"]}', ["holdout", "test"], 0.1),
        ("graph.relations.seen={lhs='user',rhs='user'}", ["relations", "seen", "rhs"], "user"),
        (
            "graph.entities.movie.attributes.delimiter=;",
            ["entities", "movie", "attributes", "delimiter"],
            ";",
        ),
    ],
)
def test_an_override_is_typed_like_toml_and_a_bare_word_is_text(
    tmp_path: Path, override: str, place: list[str] | None, value: Any
) -> None:
    if place is None:  # a space is part of the key: no such setting
        with pytest.raises(ConfigError, match=r"\[graph.holdout\] valid  is not a setting"):
            graph_of(tmp_path, override)
        return
    found: Any = graph_of(tmp_path, override).model_dump(mode="json")
    for step in place:
        found = found[step]
    assert found == value and type(found) is type(value)


def test_later_overrides_win_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, "graph.data=first", "graph.data=second")
    assert graph.model_dump() == {**graph_of(tmp_path).model_dump(), "data": Path("second")}


def test_an_override_may_add_a_table_that_the_file_lacks(tmp_path: Path) -> None:
    assert loaded(tmp_path, "", "run.dir=runs/x").table("run", RunConfig).dir == Path("runs/x")


@pytest.mark.parametrize(
    "override",
    ["skip_bad=true", "graph.skip_bad", "graph.=1", ".graph=1", "graph..data=x", "=", ""],
)
def test_what_is_not_an_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, GOOD, override)
    assert str(caught.value) == f"{override} is not a setting: write it as table.key=value."


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, GOOD, "run.dir.x=1")
    assert str(caught.value) == "run.dir.x=1: dir is a value, not a table."


def test_an_override_of_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert mistake(tmp_path, GOOD, "graph.skipbad=true") == (
        ": [graph] skipbad is not a setting. Did you mean skip_bad?"
    )
    assert mistake(tmp_path, GOOD, "grahp.skip_bad=true") == (
        ": [grahp] is not a table. Did you mean graph?"
    )


def test_the_good_file_is_good(tmp_path: Path) -> None:
    # Every test above changes one thing of it: without the change there is no mistake.
    assert tomllib.loads(GOOD)
    loaded(tmp_path).table("run", RunConfig)
    graph_of(tmp_path)


@pytest.mark.parametrize("encoding", ["rot13", "base64", "idna", "undefined", "hex", "nosuch"])
def test_what_is_no_encoding_of_text_is_refused(encoding: str) -> None:
    with pytest.raises(ValidationError, match=f"no text encoding named {encoding}"):
        SourceConfig(path="e.tsv", encoding=encoding)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"delimiter": "\0"}, "holds NUL or a line end"),
        ({"delimiter": "a\n"}, "holds NUL or a line end"),
        ({"delimiter": "¦", "encoding": "ascii"}, "can't be written in the encoding ascii"),
    ],
)
def test_a_delimiter_that_can_not_divide_is_refused(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SourceConfig(path="e.dat", **settings)


def test_a_nul_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "graph.toml"
    path.write_text('[run]\ndir = "a\\u0000b"\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: run.dir holds the character NUL: remove it."
    path.write_text('[[graph.inputs]]\npath = "a\\u0000b"\n')
    with pytest.raises(ConfigError, match=r"graph\.inputs\.0\.path holds the character NUL"):
        load(path)


def test_a_config_that_can_not_be_opened_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "graph.toml"
    path.symlink_to("graph.toml")
    with pytest.raises(ConfigError, match=r"graph.toml can't be read: too many levels of symb"):
        load(path)
