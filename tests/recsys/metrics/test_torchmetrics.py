"""The metrics of this package are those of torchmetrics, on random scores without ties."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from trl_sdpo.recsys import hit_rate, mean_reciprocal_rank, ndcg, ranks
from trl_sdpo.recsys.metrics.catalogue import recommendation_ranks


def random_scores(seed, num_records=50):
    """Rows of 2 to 30 distinct scores above 0: at others torchmetrics' reciprocal rank is 0, whatever the rank."""
    generator = np.random.default_rng(seed)
    return [(1 + generator.permutation(100)[: generator.integers(2, 31)]) / 7 for _ in range(num_records)]


def mean_over_records(metric, scores, **options):
    values = []
    for row in scores:
        target = torch.zeros(len(row), dtype=torch.long)
        target[0] = 1
        values.append(metric(torch.as_tensor(row, dtype=torch.float64), target, **options).item())
    return np.mean(values)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_hit_rate_and_ndcg(seed, k):
    scores = random_scores(seed)
    places = ranks(scores)
    # fewer candidates than k are all within the first k
    assert hit_rate(places, k) == pytest.approx(mean_over_records(retrieval_hit_rate, scores, top_k=k))
    assert hit_rate(places, k) == pytest.approx(mean_over_records(retrieval_recall, scores, top_k=k))
    assert ndcg(places, k) == pytest.approx(mean_over_records(retrieval_normalized_dcg, scores, top_k=k), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_reciprocal_rank(seed):
    scores = random_scores(seed)
    ours = mean_reciprocal_rank(ranks(scores))
    assert ours == pytest.approx(mean_over_records(retrieval_reciprocal_rank, scores), abs=1e-6)


def test_metrics_of_the_module_interface():
    """One flat vector with the number of the record beside each score."""
    scores = random_scores(2)
    lengths = torch.tensor([len(row) for row in scores])
    indexes = torch.arange(len(scores)).repeat_interleave(lengths)
    target = torch.zeros(len(indexes), dtype=torch.long)
    target[lengths.cumsum(0) - lengths] = 1
    flat = torch.as_tensor(np.concatenate(scores))
    places = ranks(scores)
    for metric, ours in (
        (RetrievalHitRate(top_k=5), hit_rate(places, 5)),
        (RetrievalNormalizedDCG(top_k=5), ndcg(places, 5)),
        (RetrievalMRR(), mean_reciprocal_rank(places)),
    ):
        assert metric(flat, target, indexes=indexes).item() == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_lists_from_a_catalogue(k):
    generator = np.random.default_rng(3)
    scores, targets = generator.permuted(np.tile(np.arange(40.0), (60, 1)), axis=1), generator.integers(40, size=60)
    lists = np.argsort(-scores, axis=1)[:, :10]
    places = recommendation_ranks(lists.tolist(), targets.tolist())
    relevant = torch.nn.functional.one_hot(torch.as_tensor(targets), 40)
    for metric, ours in ((retrieval_hit_rate, hit_rate(places, k)), (retrieval_normalized_dcg, ndcg(places, k))):
        rows = zip(torch.as_tensor(scores), relevant, strict=True)
        assert ours == pytest.approx(np.mean([metric(row, one, top_k=k).item() for row, one in rows]), abs=1e-6)
