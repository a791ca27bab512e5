"""A table of one's own, in seconds on a CPU: invented readers, each of whom reads one series, volume after volume."""

import polars as pl
from peft import LoraConfig
from trl import SFTConfig

from trl_sdpo import Recommender, SoftmaxDPOConfig
from trl_sdpo.evaluation import results_text
from trl_sdpo.pipeline import Run, machine_defaults, make_small_llama
from trl_sdpo.recsys import load_table


# 1. A table with a row per event; a file, or a table of pandas, is read by the same names of columns.
SERIES = ["Dragons", "Robots", "Pirates", "Gardens", "Trains", "Comets"]
reads = [
    (reader, SERIES[reader % 6], (reader // 6 + step) % 12 + 1, step) for reader in range(240) for step in range(8)
]
log = pl.DataFrame(
    [{"who": who, "book": f"{name}, Volume {volume}", "when": 1000 * who + step} for who, name, volume, step in reads]
)
interactions = load_table(log, user="who", item="book", title="book", timestamp="when")

# 2. Records: what a reader has read, the volume that came next, and 19 others. Those tested are of the last readers.
run = Run("outputs/own_table")
dataset = run.prepare(interactions, domain="books")

# 3. A small Llama, fine-tuned on what came next, then aligned: the volume that came next against three others at once.
base = make_small_llama(run.data, run.directory / "base", vocab_size=500, hidden_size=64, num_layers=2)
common = {"per_device_train_batch_size": 16, "save_strategy": "no", **machine_defaults()}
sft = run.sft(base, SFTConfig(learning_rate=5e-3, num_train_epochs=4, **common), dataset["train"])
lora = LoraConfig(r=8, target_modules="all-linear")
dpo_args = SoftmaxDPOConfig(num_negatives=3, learning_rate=1e-3, num_train_epochs=1, **common)
aligned = run.align(sft, dpo_args, dataset["train"], peft_config=lora)

# 4. The rank of the next volume among 20, and a recommendation to check by eye: it should be Volume 5 of the Robots.
print(results_text(run.evaluate({"base": base, "sft": sft, "s-dpo": aligned})))
for item in Recommender.from_pretrained(aligned).recommend(["Robots, Volume 3", "Robots, Volume 4"], top_k=3):
    print(f"{item.title}  {item.score:.2f}")
