"""
The seams of TRL and transformers that the package is sewn to. A release that moves one fails here, with a message that
says what to look at, before it fails anywhere else.
"""

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from trl import DPOConfig, DPOTrainer
from trl.data_utils import _tokenize, common_prefix_length, is_conversational
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, pad, use_adapter

from trl_sdpo import SoftmaxDPOTrainer
from trl_sdpo.prefix_sharing.backbone import extend_backbone


TRAINER = "trl_sdpo/trainer/softmax_dpo_trainer.py"
SIGNATURES = [
    (
        DPOTrainer.__init__,
        "self model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics "
        "callbacks optimizers quantization_config peft_config",
        f"{TRAINER}: SoftmaxDPOTrainer.__init__ re-states it and passes all of it on",
    ),
    (
        DPOTrainer._prepare_dataset,
        "self dataset processing_class args dataset_name",
        f"{TRAINER}: SoftmaxDPOTrainer._prepare_dataset overrides it",
    ),
    (
        DPOTrainer._set_signature_columns_if_needed,
        "self",
        f"{TRAINER}: SoftmaxDPOTrainer._set_signature_columns_if_needed adds record_id and length to it",
    ),
    (
        DPOTrainer.compute_ref_log_probs,
        "self model inputs",
        f"{TRAINER}: SoftmaxDPOTrainer.compute_ref_log_probs overrides it",
    ),
    (
        DPOTrainer._compute_loss,
        "self model inputs return_outputs",
        f"{TRAINER}: SoftmaxDPOTrainer._compute_loss overrides it",
    ),
    (
        DPOTrainer._precompute_ref_logps,
        "self dataset name batch_size",
        "trl_sdpo/trainer/reference_trainer.py: FixedReferenceTrainer._precompute_ref_logps wraps it",
    ),
    (
        Trainer._build_accelerator_args,
        "self kwargs",
        "trl_sdpo/trainer/reference_trainer.py: FixedReferenceTrainer._build_accelerator_args has the layers compiled",
    ),
    (
        Trainer.push_to_hub,
        "self commit_message blocking token revision private kwargs",
        "trl_sdpo/hub/trainer_pushes.py: PolicyPushes.push_to_hub re-states it",
    ),
    (
        Trainer._push_from_checkpoint,
        "self checkpoint_folder",
        "trl_sdpo/hub/trainer_pushes.py: PolicyPushes._push_from_checkpoint re-states it",
    ),
    (
        Trainer._finish_current_push,
        "self",
        "trl_sdpo/hub/trainer_pushes.py: PolicyPushes._finish_current_push re-states it",
    ),
    (
        DPOTrainer.create_model_card,
        "self model_name dataset_name tags",
        "trl_sdpo/hub/trainer_pushes.py: PolicyPushes.create_model_card takes its place",
    ),
    (DPOTrainer.log, "self logs start_time", f"{TRAINER}: SoftmaxDPOTrainer.log adds metrics to it"),
    (
        Trainer.get_train_dataloader,
        "self",
        f"{TRAINER}: SoftmaxDPOTrainer.get_train_dataloader swaps the collator for one that draws, and a stream for own shards",
    ),
    (
        Trainer.get_eval_dataloader,
        "self eval_dataset",
        f"{TRAINER}: SoftmaxDPOTrainer.get_eval_dataloader has every process read a whole stream",
    ),
    (
        Trainer.train,
        "self resume_from_checkpoint trial ignore_keys_for_eval",
        "trl_sdpo/trainer/checkpoints.py: WholeCheckpoints.train looks the checkpoint up before it",
    ),
    (
        Trainer._init_training_state,
        "self max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "trl_sdpo/trainer/checkpoints.py: WholeCheckpoints._init_training_state corrects the place in a stream that it returns",
    ),
    (
        DPOTrainer._save_checkpoint,
        "self model trial",
        "trl_sdpo/trainer/checkpoints.py: WholeCheckpoints._save_checkpoint invalidates the folder before it",
    ),
    (
        Trainer._save_rng_state,
        "self output_dir",
        "trl_sdpo/trainer/checkpoints.py: WholeCheckpoints._save_rng_state waits for all processes after it",
    ),
    (
        Trainer._save,
        "self output_dir state_dict",
        "trl_sdpo/trainer/reference_trainer.py: FixedReferenceTrainer._save removes the reference adapter after it",
    ),
    (
        add_fused_lm_head,
        "model temperature cast_lm_head_to_fp32 outputs",
        "trl_sdpo/scoring/log_probs.py: _scoring adds it, and trl_sdpo/prefix_sharing/rows.py: score_completions calls it",
    ),
    (
        pad,
        "tensors padding_value padding_side pad_to_multiple_of",
        "trl_sdpo/prefix_sharing/collator.py: DataCollatorForMultiPreference pads with it",
    ),
    (
        use_adapter,
        "model adapter_name",
        "trl_sdpo/trainer/reference_trainer.py: FixedReferenceTrainer._reference uses it",
    ),
    (
        disable_gradient_checkpointing,
        "model gradient_checkpointing_kwargs",
        "trl_sdpo/trainer/reference_trainer.py: FixedReferenceTrainer._reference uses it",
    ),
    (
        _tokenize,
        "processing_class input apply_chat_template_kwargs",
        "trl_sdpo/data_utils.py: _tokenize_completions calls it",
    ),
    (
        common_prefix_length,
        "ids other_ids",
        "trl_sdpo/data_utils.py: _tokenize_completions finds the boundary with it",
    ),
    (is_conversational, "example", "trl_sdpo/data_utils.py: _tokenize_completions calls it"),
]


@pytest.mark.parametrize(
    ("function", "expected", "where"), SIGNATURES, ids=[function.__qualname__ for function, *_ in SIGNATURES]
)
def test_signature(function, expected, where):
    parameters = list(inspect.signature(function).parameters)
    if (
        function == Trainer.push_to_hub and "private" not in parameters
    ):  # transformers before 5.23, of which nothing is asked
        expected = expected.replace(" private", "")
    assert parameters == expected.split(), (
        f"{function.__module__}.{function.__qualname__} takes {parameters} now, not {expected.split()}. See {where}."
    )


@pytest.mark.parametrize(
    "name",
    [
        "__init__",
        "_prepare_dataset",
        "_set_signature_columns_if_needed",
        "compute_ref_log_probs",
        "_compute_loss",
        "_precompute_ref_logps",
        "get_train_dataloader",
        "get_eval_dataloader",
        "log",
        "train",
        "_save_checkpoint",
        "_save_rng_state",
        "_save",
    ],
)
def test_what_we_override_takes_what_the_parent_takes(name):
    ours = list(inspect.signature(getattr(SoftmaxDPOTrainer, name)).parameters)
    theirs = list(inspect.signature(getattr(DPOTrainer, name)).parameters)
    if "kwargs" in ours:
        ours = [name for name in ours if name not in ("args", "kwargs")]
        theirs = theirs[: len(ours)]
    assert ours == theirs, f"DPOTrainer.{name} takes {theirs} now. See {TRAINER}: SoftmaxDPOTrainer.{name}."


def test_fields_of_trl_collator():
    fields = [field.name for field in dataclasses.fields(DataCollatorForPreference)]
    assert fields == ["pad_token_id", "max_length", "truncation_mode", "pad_to_multiple_of", "return_tensors"], (
        f"DataCollatorForPreference has the fields {fields} now. trl_sdpo/prefix_sharing/collator.py: "
        f"DataCollatorForMultiPreference passes them on, and {TRAINER}: _set_collator copies them all."
    )


def test_fields_of_fused_output():
    fields = {field.name for field in dataclasses.fields(FusedCausalLMOutput)}
    needed = {"log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "aux_loss"}
    assert needed <= fields, (
        f"FusedCausalLMOutput has no {sorted(needed - fields)} any more, only {sorted(fields)}. "
        "trl_sdpo/prefix_sharing/rows.py: score_completions reads them."
    )


def test_fused_head_scores_shifted_labels_of_another_length(llama):
    """score_completions hands the head only the positions that it wants scored, and their labels already shifted."""
    model = llama()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    extend_backbone(model)
    input_ids, labels = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[10, 11]])
    scored = torch.tensor([[0, 0], [-4, -2]])
    outputs = model(input_ids=input_ids, shift_labels=labels, scored=scored, fused_lm_head=True)
    expected = model(input_ids=input_ids).logits[0].log_softmax(-1)[[1, 3], [10, 11]]
    message = (
        "The fused LM head does not score `shift_labels` against the hidden states of the backbone position by "
        "position, or does not hand keywords to the backbone any more. trl_sdpo/prefix_sharing/backbone.py and "
        "trl_sdpo/prefix_sharing/rows.py: score_completions depend on it."
    )
    assert outputs.log_probs.shape == (1, 2), message
    torch.testing.assert_close(outputs.log_probs[0], expected, msg=message)
    assert outputs.entropy.shape == (1, 2), message


def test_signature_columns(llama, records, make_trainer):
    rows = [{**row, "rejected": row["rejected"][0]} for row in records(2)]
    trainer = make_trainer(llama(), rows, DPOTrainer, DPOConfig)
    trainer._set_signature_columns_if_needed()
    expected = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
    assert trainer._signature_columns == expected, (
        f"DPOTrainer keeps the columns {trainer._signature_columns} now. See {TRAINER}: "
        "_set_signature_columns_if_needed, and trl_sdpo/prefix_sharing/collator.py, which reads them."
    )


@pytest.mark.parametrize(
    "attribute",
    [
        *("loss_types", "loss_weights", "beta", "precompute_ref_logps", "ref_model", "aux_loss_enabled"),
        *("router_aux_loss_coef", "_tokenizer", "_is_vlm", "_metrics", "_total_train_tokens", "_tp_size"),
    ],
)
def test_attributes(llama, records, make_trainer, attribute):
    rows = [{**row, "rejected": row["rejected"][0]} for row in records(2)]
    trainer = make_trainer(llama(), rows, DPOTrainer, DPOConfig)
    assert hasattr(trainer, attribute), f"DPOTrainer has no `{attribute}` any more, which {TRAINER} reads or sets."


def test_reference_adapter_is_called_ref(llama, records, make_trainer):
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    rows = [{**row, "rejected": row["rejected"][0]} for row in records(2)]
    trainer = make_trainer(model, rows, DPOTrainer, DPOConfig)
    assert set(trainer.model.peft_config) == {"default", "ref"}, (
        "DPOTrainer does not keep the adapter of a PEFT model as 'ref' any more, only "
        f"{set(trainer.model.peft_config)}. See trl_sdpo/trainer/reference_trainer.py: _reference."
    )


def test_trainer_state_is_written_last(llama, records, make_trainer, monkeypatch):
    """What makes a checkpoint whole, and the random state of each process just before it."""
    written = []
    for name in ("_save", "_save_optimizer_and_scheduler", "_save_rng_state"):
        original = getattr(Trainer, name)

        def note(self, *args, name=name, original=original, **kwargs):
            written.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, name, note)
    save_to_json = TrainerState.save_to_json
    monkeypatch.setattr(
        TrainerState, "save_to_json", lambda self, path: (written.append(Path(path).name), save_to_json(self, path))
    )
    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", lambda **kwargs: written.append("rotate"))
    rows = [{**row, "rejected": row["rejected"][0]} for row in records(2)]
    args = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make_trainer(llama(), rows, DPOTrainer, DPOConfig, args).train()
    expected = ["_save", "_save_optimizer_and_scheduler", "_save_rng_state", TRAINER_STATE_NAME, "rotate"]
    assert written == expected, (
        f"Trainer writes a checkpoint in the order {written} now, not {expected}. trl_sdpo/trainer/checkpoints.py: a checkpoint "
        "is whole if its trainer_state.json is, and older ones are deleted only after that."
    )


def test_adapters_are_saved_in_subfolders(llama, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2)
    model = get_peft_model(llama(), lora)
    model.add_adapter("ref", lora)
    model.save_pretrained(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("adapter_*")}
    expected = {"adapter_config.json", "adapter_model.safetensors"}
    assert files == expected | {f"ref/{name}" for name in expected}, (
        f"PEFT saves two adapters as {sorted(files)} now. See trl_sdpo/trainer/adapters.py: remove_saved_adapter."
    )


def test_reference_adapter_is_an_incomplete_copy(llama, records, make_trainer):
    modules = ["k_proj", "down_proj"]
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=modules, feedforward_modules=["down_proj"])
    model = get_peft_model(llama(), ia3)
    for name, param in model.named_parameters():
        if name.endswith(".default"):
            param.data.fill_(2.0)
    rows = [{**row, "rejected": row["rejected"][0]} for row in records(2)]
    make_trainer(model, rows, DPOTrainer, DPOConfig)
    copies = [param for name, param in model.named_parameters() if name.endswith(".ref")]
    assert copies
    assert all((param == 1).all() for param in copies), (
        "DPOTrainer copies all parameters of an adapter to its reference now. trl_sdpo/trainer/adapters.py: "
        "complete_reference_adapter can go."
    )


def test_attributes_of_4bit_layers(llama, tmp_path):
    llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    layer = model.model.layers[0].self_attn.q_proj
    assert hasattr(layer, "support_avx512bf16_for_cpu"), (
        f"{type(layer).__name__} of bitsandbytes has no `support_avx512bf16_for_cpu` any more. See trl_sdpo/trainer/adapters.py: "
        "keep_4bit_layers_differentiable, and whether an evaluation on the CPU still takes the gradients away."
    )
    assert hasattr(layer.weight, "quant_state"), "bitsandbytes keeps no `quant_state` on 4-bit weights any more."


@pytest.mark.parametrize(
    ("method", "statements"),
    [
        (
            Trainer._push_from_checkpoint,
            [
                "self.args.hub_strategy == HubStrategy.END",
                "not self.args.hub_always_push and self.push_in_progress is not None",
                "[ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME]",
                'ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]',
                '"last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT',
                "self.push_in_progress = PushInProgress(push_jobs)",
            ],
        ),
        (
            Trainer.push_to_hub,
            [
                "self.save_model(_internal_call=True)",
                "self.create_model_card(model_name=model_name, **kwargs)",
                "self._finish_current_push()",
                "run_as_future=not blocking",
            ],
        ),
        (Trainer._save_checkpoint, ["self._push_from_checkpoint(output_dir)", "rotate_checkpoints("]),
    ],
)
def test_pushes_do_what_we_restate(method, statements):
    source = inspect.getsource(method)
    missing = [statement for statement in statements if statement not in source]
    assert not missing, (
        f"trl_sdpo/hub/trainer_pushes.py re-states {method.__qualname__}, which no longer has {missing}."
    )
