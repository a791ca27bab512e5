"""
A training run that dies at a chosen point, for test_checkpoints.py: `python killed_run.py OUTPUT_DIR POINT`.

POINT is `step` (SIGKILL between the backward pass and the update of step 4), `weights` or `optimizer` (in the middle of
the write of that file of checkpoint-4, by a limit on the size of files, past which the kernel ends the process), or
`state` (SIGKILL when all of checkpoint-4 is written but its trainer_state.json).
"""

import os
import resource
import signal
import sys

from datasets import Dataset
from peft import LoraConfig, get_peft_model

from helpers.tiny_models import TITLES, build_llama, build_tokenizer
from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer


ARGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_negatives": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "max_steps": 6,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_dropout": False,
}


def make_trainer(output_dir, trainer_cls=SoftmaxDPOTrainer):
    """A continued adapter with dropout, which shows in the weights if any random state is not restored."""
    tokenizer = build_tokenizer()
    rows = [
        {
            "prompt": f"Watched: {TITLES[i % 8]}, {TITLES[(i + 3) % 8]}. Next:",
            "chosen": f" {TITLES[(i + 1) % 8]}",
            "rejected": [f" {TITLES[(i + step) % 8]}" for step in (2, 4, 5, 6)],
        }
        for i in range(12)
    ]
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=4, lora_dropout=0.1, init_lora_weights=False
    )
    return trainer_cls(
        model=get_peft_model(build_llama(len(tokenizer)), lora),
        args=SoftmaxDPOConfig(output_dir=str(output_dir), **ARGS),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


class Dying(SoftmaxDPOTrainer):
    point = None

    def _die_at(self, point, step):
        if point == self.point and self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def _die_within_the_next_large_file(self, point):
        if point == self.point and self.state.global_step == 4:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._die_at("step", 3)
        return loss

    def _save(self, *args, **kwargs):
        self._die_within_the_next_large_file("weights")
        super()._save(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir):
        self._die_within_the_next_large_file("optimizer")
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self._die_at("state", 4)


if __name__ == "__main__":
    Dying.point = sys.argv[2]
    make_trainer(sys.argv[1], Dying).train()
