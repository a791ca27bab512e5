"""TRL's own script with the imports of trainer and configuration changed, and nothing else."""

import difflib
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM


TRL_SCRIPT = Path(find_spec("trl").origin).parent / "scripts" / "dpo.py"
OUR_SCRIPT = Path(__file__).parents[2] / "examples" / "dpo_script.py"
CHANGES = """\
+#
+# This file is `trl/scripts/dpo.py` of TRL 1.16, changed: trainer and configuration are those of trl_sdpo.
+# ruff: noqa: C408, I001
-    from trl import DPOTrainer, get_dataset, get_peft_config, get_quantization_config
+    from trl import get_dataset, get_peft_config, get_quantization_config
+    from trl_sdpo import SoftmaxDPOTrainer as DPOTrainer
-    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, TrlParser
+    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser
+    from trl_sdpo import SoftmaxDPOConfig as DPOConfig
"""


def test_nothing_but_the_imports_differs_from_trl():
    theirs, ours = (path.read_text().splitlines() for path in (TRL_SCRIPT, OUR_SCRIPT))
    changed = [
        line for line in difflib.unified_diff(theirs, ours, n=0, lineterm="") if line[:2] not in ("@@", "--", "++")
    ]
    assert "\n".join(changed) + "\n" == CHANGES, f"Make the changes above to the {TRL_SCRIPT} of this release."


@pytest.fixture
def run_script(tmp_path, llama, tokenizer):
    """Runs the script on records, split in two, with a tiny model from a folder; returns what was logged."""

    def run(rows, *arguments):
        llama().save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "data").mkdir()
        for split, part in (("train", rows[:8]), ("test", rows[8:])):
            (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
        assert set(load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))) == {"train", "test"}
        command = [sys.executable, str(OUR_SCRIPT), "--dataset_name", str(tmp_path / "data")]
        command += ["--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "output")]
        command += ["--learning_rate", "1e-3", "--per_device_train_batch_size", "4", "--max_steps", "6", "--beta", "1"]
        command += ["--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "3", "--logging_steps", "1"]
        command += ["--bf16", "False", "--use_cpu", "--report_to", "none", "--no_remove_unused_columns", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        state = json.loads((tmp_path / "output" / "checkpoint-6" / "trainer_state.json").read_text())
        return state["log_history"]

    return run


def test_multi_preference_data(run_script, records, tmp_path, llama):
    """With LoRA, whose adapter loads again."""
    logs = run_script(
        records(12, 2, 4), "--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear", "--num_negatives", "2"
    )
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    evaluations = [entry for entry in logs if "eval_loss" in entry]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-4)  # two of the 2, 3 or 4 negatives of each record
    assert losses[-1] < losses[0]
    assert len(evaluations) == 2
    assert all(0 <= entry["eval_hr@1"] <= 1 and entry["eval_mrr"] > 0 for entry in evaluations)
    policy = PeftModel.from_pretrained(llama(), tmp_path / "output")
    assert any(param.abs().max() > 0 for name, param in policy.named_parameters() if "lora_B" in name)


def test_plain_preference_data(run_script, records, tmp_path, llama):
    """All weights, and the loss of DPO, which starts at ln 2."""
    rows = [{**row, "rejected": row["rejected"][0]} for row in records(12)]
    logs = run_script(rows)
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]
    assert not any("eval_hr@1" in entry for entry in logs)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    assert not torch.equal(policy.model.embed_tokens.weight, llama().model.embed_tokens.weight)
