import numpy as np
import pytest
from scipy.stats import spearmanr

from embedsvc.outputs.retrievers.simhash import SimHash
from partitions.errors import ConfigError


def test_keys_are_the_sides_of_random_planes() -> None:
    """By plain loops; with one more coordinate or without, and for rows and queries."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 6)).astype(np.float32)
    bias = rng.standard_normal(40).astype(np.float32)
    query = rng.standard_normal((3, 6)).astype(np.float32)
    for mips in (False, True):
        simhash = SimHash(bits=5, tables=3, mips=mips, seed=2)
        simhash.fit(weight, bias)
        planes = np.random.default_rng(2).standard_normal((8, 15), np.float32).astype(float)
        rows = np.column_stack([weight - weight.mean(axis=0), bias - bias.mean()]).astype(float)
        lengths = np.linalg.norm(rows, axis=1)
        last = np.sqrt(lengths.max() ** 2 - lengths**2) if mips else np.zeros(40)
        rows = np.column_stack([rows, last])
        asked = np.column_stack([query, np.ones(3), np.zeros(3)])
        for found, vectors in (
            (simhash.keys(np.arange(40)), rows),
            (simhash.query_keys(query), asked),
        ):
            for i, vector in enumerate(vectors):
                for table in range(3):
                    bits = [vector @ planes[:, 5 * table + bit] > 0 for bit in range(5)]
                    assert found[i, table] == int("".join(str(int(bit)) for bit in bits), 2)


def test_the_norm_augmented_agree_in_bits_as_scores_rank() -> None:
    """Without, they agree as angles rank: rows of unequal lengths tell the two apart."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((500, 8)) * rng.uniform(0.2, 2, (500, 1))
    weight = weight.astype(np.float32)
    query = rng.standard_normal((1, 8), np.float32)
    score = (weight - weight.mean(axis=0)) @ query[0]
    cosine = score / np.linalg.norm(weight - weight.mean(axis=0), axis=1)
    for mips, truth, other in ((True, score, cosine), (False, cosine, score)):
        simhash = SimHash(bits=1, tables=4000, mips=mips)
        simhash.fit(weight, None)
        agree = (simhash.keys(np.arange(500)) == simhash.query_keys(query)).mean(axis=1)
        close, far = (spearmanr(agree, ranked).statistic for ranked in (truth, other))
        assert close > max(0.97, far + 0.02)


def test_a_changed_row_moves_at_every_nth_touch() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((100, 8)).astype(np.float32)
    simhash = SimHash(check_every=5)
    simhash.fit(weight, None)
    ids = np.arange(30)
    weight[:30] = rng.standard_normal((30, 8))
    for _ in range(5):
        moved = (simhash.tables.keys_CT[ids] == simhash.keys(ids)).all(axis=1)
        simhash.touch(ids)
    assert 0 < moved.sum() < 30  # not all are due together
    assert (simhash.tables.keys_CT == simhash.keys(np.arange(100))).all()


def test_settings_are_checked() -> None:
    for settings in ({"bits": 0}, {"tables": 0}, {"check_every": 256}, {"bits": 25}):
        with pytest.raises(ConfigError, match="retriever simhash: "):
            SimHash(**settings)  # type: ignore[arg-type]
