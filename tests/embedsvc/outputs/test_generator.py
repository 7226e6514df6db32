import numpy as np
import pytest

from embedsvc.outputs.generator import Generator, exact_top


@pytest.mark.parametrize("clusters", [True, False])
def test_weights_give_the_true_posterior(clusters: bool) -> None:
    """Against the density of each class's normal distribution, by the formula."""
    generator = Generator(30, dim=5, clusters=clusters, noise=1.2, seed=4)
    weight, bias = generator.weights()
    x, _ = generator.examples(20)
    scores = (x @ weight.T + bias).astype(float)
    posterior = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for i in range(20):
        distance = ((x[i] - generator.mean_CD) ** 2).sum(axis=1)
        density = generator.probability_C * np.exp(-distance / (2 * 1.2**2 / 5))
        np.testing.assert_allclose(posterior[i], density / density.sum(), rtol=1e-3)


def test_examples_follow_the_frequencies() -> None:
    for frequencies in ("zipf", "flat"):
        generator = Generator(50, dim=4, frequencies=frequencies)  # type: ignore[arg-type]
        x, target = generator.examples(20_000)
        share = np.bincount(target, minlength=50) / 20_000
        np.testing.assert_allclose(share, generator.probability_C, atol=0.015)
        np.testing.assert_allclose(x[target == 7].mean(axis=0), generator.mean_CD[7], atol=0.2)
    assert generator.probability_C.sum() == pytest.approx(1)


def test_rare_classes_of_few_examples_have_short_rows() -> None:
    weight, _ = Generator(1000, dim=8, seen=5000).weights()
    lengths = np.linalg.norm(weight, axis=1)
    assert lengths.max() > 2 * lengths.min()


def test_classes_of_a_tree_have_near_relatives() -> None:
    nearest = {}
    for clusters in (True, False):
        mean = Generator(2000, dim=32, clusters=clusters, frequencies="flat").mean_CD
        cosine = mean @ mean.T
        np.fill_diagonal(cosine, -1)
        nearest[clusters] = np.median(cosine.max(axis=1))
    assert nearest[True] > nearest[False] + 0.1


def test_the_same_seed_gives_the_same() -> None:
    for _ in range(2):
        one, two, other = (Generator(100, dim=4, seed=seed) for seed in (1, 1, 2))
        assert (one.mean_CD == two.mean_CD).all()
        assert (one.mean_CD != other.mean_CD).any()
        assert (one.examples(10, seed=3)[0] == two.examples(10, seed=3)[0]).all()
        assert (one.examples(10, seed=3)[0] != two.examples(10, seed=4)[0]).all()


def test_exact_top_is_a_sort_of_all_scores() -> None:
    weight, bias = Generator(300, dim=6).weights()
    x, _ = Generator(300, dim=6).examples(9)
    ids, scores = exact_top(weight, bias, x, 5)
    all_scores = x @ weight.T + bias
    assert (ids == np.argsort(-all_scores, axis=1)[:, :5]).all()
    np.testing.assert_allclose(scores, -np.sort(-all_scores, axis=1)[:, :5], rtol=1e-4)
    assert exact_top(weight, None, x, 500)[0].shape == (9, 300)
