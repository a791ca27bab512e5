"""The examples on made-up files in the publishers' formats: every step of them, at small sizes."""

import ast
import gzip
import json
import random
import re
import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path

import goodreads
import lastfm
import movielens
import pytest
from peft import PeftModel
from transformers import HfArgumentParser

import trl_sdpo
from trl_sdpo import load_recommender_files
from trl_sdpo.pipeline import load_model


EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {"sft_epochs": 1, "dpo_records": 32, "eval_records": 20, "num_negatives": 3}
FIRST = datetime(2010, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def small_models_and_own_cache(tmp_path_factory, monkeypatch):
    cache = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


def visits(seed, users=24, items=60, events=14):
    """Users who come one after the other, so that every part of a split by time has users with a history."""
    generator = random.Random(seed)
    for user in range(1, users + 1):
        for step, item in enumerate(generator.sample(range(1, items + 1), events)):
            yield user, item, FIRST + timedelta(days=31 * user + step)


def write_movielens(folder):
    ratings = [f"{user}\t{item}\t{item % 5 + 1}\t{int(time.timestamp())}" for user, item, time in visits(2)]
    (folder / "u.data").write_text("\n".join(ratings) + "\n")
    flags = "|".join("0" * 19)
    rows = [f"{number}|The Film {number} (1995)|01-Jan-1995||http://x.org|{flags}" for number in range(1, 61)]
    (folder / "u.item").write_text("\n".join(rows) + "\n", encoding="latin-1")


def write_lastfm(folder):
    lines = ["userID\tartistID\ttagID\tday\tmonth\tyear"]
    lines += [f"{user}\t{item}\t1\t{time.day}\t{time.month}\t{time.year}" for user, item, time in visits(0)]
    (folder / "user_taggedartists.dat").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    artists = [f"{number}\tThe Band {number}\thttp://x\thttp://y" for number in range(1, 61)]
    (folder / "artists.dat").write_text("\n".join(["id\tname\turl\tpictureURL", *artists]) + "\n")


def write_goodreads(folder):
    shelves = []
    for user, item, time in visits(1):
        text = time.strftime("%a %b %d %H:%M:%S %z %Y")
        shelf = {"user_id": f"{user:032x}", "book_id": str(item), "review_id": f"{user:016x}{item:016x}"}
        shelf |= {"is_read": True, "rating": item % 6, "review_text_incomplete": "", "started_at": ""}
        shelves.append(shelf | {"date_added": text, "date_updated": text, "read_at": text if item % 2 else ""})
    books = [
        {"book_id": str(item), "work_id": str(item), "title": f"Poems, Vol. {item}", "title_without_series": ""}
        for item in range(1, 61)
    ]
    for name, rows in (("interactions", shelves), ("books", books)):
        with gzip.open(folder / f"goodreads_{name}_poetry.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def hr_at_1(results):
    return {name: row["hr@1"] for name, row in results["sections"][0]["systems"].items()}


class TestMovieLens:
    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("ml-100k")
        write_movielens(folder)
        return folder

    @pytest.fixture(scope="class")
    def run(self, files, tmp_path_factory):
        output_dir = tmp_path_factory.mktemp("movielens") / "run"
        args = movielens.Arguments(data=str(files), output_dir=str(output_dir), **TINY)
        return args, output_dir, movielens.main(args)

    def test_results(self, run):
        _, output_dir, results = run
        systems = results["sections"][0]["systems"]
        assert list(systems) == [
            "chance", "popularity", "base", "sft", "more sft", "s-dpo", "s-dpo (implicit reward)",
        ]  # fmt: skip
        assert {row["n"] for row in systems.values()} == {20}
        assert systems["chance"]["hr@1"] == 0.05
        assert results["settings"]["num_negatives"] == 3
        assert results["facts"]["s-dpo"] == {"num_negatives": 3, "beta": 3.0, "steps": 1}
        assert json.loads((output_dir / "report" / "results.json").read_text())["facts"] == results["facts"]

    def test_adapter_is_of_the_model_of_sft(self, run):
        model = load_model(run[1] / "s-dpo")
        assert isinstance(model, PeftModel)
        assert model.get_base_model().config.name_or_path == str(run[1] / "sft")

    @pytest.mark.parametrize("stage", ["sft", "more-sft", "s-dpo"])
    def test_what_a_recommender_needs_lies_beside_every_model(self, run, stage):
        files = load_recommender_files(run[1] / stage)
        assert [template.name for template in files.config.templates] == ["lines"]
        # a line ends a title here, without an EOS token
        assert (files.config.append_eos, files.config.source) == (False, "movielens-100k")
        assert max(files.catalogue.train_counts) > min(files.catalogue.train_counts) >= 0

    def test_the_same_words_again_train_nothing(self, run, monkeypatch):
        def must_not_train(*args, **kwargs):
            raise AssertionError("a finished stage was trained again")

        monkeypatch.setattr("trl_sdpo.pipeline.run.make_sft_trainer", must_not_train)
        monkeypatch.setattr("trl_sdpo.pipeline.run.make_softmax_dpo_trainer", must_not_train)
        assert hr_at_1(movielens.main(run[0])) == hr_at_1(run[2])

    def test_another_model_takes_an_adapter_from_the_start(self, run, files, tmp_path):
        """Any directory goes as `--model`; here it is the small Llama of the other run."""
        model = str(run[1] / "sft")
        movielens.main(movielens.Arguments(data=str(files), output_dir=str(tmp_path / "run"), model=model, **TINY))
        for stage in ("sft", "s-dpo"):
            config = json.loads((tmp_path / "run" / stage / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == model


@pytest.mark.parametrize(("example", "write"), [(lastfm, write_lastfm), (goodreads, write_goodreads)])
def test_other_sources(example, write, tmp_path):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    args = {"data": str(tmp_path / "files"), "output_dir": str(tmp_path / "run"), "min_interactions": 2, **TINY}
    results = example.main(example.Arguments(**args))
    assert list(hr_at_1(results)) == ["chance", "popularity", "base", "sft", "s-dpo", "s-dpo (implicit reward)"]
    report = json.loads((tmp_path / "run" / "data" / "report.json").read_text())
    assert report["options"]["min_interactions"] == 2
    assert (tmp_path / "run" / "s-dpo" / "adapter_config.json").is_file()


def test_own_table_ends_with_a_recommendation_that_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_table.py"))
    *_, first, _, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("Robots, Volume 5 ")


def test_flags():
    words = ["--num_negatives", "31", "--no_resume", "--seed", "3"]
    (args,) = HfArgumentParser(movielens.Arguments).parse_args_into_dataclasses(words)
    assert (args.num_negatives, args.resume, args.seed, args.model) == (31, False, 3, "small-llama")


class TestReadability:
    """An example is read from top to bottom: numbered steps, public names, nothing beside it."""

    @pytest.mark.parametrize("name", ["movielens", "goodreads", "lastfm", "own_table"])
    def test_form(self, name):
        text = (EXAMPLES / f"{name}.py").read_text()
        assert len(text.splitlines()) <= (45 if name == "own_table" else 130)
        # before torch is imported, which reads it
        assert name == "own_table" or text.index("OMP_WAIT_POLICY") < text.index("from peft")
        steps = [int(number) for number in re.findall(r"^ *# (\d)\. ", text, flags=re.MULTILINE)]
        assert steps == list(range(1, len(steps) + 1))
        siblings = {path.stem for path in EXAMPLES.glob("*.py")}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in siblings
                if node.module.startswith("trl_sdpo"):
                    room = trl_sdpo if node.module == "trl_sdpo" else __import__(node.module, fromlist=["_"])
                    assert {alias.name for alias in node.names} <= set(room.__all__), node.module

    def test_all_of_them_are_short(self):
        assert sum(len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")) <= 900
