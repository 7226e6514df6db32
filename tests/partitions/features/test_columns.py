"""Columns of rows in whatever form they come."""

import numpy as np
import pyarrow as pa
import pytest

from partitions.errors import DataError
from partitions.features import columns
from partitions.features.columns import Where


def test_milliseconds_are_not_taken_for_seconds() -> None:
    where = Where("ts")
    good = columns.as_times(pa.array([1_699_966_800, None, -1]), where)
    assert good.to_pylist() == [1_699_966_800, None, -1]
    with pytest.raises(DataError, match=r"row 2: found 1699966800000, expected seconds .*1,000"):
        columns.as_times(pa.array([0, 1_699_966_800_000]), where)


@pytest.mark.parametrize("unit", ["h", "m", "s", "ms", "D"])
def test_numpy_times_of_any_unit_are_read(unit: str) -> None:
    times = np.array(["2023-11-14T16:00", "NaT"], f"M8[{unit}]")
    found = columns.column_of({"ts": times}, "ts", Where("ts"))
    assert found is not None
    seconds = columns.as_times(found, Where("ts")).to_pylist()
    assert seconds == [times[:1].astype("M8[s]").astype(np.int64)[0], None]
