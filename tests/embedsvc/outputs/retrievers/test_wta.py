"""The 2015 paper by plain loops over Python lists, and the retriever held to it."""

from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc.outputs.retrievers import RETRIEVERS
from embedsvc.outputs.retrievers.wta import WTA
from partitions.errors import ConfigError

Codes = list[tuple[int, ...]]


def paper_codes(row: NDArray[np.float32], windows: NDArray[np.int32]) -> list[int]:
    codes = []
    for window in windows:
        values = [float(row[coordinate]) for coordinate in window]
        codes.append(values.index(max(values)))
    return codes


def paper_bands(codes: list[int], bands: int) -> Codes:
    size = len(codes) // bands
    return [tuple(codes[size * band : size * (band + 1)]) for band in range(bands)]


def paper_tables(all_bands: list[Codes]) -> list[dict[tuple[int, ...], list[int]]]:
    tables: list[dict[tuple[int, ...], list[int]]] = [defaultdict(list) for _ in all_bands[0]]
    for class_id, bands in enumerate(all_bands):
        for table, band in zip(tables, bands, strict=True):
            table[band].append(class_id)
    return tables


def paper_shared(
    tables: list[dict[tuple[int, ...], list[int]]], queries: list[Codes]
) -> dict[int, int]:
    """class -> the number of bands it shares with the queries together."""
    shared: dict[int, int] = defaultdict(int)
    for bands in queries:
        for table, band in zip(tables, bands, strict=True):
            for class_id in table.get(band, []):
                shared[class_id] += 1
    return shared


def shortlist(shared: dict[int, int], size: int) -> list[int]:
    return sorted(shared, key=lambda c: (-shared[c], c))[:size]


@pytest.mark.parametrize(("permutations", "window", "bands"), [(24, 4, 8), (10, 3, 5), (6, 8, 6)])
def test_codes_buckets_counts_and_shortlists_are_the_papers(
    permutations: int, window: int, bands: int
) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((300, 12)).astype(np.float32)
    weight[40:60] = np.round(weight[40:60])  # ties among coordinates
    weight[60:70] = weight[60]  # ties among classes
    queries = np.concatenate([weight[[0, 45, 60]], rng.standard_normal((70, 12), np.float32)])
    wta = WTA(permutations, window, bands, seed=5)
    wta.fit(weight, None)

    codes = [paper_codes(row, wta.windows_Pm) for row in weight]
    all_bands = [paper_bands(row, bands) for row in codes]
    keys = [[int(np.polyval(band, window)) for band in row] for row in all_bands]
    assert wta.keys(np.arange(300)).tolist() == keys
    tables = paper_tables(all_bands)
    for number, table in enumerate(tables):
        for band, members in table.items():
            assert wta.tables.bucket(number, int(np.polyval(band, window))).tolist() == members
    asked = [paper_bands(paper_codes(row, wta.windows_Pm), bands) for row in queries]
    for size in (1, 7, 300, 400):
        found = wta.retrieve(queries, size)
        assert found.shape == (len(queries), size)
        for row, bands_of_query in zip(found.tolist(), asked, strict=True):
            expected = shortlist(paper_shared(tables, [bands_of_query]), size)
            assert row == expected + [-1] * (size - len(expected))


def test_a_window_is_the_start_of_a_permutation() -> None:
    wta = WTA(permutations=500, window=4, bands=250)
    wta.fit(np.zeros((1, 16), np.float32), None)
    assert all(len(set(window)) == 4 for window in wta.windows_Pm.tolist())
    assert set(wta.windows_Pm.ravel().tolist()) == set(range(16))


def test_changed_rows_move_at_the_rebuild_and_not_before() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((200, 16)).astype(np.float32)
    old = weight.copy()
    wta = WTA(permutations=32, window=4, bands=8, rebuild_every=3)
    wta.fit(weight, None)
    before, fresh = WTA(32, 4, 8), WTA(32, 4, 8)
    before.fit(old, None)
    queries = rng.standard_normal((50, 16), np.float32)
    for step in range(3):
        assert (wta.retrieve(queries, 20) == before.retrieve(queries, 20)).all()
        ids = np.arange(50 * step, 50 * step + 60)
        weight[ids] = rng.standard_normal((60, 16))
        wta.touch(ids)
    fresh.fit(weight, None)
    assert (wta.retrieve(queries, 20) == fresh.retrieve(queries, 20)).all()
    assert wta.upkeep_s > 0


def test_a_class_asks_for_itself_and_is_found() -> None:
    weight = np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)
    retriever = RETRIEVERS.build({"name": "wta", "bands": 16, "permutations": 64})
    retriever.fit(weight, None)
    assert (retriever.retrieve(weight * np.float32(3), 1)[:, 0] == np.arange(1000)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"permutations": 30, "bands": 8},
        {"window": 1},
        {"permutations": 64, "bands": 4, "window": 16},
        {"rebuild_every": 0},
    ],
)
def test_settings_that_make_no_tables_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="retriever wta: "):
        WTA(**settings)


def test_a_window_wider_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="a window of 8 is more than the rows' 4 numbers"):
        WTA().fit(np.zeros((3, 4), np.float32), None)
