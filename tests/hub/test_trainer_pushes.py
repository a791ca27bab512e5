"""
From training to a Hub over HTTP and back: pushes while training, a killed run that goes on elsewhere, a Hub that fails,
and what is loaded from what was pushed.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load
from transformers.utils import PushInProgress

from helpers.hub import run as hub_run
from helpers.hub.server import TOKEN, running_hub
from helpers.hub.worker import Worker
from helpers.tiny_models import TITLES, build_llama, build_tokenizer
from trl_sdpo.recsys.prompts.wordings import get_template


RECOMMENDER = {
    "format_version": 1,
    "templates": [vars(get_template("watched"))],
    "history_size": 10,
    "domain": "movies",
    "source": "ml-100k",
}
REPO = ("models", "me/recommender")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("login")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A Hub with a base model, and an adapter as supervised fine-tuning leaves it."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    with running_hub() as hub:
        build_llama(len(tokenizer)).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        hub.add_repo("models", "me/base", folder / "base")
        lora = LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False, lora_dropout=0.1
        )
        model = get_peft_model(build_llama(len(tokenizer)), lora)
        model.peft_config["default"].base_model_name_or_path = "me/base"
        model.save_pretrained(folder / "sft")
        hub.add_repo("models", "me/sft", folder / "sft")
        yield hub


@pytest.fixture
def hub(running):
    running.repos.pop(REPO, None)
    running.faults.clear()
    running.seen.clear()
    return running


@pytest.fixture(scope="module")
def worker(running, home):
    worker = Worker(running.environment(home))
    yield worker
    worker.stop()


def train(worker, output_dir, **options):
    return worker.ask(code=f"from helpers.hub import run\nrun.main({str(output_dir)!r}, {options!r})")


def policy(repo, folder=""):
    return load(repo.files[f"{folder}adapter_model.safetensors"])


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


class TestPushWhileTraining:
    def test_killed_run_goes_on_elsewhere(self, hub, worker, home, tmp_path):
        """Killed after its first checkpoint, and resumed from what the Hub has in another folder; the same weights."""
        here = subprocess.run(
            [
                *(sys.executable, hub_run.__file__, str(tmp_path / "here")),
                json.dumps({"hub_strategy": "checkpoint", "die_at": 3}),
            ],
            env=hub.environment(home),
            capture_output=True,
            text=True,
        )
        assert here.returncode == -signal.SIGKILL, here.stderr
        assert (tmp_path / "here" / "checkpoint-2" / "reference.safetensors").is_file()
        repo = hub.repos[REPO]
        assert [commit.message for commit in repo.commits[1:]] == [
            "Training in progress, step 2",
            "Training in progress, step 2, checkpoint",
        ]
        assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json", "README.md"} < set(repo.files)
        assert not any("reference.safetensors" in name or "checkpoint-2" in name for name in repo.files)
        assert same(policy(repo), policy(repo, "last-checkpoint/"))

        there = tmp_path / "there"
        words = ["download", "me/recommender", "--include", "last-checkpoint/*", "--local-dir", str(there)]
        hf = Path(sys.executable).with_name("hf")
        subprocess.run([hf, *words], env=hub.environment(home), check=True, capture_output=True)
        resume = str(there / "last-checkpoint")
        done = train(worker, there, hub_strategy="checkpoint", resume=resume, push=True, recommender=RECOMMENDER)
        assert done["status"] == 0, done["err"]
        assert not any("ref/" in name for name in repo.files)
        assert repo.commits[-1].message == "End of training"
        pushed_last = [commit.message for commit in repo.commits if "checkpoint" in commit.message]
        assert pushed_last == ["Training in progress, step 2, checkpoint", "Training in progress, step 4, checkpoint"]
        resumed = policy(repo)

        # a run that nothing happened to, and that pushes its models only
        hub.repos.pop(REPO)
        done = train(worker, tmp_path / "whole", hub_token=TOKEN)
        assert done["status"] == 0, done["err"]
        whole = hub.repos[REPO]
        assert same(policy(whole), resumed)
        assert not same(policy(whole), load(hub.repos["models", "me/sft"].files["adapter_model.safetensors"]))
        assert not any("checkpoint" in name or "ref" in name for name in whole.files)
        assert not any(TOKEN.encode() in content for content in whole.files.values())
        assert list((tmp_path / "whole").glob("_push-*")) == []


class TestFailingHub:
    def test_training_goes_on_and_says_what_to_run(self, hub, worker, tmp_path):
        """Every commit fails: the run comes to its end, the model is on disk, and the command pushes it."""
        hub.fault("POST .*/commit/", times=100, status=500)
        done = train(worker, tmp_path / "run", push=True, recommender=RECOMMENDER)
        assert done["status"] == 1
        assert "A push to the Hub failed, and training goes on: Server error '500" in done["err"]
        assert "adapter_model.safetensors" not in hub.repos[REPO].files
        for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-4"):
            assert load((folder / "adapter_model.safetensors").read_bytes())
        command = re.findall(r"To try again, run `(.*)`", done["err"].splitlines()[-1])
        assert command == [f"trl-sdpo push {tmp_path / 'run'} me/recommender --public"]
        assert list((tmp_path / "run").glob("_push-*")) == []

        hub.faults.clear()
        done = worker.ask(argv=shlex.split(command[0])[1:])
        assert done["status"] == 0, done["err"]
        files = hub.repos[REPO].files
        assert files["adapter_model.safetensors"] == (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
        assert "recommender.json" in files
        assert "catalogue.json" not in files


@pytest.fixture(scope="module")
def pushed(running, worker, tmp_path_factory):
    """A run with an output directory, and an explicit token, below the home directory."""
    running.faults.clear()
    running.repos.pop(REPO, None)
    output_dir = tmp_path_factory.mktemp("runs") / "s-dpo"
    done = train(
        worker, output_dir, push=True, hub_strategy="all_checkpoints", recommender=RECOMMENDER, hub_token=TOKEN
    )
    assert done["status"] == 0, done["err"]
    return running.repos[REPO], output_dir


class TestLoadingBack:
    def test_card(self, pushed, home):
        repo, _ = pushed
        text = repo.files["README.md"].decode()
        card = ModelCard(text)
        assert {"trl", "softmax-dpo", "recommendation"} <= set(card.data.tags)
        assert card.data.base_model == "me/base"
        hits = next(one for one in card.data.eval_results if one.metric_type == "hr@1")
        assert hits.dataset_name == "ml-100k"
        assert hits.metric_args["n"] == 6
        assert hits.metric_args["interval"][0] < hits.metric_value < hits.metric_args["interval"][1]
        for part in (
            "recommends movies",
            "harper2015movielens",
            "chen2024softmax",
            "vonwerra2020trl",
            "no redistribution",
        ):
            assert part in text
        assert "| K, negatives of a record | 2, drawn anew in every epoch of 4 |" in text
        for name in re.findall(r"\]\(([^)]*\.png)\)", text):
            assert repo.files[name][:4] == b"\x89PNG"
        for private in (TOKEN, str(home), home.name):
            assert private not in text

    def test_all_checkpoints(self, pushed):
        repo, output_dir = pushed
        for step in (2, 4):
            names = {path.name for path in (output_dir / f"checkpoint-{step}").iterdir()} - {
                "reference.safetensors",
                "README.md",
            }
            assert {f"checkpoint-{step}/{name}" for name in names} <= set(repo.files)
        assert not any(
            "reference.safetensors" in name or ("checkpoint" in name and name.endswith("README.md"))
            for name in repo.files
        )

    def test_nothing_of_a_publisher(self, pushed):
        repo, output_dir = pushed
        assert (output_dir / "catalogue.json").is_file()
        assert "catalogue.json" not in repo.files
        assert not any(title in repo.files["README.md"].decode() for title in TITLES)

    def test_peft(self, pushed, worker):
        code = """
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("me/recommender")
print(sorted(model.peft_config), model.get_base_model().config.model_type)
"""
        done = worker.ask(code=code)
        assert done["out"].strip() == "['default'] llama", done["err"]

    def test_example_of_the_card_runs_as_printed(self, pushed, worker):
        repo, _ = pushed
        (code,) = re.findall(r"```python\n(.*?)```", repo.files["README.md"].decode(), re.DOTALL)
        assert 'Recommender.from_pretrained("me/recommender")' in code
        assert len(code.strip().splitlines()) == 6
        done = worker.ask(code=code)
        assert done["status"] == 0, done["err"]
        assert {line.rsplit(" ", 1)[0] for line in done["out"].splitlines()} == {"Heat (1995)", "Fargo (1996)"}


def test_a_push_of_a_checkpoint_waits_for_the_one_before(make_trainer, llama, records, tmp_path, monkeypatch):
    """Unless it is told to push always: of what is skipped nothing is copied."""
    trainer = make_trainer(llama(), records(4), args={"hub_strategy": "every_save"})
    pushed = []
    monkeypatch.setattr(trainer, "_upload_policy", lambda *args, **kwargs: pushed.append(args) or Future())
    going_on, done = Future(), Future()
    done.set_result(None)
    for before, always, pushes in (
        (going_on, False, False),
        (going_on, True, True),
        (done, False, True),
        (done, True, True),
    ):
        pushed.clear()
        trainer.args.hub_always_push = always
        trainer.push_in_progress = PushInProgress([before])
        trainer._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
        assert bool(pushed) == pushes, (before, always)
