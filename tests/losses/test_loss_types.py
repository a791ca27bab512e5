"""Every loss type and loss option through the trainers: against `DPOTrainer` on the same pairs, and by arithmetic."""

import ast
import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from helpers.closeness import assert_same_training
from trl_sdpo import SoftmaxDPOConfig, to_preference_pairs
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.losses.loss_types import (
    LOSS_TYPES_OF_ONE_PAIR,
    MULTI_NEGATIVE_LOSSES,
    MULTI_PREFERENCE_LOSS_TYPES,
    PAIRWISE_LOSSES,
    REFERENCE_FREE_LOSSES,
    multi_preference_losses,
)
from trl_sdpo.prefix_sharing.rows import CompletionScores
from trl_sdpo.trainer.checks import F_DIVERGENCE_LOSS_TYPES


# All that TRL 1.16 documents for `loss_type`
TRL_LOSS_TYPES = [
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
]
NEEDED = {
    "exo_pair": {"label_smoothing": 0.05},
    "robust": {"label_smoothing": 0.1},
    "discopop": {"discopop_tau": 0.5},
}
OPTIONS = {
    "mixture": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.5]},
    "forward_kl": {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "js_divergence": {"loss_type": ["ipo", "sft"], "f_divergence_type": "js_divergence"},
    "alpha_divergence": {"loss_type": ["hinge"], "f_divergence_type": "alpha_divergence"}
    | {"f_alpha_divergence_coef": 0.8},
    "ld_alpha": {"loss_type": ["sigmoid", "sft"], "ld_alpha": 0.3},
    "ld_alpha_zero": {"loss_type": ["ipo"], "ld_alpha": 0.0},
    "use_weighting": {"loss_type": ["sigmoid", "nca_pair"], "use_weighting": True},
    "all": {"loss_type": ["robust"], "label_smoothing": 0.1, "ld_alpha": 0.5, "use_weighting": True}
    | {"f_divergence_type": "js_divergence"},
}


def cases(loss_types):
    of_types = {name: {"loss_type": [name], **NEEDED.get(name, {})} for name in loss_types}
    return [pytest.param(args, id=name) for name, args in {**of_types, **OPTIONS}.items()]


PAIRWISE_CASES = cases([*PAIRWISE_LOSSES, "sft"])
# What is read token by token depends on the layout, too
PADDED_CASES = [
    pytest.param({**OPTIONS[name], "prefix_sharing": "false"}, id=f"{name}-padded")
    for name in ("ld_alpha", "use_weighting")
]
METRICS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"]
METRICS += ["logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy"]
ARGS = {"beta": 0.5, "max_steps": 3, "learning_rate": 1e-4}


@pytest.fixture
def reference(llama):
    """Makes a model near to that of seed 0, so that no log-ratio is so large that a loss is flat there."""

    def make():
        model, generator = llama(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for param in model.parameters():
                param += 0.02 * torch.randn(param.shape, generator=generator)
        return model

    return make


@pytest.fixture
def train(llama, reference, make_trainer):
    def run(rows, *trainer, args):
        trainer = make_trainer(llama(), rows, *trainer, args={**ARGS, **args}, ref_model=reference())
        trainer.train()
        return trainer

    return run


class TestContract:
    def test_loss_types_of_trl(self):
        source = inspect.getsource(DPOTrainer._compute_loss)
        assert re.findall(r'loss_type == "(\w+)"', source) == TRL_LOSS_TYPES, (
            "DPOTrainer has other loss types now. Decide on the new ones in trl_sdpo/losses/loss_types.py and "
            "trl_sdpo/losses/pairwise.py, and list them in docs/losses.md."
        )
        assert set(TRL_LOSS_TYPES) - set(MULTI_PREFERENCE_LOSS_TYPES) == {"aot", "aot_unpaired"}

    def test_losses_that_take_a_divergence(self):
        (names,) = re.findall(r"f_divergence_loss_types = (\{.*\})", inspect.getsource(DPOTrainer.__init__))
        assert ast.literal_eval(names) == set(F_DIVERGENCE_LOSS_TYPES), (
            f"DPOTrainer allows f-divergences for {names} now. See F_DIVERGENCE_LOSS_TYPES in trl_sdpo/trainer/checks.py."
        )

    def test_every_loss_is_in_the_docs(self):
        text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
        assert [name for name in (*MULTI_PREFERENCE_LOSS_TYPES, *TRL_LOSS_TYPES) if f"`{name}`" not in text] == []


class TestAgainstDPOTrainer:
    @pytest.mark.parametrize("args", cases(TRL_LOSS_TYPES))
    def test_preference_data_of_trl(self, records, train, args):
        """A single rejected completion is the parent's business: every metric is, the number of tokens included."""
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(8)]
        ours, theirs = train(pairs, args=args), train(pairs, DPOTrainer, DPOConfig, args=args)
        assert_same_training(ours, theirs, ["loss", "grad_norm", *METRICS, "num_tokens"])

    @pytest.mark.parametrize("args", PAIRWISE_CASES)
    def test_lists_of_one(self, records, train, args):
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(8)]
        ours = train([{**row, "rejected": [row["rejected"]]} for row in pairs], args=args)
        theirs = train(pairs, DPOTrainer, DPOConfig, args=args)
        # LD-DPO cuts for each pair, so that a completion has no single reward: our metrics are of whole completions
        metrics = METRICS if "ld_alpha" not in args else METRICS[6:]
        assert_same_training(ours, theirs, ["loss", "grad_norm", *metrics])

    @pytest.mark.parametrize("args", [*PAIRWISE_CASES, *PADDED_CASES])
    def test_several_are_the_mean_over_the_pairs(self, records, train, args):
        """Three pairs for each record in one batch: DPOTrainer averages over all of them."""
        rows = records(4)
        ours = train(rows, args=args)
        pair_rows = to_preference_pairs(Dataset.from_list(rows))
        theirs_args = {**args, "per_device_train_batch_size": 12}
        theirs_args.pop("prefix_sharing", None)
        theirs = train(pair_rows, DPOTrainer, DPOConfig, args=theirs_args)
        assert_same_training(ours, theirs)

    @pytest.mark.parametrize("name", ["ipo", "ld_alpha_zero", "use_weighting", "all"])
    def test_ragged_records_count_the_same(self, llama, reference, records, make_trainer, name):
        """The loss of records of 1 to 4 pairs is the mean over records of DPOTrainer's loss over the pairs of each."""
        rows, args = records(4, 1, 4), {**ARGS, **dict(OPTIONS, ipo={"loss_type": ["ipo"]})[name]}
        ours = make_trainer(llama(), rows, args=args, ref_model=reference())
        pair_rows = [to_preference_pairs(Dataset.from_list([row])) for row in rows]
        theirs = make_trainer(llama(), pair_rows[0], DPOTrainer, DPOConfig, args=args, ref_model=reference())
        expected = np.mean([theirs.evaluate(dataset)["eval_loss"] for dataset in pair_rows])
        assert ours.evaluate(Dataset.from_list(rows))["eval_loss"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("loss_type", LOSS_TYPES_OF_ONE_PAIR)
    def test_preference_data_of_trl_with_a_loss_of_ours(self, records, train, loss_type):
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(8)]
        ours = train(pairs, args={"loss_type": [loss_type, "sft"], "loss_weights": [1.0, 0.1]})
        args = {"loss_type": [LOSS_TYPES_OF_ONE_PAIR[loss_type], "sft"], "loss_weights": [1.0, 0.1]}
        assert_same_training(ours, train(pairs, DPOTrainer, DPOConfig, args=args), ["loss", "grad_norm", *METRICS])
        assert ours.args.loss_type == [loss_type, "sft"]
        # the same by our own functions
        lists = train(
            [{**row, "rejected": [row["rejected"]]} for row in pairs],
            args={"loss_type": [loss_type, "sft"], "loss_weights": [1.0, 0.1]},
        )
        assert_same_training(lists, ours, ["loss", "grad_norm", *METRICS])


def log_sigmoid(values):
    return -np.log1p(np.exp(-values))


@pytest.fixture
def expected_losses(tokenizer, llama, reference, plain_log_probs):
    """Losses of the family by numpy, from a plain forward pass for each sequence."""

    def compute(rows, beta):
        tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        lengths = [np.array([len(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]) for row in tokenized]
        with torch.no_grad():
            policy, ref = (
                [row.double().numpy() for row in plain_log_probs(model, tokenized)] for model in (llama(), reference())
            )
        rewards = [beta * (ours - theirs) for ours, theirs in zip(policy, ref, strict=True)]
        likelihoods = [np.exp(logps / length) for logps, length in zip(policy, lengths, strict=True)]
        losses = {
            "softmax": np.mean([np.log(np.exp(r).sum()) - r[0] for r in rewards]),
            "nca": np.mean([-log_sigmoid(r[0]) - log_sigmoid(-r).mean() for r in rewards]),
            "dmpo": np.mean([-log_sigmoid(r[0] - r[1:].mean()) for r in rewards]),
            "mppo": np.mean([-log_sigmoid(len(p[1:]) * p[0] - p[1:].sum()) for p in likelihoods]),
            "sft": -sum(row[0] for row in policy) / sum(length[0] for length in lengths),
        }
        return {**losses, "infonca": losses["softmax"]}

    return compute


class TestFamily:
    @pytest.mark.parametrize("prefix_sharing", ["true", "false"])
    @pytest.mark.parametrize(
        "weights",
        [
            *({name: 1.0} for name in (*MULTI_NEGATIVE_LOSSES, *REFERENCE_FREE_LOSSES)),
            {"softmax": 1.0, "sft": 0.1},
            {"mppo": 2.0, "nca": 0.5, "sft": 0.3},
        ],
        ids="+".join,
    )
    def test_by_arithmetic(
        self, llama, reference, records, make_trainer, logged, expected_losses, weights, prefix_sharing
    ):
        rows = records(8, smallest=1, largest=4)
        args = {**ARGS, "per_device_train_batch_size": 8, "max_steps": 1, "prefix_sharing": prefix_sharing}
        args |= {"loss_type": [*weights], "loss_weights": [*weights.values()]}
        trainer = make_trainer(llama(), rows, args=args, ref_model=reference())
        trainer.train()
        expected = expected_losses(rows, ARGS["beta"])
        total = sum(weight * expected[name] for name, weight in weights.items())
        assert logged(trainer)[0] == pytest.approx(total, abs=1e-5)

    @pytest.mark.parametrize("loss_type", [*MULTI_NEGATIVE_LOSSES, *REFERENCE_FREE_LOSSES, "hinge", "apo_zero"])
    def test_precomputed_reference_and_drawn_negatives(self, records, train, loss_type):
        args = {"loss_type": [loss_type], "num_negatives": 2}
        trainers = [
            train(records(8, 1, 4), args={**args, "precompute_ref_log_probs": precompute})
            for precompute in (False, True)
        ]
        assert_same_training(*trainers, ["loss", "grad_norm", *METRICS])

    @pytest.mark.parametrize("loss_type", [*MULTI_NEGATIVE_LOSSES, *REFERENCE_FREE_LOSSES])
    def test_the_chosen_comes_to_win(self, records, train, logged, loss_type):
        trainer = train(records(8), args={"loss_type": [loss_type], "max_steps": 30, "learning_rate": 3e-3})
        assert logged(trainer)[-1] < 0.8 * logged(trainer)[0]
        assert logged(trainer, "rewards/accuracies")[-1] == 1


class TestRecordLosses:
    def test_what_does_not_exist_does_not_overflow(self, tmp_path):
        """DiscoPOP has exp(-margin): against a missing completion at 0, a chosen one of -200 would give infinity."""
        args = SoftmaxDPOConfig(str(tmp_path), loss_type=["discopop"], beta=1.0, use_cpu=True, bf16=False)
        log_probs = torch.tensor([[-200.0, -201.0, 0.0]], requires_grad=True)
        lengths, exists = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[True, True, False]])
        reference = CompletionScores(torch.zeros(1, 3), lengths, token_sums={})
        losses = multi_preference_losses(
            args, [1.0], CompletionScores(log_probs, lengths, token_sums={}), reference, exists
        )
        losses.sum().backward()
        # a margin of 1: the modulation is sigma(20), nearly 1, and so the loss nearly exp(-1)
        assert losses.item() == pytest.approx(math.exp(-1), abs=1e-6)
        assert torch.isfinite(log_probs.grad).all()
        assert log_probs.grad[0, 2] == 0


class TestErrors:
    def test_loss_without_a_counterpart_for_a_single_rejected(self, llama, records, make_trainer):
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(4)]
        with pytest.raises(ValueError, match=r"`loss_type=\['mppo'\]` is not a loss of TRL.* list of one completion"):
            make_trainer(llama(), pairs, args={"loss_type": ["sigmoid", "mppo"]})

    def test_checked_by_the_name_that_was_given(self, llama, records, make_trainer):
        """While the parent is constructed, softmax goes under the name of sigmoid, for which this is defined."""
        with pytest.raises(ValueError, match=r"`f_divergence_type='js_divergence'` is not defined for .*'softmax'"):
            make_trainer(llama(), records(4), args={"f_divergence_type": "js_divergence"})

    def test_evaluation_on_other_data_is_checked_too(self, llama, records, make_trainer):
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(4)]
        trainer = make_trainer(llama(), pairs, args={"loss_type": ["aot"]})
        with pytest.raises(ValueError, match=r"`loss_type=\['aot'\]` .* Use `to_preference_pairs`"):
            trainer.evaluate(Dataset.from_list(records(4)))
