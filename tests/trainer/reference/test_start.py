"""Where a run begins and where it goes on: policy and reference are compared, and so are the references and data of both."""

import math

import pytest
import torch
from peft import get_peft_model

from helpers.tiny_models import NEW_ADAPTERS, lora, moved
from trl_sdpo.trainer.reference import check_start


class TestStart:
    """At the first step, policy and reference are compared."""

    @pytest.mark.parametrize("kind", ["full", "adapter", "pairs", "precomputed"])
    def test_policy_that_was_changed_after_the_trainer_was_built(self, llama, make_trainer, records, kind):
        rows = records(4) if kind != "pairs" else [{**row, "rejected": row["rejected"][0]} for row in records(4)]
        model = llama() if kind == "full" else get_peft_model(llama(), lora())
        args = {"precompute_ref_log_probs": kind == "precomputed"}
        trainer = make_trainer(model, rows, args=args, ref_model=None)
        moved(trainer.model)
        with pytest.raises(ValueError, match=r"Policy and reference differ by \d.* nats on the first batch"):
            trainer.train()

    def test_only_once(self, llama, make_trainer, records, monkeypatch):
        """A second call of `train`, and a run that goes on, begin with a policy that has moved."""
        trainer = make_trainer(llama(), records(4), args={"save_strategy": "steps", "save_steps": 2}, ref_model=None)
        trainer.train()
        trainer.train()
        resumed = make_trainer(llama(), records(4), args={"max_steps": 6}, ref_model=None)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 6

    def test_not_against_another_reference(self, llama, make_trainer, records):
        make_trainer(llama(), records(4), ref_model=llama(seed=1)).train()

    @pytest.mark.parametrize(
        ("difference", "dtype"), [(0.01, torch.float32), (1.0, torch.bfloat16), (math.nan, torch.float32)]
    )
    def test_every_completion_counts(self, difference, dtype):
        policy = torch.full((2, 4), -3.0)
        exists = torch.tensor([[True] * 4, [True, True, False, False]])
        for place in [(0, 0), (0, 3), (1, 1)]:
            other = policy.clone()
            other[place] += difference
            with pytest.raises(ValueError, match="Policy and reference differ"):
                check_start(policy, other, exists, dtype, lambda tensor: tensor, False)
        other = policy.clone()
        other[1, 3] = difference  # no completion is there
        check_start(policy, other, exists, dtype, lambda tensor: tensor, False)


@pytest.mark.parametrize("adapter", ["lora", "random"])
def test_parameters_that_are_unfrozen_later(llama, make_trainer, records, adapter):
    """Between building the trainer and training: they belong to the frozen copy, too."""
    trainer = make_trainer(llama(), records(8), peft_config=NEW_ADAPTERS[adapter](), args={"learning_rate": 1e-2})
    head = trainer.model.get_base_model().lm_head.requires_grad_(True).weight
    before_training = head.detach().clone()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    before = trainer.compute_ref_log_probs(trainer.ref_model, dict(batch))
    trainer.train()
    assert not torch.equal(head, before_training)
    for left, right in zip(before, trainer.compute_ref_log_probs(trainer.ref_model, dict(batch)), strict=True):
        torch.testing.assert_close(right, left)
    trainer.model.get_base_model().model.embed_tokens.requires_grad_(True)
    with pytest.raises(ValueError, match=r"embed_tokens.weight` was made trainable after a run"):
        trainer.train()


class TestResuming:
    ARGS = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}

    @pytest.mark.parametrize("way", ["full", "path", "sync", "pissa", "bias_all", "random", "lora", "prompt_tuning"])
    def test_goes_on_against_the_same_reference(self, llama, make_trainer, records, logged, tmp_path, way):
        llama(attention_bias=True).save_pretrained(tmp_path / "base")

        def trainer(**args):
            config = NEW_ADAPTERS[way]() if way in NEW_ADAPTERS else None
            model = str(tmp_path / "base") if way == "path" else llama(attention_bias=True)
            args = {**self.ARGS, **args, "sync_ref_model": way == "sync", "ref_model_sync_steps": 1}
            if config is not None:
                return make_trainer(get_peft_model(model, config), records(8), args=args)
            return make_trainer(model, records(8), args=args, ref_model=None)

        whole = trainer()
        whole.train()
        resumed = trainer(output_dir=str(tmp_path / "other"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
        assert logged(resumed)[-2:] == pytest.approx(logged(whole)[-2:], rel=1e-5)

    def test_other_data(self, llama, make_trainer, records, caplog):
        make_trainer(llama(), records(8, 4, 4), args={**self.ARGS, "num_negatives": 3}).train()
        for rows, options, says in (
            (records(8, 4, 4), {}, None),
            (records(8, 4, 4), {"num_negatives": 2}, "num_negatives (3 before, 2 here)."),
            (records(12, 4, 4), {"seed": 7}, "seed (42 before, 7 here), records (8 before, 12 here), tokens."),
            (records(8, 3, 3), {}, "other data: tokens."),
        ):
            args = {**self.ARGS, "num_negatives": 3, "save_strategy": "no", "max_steps": 6, **options}
            trainer = make_trainer(llama(), rows, args=args)
            caplog.clear()
            trainer.train(resume_from_checkpoint=True)
            assert ("began with other data" in caplog.text) == (says is not None)
            assert says is None or says in caplog.text

    @pytest.mark.parametrize("way", ["full", "precomputed", "lora"])
    def test_other_reference(self, llama, make_trainer, records, tmp_path, way):
        args = {**self.ARGS, "precompute_ref_log_probs": way == "precomputed"}
        kwargs = {"ref_model": None} | ({"peft_config": lora()} if way == "lora" else {})
        make_trainer(llama(), records(8), args=args, **kwargs).train()
        with pytest.raises(ValueError, match=r"the reference here \(sha256 .*is not the one that the run began with"):
            make_trainer(llama(seed=1), records(8), args=args, **kwargs).train(resume_from_checkpoint=True)
