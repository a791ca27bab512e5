"""
The whole way of a user in a terminal: records, two trainings, a report, recommendations, a push and back, each interrupted
once by Ctrl-C. Every command is a process of its own, as it is for them; the Hub is that of helpers/hub/server.py.
"""

import json
import re

import pytest
import yaml

from helpers.hub.server import running_hub
from helpers.terminal import trl_sdpo
from helpers.tiny_models import build_llama


SERIES = ("Dragons", "Robots", "Pirates", "Gardens")
FILE = {
    "common": {
        "dataset_name": "data/mine",
        "per_device_train_batch_size": 4,
        "max_steps": 40,
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 1,
    },
    "prepare": {
        "source": "table",
        "path": "log.csv",
        "loader_options": ["user=who", "item=book", "timestamp=when", "title=title"],
        "output_dir": "data/mine",
        "domain": "books",
        "num_candidates": 6,
    },
    "sft": {"model_name_or_path": "model", "output_dir": "outputs/sft", "learning_rate": 0.01},
    "train": {"model_name_or_path": "outputs/sft", "output_dir": "outputs/s-dpo", "num_negatives": 9},
    "evaluate": {"model_name_or_path": ["sft=outputs/sft", "s-dpo=outputs/s-dpo"], "output_dir": "outputs/report"},
}
# Nothing of this has a place on a terminal
NOISE = re.compile(
    r"Traceback|\{'\w+'|\[RANK|HTTP Request|Warning: |total_flos|\b17\d{8}\b|ended with status|KeyboardInterrupt"
)


@pytest.fixture
def workplace(tmp_path, tokenizer):
    build_llama(len(tokenizer), max_position_embeddings=1024, hidden_size=64).save_pretrained(
        tmp_path / "work" / "model"
    )
    tokenizer.save_pretrained(tmp_path / "work" / "model")
    rows = ["who,book,when,title"]
    for reader in range(120):
        for step in range(8):
            volume, name = (reader // 4 + step) % 9 + 1, SERIES[reader % 4]
            rows.append(
                f'{reader},{name}-{volume},{1_700_000_000 + 100_000 * step + reader},"{name}, Volume {volume}"'
            )
    (tmp_path / "work" / "log.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "work" / "mine.yaml").write_text(yaml.safe_dump(FILE, sort_keys=False))
    return tmp_path / "work"


@pytest.mark.timeout(1500)
def test_from_a_table_to_a_pushed_model_with_an_interruption_of_each_command(workplace, tmp_path):
    with running_hub() as hub:
        environment = hub.environment(tmp_path)

        def run(*words, interrupt=None, goes_on="goes on"):
            shown = trl_sdpo([str(word) for word in words], workplace, environment, interrupt)
            assert not NOISE.search(shown.text), shown.text
            assert shown.interrupted == (interrupt is not None), shown.text
            assert shown.status == (130 if interrupt else 0), shown.text
            sentence = f"Interrupted; the same command {goes_on}."
            assert shown.text.count("Interrupted") == (interrupt is not None), shown.text
            assert (sentence in shown.text) == (interrupt is not None), shown.text
            return shown.text

        # 1. The file, in five starts: each stage is interrupted once, and none that is done is done again
        assert "Stage 1 of 4: records, into data/mine" in run("run", "mine.yaml", interrupt="Records, train")
        assert not (workplace / "data" / "mine").exists()
        text = run("run", "mine.yaml", interrupt=r"step 5 of 40, loss")
        assert "data/mine: " in text
        assert "Stage 2 of 4: SFT, into outputs/sft" in text
        text = run("run", "mine.yaml", interrupt=r"Softmax-DPO(?s:.*)step 5 of 40, loss")
        assert "Stage 1 of 4: records, done before: data/mine" in text
        assert "Stage 2 of 4: SFT, goes on, into outputs/sft" in text
        assert re.search(r"Training on [\d,]+ records: 3[68] steps of 4 records, from step [24]\.", text)
        assert re.search(r"Trained 3[68] steps in .*, training loss \d", text)
        text = run("run", "mine.yaml", interrupt="Ranking, sft")
        assert "Stage 3 of 4: Softmax-DPO, goes on, into outputs/s-dpo" in text
        assert "--num_negatives 9 is more than some records have" in text
        text = run("run", "mine.yaml")
        assert "Stage 3 of 4: Softmax-DPO, done before: outputs/s-dpo" in text
        assert re.search(r"^system +K +β +steps +hr@1 ", text, re.MULTILINE)
        assert re.search(r"^chance +0\.167", text, re.MULTILINE)
        assert re.search(r"^s-dpo +5 +1 +40 ", text, re.MULTILINE)  # K as it was drawn
        assert "The report is outputs/report/results.html. Next: trl-sdpo recommend" in text
        page = (workplace / "outputs" / "report" / "results.html").read_text()
        assert re.search(r'<p class="verdict">s-dpo has hr@1 \d\.\d+ .*chance has 0\.167', page)
        assert "Made on 2" in page
        # a report that is finished is not lost, and what is done stays done
        again = [
            "--dataset_name",
            "data/mine",
            "--model_name_or_path",
            "outputs/sft",
            "--output_dir",
            "outputs/report",
        ]
        refused = trl_sdpo(["evaluate", *again], workplace, environment)
        assert refused.status == 1, refused.text
        assert "--output_dir: outputs/report holds a finished report. Pass --overwrite to replace it" in refused.text
        assert run("run", "mine.yaml").count("done before") == 4

        # 2. What the last line said
        words = ["recommend", "--model_name_or_path", "outputs/s-dpo", "--history", "Robots, Volume 3", "Robots-4"]
        run(*words, interrupt="Loading weights", goes_on="begins anew")
        listed = re.findall(r"^ +\d\. (\w+, Volume \d)  \((\w+-\d)\)  -\d", run(*words, "--top_k", "3"), re.MULTILINE)
        assert len(listed) == 3
        assert all(title.replace(", Volume ", "-") == item for title, item in listed)
        assert not {"Robots-3", "Robots-4"} & {item for _, item in listed}

        # 3. To the Hub and back, the records too
        asked = len(hub.seen)
        fault = hub.fault("POST /api/repos/create", seconds=5)
        push = ["push", "outputs/s-dpo", "me/books", "--redistribution_permitted"]
        run(*push, interrupt=lambda: any("create" in one for one in hub.seen[asked:]), goes_on="begins anew")
        fault.times = 0
        assert "outputs/s-dpo is at " in run(*push)
        repo = hub.repos["models", "me/books"]
        assert repo.private
        assert {"model.safetensors", "recommender.json", "catalogue.json", "README.md"} <= set(repo.files)
        card = repo.files["README.md"].decode()
        metrics = json.loads((workplace / "outputs" / "report" / "results.json").read_text())["sections"][0]["systems"]
        assert f"| hr@1 | {metrics['s-dpo']['hr@1']:.4f} |" in card
        assert not re.search(r"version of \[?None|time machine|Nothing was evaluated", card)
        assert card.count("Framework versions") <= 1
        back = ["recommend", "--model_name_or_path", "me/books", *words[3:], "--top_k", "3"]
        run(*back, interrupt="Loading weights", goes_on="begins anew")
        again = re.findall(r"^ +\d\. (\w+, Volume \d)  \((\w+-\d)\)  -\d", run(*back), re.MULTILINE)
        assert again == listed

        run("push", "data/mine", "me/records", "--redistribution_permitted", "--pseudonymise")
        assert hub.repos["datasets", "me/records"].private
        train = ["train", "--dataset_name", "me/records", "--model_name_or_path", "model", "--output_dir", "from-hub"]
        run(*train, "--max_steps", "1", "--dataset_test_split", "none")
        words[2] = "from-hub"
        assert len(re.findall(r"^ +\d\. \w+, Volume \d", run(*words, "--top_k", "3"), re.MULTILINE)) == 3
