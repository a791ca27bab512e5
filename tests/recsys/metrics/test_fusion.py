"""The conditional logit against an independent calculation, and against what it was drawn from."""

import numpy as np
import pytest
import torch

from trl_sdpo.recsys import Fusion, fit_fusion


def drawn(seed, num_records, weights, lengths=(5, 20)):
    """Records whose target is drawn by the model itself, and then put first."""
    generator = np.random.default_rng(seed)
    rows = {name: [] for name in weights}
    for _ in range(num_records):
        count = int(generator.integers(*lengths))
        features = {name: generator.normal(size=count) * (1 + index) for index, name in enumerate(weights)}
        total = sum(weight * features[name] for name, weight in weights.items())
        target = int(np.argmax(total + generator.gumbel(size=count)))
        order = [target, *(place for place in range(count) if place != target)]
        for name, values in features.items():
            rows[name].append(values[order])
    return rows


def by_gradient(rows, l2):
    """The same maximum by torch's LBFGS, record by record."""
    records = [torch.tensor(np.stack(one, axis=1)) for one in zip(*rows.values(), strict=True)]
    inside = torch.cat([one - one.mean(dim=0) for one in records])
    scale = inside.pow(2).mean(dim=0).sqrt()
    weights = torch.zeros(len(rows), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -sum(torch.log_softmax(one / scale @ weights, 0)[0] for one in records) + l2 / 2 * weights.pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (weights / scale).detach().numpy(), -(closure().item() - l2 / 2 * weights.pow(2).sum().item()) / len(
        records
    )


def test_equals_an_independent_calculation():
    rows = drawn(0, 150, {"language": 1.0, "ids": 0.3, "nothing": 0.0})
    fusion = fit_fusion(rows, l2=2.0)
    weights, likelihood = by_gradient(rows, 2.0)
    np.testing.assert_allclose(fusion.weights, weights, rtol=1e-5, atol=1e-7)
    assert fusion.log_likelihood == pytest.approx(likelihood, rel=1e-8)
    without = fit_fusion({name: rows[name] for name in ("ids", "nothing")}, l2=2.0)
    assert fusion.gains[0] == pytest.approx(fusion.log_likelihood - without.log_likelihood, abs=1e-9)


def test_finds_what_the_targets_were_drawn_by():
    """Within 4 standard errors, which shrink with the root of the records; what says nothing adds nothing."""
    truth = {"language": 1.0, "ids": 0.3, "nothing": 0.0}
    for count in (1000, 4000):
        fusion = fit_fusion(drawn(count, count, truth))
        for weight, error, wanted in zip(fusion.weights, fusion.errors, truth.values(), strict=True):
            assert abs(weight - wanted) < 4 * error
            assert error < 3 / np.sqrt(count)
        assert fusion.gains[2] < 0.002 < fusion.gains[1] < fusion.gains[0]


def test_errors_are_over_users():
    """Records that are there four times say no more, when it is known that they are of one user."""
    rows = drawn(3, 300, {"a": 1.0, "b": 0.5})
    copies = {name: [row for row in values for _ in range(4)] for name, values in rows.items()}
    once, alone = fit_fusion(rows, l2=0.0), fit_fusion(copies, l2=0.0)
    grouped = fit_fusion(copies, groups=[user for user in range(300) for _ in range(4)], l2=0.0)
    np.testing.assert_allclose(grouped.weights, once.weights, rtol=1e-8)
    np.testing.assert_allclose(grouped.errors, once.errors, rtol=1e-6)
    np.testing.assert_allclose(np.array(alone.errors) * 2, once.errors, rtol=0.01)


def test_what_tells_all_targets_stays_finite():
    fusion = fit_fusion({"oracle": [[1.0, 0.0, 0.0]] * 50})
    assert 0 < fusion.weights[0] < 100


def test_what_is_the_same_for_all_candidates_has_no_weight():
    rows = drawn(1, 50, {"a": 1.0})
    fusion = fit_fusion(rows | {"user": [[float(number)] * len(row) for number, row in enumerate(rows["a"])]})
    assert fusion.weights[1] == pytest.approx(0, abs=1e-9)


def test_what_is_the_same_but_for_rounding_has_no_weight():
    """A cosine of the same vectors, computed in several orders."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(200, 5))
    scores[:, 0] += 1
    noise = 1 + generator.integers(-2, 3, size=(200, 5)) * np.finfo(float).eps
    alone, beside = fit_fusion({"score": scores}), fit_fusion({"cosine": noise, "score": scores})
    assert beside.weights[1] == pytest.approx(alone.weights[0])
    assert np.abs(beside.weights[0] * np.ptp(noise)) < 1e-12


def test_saved_and_loaded(tmp_path):
    rows = drawn(2, 40, {"a": 1.0, "b": -1.0})
    fusion = fit_fusion(rows)
    fusion.save(tmp_path / "fusion.json")
    assert Fusion.load(tmp_path / "fusion.json") == fusion
    for row, a, b in zip(fusion.scores(rows), rows["a"], rows["b"], strict=True):
        np.testing.assert_allclose(row, fusion.weights[0] * a + fusion.weights[1] * b)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json: no fusion"):
        Fusion.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no features"),
        ({"a": []}, "a: no records"),
        (
            {"a": [[1.0, 2.0]], "b": [[1.0]]},
            "b: scores of 1 records with 1 candidates, where the others have 1 with 2",
        ),
        ({"a": [[1.0, 2.0], [1.0, -np.inf]]}, "a: record 1 has a score of -inf"),
    ],
)
def test_what_cannot_be_fitted_is_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        fit_fusion(scores)


def test_missing_features_are_named():
    with pytest.raises(ValueError, match=r"no scores of \['b'\]"):
        fit_fusion(drawn(0, 20, {"a": 1.0, "b": 1.0})).scores({"a": [[1.0]]})
