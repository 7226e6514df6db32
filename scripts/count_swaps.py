"""How many tables an epoch swaps, order by order: the table of docs/train.md.

    python scripts/count_swaps.py [P,C ...]

p partitions of one type, all p * p buckets, c tables in memory; the one needed last leaves. Means
over five seeds; the first fill of c tables is not counted.
"""

import sys
from statistics import mean

import numpy as np

from partitions.buffer_states import beta_swaps, least_swaps
from partitions.lookahead import num_swaps
from partitions.order import ORDERS
from partitions.schema import Bucket, Slot

_PAIRS = ["4,2", "8,2", "8,4", "16,2", "16,4", "16,8", "32,4", "32,8", "64,8"]
_ORDERS = ("best", "affinity", "inside_out", "random")


def main() -> None:
    print(f"| p | c | lower bound | BETA | {' | '.join(f'`{name}`' for name in _ORDERS)} |")
    print("|--" * (4 + len(_ORDERS)) + "|")
    for pair in sys.argv[1:] or _PAIRS:
        p, c = map(int, pair.split(","))
        square = [Bucket(i, j) for i in range(p) for j in range(p)]
        needs = {bucket: frozenset(Slot("node", at) for at in bucket) for bucket in square}
        counts = []
        for name in _ORDERS:
            orders = (
                ORDERS.build(name)(needs, c, np.random.default_rng(seed)) for seed in range(5)
            )
            counts.append(mean(num_swaps([needs[b] for b in order], c) for order in orders))
        row = [p, c, least_swaps(p, c), beta_swaps(p, c), *(f"{count:.0f}" for count in counts)]
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
