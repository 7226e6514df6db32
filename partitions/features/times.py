"""Parts of a time, UTC, as ids: 0 missing, then

hour 1 + 0..23; weekday 1 + 0..6 from Monday; day 1..31 of the month; month 1..12.
"""

import numpy as np
from numpy.typing import NDArray

SIZES = {"hour": 25, "weekday": 8, "day": 32, "month": 13}
_DAY = 86_400


def part_of(seconds: NDArray[np.int64], part: str) -> NDArray[np.int32]:
    """Ids of times in seconds since 1970."""
    if part == "hour":
        return (seconds // 3600 % 24 + 1).astype(np.int32)
    days = seconds // _DAY
    if part == "weekday":
        return ((days + 3) % 7 + 1).astype(np.int32)  # 1970-01-01 was a Thursday
    months = days.astype("datetime64[D]").astype("datetime64[M]")
    if part == "month":
        return (months.astype(np.int64) % 12 + 1).astype(np.int32)
    return (days - months.astype("datetime64[D]").astype(np.int64) + 1).astype(np.int32)
