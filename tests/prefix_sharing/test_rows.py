import copy
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from helpers.closeness import assert_same_scores
from trl_sdpo import DataCollatorForMultiPreference, softmax_dpo_loss
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.prefix_sharing.backbone import extend_backbone
from trl_sdpo.prefix_sharing.masks import base_model
from trl_sdpo.prefix_sharing.rows import (
    completion_exists,
    expand_shared_rows,
    is_shared,
    record_of_row,
    score_completions,
    shared_prefix_row,
    sharing_excess,
)


class TestRow:
    def test_by_hand(self):
        """The last prompt token, 3 at position 2, is repeated before each completion."""
        assert shared_prefix_row([1, 2, 3], [[4, 5], [6]]) == {
            "input_ids": [1, 2, 3, 4, 5, 3, 6],
            "position_ids": [0, 1, 2, 3, 4, 2, 3],
            "segment_ids": [0, 0, 1, 1, 1, 2, 2],
            "completion_mask": [0, 0, 0, 1, 1, 0, 1],
        }

    def test_prompt_of_one_token(self):
        """Nothing is left to share."""
        assert shared_prefix_row([7], [[4], [6, 8]]) == {
            "input_ids": [7, 4, 7, 6, 8],
            "position_ids": [0, 1, 0, 1, 2],
            "segment_ids": [1, 1, 2, 2, 2],
            "completion_mask": [0, 1, 0, 1, 1],
        }

    def test_empty_prompt(self):
        """The first token of a completion has nothing before it, so it is not scored."""
        assert shared_prefix_row([], [[4, 5], [6]]) == {
            "input_ids": [4, 5, 6],
            "position_ids": [0, 1, 0],
            "segment_ids": [1, 1, 2],
            "completion_mask": [0, 1, 0],
        }

    def test_inputs_are_not_changed(self):
        prompt, completions = [1, 2, 3], [[4, 5], [6]]
        shared_prefix_row(prompt, completions)
        assert (prompt, completions) == ([1, 2, 3], [[4, 5], [6]])


def expand_in_python(records, pad_token_id, multiple):
    """Padded rows made from the records themselves."""
    rows = []
    for record in records:
        for number, completion in enumerate([record["chosen_ids"], *record["rejected_ids"]], start=1):
            prompt = record["prompt_ids"]
            counted = [1] * len(completion) if prompt else [0] + [1] * (len(completion) - 1)
            # the last prompt token belongs to the segments
            shared = max(len(prompt) - 1, 0)
            segments = [0] * shared + [number] * (len(prompt) - shared + len(completion))
            rows.append((prompt + completion, [0] * len(prompt) + counted, segments))
    length = max(len(row[0]) for row in rows)
    length += -length % multiple
    columns = zip(("input_ids", "completion_mask", "segment_ids"), (pad_token_id, 0, -1), strict=True)
    expanded = {
        name: torch.tensor([row[i] + [padding] * (length - len(row[i])) for row in rows])
        for i, (name, padding) in enumerate(columns)
    }
    expanded["attention_mask"] = torch.tensor([[1] * len(row[0]) + [0] * (length - len(row[0])) for row in rows])
    return expanded


@pytest.mark.parametrize("seed", range(20))
def test_expanded_rows_are_those_of_the_records(token_records, seed):
    rng = random.Random(seed)
    records = token_records(
        num=rng.randint(1, 6),
        pools=[rng.randint(1, 5) for _ in range(3)],
        seed=seed,
        prompt_length=(0, rng.randint(0, 7)),
        completion_length=(1, 4),
    )
    multiple = rng.choice([None, 4, 8])
    batch = DataCollatorForMultiPreference(pad_token_id=2, pad_to_multiple_of=multiple)(records)
    expanded = expand_shared_rows(batch, 2, multiple)
    for name, tensor in expand_in_python(records, 2, multiple or 1).items():
        assert torch.equal(expanded[name], tensor), name
    assert "position_ids" not in expanded
    owners = [i for i, record in enumerate(records) for _ in range(1 + len(record["rejected_ids"]))]
    assert record_of_row(expanded).tolist() == owners
    assert record_of_row(batch).tolist() == list(range(len(records)))


def test_completion_exists():
    assert completion_exists(torch.tensor([3, 2])).tolist() == [[True, True, True], [True, True, False]]


def loss_and_gradients(model, log_probs):
    """Softmax-DPO against a reference that gives every completion a log-probability of 0."""
    width = max(len(row) for row in log_probs)
    table = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in log_probs])
    exists = completion_exists(torch.tensor([len(row) for row in log_probs]))
    loss = softmax_dpo_loss(table[:, 0], table[:, 1:], 0.1, exists[:, 1:]).mean()
    parameters = {name: param for name, param in model.named_parameters() if param.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.item(), dict(zip(parameters, gradients, strict=True))


def scored(model, batch):
    scores = score_completions(model, batch)
    return [row[:count] for row, count in zip(scores.log_probs, batch["num_completions"], strict=True)]


def assert_layouts_agree(model, records, plain_log_probs):
    """Shared-prefix rows == padded rows == one plain forward per sequence: log-probs, loss and all gradients."""
    add_fused_lm_head(base_model(model))
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    expected = plain_log_probs(model, records)
    expected_loss, expected_gradients = loss_and_gradients(model, expected)
    assert expected_loss > 0.01  # there is something to learn
    for layout in (batch, expand_shared_rows(batch, 0)):
        log_probs = scored(model, layout)
        for row, expected_row in zip(log_probs, expected, strict=True):
            assert_same_scores(row, expected_row)
        loss, gradients = loss_and_gradients(model, log_probs)
        assert loss == pytest.approx(expected_loss, abs=1e-4)
        # some gradients vanish but for rounding (a key bias moves all scores alike), so a floor for the norm
        floor = 1e-4 * max(gradient.norm() for gradient in expected_gradients.values())
        for name, gradient in expected_gradients.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * torch.maximum(gradient.norm(), floor), name


def random_llama(attn_implementation="sdpa", seed=0, cls=LlamaForCausalLM, **config):
    torch.manual_seed(seed)
    defaults = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=61, initializer_range=0.3, pad_token_id=0, **{**defaults, **config})
    return cls._from_config(config, attn_implementation=attn_implementation)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("batch_size", "pools"),
    [(1, [1]), (1, [3]), (1, [19]), (1, [127]), (8, [1]), (8, [3]), (8, [19]), (8, [1, 7, 4])],
    ids=["1x1", "1x3", "1x19", "1x127", "8x1", "8x3", "8x19", "ragged"],
)
def test_layouts_agree(token_records, plain_log_probs, attn_implementation, batch_size, pools):
    records = token_records(batch_size, pools)
    assert_layouts_agree(random_llama(attn_implementation), records, plain_log_probs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_layouts_agree_in_half_precision(token_records, attn_implementation, dtype):
    """
    Shared rows are as near to padded rows as these are to each other when each record is padded by itself, and nearer
    than both are to the same weights in float32.
    """
    records = token_records(8, (3, 7, 5))
    exact = random_llama(attn_implementation, num_hidden_layers=4)
    exact.load_state_dict({name: weight.to(dtype).float() for name, weight in exact.state_dict().items()})
    half = copy.deepcopy(exact).to(dtype)
    for model in (exact, half):
        add_fused_lm_head(model)

    def outcome(model, groups, layout):
        """Log-probs of all completions, and the gradient of the mean loss, over batches of these records."""
        log_probs, gradients = [], 0.0
        for group in groups:
            rows = scored(model, layout(DataCollatorForMultiPreference(pad_token_id=0)(group)))
            _, by_name = loss_and_gradients(model, rows)
            log_probs += rows
            flat = torch.cat([gradient.flatten() for gradient in by_name.values()]).float()
            gradients = gradients + flat * len(group) / len(records)
        return torch.cat(log_probs).float(), gradients

    def padded(batch):
        return expand_shared_rows(batch, 0)

    truth = outcome(exact, [records], padded)
    together, alone = outcome(half, [records], padded), outcome(half, [[record] for record in records], padded)
    shared = outcome(half, [records], lambda batch: batch)
    for index in range(2):
        scale = truth[index].norm()
        between_paddings = (together[index] - alone[index]).norm() / scale
        between_layouts = (together[index] - shared[index]).norm() / scale
        rounding = (together[index] - truth[index]).norm() / scale
        assert between_layouts <= 3 * between_paddings + 1e-4
        assert between_layouts <= 0.5 * rounding
        assert (shared[index] - truth[index]).norm() / scale <= 1.1 * rounding


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_layouts_agree_for_short_prompts(token_records, plain_log_probs, attn_implementation):
    records = token_records(6, [2, 3], prompt_length=(1, 2))
    assert_layouts_agree(random_llama(attn_implementation), records, plain_log_probs)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_layouts_agree_with_lora(token_records, plain_log_probs, attn_implementation):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
    model = get_peft_model(random_llama(attn_implementation), config)
    assert_layouts_agree(model, token_records(), plain_log_probs)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layouts_agree_with_gradient_checkpointing(token_records, use_reentrant):
    """autograd.grad does not go through reentrant checkpoints, so backward here: gradients equal those without."""
    batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())
    gradients = []
    for checkpointing in (False, True):
        model = random_llama().train()
        add_fused_lm_head(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        for layout in (batch, expand_shared_rows(batch, 0)):
            model.zero_grad()
            log_probs = score_completions(model, layout).log_probs
            softmax_dpo_loss(log_probs[:, 0], log_probs[:, 1:], 0.1).sum().backward()
            gradients.append({name: param.grad.clone() for name, param in model.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert (other[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("conversational", [False, True])
def test_layouts_agree_on_text(llama, tokenizer, records, to_conversational, plain_log_probs, conversational):
    rows = records(4, smallest=2, largest=4)
    rows = to_conversational(rows) if conversational else rows
    tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
    assert_layouts_agree(llama(), tokenized, plain_log_probs)


def test_scores_count_the_tokens_of_completions(token_records):
    model = random_llama()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    records = token_records()
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    for layout in (batch, expand_shared_rows(batch, 0)):
        scores = score_completions(model, layout)
        for i, record in enumerate(records):
            lengths = [len(ids) for ids in [record["chosen_ids"], *record["rejected_ids"]]]
            assert scores.num_tokens[i].tolist() == lengths + [0] * (5 - len(lengths))
            logits = model(torch.tensor([record["prompt_ids"] + record["chosen_ids"]])).logits[0, -lengths[0] - 1 : -1]
            distribution = torch.distributions.Categorical(logits=logits)
            top1 = (logits.argmax(-1) == torch.tensor(record["chosen_ids"])).sum()
            sums = {name: values[i, 0].item() for name, values in scores.token_sums.items()}
            assert sums["entropy"] == pytest.approx(distribution.entropy().sum().item(), abs=1e-4)
            assert sums["mean_logits"] == pytest.approx(logits.mean(dim=-1).sum().item(), abs=1e-4)
            assert sums["is_top1"] == top1
        assert not any(values.requires_grad for values in scores.token_sums.values())


def test_an_empty_prompt_is_scored_alike(token_records):
    model = random_llama()
    add_fused_lm_head(model)
    batch = DataCollatorForMultiPreference(pad_token_id=0)(
        token_records(prompt_length=(0, 0), completion_length=(2, 4))
    )
    shared, padded = score_completions(model, batch), score_completions(model, expand_shared_rows(batch, 0))
    assert_same_scores(shared.log_probs, padded.log_probs)
    assert torch.equal(shared.num_tokens, padded.num_tokens)


def test_scoring_leaves_nothing_behind(token_records):
    model = random_llama()
    add_fused_lm_head(model)
    batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())
    score_completions(model, batch)
    with pytest.raises(RuntimeError):
        score_completions(model, {**batch, "position_ids": batch["position_ids"][:, :-1]})
    assert not {"forward", "_plain_forward"} & set(vars(model.base_model))


class PositionIgnoringLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._drop_positions, with_kwargs=True)

    @staticmethod
    def _drop_positions(module, args, kwargs):
        return args, {**kwargs, "position_ids": None}


class TestSharingExcess:
    def excess(self, cls, records):
        model = random_llama(cls=cls)
        add_fused_lm_head(model)
        batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
        return sharing_excess(lambda sample: score_completions(model, sample), batch, 0, torch.float32).item()

    def test_sound_model(self, token_records):
        assert self.excess(LlamaForCausalLM, token_records()) <= 0

    def test_unsound_models(self, token_records, mask_ignoring_llama):
        assert self.excess(mask_ignoring_llama, token_records()) > 0.1
        assert self.excess(PositionIgnoringLlama, token_records()) > 0.1

    def test_batch_of_one(self, token_records, mask_ignoring_llama):
        assert self.excess(LlamaForCausalLM, token_records(1)) <= 0
        assert self.excess(mask_ignoring_llama, token_records(1)) > 0.1

    def test_weights_of_nan_say_nothing_about_the_mask(self, token_records):
        model = random_llama()
        add_fused_lm_head(model)
        model.lm_head.weight.data.fill_(torch.nan)
        batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())
        excess = sharing_excess(lambda sample: score_completions(model, sample), batch, 0, torch.float32)
        assert excess.item() == 0

    def test_nan_in_shared_rows_alone_is_no_agreement(self, token_records):
        model = random_llama()
        add_fused_lm_head(model)
        batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())

        def score(sample):
            scores = score_completions(model, sample)
            return scores._replace(log_probs=scores.log_probs * torch.nan) if is_shared(sample) else scores

        assert sharing_excess(score, batch, 0, torch.float32).item() == torch.inf


def test_a_copy_of_an_extended_model_is_a_model_of_its_own(token_records):
    """Also one that goes without the forward of the instance, as the frozen copies of references do."""
    batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())
    model = random_llama()
    add_fused_lm_head(model)
    extend_backbone(model)
    expected = score_completions(model, batch).log_probs
    copied, plain = copy.deepcopy(model), copy.deepcopy(model)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
    add_fused_lm_head(plain)
    for parameter in model.parameters():
        parameter.data.zero_()
    for other in (copied, plain):
        assert torch.equal(score_completions(other, batch).log_probs, expected)
