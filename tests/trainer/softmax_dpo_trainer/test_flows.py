"""Runs that break off, start again, or are asked for what they cannot give."""

import pytest
import torch
from datasets import Dataset


def test_resuming_from_a_model_alone(llama, records, make_trainer, logged, caplog):
    """The schedule of the learning rate begins anew, which transformers does without a word."""
    args = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True, "lr_scheduler_type": "linear"}
    make_trainer(llama(), records(8), args=args).train()
    trainer = make_trainer(llama(), records(8), args=args)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert logged(trainer, "learning_rate")[2] == pytest.approx(1e-3)
    assert "checkpoint-2 holds a model alone" in caplog.text


def test_evaluation_in_half_precision_before_training(llama, records, make_trainer):
    """It casts the model for good, which would train in it."""
    args = {"bf16_full_eval": True}
    trainer = make_trainer(llama(), records(8), args=args, eval_dataset=Dataset.from_list(records(4)))
    trainer.evaluate()
    with pytest.raises(ValueError, match=r"cast from torch.float32 to torch.bfloat16.*`bf16_full_eval`"):
        trainer.train()
    trainer = make_trainer(llama(), records(8), args=args, eval_dataset=Dataset.from_list(records(4)))
    trainer.train()
    trainer.evaluate()


def test_interrupted_evaluation_counts_once(llama, records, make_trainer):
    """The metrics of an evaluation are those of its records alone, whatever broke off before."""
    rows = records(8)
    for data in (rows, [{**row, "rejected": row["rejected"][0]} for row in rows]):  # ours, and preference data of TRL
        trainers = [
            make_trainer(
                llama(),
                data,
                ref_model=llama(seed=1),
                args={"per_device_eval_batch_size": 1},
                eval_dataset=Dataset.from_list(data),
            )
            for _ in range(2)
        ]
        expected = trainers[0].evaluate()
        original, calls = trainers[1].prediction_step, []

        def out_of_memory(*args, original=original, calls=calls, **kwargs):
            calls.append(1)
            if len(calls) == 4:
                raise torch.OutOfMemoryError("out of memory")
            return original(*args, **kwargs)

        trainers[1].prediction_step = out_of_memory
        with pytest.raises(torch.OutOfMemoryError):
            trainers[1].evaluate()
        trainers[1].prediction_step = original
        found = trainers[1].evaluate()
        timings = ("runtime", "per_second", "time")
        names = [name for name in expected if not name.endswith(timings)]
        assert {name: found[name] for name in names} == {name: pytest.approx(expected[name]) for name in names}


@pytest.mark.parametrize("kind", ["dataset", "stream", "epochs"])
def test_finished_run_stays_as_it_is(llama, records, make_trainer, kind):
    rows = records(16)
    length = {"num_train_epochs": 1, "max_steps": -1} if kind == "epochs" else {"max_steps": 3}
    args = {**length, "save_strategy": "steps", "save_steps": 1}

    def make():
        data = Dataset.from_list(rows)
        return make_trainer(llama(), data.to_iterable_dataset() if kind == "stream" else data, args=args)

    first = make()
    first.train()
    again = make()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step
    weights = first.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in again.model.state_dict().items())
    # with more steps to go it goes on
    args |= {"max_steps": 5, "num_train_epochs": 3}
    longer = make()
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 5


def test_loss_that_is_not_finite(llama, records, make_trainer):
    """An error, but under a gradient scaler, which skips such a step and trains on with a smaller scale."""
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    trainer = make_trainer(model, records(4), ref_model=llama())
    with pytest.raises(ValueError, match=r"The loss is .*nan.* for the records"):
        trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, batch).isnan()
    trainer.model.eval()
    with pytest.raises(ValueError, match="The loss is"):
        trainer.compute_loss(trainer.model, batch)
