"""
A run against the Hub of server.py, for tests of pushes: `python run.py OUTPUT_DIR '{"option": value}'`.

It continues the adapter "me/sft" of the model "me/base". Beside the options of `SoftmaxDPOConfig` it takes `resume` (the
folder of a checkpoint), `die_at` (SIGKILL before that step, when what was pushed has arrived), `recommender` (the contents of recommender.json) and `push` (call `push_to_hub` at the end).
"""

import json
import os
import signal
import sys
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny_models import TITLES
from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer


ARGS = {
    "per_device_train_batch_size": 2,
    "num_negatives": 2,
    "learning_rate": 1e-2,
    "max_steps": 4,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "push_to_hub": True,
    "hub_model_id": "me/recommender",
    "hub_always_push": True,  # also while the push before is not done, on a slow machine
}


def make_rows(count):
    return [
        {
            "prompt": f"Watched: {TITLES[i % 8]}, {TITLES[(i + 3) % 8]}. Next:",
            "chosen": f" {TITLES[(i + 1) % 8]}",
            "rejected": [f" {TITLES[(i + step) % 8]}" for step in (2, 4, 5, 6)],
        }
        for i in range(count)
    ]


class Dying(SoftmaxDPOTrainer):
    die_at = None

    def training_step(self, *args, **kwargs):
        if self.state.global_step == self.die_at:
            self._finish_current_push()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)


def main(output_dir, options):
    resume, Dying.die_at = options.pop("resume", None), options.pop("die_at", None)
    push, recommender = options.pop("push", False), options.pop("recommender", None)
    base = AutoModelForCausalLM.from_pretrained("me/base")
    model = PeftModel.from_pretrained(base, "me/sft", is_trainable=True)
    if recommender is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        Path(output_dir, "recommender.json").write_text(json.dumps(recommender))
        Path(output_dir, "catalogue.json").write_text(json.dumps({"titles": TITLES}))
    trainer = Dying(
        model=model,
        args=SoftmaxDPOConfig(output_dir=output_dir, **{**ARGS, **options}),
        train_dataset=Dataset.from_list(make_rows(12)),
        eval_dataset=Dataset.from_list(make_rows(6)),
        processing_class=AutoTokenizer.from_pretrained("me/base"),
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model() if not push else trainer.push_to_hub()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
