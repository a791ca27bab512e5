"""Typical mistakes in words, data and places: each is an error of one line that names the flag, the value and what to do."""

import socket
import time
from pathlib import Path

import pytest

from helpers.run_file import main
from trl_sdpo.recsys.interactions.readers import paths


TABLE = ["prepare", "table", "--path", "log.csv", "--output_dir", "out", "--loader_options", "user=user", "item=item"]
TABLE += ["timestamp=time", "title=title"]
RECORD = '{"prompt": "a", "chosen": " b", "rejected": [" c"]}\n'
FILES = {
    "broken.json": '[{"prompt": "a", "chosen": "b", "rejected": ["c"]}, {',
    "broken.jsonl": RECORD + '{"prompt": \n',
    "no-rejected.jsonl": '{"prompt": "a", "chosen": " b"}\n',
    "numbers.jsonl": '{"prompt": "a", "chosen": 3, "rejected": [4]}\n',
    "good.jsonl": RECORD,
    "a-file": "",
    "tabs.yaml": "train:\n\tbeta: 1\n",
    "list.yaml": "- train\n",
    "value.yaml": "sft:\n  dataset_name: good.jsonl\n  model_name_or_path: model\n  output_dir: o\n  max_steps: three\n",
}
WITH = ["--dataset_name", "good.jsonl", "--model_name_or_path", "model", "--output_dir", "out"]


def data(name):
    return ["--dataset_name", name, "--model_name_or_path", "model", "--output_dir", "out"]


# by words what is said; each is what a person types, with one thing wrong
MISTAKES = {
    ("trian",): ["'trian' is no command. Did you mean 'train'?"],
    (*TABLE, "--num_candidates", "many"): ["--num_candidates: invalid int value: 'many'. Pass a whole number."],
    (*TABLE[:2], "--path", "lgo.csv", *TABLE[4:]): ["--path: there is no 'lgo.csv' here. Did you mean 'log.csv'?"],
    (*TABLE, "--ratios", "0.8", "0.1"): ["--ratios 0.8 0.1 are not three shares"],
    (*TABLE, "--min_rating", "3"): ["--min_rating 3.0, but no column 'rating'. Leave it out."],
    (*TABLE, "--output_dir", "a-file/x"): ["--output_dir: a-file is a file, and no directory. Pass another."],
    (*TABLE, "--tokenizer", "modle"): ["--tokenizer: modle: no such directory here", "Did you mean 'model'?"],
    ("prepare", "movielens-100kk", "--output_dir", "o"): ["Did you mean 'movielens-100k'?", "--help` lists them"],
    ("sft", *data("model")): ["--dataset_name: model: is a model, and no data set. Pass the directory"],
    ("sft", *data("modle")): ["--dataset_name: modle: no such file or directory here", "no connection", "'model'"],
    ("train", *data("no-rejected.jsonl")): ["no column 'rejected', only ['prompt', 'chosen']", "rename the columns"],
    ("train", *data("log.csv")): ["no column 'chosen' and no column 'rejected', only ['user', 'item'"],
    ("train", *data("broken.json")): ["--dataset_name: The dataset 'broken.json' cannot be read: ", "position 52"],
    ("train", *data("broken.jsonl")): ["--dataset_name: The dataset 'broken.jsonl' cannot be read: ", "JSON"],
    ("train", *data("numbers.jsonl")): ["numbers.jsonl", "'chosen' holds whole numbers"],
    ("train", *WITH, "--per_device_train_batch_size", "0"): ["--per_device_train_batch_size is 0. Pass at least 1."],
    ("train", *WITH, "--learning_rate", "fast"): ["--learning_rate: invalid float value: 'fast'. Pass a number."],
    ("train", *WITH[:-1], "a-file"): ["--output_dir: a-file is a file, and no directory. Pass another."],
    ("train", *WITH[:2], "--model_name_or_path", "modle", *WITH[4:]): ["--model_name_or_path: modle: no such directory"],
    ("train", *WITH[:2], "--model_name_or_path", "log.csv", *WITH[4:]): ["--model_name_or_path: log.csv: no such dir"],
    ("evaluate", *data("good.jsonl"), "--model_name_or_path", "x=modle"): ["--model_name_or_path: modle: no such"],
    ("evaluate", *WITH[:2], "--scores", "x=gd.parquet", *WITH[4:]): ["--scores: there is no file 'gd.parquet'."],
    ("evaluate", *WITH, "--dataset_split", "train", "--device", "cudaa"): ["--device cudaa is no device. Pass one such"],
    ("evaluate", *WITH, "--dataset_split", "train", "--device", "mps"): ["--device mps: this machine has no accelerator"],
    ("evaluate", *WITH, "--dataset_split", "train", "--dtype", "float17"): ["--dtype float17 is no type of torch."],
    ("recommend", "--model_name_or_path", "modle", "--history", "1"): ["--model_name_or_path: modle: no such directory"],
    ("recommend", "--model_name_or_path", "model", "--history", "1", "--output", "a-file/x.csv"): ["a-file is a file"],
    ("serve", "--model_name_or_path", "model", "--port", "80000"): ["--port is 80000. Pass one from 1 to 65535"],
    ("serve", "--model_name_or_path", "model", "--port", "TAKEN"): ["--port: TAKEN at 127.0.0.1 cannot be had"],
    ("demo", "--model_name_or_path", "model", "--port", "TAKEN"): ["--port: TAKEN at 127.0.0.1 cannot be had"],
    ("demo", "--model_name_or_path", "model", "--port", "80000"): ["--port is 80000."],
    ("push", "nowhere", "me/x"): ["nowhere: no such directory. Pass that of a model or of a prepared data set."],
    ("push", "model", "me/x y"): ["'me/x y'"],
    ("run", "tabs.yaml"): ["tabs.yaml: not YAML that can be read"],
    ("run", "list.yaml"): ["list.yaml: expected `name: value` lines"],
    ("run", "value.yaml"): ["--max_steps: invalid int value: 'three'. Pass a whole number."],
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch, llama, tokenizer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths.socket, "getaddrinfo", no_hub(socket.getaddrinfo))
    llama().save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [
        f"{user},{(5 * user + step) % 20},{step},Film {(5 * user + step) % 20}"
        for user in range(12)
        for step in range(8)
    ]
    Path("log.csv").write_text("\n".join(["user,item,time,title", *rows]) + "\n")
    for name, text in FILES.items():
        Path(name).write_text(text)


def no_hub(ask):
    """A machine whose network has no names but its own."""

    def getaddrinfo(host, *args, **kwargs):
        if host in ("127.0.0.1", "localhost"):
            return ask(host, *args, **kwargs)
        raise socket.gaierror(-2, "Name or service not known")

    return getaddrinfo


def test_each_is_told_at_once_in_one_line(place, capsys, monkeypatch):
    """In one test, which makes its place once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wrong = []
        for words, says in MISTAKES.items():
            capsys.readouterr()
            start = time.process_time()
            status = main(*(port if word == "TAKEN" else word for word in words))
            seconds, error = time.process_time() - start, capsys.readouterr().err
            told = all(text.replace("TAKEN", port) in error for text in says)
            noise = any(text in error for text in ("Traceback", "Retrying", "Failed to"))
            made = Path("out").exists() and any(Path("out").iterdir())
            # a second or two alone on a core
            if status not in (1, 2) or not told or noise or made or seconds > 20:
                wrong.append(f"{' '.join(words)}\n[{status}, {seconds:.1f} s] {error}")
    assert not wrong, "\n".join(wrong)


def test_behind_a_proxy_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(paths.socket, "getaddrinfo", no_hub(socket.getaddrinfo))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert not paths.hub_can_be_named()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    assert paths.hub_can_be_named()
