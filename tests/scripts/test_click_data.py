"""The splits of clicks, from small files of the published form; of the real ones where present."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions.errors import DataError
from scripts import click_data

SHARED = Path(__file__).parents[3] / "shared" / "data"
CENSUS = (
    "age, workclass\n"
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, {}\n"
    "50, ?, 83311, Bachelors, 13, Divorced, ?, Husband, White, Male, 0, 0, 13, ?, {}\n"
)


def zipped(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode("latin-1")))


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """Users 1, 2, and 3598, who liked nothing and has no line; movie 7 liked by 2, 9 by both."""
    pairs = {"userID": ["1", "1", "2", "2", "3598"], "movieID": ["7", "9", "9", "7", "7"]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    zipped(tmp_path / "positives_ge4.dat.gz", "1 9\n2 9 7\n")
    people = "3598::M::35::7::12345-678\n1::F::1::10::48067\n2::M::56::16::70072\n"
    zipped(tmp_path / "users.dat.gz", people)
    zipped(tmp_path / "movies.dat.gz", "7::Léon (1994)::Crime|Drama\n9::Toys (1992)::Fantasy\n")
    return tmp_path


def rows_of(tables: dict[str, pa.Table]) -> list[dict[str, object]]:
    found = [row for table in tables.values() for row in table.to_pylist()]
    return sorted(found, key=lambda row: (row["user"], row["movie"]))


def test_movielens_joins_pairs_users_movies_and_clicks(movielens: Path) -> None:
    rows = rows_of(click_data.load("movielens-1m", 1, movielens))
    asked = [(row["user"], row["movie"], row["click"]) for row in rows]
    assert asked == [(1, 7, 0), (1, 9, 1), (2, 7, 1), (2, 9, 1), (3598, 7, 0)]
    assert rows[-1] == {
        "user": 3598,
        "movie": 7,
        "gender": "M",
        "age": 35,
        "occupation": 7,
        "zip3": "123",
        "year": 1994,
        "first_genre": "Crime",
        "genres": "Crime|Drama",
        "click": 0,
    }


def test_a_positive_that_is_no_pair_is_refused(movielens: Path) -> None:
    zipped(movielens / "positives_ge4.dat.gz", "1 9\n2 9 8\n")
    with pytest.raises(DataError, match=r"user 2 rated movie 8 4 or 5, but never"):
        click_data.load("movielens-1m", 1, movielens)


def test_a_missing_line_is_refused(movielens: Path) -> None:
    zipped(movielens / "positives_ge4.dat.gz", "1 9\n")
    with pytest.raises(DataError, match=r"expected a line for each of 2 users, found 1"):
        click_data.load("movielens-1m", 1, movielens)
    zipped(movielens / "positives_ge4.dat.gz", "1 9\n1 9\n")
    zipped(movielens / "movies.dat.gz", "9::Toys (1992)::Fantasy\n")
    with pytest.raises(DataError, match=r"movies.dat.gz: 7 .* has no line"):
        click_data.load("movielens-1m", 1, movielens)


def test_adult_reads_missing_values_and_labels_with_a_full_stop(tmp_path: Path) -> None:
    zipped(tmp_path / "adult.data.gz", CENSUS.format("<=50K", ">50K"))
    zipped(tmp_path / "adult.test.gz", CENSUS.format(">50K.", "<=50K."))
    tables = click_data.load("adult", 1, tmp_path)
    first, second = tables["test"].to_pylist()
    assert (first["income"], first["workclass"], first["capital_gain"]) == (1, "State-gov", 2174)
    assert (second["income"], second["workclass"], second["occupation"]) == (0, None, None)
    known = tables["train"].to_pylist() + tables["valid"].to_pylist()
    assert sorted(row["income"] for row in known) == [0, 1]


def test_adult_refuses_another_label(tmp_path: Path) -> None:
    zipped(tmp_path / "adult.data.gz", CENSUS.format("<=50K", "50K"))
    with pytest.raises(DataError, match=r"adult.data.gz: the label '50K' is neither"):
        click_data.load("adult", 1, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for dataset, name in [("adult", "adult.data.gz"), ("movielens-1m", "pairs.parquet")]:
        with pytest.raises(DataError, match=rf"{name} is not there: .*--data"):
            click_data.load(dataset, 1, tmp_path)


def test_a_split_parts_rows_and_follows_from_its_seed(tmp_path: Path) -> None:
    one, same, other = (click_data.load("generated", seed) for seed in (1, 1, 2))
    assert [one[split].num_rows for split in click_data.SPLITS] == [16000, 2000, 2000]
    click_data.write(tmp_path, one)
    for split in click_data.SPLITS:
        assert one[split].equals(same[split]) and not one[split].equals(other[split])
        assert pq.read_table(tmp_path / f"{split}.parquet").equals(one[split])


@pytest.mark.skipif(not (SHARED / "movielens-1m").is_dir(), reason="needs MovieLens-1M")
def test_movielens_as_published_has_575280_clicks() -> None:
    tables = click_data.load("movielens-1m", 1)
    clicks = {name: table.column("click").to_numpy() for name, table in tables.items()}
    assert [len(part) for part in clicks.values()] == [800_167, 100_021, 100_021]
    assert sum(int(part.sum()) for part in clicks.values()) == 575_280
    first, second = (tables[name].select(["user", "movie"]) for name in ("train", "test"))
    keys = [table.column(0).to_numpy() * 10_000 + table.column(1).to_numpy() for table in
            (first, second)]  # fmt: skip
    assert not np.intersect1d(*keys).size


@pytest.mark.skipif(not (SHARED / "adult").is_dir(), reason="needs Adult")
def test_adult_as_published_has_its_rows_and_shares() -> None:
    tables = click_data.load("adult", 1)
    shares = [tables[name].column("income").to_numpy() for name in click_data.SPLITS]
    assert len(shares[0]) + len(shares[1]) == 32_561 and len(shares[2]) == 16_281
    assert np.concatenate(shares[:2]).mean() == pytest.approx(0.2408, abs=1e-4)
    assert shares[2].mean() == pytest.approx(0.2362, abs=1e-4)
