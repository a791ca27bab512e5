"""Losses that take scores: by hand, by their limits, and through the trainer against numpy."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from helpers.closeness import assert_same_numbers
from trl_sdpo import (
    DataCollatorForMultiPreference,
    SoftmaxDPOConfig,
    from_ranked,
    infonca_loss,
    plackett_luce_loss,
    score_margins,
    softmax_dpo_loss,
    softmax_margin_loss,
)
from trl_sdpo.data_utils import tokenize_multi_preference


class TestScoreMargins:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("difference", [[2.0, 0.0, 6.0]]),  # 2 * (4 - 3), 2 * (4 - 4), 2 * (4 - 1)
            ("log", [[2 * math.log(2), 0.0, 2 * math.log(4)]]),
            ("ratio", [[8 / 3, 2.0, 8.0]]),
        ],
    )
    def test_by_hand(self, kind, expected):
        margins = score_margins(torch.tensor([4.0]), torch.tensor([[3.0, 4.0, 1.0]]), kind, scale=2.0)
        torch.testing.assert_close(margins, torch.tensor(expected))

    def test_no_such_kind(self):
        with pytest.raises(ValueError, match=r"`score_margin` must be one of .*'root'"):
            score_margins(torch.zeros(1), torch.zeros(1, 1), "root")


class TestSoftmaxMargin:
    def test_by_hand(self):
        """
        Rewards ln 6 (chosen), ln 1 and ln 2 at beta = 1, margins ln 3 and 0: 6 / (6 + 3 * 1 + 2) = 6/11, so -ln is
        ln 11 - ln 6 = 0.606136. Without margins it is ln(9/6).
        """
        chosen, rejected = torch.tensor([6.0]).log(), torch.tensor([[1.0, 2.0]]).log()
        margins = torch.tensor([[3.0, 1.0]]).log()
        assert softmax_margin_loss(chosen, rejected, margins, 1.0).item() == pytest.approx(0.606136, abs=1e-6)
        assert softmax_margin_loss(chosen, rejected, 0 * margins, 1.0).item() == pytest.approx(math.log(1.5), abs=1e-6)

    def test_beta_is_of_the_log_ratios_alone(self):
        """Log-ratios 2 ln 6, 0 and 2 ln 2 at beta = 0.5 are the rewards above, with the margins above."""
        chosen, rejected = 2 * torch.tensor([6.0]).log(), 2 * torch.tensor([[1.0, 2.0]]).log()
        loss = softmax_margin_loss(chosen, rejected, torch.tensor([[3.0, 1.0]]).log(), beta=0.5)
        assert loss.item() == pytest.approx(0.606136, abs=1e-6)

    def test_margins_of_what_does_not_exist_do_not_count(self):
        mask = torch.tensor([[True, False]])
        margins = torch.tensor([[1.0, math.nan]])
        loss = softmax_margin_loss(torch.zeros(1), torch.tensor([[0.0, math.inf]]), margins, 1.0, mask)
        assert loss.item() == pytest.approx(math.log(1 + math.e), abs=1e-6)


class TestInfoNCA:
    def test_by_hand(self):
        """
        Scores ln 4, ln 3 and ln 1 at temperature 1: the target is 4/8, 3/8 and 1/8. Rewards ln 2, 0 and 0: the softmax is
        1/2, 1/4 and 1/4. The cross-entropy is 4/8 ln 2 + 4/8 ln 4 = 1.5 ln 2.
        """
        scores = torch.tensor([4.0, 3.0, 1.0]).log()
        loss = infonca_loss(torch.tensor([2.0]).log(), torch.zeros(1, 2), scores[:1], scores[None, 1:], 1.0)
        assert loss.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)

    def test_temperature_divides_the_scores(self):
        scores = 3 * torch.tensor([4.0, 3.0, 1.0]).log()
        loss = infonca_loss(torch.tensor([2.0]).log(), torch.zeros(1, 2), scores[:1], scores[None, 1:], 1.0, 3.0)
        assert loss.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)

    def test_a_small_temperature_is_softmax_dpo(self):
        generator = torch.Generator().manual_seed(0)
        chosen, rejected = torch.randn(4, generator=generator), torch.randn(4, 3, generator=generator)
        losses = infonca_loss(chosen, rejected, torch.full((4,), 5.0), torch.full((4, 3), 4.0), 0.7, 1e-3)
        torch.testing.assert_close(losses, softmax_dpo_loss(chosen, rejected, 0.7))


class TestPlackettLuce:
    def test_by_hand(self):
        """
        The order of the scores is chosen, second, first: rewards ln 3, ln 2, ln 1. So 3 / (3 + 2 + 1) times 2 / (2 + 1)
        times 1 = 1/3, and the loss ln 3.
        """
        chosen, rejected = torch.tensor([3.0]).log(), torch.tensor([[1.0, 2.0]]).log()
        loss = plackett_luce_loss(chosen, rejected, torch.tensor([5.0]), torch.tensor([[1.0, 3.0]]), 1.0)
        assert loss.item() == pytest.approx(math.log(3), abs=1e-6)

    def test_ties_are_not_compared(self):
        """
        Two of score 5 with rewards ln 3 and ln 2 above one of score 1 with ln 1: 3 / (3 + 1) times 2 / (2 + 1) = 1/2.
        """
        chosen, rejected = torch.tensor([3.0]).log(), torch.tensor([[2.0, 1.0]]).log()
        loss = plackett_luce_loss(chosen, rejected, torch.tensor([5.0]), torch.tensor([[5.0, 1.0]]), 1.0)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-6)

    @pytest.mark.parametrize("num", [2, 3, 6])
    def test_starts_at_log_of_the_number_of_orders(self, num):
        scores = torch.arange(float(num)).flip(0)
        loss = plackett_luce_loss(torch.zeros(1), torch.zeros(1, num - 1), scores[:1], scores[None, 1:], 0.3)
        assert loss.item() == pytest.approx(math.lgamma(num + 1), abs=1e-5)

    def test_the_best_alone_is_softmax_dpo(self):
        generator = torch.Generator().manual_seed(1)
        chosen, rejected = torch.randn(4, generator=generator), torch.randn(4, 5, generator=generator)
        mask = torch.rand(4, 5, generator=generator) < 0.6
        losses = plackett_luce_loss(chosen, rejected, torch.ones(4), torch.zeros(4, 5), 0.7, mask)
        torch.testing.assert_close(losses, softmax_dpo_loss(chosen, rejected, 0.7, mask))

    def test_probabilities_of_all_orders_make_one(self):
        """It is a distribution over rankings: exp(-loss) over the 24 orders of four completions."""
        rewards = torch.tensor([0.3, -1.2, 2.0, 0.5])
        orders = torch.tensor(list(permutations(range(4)))).float()
        losses = plackett_luce_loss(
            rewards[:1].expand(24), rewards[None, 1:].expand(24, 3), orders[:, 0], orders[:, 1:], 1.0
        )
        assert (-losses).exp().sum().item() == pytest.approx(1, abs=1e-5)


def by_numpy(name, rewards, scores):
    """The losses of a record by their formulas, in float64."""
    weights = np.exp(rewards)
    if name == "softmax_margin":
        return np.log(1 + np.sum(np.exp(rewards[1:] + np.log1p(scores[0] - scores[1:]) - rewards[0])))
    if name == "infonca":
        target = np.exp(scores / 0.8) / np.exp(scores / 0.8).sum()
        return -(target * np.log(weights / weights.sum())).sum()
    terms = [
        np.log((weights[i] + weights[scores < scores[i]].sum()) / weights[i])
        for i in range(len(scores))
        if (scores < scores[i]).any()
    ]
    return np.sum(terms)


FUNCTIONS = {
    "softmax_margin": lambda c, r, sc, sr, beta, mask=None: softmax_margin_loss(
        c, r, score_margins(sc, sr), beta, mask
    ),
    "infonca": lambda c, r, sc, sr, beta, mask=None: infonca_loss(c, r, sc, sr, beta, 0.8, mask),
    "plackett_luce": plackett_luce_loss,
}
VALUES = npst.arrays(np.float64, (3, 5), elements=st.floats(-6, 6))
GRADES = npst.arrays(np.int64, (3, 5), elements=st.integers(1, 5))
MASKS = npst.arrays(np.bool_, (3, 4))


@pytest.mark.parametrize("name", FUNCTIONS)
class TestAll:
    @settings(deadline=None, max_examples=60)
    @given(values=VALUES, grades=GRADES, mask=MASKS, hidden=st.sampled_from([0.0, math.nan, math.inf, -math.inf]))
    def test_of_records_with_fewer_completions(self, name, values, grades, mask, hidden):
        """Loss by the formula over what exists; what does not has no gradient, whatever stands there."""
        grades = np.sort(grades, axis=1)[:, ::-1].astype(float)
        logratios, scores = torch.tensor(values), torch.tensor(grades.copy())
        exists = torch.tensor(mask)
        rejected = logratios[:, 1:].masked_fill(~exists, hidden).requires_grad_()
        chosen = logratios[:, 0].clone().requires_grad_()
        rejected_scores = scores[:, 1:].masked_fill(~exists, math.nan)
        losses = FUNCTIONS[name](chosen, rejected, scores[:, 0], rejected_scores, 0.7, exists)
        assert losses.dtype == torch.float64
        for row in range(3):
            kept = np.append(True, mask[row])
            expected = by_numpy(name, 0.7 * values[row][kept], grades[row][kept])
            assert losses[row].item() == pytest.approx(expected, abs=1e-9)
        losses.sum().backward()
        assert chosen.grad.isfinite().all()
        assert (rejected.grad.masked_fill(exists, 0) == 0).all()

    def test_gradients(self, name):
        generator = torch.Generator().manual_seed(2)
        logratios = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        scores = torch.tensor([[5.0, 4, 4, 1], [3, 3, 2, 1], [2, 2, 2, 2]]).double()
        mask = torch.tensor([[True] * 3, [True, False, True], [False] * 3])
        inputs = (logratios[:, 0].clone().requires_grad_(), logratios[:, 1:].clone().requires_grad_())
        function = FUNCTIONS[name]
        assert torch.autograd.gradcheck(lambda c, r: function(c, r, scores[:, 0], scores[:, 1:], 0.5, mask), inputs)

    def test_half_precision_is_computed_in_float32(self, name):
        logratios, scores = torch.tensor([[-0.125, -1.0, 3.0]]), torch.tensor([[4.0, 3.0, 1.0]])
        inputs = [logratios[:, 0], logratios[:, 1:], scores[:, 0], scores[:, 1:]]
        half = FUNCTIONS[name](*(one.bfloat16() for one in inputs), 0.1)
        assert half.dtype == torch.float32
        assert_same_numbers(half, FUNCTIONS[name](*inputs, 0.1))

    def test_extreme_rewards_are_finite(self, name):
        chosen, rejected = torch.tensor([-1e4], requires_grad=True), torch.tensor([[1e4, 0.0]], requires_grad=True)
        loss = FUNCTIONS[name](chosen, rejected, torch.tensor([3.0]), torch.tensor([[2.0, 1.0]]), 1.0)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert chosen.grad.isfinite().all()
        assert rejected.grad.isfinite().all()

    def test_shapes_must_fit(self, name):
        with pytest.raises(ValueError, match="must have the shape"):
            FUNCTIONS[name](torch.zeros(2), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 1), 1.0)


def graded(rows):
    """Records with scores from 5 down, ties among them."""
    for number, row in enumerate(rows):
        row["chosen_score"] = 5.0
        row["rejected_scores"] = [float(4 - (number + place) % 4) for place in range(len(row["rejected"]))]
    return rows


ARGS = {"beta": 0.5, "max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-4}
OPTIONS = {
    "softmax_margin": {},
    "infonca": {"score_temperature": 0.8},
    "plackett_luce": {},
}


class TestTraining:
    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("more", [{}, {"prefix_sharing": "false"}, {"precompute_ref_log_probs": True}], ids=str)
    def test_by_arithmetic(self, llama, records, make_trainer, logged, tokenizer, plain_log_probs, name, more):
        rows = graded(records(8, smallest=1, largest=4))
        args = {**ARGS, **OPTIONS[name], **more, "loss_type": [name]}
        model, reference = llama(), llama(seed=1)
        tokens = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        with torch.no_grad():
            policy, ref = (
                [row.double().numpy() for row in plain_log_probs(one, tokens)] for one in (model, reference)
            )
        trainer = make_trainer(model, rows, ref_model=reference, args=args)
        trainer.train()
        expected = [
            by_numpy(name, 0.5 * (ours - theirs), np.array([row["chosen_score"], *row["rejected_scores"]]))
            for ours, theirs, row in zip(policy, ref, rows, strict=True)
        ]
        assert logged(trainer)[0] == pytest.approx(np.mean(expected), rel=1e-4)
        assert trainer.evaluate(Dataset.from_list(rows))["eval_loss"] > 0

    @pytest.mark.parametrize("name", OPTIONS)
    def test_drawn_negatives_keep_their_scores(self, llama, records, make_trainer, logged, name):
        """Scores that say who is meant: were they mixed up, the draws of two epochs would not give the losses of each."""
        rows = graded(records(4, 4, 4))
        collator = DataCollatorForMultiPreference(0, num_negatives=2, with_scores=True)
        tokens = [
            {"prompt_ids": [5, 6], "chosen_ids": [9], "rejected_ids": [[10], [11], [12], [13]], "record_id": n}
            | {"chosen_score": 99.0, "rejected_scores": [10.0, 11.0, 12.0, 13.0]}
            for n in range(6)
        ]
        batch = collator(tokens)
        for row, grades in zip(batch["input_ids"].tolist(), batch["grades"].tolist(), strict=True):
            assert grades == [99.0, *(float(token) for token in row if token >= 10)]
        trainer = make_trainer(
            llama(), rows, args={**OPTIONS[name], "loss_type": [name], "num_negatives": 2, "max_steps": 3}
        )
        trainer.train()
        assert np.isfinite(logged(trainer)).all()

    def test_padding_of_fewer_scores(self):
        tokens = [
            {"prompt_ids": [5], "chosen_ids": [9], "rejected_ids": [[7]] * k, "chosen_score": 3, "rejected_scores": [1] * k}
            for k in (1, 3)
        ]  # fmt: skip
        batch = DataCollatorForMultiPreference(0, with_scores=True)(tokens)
        assert batch["grades"].isnan().tolist() == [[False, False, True, True], [False] * 4]
        assert next(iter(batch)) == "num_completions"
        assert "grades" not in DataCollatorForMultiPreference(0)(tokens)

    def test_a_ranked_list_is_trained_as_what_it_becomes(self, llama, records, make_trainer, logged):
        rows = [{"prompt": row["prompt"], "ranked": [row["chosen"], *row["rejected"]]} for row in records(8, 2, 4)]
        args = {"loss_type": ["plackett_luce"], "max_steps": 2, "per_device_train_batch_size": 8}
        direct = make_trainer(llama(), rows, args=args)
        converted = make_trainer(llama(), from_ranked(Dataset.from_list(rows)), args=args)
        for trainer in (direct, converted):
            trainer.train()
        assert logged(direct) == logged(converted)
        assert logged(direct)[0] == pytest.approx(
            np.mean([math.lgamma(len(row["ranked"]) + 1) for row in rows]), rel=1e-3
        )

    def test_learns_the_whole_order(self, llama, records, make_trainer, logged):
        rows = [{"prompt": row["prompt"], "ranked": [row["chosen"], *row["rejected"]]} for row in records(4)]
        args = {"loss_type": ["plackett_luce"], "max_steps": 40, "learning_rate": 3e-3}
        trainer = make_trainer(llama(), rows, args=args)
        trainer.train()
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
        with torch.no_grad():
            scores = trainer._log_probs_of(trainer.model, batch) - trainer._log_probs_of(trainer.ref_model, batch)
        assert all(better > worse for row in scores.tolist() for better, worse in pairwise(row))

    def test_stream(self, llama, records, make_trainer, logged):
        rows = graded(records(8))
        stream = IterableDataset.from_generator(lambda: iter(rows))
        trainer = make_trainer(llama(), stream, args={"loss_type": ["softmax_margin"], "max_steps": 2})
        trainer.train()
        assert logged(trainer)[0] > math.log(4)

    def test_scores_are_left_alone_by_other_losses(self, llama, records, make_trainer, logged):
        rows = records(8)
        odd = [{**row, "chosen_score": None, "rejected_scores": None} for row in rows]
        results = []
        for data in (rows, odd):
            trainer = make_trainer(llama(), data, args={"max_steps": 2, "remove_unused_columns": False})
            trainer.train()
            results.append(logged(trainer))
        assert results[0] == results[1]


class TestRecords:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rejected_scores": None}, r"Row 1, column `rejected_scores`: expected a list of 3 scores, .* got None"),
            ({"rejected_scores": [1.0]}, r"Row 1, column `rejected_scores`: expected a list of 3 scores"),
            ({"rejected_scores": [1.0, None, 2.0]}, r"Row 1, column `rejected_scores\[1\]`: there is no score, got None"),
            ({"chosen_score": math.nan}, r"Row 1, column `chosen_score`: there is no score, got nan.*`unrated_score`"),
            ({"chosen_score": math.inf}, r"Row 1, column `chosen_score`: expected a finite number, got inf"),
            ({"rejected_scores": [1.0, 5.5, 2.0]}, r"Row 1, column `rejected_scores\[1\]`: .* above the chosen one, which"),
        ],
    )  # fmt: skip
    def test_errors(self, llama, records, make_trainer, change, message):
        rows = graded(records(4))
        rows[1] |= change
        with pytest.raises(ValueError, match=message):
            make_trainer(llama(), rows, args={"loss_type": ["plackett_luce"]})

    def test_missing_columns(self, llama, records, make_trainer):
        with pytest.raises(ValueError, match=r"Row 0, column `rejected_scores`: expected a list of 3 scores"):
            make_trainer(llama(), records(4), args={"loss_type": ["softmax_margin"]})

    def test_what_is_not_rated(self, llama, records, make_trainer, logged):
        losses = []
        for scores in ([1.0, None, None], [1.0, 2.0, 2.0]):
            rows = [{**row, "chosen_score": 4.0, "rejected_scores": scores} for row in records(4)]
            args = {"loss_type": ["softmax_margin"], "max_steps": 2, "unrated_score": 2.0}
            trainer = make_trainer(llama(), rows, args=args)
            trainer.train()
            losses.append(logged(trainer))
        assert losses[0] == losses[1]

    def test_a_ratio_wants_scores_above_zero(self, llama, records, make_trainer):
        rows = [{**row, "chosen_score": 4.0, "rejected_scores": [1.0, 0.0, 2.0]} for row in records(4)]
        args = {"loss_type": ["softmax_margin"], "score_margin": "ratio"}
        with pytest.raises(ValueError, match=r"Row 0, column `rejected_scores\[1\]`: not above 0"):
            make_trainer(llama(), rows, args=args)

    def test_ranked_lists(self):
        with pytest.raises(ValueError, match="no column `ranked`"):
            from_ranked(Dataset.from_dict({"prompt": ["a"]}))
        with pytest.raises(ValueError, match=r"both a column `ranked` and \['chosen'\]"):
            from_ranked(Dataset.from_dict({"prompt": ["a"], "ranked": [["b", "c"]], "chosen": ["b"]}))
        with pytest.raises(ValueError, match="Row 1, column `ranked`: expected a list of two completions at least"):
            from_ranked(Dataset.from_dict({"prompt": ["a", "b"], "ranked": [["b", "c"], ["d"]]}))


class TestOptions:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"score_margin": "difference"}, "`score_margin='difference'` changes nothing in .*'softmax'"),
            ({"score_margin_scale": 2.0, "loss_type": ["plackett_luce"]}, "`score_margin_scale=2.0` changes nothing"),
            ({"score_temperature": 1.0, "loss_type": ["softmax_margin"]}, "`score_temperature=1.0` changes nothing"),
            ({"unrated_score": 1.0, "loss_type": ["infonca"]}, "`unrated_score=1.0` changes nothing in .* no scores"),
            ({"ld_alpha": 0.5, "loss_type": ["plackett_luce"]}, "`ld_alpha=0.5` is not defined for .*plackett_luce"),
            ({"f_divergence_type": "js_divergence", "loss_type": ["softmax_margin"]}, "`f_divergence_type='js_div"),
            ({"use_weighting": True, "loss_type": ["softmax_margin"]}, "`use_weighting=True` is not defined"),
            ({"label_smoothing": 0.1, "loss_type": ["plackett_luce"]}, "`label_smoothing=0.1` changes nothing"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, llama, records, make_trainer, args, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(llama(), graded(records(4)), args=args)

    @pytest.mark.parametrize(
        "options",
        [
            {"score_margin": "root"},
            {"score_margin_scale": 0.0},
            {"score_temperature": -1.0},
            {"unrated_score": math.nan},
        ],
        ids=str,
    )
    def test_values(self, tmp_path, options):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
            SoftmaxDPOConfig(str(tmp_path), **options)

    @pytest.mark.parametrize("name", OPTIONS)
    def test_single_rejected_completions_have_none(self, llama, records, make_trainer, name):
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(4)]
        with pytest.raises(ValueError, match=rf"`loss_type=\['{name}'\]` is not a loss of TRL"):
            make_trainer(llama(), pairs, args={"loss_type": [name], **OPTIONS[name]})
