"""The blend is the sum that its docstring says."""

import numpy as np
import scipy.sparse as sp

from embedsvc.ranking.recommenders import RECOMMENDERS
from tests.embedsvc.ranking.recommenders.test_recommenders import communities


def test_the_sum_equals_plain_algebra() -> None:
    spec = {"name": "blend", "dim": 8, "epochs": 2, "rank": 6, "filter": 0.7, "temperature": 0.3}
    found = RECOMMENDERS.build(spec).fit(communities())
    users = np.arange(120)
    one = np.exp(found.vectors.scores(users).astype(np.float64) / 0.3)
    other = found.filtered.scores(users).astype(np.float64)
    one, other = (part / part.std(axis=1, keepdims=True) for part in (one, other))
    np.testing.assert_allclose(found.scores(users), one + 0.7 * other, rtol=1e-3)


def test_a_stranger_without_events_gets_finite_scores() -> None:
    found = RECOMMENDERS.build({"name": "blend", "dim": 8, "epochs": 2, "rank": 6}).fit(
        communities()
    )
    assert np.isfinite(found.scores_of(sp.csr_matrix((1, 60), dtype=np.float32))).all()
