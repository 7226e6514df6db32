"""Search for sequences of buffer states that meet all pairs of p partitions with few swaps.

    python scripts/search_orders.py --width 8000    prints the table of partitions/short_orders.py
    python scripts/search_orders.py --pairs 8,4     one line only; --width, --tries: search harder

A beam search over (state of the buffer, pairs not met yet). Partitions that were never in memory
are interchangeable, so only the first of them may enter. Of the children the beam keeps those that
met the most pairs; among equals, what `--tries` draws at random: a liking for partitions that are
soon finished, or the contrary, and noise. Children alike up to a renaming are kept once, as far as
the degrees of what is left tell them apart.

Each line is p, c and two base-36 digits a swap, the partition that leaves and the one that enters;
the first state is 0 .. c-1. Only what is shorter than BETA's sequence is searched for.
"""

import argparse
import sys
import textwrap

import numpy as np
from numpy.typing import NDArray

from partitions.buffer_states import beta_swaps, least_swaps

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def search(p: int, c: int, width: int, most: int, rng: np.random.Generator) -> list[int] | None:
    """Swaps as out * 64 + in, at most `most` of them; None where the beam found none so short."""
    everyone = np.uint32((1 << p) - 1)
    bits = (np.uint32(1) << np.arange(p, dtype=np.uint32)).astype(np.uint32)
    first = np.uint32((1 << c) - 1)
    left = everyone & ~bits  # [p] whom each partition has still to meet
    left[:c] &= ~first
    states, lefts = np.array([first], np.uint32), left[None]
    num_seen = np.array([c])
    parents: list[NDArray[np.int64]] = []
    moves: list[NDArray[np.int64]] = []
    liking = rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0])
    noise = rng.choice([0.1, 0.5, 1.0])
    mix = rng.integers(1, 1 << 62, size=4096, dtype=np.uint64) | np.uint64(1)
    remaining = np.array([int(np.bitwise_count(left).sum()) // 2])
    for swap in range(most):
        inside = (states[:, None] & bits) != 0  # [B, p]
        may_enter = ~inside & (np.arange(p) <= num_seen[:, None])
        at, out, new = np.nonzero(inside[:, :, None] & may_enter[:, None, :])
        gain = np.bitwise_count(lefts[at, new] & states[at] & ~bits[out]).astype(np.int64)
        after = remaining[at] - gain
        # What can still be met by the swaps to come bounds what is worth keeping.
        kept = np.flatnonzero(after <= (most - swap - 1) * (c - 1))
        if not len(kept):
            return None
        degrees = np.bitwise_count(lefts).astype(np.float64)
        spread = (degrees**2).sum(1)[at] / p
        score = -after + 1e-2 * liking * spread + noise * rng.random(len(after))
        order = kept[np.argsort(-score[kept], kind="stable")][: 6 * width]
        at, out, new, after = at[order], out[order], new[order], after[order]
        child_states = (states[at] & ~bits[out]) | bits[new]
        child_lefts = lefts[at].copy()
        rows = np.arange(len(at))
        met = child_lefts[rows, new] & child_states
        child_lefts[rows, new] &= ~met
        child_lefts &= np.where((met[:, None] & bits) != 0, ~bits[new][:, None], everyone)
        if (after == 0).any():
            path = [int(np.flatnonzero(after == 0)[0])]
            sequence = [int(out[path[0]] * 64 + new[path[0]])]
            node = int(at[path[0]])
            for parent, move in zip(reversed(parents), reversed(moves), strict=True):
                sequence.append(int(move[node]))
                node = int(parent[node])
            return sequence[::-1]
        # A name-free fingerprint: who is inside, degrees, and the neighbours' sums of both.
        inner = ((child_states[:, None] & bits) != 0).astype(np.int64)
        degree = np.bitwise_count(child_lefts).astype(np.int64)
        colour = mix[inner * 64 + degree]
        adjacent = (child_lefts[:, :, None] & bits) != 0
        for _ in range(2):
            summed = (adjacent * colour[:, None, :]).sum(2, dtype=np.uint64)
            colour = (colour * mix[7]) ^ (summed * mix[11] + (summed >> np.uint64(29)))
        prints = (colour * (colour >> np.uint64(31) | np.uint64(1))).sum(1, dtype=np.uint64)
        _, unique = np.unique(prints, return_index=True)
        unique = np.sort(unique)[:width]
        parents.append(at[unique].astype(np.int64))
        moves.append((out[unique] * 64 + new[unique]).astype(np.int64))
        num_seen = np.maximum(num_seen[at[unique]], new[unique] + 1)
        states, lefts, remaining = child_states[unique], child_lefts[unique], after[unique]
    return None


def best(p: int, c: int, width: int, tries: int, seed: int) -> list[int] | None:
    """The shortest found that is shorter than BETA's, or None."""
    found, most = None, beta_swaps(p, c) - 1
    for attempt in range(tries):
        while most >= least_swaps(p, c):
            shorter = search(p, c, width, most, np.random.default_rng([seed, p, c, attempt, most]))
            if shorter is None:
                break
            found, most = shorter, len(shorter) - 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="*", help="p,c; default: all with p up to 16")
    parser.add_argument("--width", type=int, default=1000, help="sequences kept at each swap")
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    pairs = [(p, c) for p in range(5, 17) for c in range(3, p - 1)]
    if arguments.pairs:
        pairs = [(int(p), int(c)) for p, c in (pair.split(",") for pair in arguments.pairs)]
    for p, c in pairs:
        found = best(p, c, arguments.width, arguments.tries, arguments.seed)
        digits = "".join(_DIGITS[s // 64] + _DIGITS[s % 64] for s in found or [])
        against = f"bound {least_swaps(p, c)}, BETA {beta_swaps(p, c)}"
        if found:
            head = f"{p}:{c} " if len(digits) <= 90 else f"{p}:{c}\n"
            print(head + "\n".join(textwrap.wrap(digits, 98)), flush=True)
        print(f"{p} {c}: {len(digits) // 2} swaps; {against}", file=sys.stderr)


if __name__ == "__main__":
    main()
