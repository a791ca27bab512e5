"""`trl-sdpo push`, `push_model` and `push_dataset` over HTTP: what arrives, what stays, and a Hub that fails."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest
from huggingface_hub import DatasetCard, ModelCard

from helpers.hub.server import TOKEN, Fault, running_hub
from helpers.hub.worker import Worker
from trl_sdpo.recsys import Interactions, prepare


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(running):
    running.repos.clear()
    running.objects.clear()
    running.faults.clear()
    running.seen.clear()
    return running


@pytest.fixture(scope="module")
def worker(running, home):
    worker = Worker(running.environment(home))
    yield worker
    worker.stop()


@pytest.fixture
def model(home):
    """The files of an adapter as a trainer leaves them, in the home directory of whoever pushes it."""
    folder = home / "work" / "s-dpo"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for name in ("checkpoint-2/optimizer.pt", "ref/adapter_model.safetensors", "adapter_model.safetensors", ".env"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(home / "work" / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared data set by the name of its source."""

    def make(source):
        events = pl.DataFrame(
            [
                {"user_id": user, "item_id": (7 * user + 11 * step) % 60, "timestamp": 1000 + 40 * step + user}
                for user in range(30)
                for step in range(20)
            ]
        )
        items = pl.DataFrame({"item_id": range(60), "title": [f"Film {number} (1999)" for number in range(60)]})
        folder = tmp_path_factory.mktemp("data") / "records"
        prepare(Interactions(events, items, source), folder, num_candidates=5, seed=1)
        return folder

    return make


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).rglob("*") if path.is_file()}


class TestModel:
    def test_policy_alone(self, hub, worker, model):
        before = digests(model)
        done = worker.push(model, "me/pushed")
        assert done["status"] == 0, done["err"]
        assert f"is at {hub.endpoint}/me/pushed, commit" in done["out"]
        repo = hub.repos["models", "me/pushed"]
        assert repo.private
        assert set(repo.files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert repo.files["adapter_model.safetensors"] == (model / "adapter_model.safetensors").read_bytes()
        assert digests(model) == before

    def test_public(self, hub, worker, model):
        assert worker.push(model, "me/pushed", "--public")["status"] == 0
        assert not hub.repos["models", "me/pushed"].private

    def test_card_of_a_folder_without_one(self, hub, worker, model):
        worker.push(model, "me/pushed")
        text = hub.repos["models", "me/pushed"].files["README.md"].decode()
        assert ModelCard(text).data.tags[-4:] == ["trl", "dpo", "softmax-dpo", "recommendation"]
        assert "a LoRA adapter of `base`, a local model" in text

    def test_card_of_the_folder_without_what_is_private(self, hub, worker, model, home):
        code = 'generator = pipeline("text-generation", model="s-dpo")'
        (model / "README.md").write_text(f"---\ntags:\n- mine\n---\nof {home}/models/base, {TOKEN}, ~/x\n{code}\n")
        worker.push(model, "me/pushed")
        text = hub.repos["models", "me/pushed"].files["README.md"].decode()
        assert text == f"---\ntags:\n- mine\n---\nof base, [token], ~/x\n{code.replace('s-dpo', 'me/pushed')}\n"

    def test_a_base_that_is_not_on_the_hub_is_told(self, hub, worker, model):
        done = worker.push(model, "me/pushed")
        assert "is an adapter of base, which is no repository of the Hub" in done["err"]
        config = {"peft_type": "LORA", "base_model_name_or_path": "me/base"}
        (model / "adapter_config.json").write_text(json.dumps(config))
        done = worker.push(model, "me/pushed")
        assert "is an adapter of me/base, which is no repository" in done["err"]
        worker.ask(code='from huggingface_hub import HfApi\nHfApi().create_repo("me/base")')
        done = worker.push(model, "me/pushed")
        assert "no repository" not in done["err"]
        assert ModelCard(hub.repos["models", "me/pushed"].files["README.md"].decode()).data.base_model == "me/base"

    @pytest.mark.parametrize(
        ("source", "words", "arrives"),
        [
            ("ml-100k", [], False),
            ("ml-100k", ["--redistribution_permitted"], True),
            ("goodbooks-10k", ["--public"], True),
            ("shop", [], True),
            ("shop", ["--public"], False),
        ],
    )
    def test_catalogue_stays_unless_permitted(self, hub, worker, model, source, words, arrives):
        (model / "recommender.json").write_text(json.dumps({"source": source}))
        (model / "catalogue.json").write_text("{}")
        done = worker.push(model, "me/pushed", *words)
        files = hub.repos["models", "me/pushed"].files
        assert "recommender.json" in files
        assert ("catalogue.json" in files) == arrives
        assert (
            f"catalogue.json stays on this machine, as it holds the titles of {source}: " in done["err"]
        ) != arrives
        assert (model / "catalogue.json").exists()

    def test_large_catalogue(self, hub, worker, model):
        """It stays with the trie of its titles; where both may go, that of an earlier push in the other form goes."""
        (model / "recommender.json").write_text(json.dumps({"source": "ml-100k"}))
        (model / "catalogue.json").write_text("{}")
        assert worker.push(model, "me/pushed", "--redistribution_permitted")["status"] == 0
        assert "catalogue.json" in hub.repos["models", "me/pushed"].files
        (model / "catalogue.json").unlink()
        for name in ("catalogue.parquet", "title_trie.safetensors"):
            (model / name).write_text("{}")
        done = worker.push(model, "me/other")
        assert "catalogue.parquet and title_trie.safetensors stays on this machine" in done["err"]
        assert {"catalogue.parquet", "title_trie.safetensors"}.isdisjoint(hub.repos["models", "me/other"].files)
        worker.push(model, "me/pushed", "--redistribution_permitted")
        files = hub.repos["models", "me/pushed"].files
        assert {"catalogue.parquet", "title_trie.safetensors", "recommender.json"} <= set(files)
        assert "catalogue.json" not in files

    def test_private_says_nothing_of_a_repository_that_is_public(self, hub, worker, model):
        (model / "recommender.json").write_text(json.dumps({"source": "shop"}))
        (model / "catalogue.json").write_text("{}")
        hub.add_repo("models", "me/pushed", model.parent, private=False)
        assert "catalogue.json stays on this machine" in worker.push(model, "me/pushed")["err"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere", "me/x"], "nowhere: no such directory"),
            ([".", "me/x", "--type", "model"], "holds no weights of a model"),
            ([".", "me/x", "--type", "dataset"], "holds no data/*.parquet"),
            ([".", "not an id", "--type", "model"], "Repo id must"),
            (["."], "--repo_id is missing"),
            ([".", "me/x", "--pubic"], "Did you mean '--public'?"),
        ],
    )
    def test_wrong_words(self, hub, worker, words, message):
        done = worker.push(*words)
        assert done["status"] != 0
        assert message in done["err"]
        assert hub.seen == []


class TestDataset:
    def test_card_and_files(self, hub, worker, data):
        folder = data("goodbooks-10k")
        before = digests(folder)
        done = worker.push(folder, "me/records")
        assert done["status"] == 0, done["err"]
        assert digests(folder) == before
        repo = hub.repos["datasets", "me/records"]
        assert repo.private
        report = json.loads((folder / "report.json").read_text())
        text = repo.files["README.md"].decode()
        card = DatasetCard(text)
        assert card.data.license == "cc-by-sa-4.0"
        assert [one["split"] for one in card.data.configs[0]["data_files"]] == ["train", "validation", "test"]
        assert "zajac2017goodbooks" in text
        assert f"hr@1 {report['leak_probe']['hr_at_1']:.3f}" in text
        assert f"| {report['train']['records']:,} |" in text
        assert f"| `seed` | `{report['options']['seed']}` |" in text
        assert "(report.png)" in text
        loaded = worker.ask(
            code='from datasets import load_dataset\nprint(load_dataset("me/records")["test"].num_rows)'
        )
        assert loaded["out"].strip() == str(report["test"]["records"]), loaded["err"]

    def test_users_are_pseudonymised_on_the_way(self, hub, worker, data):
        folder = data("goodbooks-10k")
        before = digests(folder)
        assert worker.push(folder, "me/records", "--pseudonymise")["status"] == 0
        assert digests(folder) == before
        text = hub.repos["datasets", "me/records"].files["README.md"].decode()
        assert "The ids of users are pseudonyms" in text
        ids = worker.ask(
            code='from datasets import load_dataset\nprint(load_dataset("me/records")["test"]["user_id"][0])'
        )
        assert re.fullmatch(r"[0-9a-f]{16}", ids["out"].strip()), ids["err"]

    def test_old_splits_go(self, hub, worker, data):
        folder = data("goodbooks-10k")
        worker.push(folder, "me/records")
        (folder / "data" / "test-00000-of-00001.parquet").unlink()
        worker.push(folder, "me/records")
        names = {name for name in hub.repos["datasets", "me/records"].files if name.startswith("data/")}
        assert names == {f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation")}

    @pytest.mark.parametrize("source", ["ml-100k", "hetrec2011-lastfm-2k", "goodreads_interactions_poetry"])
    def test_refused_with_the_reason(self, hub, worker, data, source):
        folder = data(source)
        done = worker.push(folder, "me/records")
        assert done["status"] == 1
        assert re.search(rf"error: {source}: .* redistribution.*\(https://.*\) So it is not pushed.", done["err"])
        assert "--redistribution_permitted" in done["err"]
        assert hub.seen == []
        assert worker.push(folder, "me/records", "--redistribution_permitted")["status"] == 0
        text = hub.repos["datasets", "me/records"].files["README.md"].decode()
        assert "stated that they may pass it on" in text

    def test_unknown_licence_is_private(self, hub, worker, data):
        folder = data("shop")
        assert "Nothing is known of the licence" in worker.push(folder, "me/records", "--public")["err"]
        assert worker.push(folder, "me/records")["status"] == 0
        hub.repos["datasets", "me/records"].private = False
        done = worker.push(folder, "me/records")
        assert done["status"] == 1
        assert "me/records exists and is public" in done["err"]

    def test_without_a_report(self, hub, worker, data):
        folder = data("goodbooks-10k")
        (folder / "report.json").unlink()
        done = worker.push(folder, "me/records")
        assert done["status"] == 1
        assert (
            "has no report.json, which names the source, so its licence, recipe, counts and leak probe" in done["err"]
        )
        assert worker.push(folder, "me/records", "--redistribution_permitted")["status"] == 0
        assert (
            "Not recorded: there was no `report.json`"
            in hub.repos["datasets", "me/records"].files["README.md"].decode()
        )

    def test_records_in_memory(self, hub, worker):
        code = """
from datasets import Dataset, DatasetDict
from trl_sdpo import push_dataset
rows = [{"prompt": "Next:", "chosen": " Heat", "rejected": [" Big", " Ran"]}]
push_dataset(DatasetDict(train=Dataset.from_list(rows)), "me/records", redistribution_permitted=True)
"""
        done = worker.ask(code=code)
        assert done["status"] == 0, done["err"]
        assert "data/train-00000-of-00001.parquet" in hub.repos["datasets", "me/records"].files


FAULTS = {
    "status 500": {"status": 500},
    "status 429": {"status": 429, "headers": {"Retry-After": "0"}},
    "time-out": {"seconds": 3},
    "dropped connection": {"cut": 5000},
}


class TestFailingHub:
    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
    @pytest.mark.parametrize("request_", ["PUT /lfs/", "POST .*/preupload/"])
    def test_passing_faults_are_repeated(self, hub, worker, model, fault, request_):
        """By `huggingface_hub`, where it repeats requests at all."""
        fault = hub.fault(request_, **fault)
        done = worker.push(model, "me/pushed", "--timeout", "1")
        assert fault.times == 0
        assert done["status"] == 0, done["err"]
        repo = hub.repos["models", "me/pushed"]
        assert repo.files["adapter_model.safetensors"] == (model / "adapter_model.safetensors").read_bytes()

    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
    @pytest.mark.parametrize("request_", ["POST .*/commit/", "POST /api/repos/create"])
    def test_lasting_faults_lose_nothing_and_say_what_to_run(self, hub, worker, model, fault, request_):
        before = digests(model)
        hub.fault(request_, times=10, **fault)
        done = worker.push(model, "me/pushed", "--timeout", "1")
        assert done["status"] == 1
        assert "trl-sdpo push: error: The push failed: " in done["err"]
        assert digests(model) == before
        assert not any("adapter" in name for repo in hub.repos.values() for name in repo.files)

        command = re.search(r"To try again, run `(.*)`", done["err"])[1]
        words = shlex.split(command)
        assert words[:2] == ["trl-sdpo", "push"]
        hub.faults.clear()
        assert worker.push(*words[2:])["status"] == 0
        assert "adapter_model.safetensors" in hub.repos["models", "me/pushed"].files

    def test_wrong_token(self, hub, worker, model):
        code = f"from trl_sdpo import push_model\npush_model({str(model)!r}, 'me/pushed', token='hf_wrong')"
        done = worker.ask(code=code)
        assert "trl_sdpo.hub.pushes.HubPushError: The push failed: Client error '401 Unauthorized'" in done["err"]
        assert "To try again, run" in done["err"]


def test_what_a_recommender_needs_is_found_beside_records_on_the_hub(hub, worker, data):
    """Which a model that is trained on them takes along, see tests/test_journey.py; here what is found, and in the cache."""
    folder = data("mine")
    done = worker.push(folder, "me/records", "--redistribution_permitted")
    assert done["status"] == 0, done["err"]
    code = f"""
from trl_sdpo.pipeline.datasets import find_recommender_files
here, folder = find_recommender_files({str(folder)!r})
assert here.config is not None and here.catalogue is not None
assert find_recommender_files({str(folder / "data" / "train-00000-of-00001.parquet")!r}) == (here, folder)
there, report = find_recommender_files("me/records")
assert there == here, there
assert (report / "report.json").is_file()
assert find_recommender_files("me/nothing")[0].config is None
"""
    done = worker.ask(code=code)
    assert done["status"] == 0, done["err"]
    hub.faults.extend(Fault(request=".*", status=503, times=1) for _ in range(100))
    done = worker.ask(code=code.replace('assert find_recommender_files("me/nothing")[0].config is None', ""))
    hub.faults.clear()
    assert done["status"] == 0, done["err"]
