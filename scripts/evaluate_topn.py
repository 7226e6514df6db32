#!/usr/bin/env python3
"""Which recommender is best for plain interactions? Quality and cost of each, on one split.

    scripts/evaluate_topn.py FOLDER             all methods, on the test part
    scripts/evaluate_topn.py FOLDER --valid     to choose settings: fitted to train, judged on valid
    scripts/evaluate_topn.py FOLDER --methods spectral 'ials:dim=512,ridge=0.01'
    scripts/evaluate_topn.py --quick            generated events, within a minute

FOLDER holds train.txt, test.txt and maybe valid.txt (or .gz), a line a user: the user's number,
then its items'. Without --valid a method is fitted to train and valid together. All items are
ranked, those of the events it was fitted to left out. recall20 is hits / the user's number of
held-out items (LightGCN's convention), ndcg20 has binary gain and an ideal list of min(20, n); both
are means over users who have held-out items, with standard errors over users. fold_in_... are those
of vectors made of events alone, as for users who were not in training.

Prints one JSON line a method: seconds and cpu_seconds are those of training, scoring_s those of all
lists; peak_mb is the process's peak while it was trained and scored, which runs alone in a process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import scipy.sparse as sp
from facts import facts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedsvc.evaluation import metrics
from embedsvc.ranking.recommenders import RECOMMENDERS, Fitted, OfHistories, Recommender
from embedsvc.ranking.recommenders.best import blocks
from embedsvc.ranking.recommenders.events import Split, read_split
from partitions.errors import ConfigError, InputError
from partitions.memory import peak_bytes

K = 20
Line = dict[str, Any]


def main() -> None:
    a = _arguments()
    if a.one:
        print(json.dumps(measure(a)), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if a.quick:
            a.folder = Path(scratch)
            generate(a.folder, a.seed)
        failed = [method for method in a.methods if not _alone(a, method)]
    sys.exit(2 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="with train.txt and test.txt")
    parser.add_argument(
        "--methods", nargs="+", default=list(RECOMMENDERS), metavar="NAME[:K=V,...]"
    )
    parser.add_argument("--valid", action="store_true", help="judge on valid, fitted to train")
    parser.add_argument("--quick", action="store_true", help="generated events, within a minute")
    parser.add_argument("--seed", type=int, default=0, help="of methods that begin at random")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--generated", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if (a.folder is None) != a.quick:
        parser.error("name a FOLDER, or give --quick")
    return a


def _alone(a: argparse.Namespace, method: str) -> bool:
    """One method in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, __file__, str(a.folder), "--one", "--seed", str(a.seed)]
    command += ["--valid"] * a.valid + ["--generated"] * a.quick + ["--methods", method]
    return subprocess.run(command).returncode == 0


def measure(a: argparse.Namespace) -> Line:
    split = read_split(a.folder)
    known, goal = _parts(split, a)
    recommender = built(a.methods[0], a.seed)
    start, cpu = perf_counter(), process_time()
    fitted = recommender.fit(known)
    seconds, cpu_seconds = perf_counter() - start, process_time() - cpu
    users = np.flatnonzero(np.diff(goal.indptr))
    start = perf_counter()
    lists = np.concatenate([items for _, items in blocks(fitted, users, K)])
    scoring_s = perf_counter() - start
    return {
        "dataset": "generated" if a.generated else a.folder.resolve().name,
        "part": "valid" if a.valid else "test",
        "method": a.methods[0].split(":")[0],
        **_quality(lists, goal[users]),
        **_as_strangers(fitted, known[users], goal[users]),
        "coverage20": round(len(np.unique(lists[lists >= 0])) / len(np.unique(known.indices)), 4),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "scoring_s": round(scoring_s, 2),
        "peak_mb": round(peak_bytes() / 1e6),
        "settings": vars(recommender),
        "users": len(users),
        "seed": a.seed,
        **facts(),
    }


def _as_strangers(fitted: Fitted, histories: sp.csr_matrix, goal: sp.csr_matrix) -> Line:
    """The same for vectors folded in from events alone, where users have vectors of their own."""
    if isinstance(fitted, OfHistories):
        return {}
    lists = np.concatenate([items for _, items in blocks(fitted, histories, K)])
    return {f"fold_in_{name}": value for name, value in _quality(lists, goal).items()}


def _parts(split: Split, a: argparse.Namespace) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """What is fitted to, and what is looked for: no pair of the former."""
    known = split.train if a.valid else split.train.maximum(split.valid)
    goal = split.valid if a.valid else split.test
    if not goal.nnz:
        raise ConfigError(f"{a.folder} has no valid.txt to judge on: leave out --valid.")
    goal = goal - goal.multiply(known)
    goal.eliminate_zeros()
    return known.tocsr(), goal.tocsr()


def built(method: str, seed: int) -> Recommender:
    """Of "name" or "name:key=value,...", values as in JSON."""
    name, _, rest = method.partition(":")
    spec: dict[str, Any] = {"name": name}
    if "seed" in getattr(RECOMMENDERS[name], "__dataclass_fields__", {}):
        spec["seed"] = seed
    for setting in filter(None, rest.split(",")):
        key, _, value = setting.partition("=")
        try:
            spec[key] = json.loads(value)
        except ValueError:
            raise ConfigError(f"{method}: expected key=value, found {setting!r}.") from None
    return RECOMMENDERS.build(spec)


def _quality(lists: np.ndarray, goal: sp.csr_matrix) -> Line:
    num_items = goal.shape[1]
    wanted = np.repeat(np.arange(len(lists)), np.diff(goal.indptr)) * num_items + goal.indices
    places = np.arange(len(lists))[:, None] * num_items + lists
    hits = np.isin(np.where(lists < 0, -1, places), wanted)
    found: Line = {}
    for name, of in [("recall20", metrics.recall_at), ("ndcg20", metrics.ndcg_at)]:
        values = of(hits, np.diff(goal.indptr).astype(np.int64))
        found[name] = round(float(values.mean()), 4)
        found[f"{name}_se"] = round(float(values.std() / np.sqrt(len(values))), 4)
    return found


def generate(folder: Path, seed: int) -> None:
    """Events of 3,000 users and 2,000 items: twelve tastes, popularity by Zipf; a tenth in valid,
    a fifth in test."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(10, 2010)
    taste_of_item = rng.integers(0, 12, 2000)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in range(3000):
        liked = np.isin(taste_of_item, rng.choice(12, 2, replace=False))
        chance = popularity * np.where(liked, 1.0, 0.05)
        size = int(min(200, 8 + rng.exponential(20)))
        items = rng.choice(2000, size, replace=False, p=chance / chance.sum())
        ends = [int(size * 0.7), int(size * 0.8)]
        for part, some in zip(parts.values(), np.split(items, ends), strict=True):
            part.append(" ".join(map(str, [user, *some])))
    for name, lines in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
