#!/usr/bin/env python3
"""Rows of clicks as Parquet splits, from the data sets as they are published.

    scripts/click_data.py movielens-1m runs/movielens_clicks/data
    scripts/click_data.py adult runs/adult/data
    scripts/click_data.py generated FOLDER          rows of a known rule, without any data set

Each writes train.parquet, valid.parquet and test.parquet, the same for the same --seed:

    movielens-1m  user, movie, gender, age, occupation, zip3, year, first_genre, genres (a|b|c),
                  click: a rating of at least 4. A random 80 / 10 / 10 split. From pairs.parquet
                  (userID, movieID), positives_ge4.dat.gz (a line a user, ascending: a count, then
                  the movies that he rated 4 or 5), users.dat.gz and movies.dat.gz.
    adult         the 14 columns of the census and `income`: above 50,000 dollars. adult.data.gz is
                  split 90 / 10 into train and valid; adult.test.gz is the test, as it is. What
                  stands there as '?' is missing.
    generated     user, item, kinds of both, age, click: by worth, age and pairs of kinds.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from partitions import durable
from partitions.errors import DataError, InputError

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
SPLITS = ("train", "valid", "test")
Tables = dict[str, pa.Table]
Ids = NDArray[np.int64]

UNLISTED = (3598, 4486)  # users of MovieLens-1M who rated no movie 4 or 5: they have no line
ADULT = ["age", "workclass", "fnlwgt", "education", "education_num", "marital_status"]
ADULT += ["occupation", "relationship", "race", "sex", "capital_gain", "capital_loss"]
ADULT += ["hours_per_week", "native_country", "income"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument("--data", type=Path, help="folder of the published files")
    parser.add_argument("--seed", type=int, default=1, help="of the split")
    a = parser.parse_args()
    try:
        tables = load(a.dataset, a.seed, a.data)
        write(a.folder, tables)
    except InputError as error:
        sys.exit(f"{error}")
    sizes = ", ".join(f"{tables[split].num_rows:,} {split}" for split in SPLITS)
    print(f"{a.folder}: {sizes} rows")


def load(dataset: str, seed: int, data: Path | None = None) -> Tables:
    """data: the folder of the published files; unset: the shared one. Raises DataError where a
    file is not there, or not as it was published."""
    return DATASETS[dataset](data or SHARED / dataset, seed)


def write(folder: Path, tables: Tables) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        with durable.replacing(path) as file:
            pq.write_table(tables[split], file)


def _split(table: pa.Table, shares: dict[str, float], seed: int) -> Tables:
    """Rows in a random order, cut where the shares end."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    ends = np.rint(np.cumsum(list(shares.values())) * len(order)).astype(np.int64)
    starts = [0, *ends[:-1]]
    cut = zip(shares, starts, ends, strict=True)
    return {name: table.take(order[first:end]) for name, first, end in cut}


def _lines(path: Path, encoding: str = "utf-8") -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} is not there: name the folder of the data set with --data.")
    with gzip.open(path, "rt", encoding=encoding) as file:
        return file.read().splitlines()


# --- MovieLens-1M ---------------------------------------------------------------------------------


def movielens(data: Path, seed: int) -> Tables:
    user, movie = _pairs(data / "pairs.parquet")
    click = _clicked(data / "positives_ge4.dat.gz", user, movie)
    people, whose = _records(data / "users.dat.gz", 5, user)
    films, which = _records(data / "movies.dat.gz", 3, movie)
    of_user = {
        "gender": [row[1] for row in people],
        "age": [int(row[2]) for row in people],
        "occupation": [int(row[3]) for row in people],
        "zip3": [row[4][:3] for row in people],
    }
    of_movie = {
        "year": [int(row[1][-5:-1]) for row in films],  # Toy Story (1995)
        "first_genre": [row[2].split("|")[0] for row in films],
        "genres": [row[2] for row in films],
    }
    columns = {"user": pa.array(user), "movie": pa.array(movie)}
    columns |= {name: pa.array(values).take(whose) for name, values in of_user.items()}
    columns |= {name: pa.array(values).take(which) for name, values in of_movie.items()}
    table = pa.table(columns | {"click": pa.array(click.astype(np.int8))})
    return _split(table, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed)


def _pairs(path: Path) -> tuple[Ids, Ids]:
    if not path.is_file():
        raise DataError(f"{path} is not there: name the folder of the data set with --data.")
    table = pq.read_table(path, columns=["userID", "movieID"])
    user, movie = (table.column(at).cast(pa.int64()).to_numpy() for at in (0, 1))
    return user, movie


def _clicked(path: Path, user: Ids, movie: Ids) -> NDArray[np.bool_]:
    """Whether each pair stands among the positives."""
    everyone = np.setdiff1d(np.unique(user), UNLISTED)
    lines = _lines(path)
    if len(lines) != len(everyone):
        raise DataError(f"{path}: expected a line for each of {len(everyone):,} users, found "
                        f"{len(lines):,}. Take the file as it was published.")  # fmt: skip
    liked = [np.array(line.split()[1:], np.int64) for line in lines]
    stride = int(movie.max()) + 1
    owner = np.repeat(everyone, [len(movies) for movies in liked])
    wanted, known = owner * stride + np.concatenate(liked), user * stride + movie
    if len(strange := np.setdiff1d(wanted, known)):
        one, other = divmod(int(strange[0]), stride)
        raise DataError(f"{path}: user {one} rated movie {other} 4 or 5, but never rated it in "
                        "pairs.parquet. Take both files from one data set.")  # fmt: skip
    return np.isin(known, wanted)


def _records(path: Path, fields: int, wanted: Ids) -> tuple[list[list[str]], Ids]:
    """Lines of `number::...`, and in which of them each wanted number stands."""
    records = [line.split("::") for line in _lines(path, "latin-1")]
    for at, record in enumerate(records, 1):
        if len(record) != fields:
            raise DataError(f"{path}:{at}: expected {fields} fields, found {len(record)}.")
    numbers = np.array([int(record[0]) for record in records])
    order = np.argsort(numbers)
    place = order[np.searchsorted(numbers[order], wanted).clip(0, len(order) - 1)]
    if len(absent := wanted[numbers[place] != wanted]):
        raise DataError(f"{path}: {int(absent[0])} is rated or rates, but has no line.")
    return records, place


# --- Adult ----------------------------------------------------------------------------------------


def adult(data: Path, seed: int) -> Tables:
    known = _census(data / "adult.data.gz")
    return _split(known, {"train": 0.9, "valid": 0.1}, seed) | {
        "test": _census(data / "adult.test.gz")
    }


def _census(path: Path) -> pa.Table:
    """Lines of `a, b, ..., <=50K` after a header; of the test, the label ends with a full stop."""
    records = [line.split(", ") for line in _lines(path)[1:] if line.strip()]
    for at, record in enumerate(records, 2):
        if len(record) != len(ADULT):
            raise DataError(f"{path}:{at}: expected {len(ADULT)} fields, found {len(record)}.")
    columns = {}
    for name, values in zip(ADULT, zip(*records, strict=True), strict=True):
        if name == "income":
            columns[name] = pa.array([_above(path, value) for value in values], pa.int8())
        elif name in _NUMBERS:
            columns[name] = pa.array([int(value) for value in values])
        else:
            columns[name] = pa.array([None if value == "?" else value for value in values])
    return pa.table(columns)


_NUMBERS = {"age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week"}


def _above(path: Path, label: str) -> int:
    found = {"<=50K": 0, ">50K": 1}.get(label.rstrip("."))
    if found is None:
        raise DataError(f"{path}: the label {label!r} is neither <=50K nor >50K.")
    return found


# --- generated ------------------------------------------------------------------------------------

_USERS, _ITEMS, _ROWS = 500, 300, 20_000


def generated(data: Path, seed: int) -> Tables:
    """Clicks by worth, age and a table of 20 x 20 kinds, which crosses can memorise."""
    rng = np.random.default_rng(seed)
    worth, taste = rng.normal(0, 1, _ITEMS), rng.normal(0, 1.5, (20, 20))
    user = rng.integers(0, _USERS, _ROWS)
    item = np.minimum(rng.zipf(1.3, _ROWS) - 1, _ITEMS - 1)
    age = rng.integers(18, 80, _ROWS)
    logit = worth[item] + taste[user % 20, item % 20] + np.abs(age - 45) / 15 - 1
    click = rng.random(_ROWS) < 1 / (1 + np.exp(-logit))
    columns = {"user": user, "item": item, "user_kind": user % 20, "item_kind": item % 20}
    table = pa.table(columns | {"age": age, "click": click.astype(np.int8)})
    return _split(table, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed)


DATASETS = {"movielens-1m": movielens, "adult": adult, "generated": generated}

if __name__ == "__main__":
    main()
