#!/usr/bin/env python3
"""LSHSoftmax against public peers: which items does a user take, by what else he took?

    scripts/bench_softmax_peers.py --peer-python PEERS/bin/python
    scripts/bench_softmax_peers.py --quick      a part of the users, without peers: a minute

PEERS is an environment of its own: python3 -m venv PEERS && PEERS/bin/pip install omikuji libpecos
scikit-learn. Peers are no dependencies; without --peer-python they are left out.

Data: amazon-book's or yelp2018's pairs (--data FOLDER; see its MANIFEST.md): each user's items are
parted by chance, features are one half (TF-IDF, of length 1), labels the other. Users are parted
8 : 1 : 1. Our settings were chosen with --split valid, and the table is of --split test; peers are
at their defaults, which nobody tuned to these data. What is trained step by step parts training
users anew at each epoch (--fixed: it does not); the others get one split.

Prints a JSON line a method: P@1, P@3, P@5 over all test users (an answer may not name a feature),
train_seconds; ms_per_query, of queries together on one core, to which the whole process is bound
meanwhile; index_seconds, to build the index anew and copy rows for answers, on that core, which
ms_per_query leaves out (0: there is none; peers' trees are part of train_seconds); then what they
have in common.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from facts import facts

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "amazon-book": "amazon-book-heldout-part.txt.gz",
    "yelp2018": "yelp2018-heldout-part.txt.gz",
}
K = 5
Rows = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "extreme")
    parser.add_argument("--dataset", choices=list(FILES), default="amazon-book")
    parser.add_argument("--methods", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tower-lr", type=float, default=0.1)
    parser.add_argument("--fixed", action="store_true", help="do not part users anew, as ours may")
    parser.add_argument("--seconds", type=float, default=300, help="of training, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--as-peer", choices=list(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.as_peer:  # in the peers' own environment
        print(json.dumps(PEERS[a.as_peer](a.folder)))
        return
    path = a.data / FILES[a.dataset]
    if not path.is_file():
        sys.exit(f"{path} is not there: name the folder of the data with --data.")
    sets = Sets(path, a.seed, a.split, 3000 if a.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        sets.write(Path(folder))
        for method in a.methods:
            if method in OURS:
                line = OURS[method](a, sets)
            elif a.peer_python:
                line = run_peer(a.peer_python, method, Path(folder))
                line |= precisions(sets, np.load(Path(folder) / "found.npy"))
            else:
                continue
            print(json.dumps({"dataset": a.dataset, "method": method} | line), flush=True)
    common = {"dataset": a.dataset, "split": a.split, "seed": a.seed}
    print(json.dumps(common | sets.sizes | facts()))


@contextmanager
def one_core() -> Iterator[None]:
    """All threads of this process, those to come included, run on one core."""
    before = os.sched_getaffinity(0)
    _bind({min(before)})
    try:
        yield
    finally:
        _bind(before)


def _bind(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):  # the system call is for a single one
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


# --- data -----------------------------------------------------------------------------------------


class Sets:
    """Users' features and labels, as items' numbers; and weights of the features."""

    def __init__(self, path: Path, seed: int, split: str, most: int | None) -> None:
        rng = np.random.default_rng(seed)
        with gzip.open(path, "rt") as file:
            lines = file.read().splitlines()[:most]
        users = [np.unique(np.array(line.split()[1:], np.int64)) for line in lines]
        users = [items for items in users if len(items) >= 2]
        seen = np.unique(np.concatenate(users))
        self.num_items = len(seen)
        parts = [rng.permutation(np.searchsorted(seen, items)) for items in users]
        part_of = rng.permutation(np.arange(len(parts)) % 10)
        goal = {"valid": 8, "test": 9}[split]
        chosen = part_of == goal
        training = part_of < 8 if split == "valid" else part_of < 9
        self.train = self._halves([parts[i] for i in np.flatnonzero(training)])
        self.test = self._halves([parts[i] for i in np.flatnonzero(chosen)])
        count = np.bincount(np.concatenate(self.train[0]), minlength=self.num_items)
        self.idf = np.log((1 + len(self.train[0])) / (1 + count)) + 1
        self.sizes = {
            "items": self.num_items,
            "train_users": len(self.train[0]),
            "test_users": len(self.test[0]),
            "train_labels": sum(map(len, self.train[1])),
        }

    @staticmethod
    def _halves(users: Rows) -> tuple[Rows, Rows]:
        return (
            [items[: (len(items) + 1) // 2] for items in users],
            [items[(len(items) + 1) // 2 :] for items in users],
        )

    def weights(self, features: np.ndarray) -> np.ndarray:
        """TF-IDF, of length 1."""
        weight = self.idf[features]
        return np.asarray(weight / np.linalg.norm(weight))

    def write(self, folder: Path) -> None:
        """In the extreme classification repository's form, features and labels in order."""
        for name, (features, labels) in (("train", self.train), ("test", self.test)):
            with (folder / f"{name}.txt").open("w") as out:
                print(len(features), self.num_items, self.num_items, file=out)
                for own, goal in zip(features, labels, strict=True):
                    own = np.sort(own)
                    pairs = zip(own, self.weights(own), strict=True)
                    print(
                        ",".join(map(str, np.sort(goal))),
                        " ".join(f"{i}:{w:.6f}" for i, w in pairs),
                        file=out,
                    )


def precisions(sets: Sets, found: np.ndarray) -> dict[str, float]:
    """found: int64 [users, >= K + features], best first; features are skipped, -1 is none."""
    hits = np.zeros(K)
    for row, own, goal in zip(found, *sets.test, strict=True):
        new = row[~np.isin(row, own)][:K]
        hits[: len(new)] += np.isin(new, goal)
    total = np.cumsum(hits) / len(found)
    return {f"p{k}": round(float(total[k - 1] / k), 4) for k in (1, 3, 5)}


def most_asked(sets: Sets) -> int:
    return K + max(map(len, sets.test[0]))


# --- ours -----------------------------------------------------------------------------------------


def padded(rows: Rows) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out


def ours(a: argparse.Namespace, sets: Sets, kind: str) -> dict[str, Any]:
    import torch

    from embedsvc.outputs.full import FullSoftmax
    from embedsvc.outputs.lsh_softmax import LSHSoftmax
    from embedsvc.ranking.row_embedding import RowEmbedding

    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    features, labels = padded(sets.train[0]), padded(sets.train[1])
    weights = weights_of(sets, sets.train[0])
    count = np.bincount(np.concatenate(sets.train[1]), minlength=sets.num_items)
    # Towers and layers alike, but for the adaptive softmax, which has a loss of its own.
    table = RowEmbedding(sets.num_items, a.dim, lr=a.tower_lr, seed=a.seed)
    layer: Any
    rank = np.argsort(np.argsort(-count, kind="stable"))
    dense: list[Any] = []
    if kind == "adaptive":
        cutoffs = [sets.num_items // 20, sets.num_items // 4]
        layer = torch.nn.AdaptiveLogSoftmaxWithLoss(a.dim, sets.num_items, cutoffs)
        dense = list(layer.parameters())
    elif kind == "full":
        layer = FullSoftmax(a.dim, sets.num_items, lr=a.lr, seed=a.seed)
    else:
        layer = LSHSoftmax(a.dim, sets.num_items, lr=a.lr, seed=a.seed, frequencies=count + 0.1)
    optimizer = torch.optim.Adagrad(dense, lr=a.lr) if dense else None
    rng = np.random.default_rng(a.seed)
    num_rows, start = 0, perf_counter()
    for _ in range(a.epochs):
        if not a.fixed:
            features, labels, weights = parted_anew(sets, rng)
        order = rng.permutation(len(features))
        for begin in range(0, len(order), 128):
            if perf_counter() - start > a.seconds:
                break
            rows = order[begin : begin + 128]
            num_rows += len(rows)
            hidden = table.pooled(torch.from_numpy(features[rows]), torch.from_numpy(weights[rows]))
            if optimizer is None:
                layer(hidden, torch.from_numpy(labels[rows])).loss.backward()
                continue
            goal = labels[rows]
            at, place = np.nonzero(goal >= 0)
            share = torch.from_numpy(1 / (goal >= 0).sum(1)[at]).float()
            target = torch.from_numpy(rank[goal[at, place]])
            optimizer.zero_grad()
            loss = -(layer(hidden[torch.from_numpy(at)], target).output * share).sum() / len(rows)
            loss.backward()
            optimizer.step()
    seconds = perf_counter() - start
    table.eval(), layer.eval()
    with torch.no_grad(), one_core():
        found, answered = answers(sets, table, layer)
    item_of = np.argsort(rank)
    return {
        **precisions(sets, item_of[found] if kind == "adaptive" else found),
        "train_seconds": round(seconds, 1),
        **answered,
        "epochs": round(num_rows / len(sets.train[0]), 1),
        "dim": a.dim,
        "lr": a.lr,
        "tower_lr": a.tower_lr,
    }


def answers(sets: Sets, table: Any, layer: Any) -> tuple[np.ndarray, dict[str, float]]:
    """The best of each test user, and what finding them took."""
    import torch

    features, weights = padded(sets.test[0]), weights_of(sets, sets.test[0])
    most, found, spent, index_seconds = most_asked(sets), [], 0.0, 0.0
    for begin in range(0, len(features), 512):
        batch = slice(begin, begin + 512)
        hidden = table.pooled(torch.from_numpy(features[batch]), torch.from_numpy(weights[batch]))
        if begin == 0:
            best_of(layer, hidden, most)  # compiles
            since = perf_counter()
            if hasattr(layer, "rebuild"):
                layer.rebuild()
                best_of(layer, hidden[:1], most)  # copies rows
                index_seconds = perf_counter() - since
        since = perf_counter()
        found.append(best_of(layer, hidden, most))
        spent += perf_counter() - since
    return np.concatenate(found), {
        "ms_per_query": round(spent / len(features) * 1e3, 4),
        "index_seconds": round(index_seconds, 3),
    }


def parted_anew(sets: Sets, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each training user another half is to be told from the rest."""
    whole = [rng.permutation(np.concatenate(both)) for both in zip(*sets.train, strict=True)]
    features, labels = Sets._halves(whole)
    return padded(features), padded(labels), weights_of(sets, features)


def weights_of(sets: Sets, rows: Rows) -> np.ndarray:
    out = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for at, row in enumerate(rows):
        out[at, : len(row)] = sets.weights(row)
    return out


def best_of(layer: Any, hidden: Any, most: int) -> np.ndarray:
    if hasattr(layer, "topk"):
        return np.asarray(layer.topk(hidden, most).indices.numpy())
    return np.asarray(layer.log_prob(hidden).topk(most).indices.numpy())


OURS = {
    "lsh_softmax": lambda a, sets: ours(a, sets, "lsh"),
    "full_softmax": lambda a, sets: ours(a, sets, "full"),
    "torch adaptive": lambda a, sets: ours(a, sets, "adaptive"),
}


# --- peers, in their own environment --------------------------------------------------------------


def run_peer(python: Path, method: str, folder: Path) -> dict[str, Any]:
    command = [str(python), __file__, "--as-peer", method, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def pairs_of(path: Path) -> Iterator[list[tuple[int, float]]]:
    with path.open() as lines:
        next(lines)
        for line in lines:
            pairs = (pair.split(":") for pair in line.split()[1:])
            yield [(int(i), float(w)) for i, w in pairs]


def omikuji(folder: Path) -> dict[str, Any]:
    """Parabel's settings, the default: three balanced trees of two children each."""
    import omikuji

    start = perf_counter()
    model = omikuji.Model.train_on_data(str(folder / "train.txt"), n_threads=2)
    seconds = perf_counter() - start
    queries = list(pairs_of(folder / "test.txt"))
    most = K + max(map(len, queries))
    found = np.full((len(queries), most), -1, np.int64)
    with one_core():
        start = perf_counter()
        for at, query in enumerate(queries):
            best = [label for label, _ in model.predict(query, top_k=most)]
            found[at, : len(best)] = best
        spent = perf_counter() - start
    np.save(folder / "found.npy", found)
    return {
        "train_seconds": round(seconds, 1),
        "ms_per_query": round(spent / len(queries) * 1e3, 4),
    }


def pecos(folder: Path) -> dict[str, Any]:
    """XR-Linear as its documentation begins: PIFA embeddings, a tree of 16 children a node."""
    import scipy.sparse as sp
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel
    from sklearn.datasets import load_svmlight_file

    def load(name: str) -> tuple[Any, Any]:
        lines = (folder / f"{name}.txt").read_text().splitlines(keepends=True)
        size = int(lines[0].split()[1])
        bare = folder / "bare.txt"
        bare.write_text("".join(lines[1:]))
        x, y = load_svmlight_file(
            str(bare), n_features=size, multilabel=True, zero_based=True, dtype=np.float32
        )
        at = np.repeat(np.arange(len(y)), [len(row) for row in y])
        columns = np.concatenate([np.asarray(row, np.int64) for row in y])
        labels = sp.csr_matrix((np.ones(len(at), np.float32), (at, columns)), (len(y), size))
        return x.tocsr(), labels

    x, y = load("train")
    queries, _ = load("test")
    start = perf_counter()
    clusters = Indexer.gen(LabelEmbeddingFactory.create(y, x), indexer_type="hierarchicalkmeans")
    model = XLinearModel.train(x, y, C=clusters, threads=2)
    seconds = perf_counter() - start
    most = K + int(np.diff(queries.indptr).max())
    with one_core():
        start = perf_counter()
        best = model.predict(queries, only_topk=most, beam_size=20, threads=1)
        spent = perf_counter() - start
    found = np.full((queries.shape[0], most), -1, np.int64)
    for at in range(len(found)):
        row = best.getrow(at)
        order = np.argsort(-row.data)
        found[at, : len(order)] = row.indices[order]
    np.save(folder / "found.npy", found)
    return {
        "train_seconds": round(seconds, 1),
        "ms_per_query": round(spent / queries.shape[0] * 1e3, 4),
    }


PEERS = {"omikuji": omikuji, "pecos": pecos}

if __name__ == "__main__":
    main()
