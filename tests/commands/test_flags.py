"""One name for one thing in all commands, TRL's where TRL has one; and the names that were before."""

import dataclasses
import difflib
import importlib
import re
from itertools import combinations

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, ModelConfig, ScriptArguments, SFTConfig

from trl_sdpo.cli import COMMANDS
from trl_sdpo.commands import push
from trl_sdpo.commands._config_file import OLD_NAMES, section_of, with_new_names


TRAINING = ("sft", "train")
OF_TRL = {
    one.name for kind in (ScriptArguments, ModelConfig, SFTConfig, DPOConfig) for one in dataclasses.fields(kind)
}
# Every flag that is ours, by what it means. Whoever adds one finds here whether the thing has a name already.
MEANINGS = {
    # places and names
    "source": "which reader",
    "path": "files of the source",
    "output": "a file of recommendations",
    "catalogue": "directory with the items",
    "base_model": "the model under an adapter",
    "ref_model": "the model before S-DPO",
    "compare": "models beside the first",
    "repo_id": "repository of a push, as huggingface_hub calls it",
    "space": "repository of a page",
    "stages": "sections to run",
    "changes": "values in place of a file's",
    # the records
    "recipe": "whose settings of records",
    "tokenizer": "what counts tokens",
    "num_workers": "threads",
    "form": "records as text or ids",
    "loader_options": "options of the reader",
    "prompt_style": "whether prompts show candidates",
    "template": "the wording of prompts",
    "item_format": "what prompts show of an item",
    "completion_format": "what completions say of an item",
    "domain": "words of the wording",
    "conversational": "messages or text",
    "history_size": "titles of a history",
    "min_history": "fewest titles of a history",
    "num_candidates": "length of the list that is ranked",
    "pool_size": "negatives of a training record",
    "negatives": "kind of training negatives",
    "eval_negatives": "kind of negatives of the other splits",
    "popularity_alpha": "exponent of popularity",
    "eval_candidates": "which items the lists of the other splits hold",
    "held_out_items": "share of items that training lacks",
    "max_train_users": "training users at most",
    "low_rating": "what is rated low",
    "scores": {"prepare": "whether to write ratings", "evaluate": "files of scores"},
    "candidate_seed": "what candidates are drawn by",
    "exclude_seen": "which items of the user are no negatives",
    "existence": "which items existed",
    "min_rating": "lowest rating",
    "min_interactions": "fewest events of a user or item",
    "k_core": "whether to repeat that",
    "core_period": "the events that count for that",
    "min_length": "fewest events of a user after that",
    "merge_repeats": "one event for a user and item",
    "order": "order of events",
    "split": "how splits are told apart",
    "engine": "in memory or from disk",
    "ratios": "shares of splits",
    "file_order": "trust the order of the file",
    "windows": "training targets of a user",
    "eval_windows": "targets of a user in the other splits",
    "train_stride": "every so many-th training target",
    "max_train_records": "training records at most",
    "max_validation_records": "validation records at most",
    "max_test_records": "test records at most",
    # the evaluation
    "dataset_split": "the one split that is read",
    "lists": "files of lists",
    "baseline": "baselines to train",
    "fuse": "systems to fuse",
    "text_model": "what makes vectors of titles",
    "memorisation": "files of the source that models may know by heart",
    "protocol": "what is asked of models",
    "max_records": "records at most, of the split that is read",
    "per_token": "likelihood per token",
    "pmi": "mutual information too",
    "exact": "score all titles",
    "repeats": "recommend what was there before",
    "ignore_differences": "other prompts than those of training",
    "facts": "what is known of a system",
    "num_examples": "examples to show",
    # recommendations
    "top_k": "length of a list",
    "num_beams": "width of the search",
    "device": "where a model lies",
    "history": "one history",
    "histories": "a file of histories",
    "candidates": "items to choose from",
    "new_items": "a file of items",
    "score": "what to rank by",
    "unknown_titles": "titles outside of the catalogue",
    # the page and the server
    "host": "address",
    "port": "port",
    "workers": "processes that serve",
    "max_batch_size": "requests that are computed together",
    "max_waiting": "requests that wait",
    "timeout": "seconds until another side is given up",
    "max_bytes": "size of a request",
    # the Hub
    "type": "model or data set",
    "push": "whether to push",
    "public": "visible to all",
    "redistribution_permitted": "the statement about the licence",
    "pseudonymise": "replace ids of users",
    "revision": "branch of a push, as huggingface_hub calls it",
    "commit_message": "message of a push, as huggingface_hub calls it",
    # everywhere
    "overwrite": "replace what lies in output_dir",
    "config": "the file of flags",
}
# Names that are a part of one of TRL's, and mean something else
NOT_TRL_S = {
    "path": "of raw files",
    "num_workers": "threads of `prepare`, where there is no dataloader",
    "template": "of prompts; `chat_template_path` is a file of a chat",
    "order": "of events",
    "split": "how to split, not the name of a split",
    "config": "TRL's own name for a file of flags",
    "ref_model": "as `DPOTrainer` calls it",
    "device": "one device",
    "output": "a file, not a directory",
    "space": "of the Hub",
    "push": "of a page, once, and not of each checkpoint",
    "workers": "processes of a server",
    "timeout": "of a request",
    "type": "of a repository",
    "revision": "of a push; `model_revision` is that which is loaded",
}


@pytest.fixture(scope="module")
def parsers():
    return {
        name: importlib.import_module(f"trl_sdpo.commands.{name}").make_parser(f"trl-sdpo {name}") for name in COMMANDS
    }


@pytest.fixture(scope="module")
def own_flags(parsers):
    """By command the actions of its flags that are not of TRL's configurations."""
    found = {}
    for name, parser in parsers.items():
        actions = {one.dest: one for one in parser._actions if one.dest not in ("help", "help_all")}
        of_training = OF_TRL | set(TrainingArguments.__dataclass_fields__) if name in TRAINING else set()
        found[name] = {dest: one for dest, one in actions.items() if dest not in of_training}
    return found


def test_each_flag_has_one_meaning_and_each_meaning_one_flag(own_flags):
    meanings = {}
    softmax = set(importlib.import_module("trl_sdpo").SoftmaxDPOConfig.__dataclass_fields__)
    for command, flags in own_flags.items():
        for flag in flags:
            if flag in OF_TRL or (command == "train" and flag in softmax):
                continue  # TRL's name, for TRL's thing
            meaning = MEANINGS[flag]
            meaning = meaning[command] if isinstance(meaning, dict) else meaning
            meanings.setdefault(meaning, set()).add(flag)
    assert {meaning: flags for meaning, flags in meanings.items() if len(flags) > 1} == {}


def test_no_flag_is_a_part_of_one_of_trl_s(own_flags):
    """`batch_size`, `model` or `split` for what TRL calls `per_device_eval_batch_size`, `model_name_or_path`, ..."""
    whole = {*OF_TRL, *TrainingArguments.__dataclass_fields__}
    for command, flags in own_flags.items():
        for flag in set(flags) - whole - set(NOT_TRL_S):
            longer = [name for name in whole if re.search(rf"(^|_){flag}(_|$)", name)]
            assert not longer, f"{command}: --{flag} beside TRL's {longer}: take its name, or say here why not"


def test_flags_of_one_name_are_of_one_type(own_flags):
    kinds = {}
    for command, flags in own_flags.items():
        for flag, action in flags.items():
            several = flag in ("model_name_or_path", "scores")  # `evaluate` takes several models
            kind = "choice or text" if several else getattr(action.type, "__name__", "text")
            kinds.setdefault(flag, {})[command] = {"str": "text"}.get(kind, kind)
    for flag, of_commands in kinds.items():
        switches = {"string_to_bool", "text"} if flag == "overwrite" else set()  # `run` has a plain switch
        assert len(set(of_commands.values()) - switches) <= 1, (flag, of_commands)


def test_no_two_flags_say_the_same_of_themselves(own_flags):
    """The help of two flags of other names in two commands."""
    texts = [
        (command, flag, re.sub(r"Default: .*", "", action.help))
        for command, flags in own_flags.items()
        for flag, action in flags.items()
    ]
    for (one, flag, text), (other, name, words) in combinations(texts, 2):
        if one != other and flag != name:
            likeness = difflib.SequenceMatcher(None, text, words).ratio()
            assert likeness < 0.9, f"{one} --{flag} and {other} --{name}: {text!r}, {words!r}"


def test_old_names_are_flags_no_more_and_new_ones_are(parsers):
    for command, names in OLD_NAMES.items():
        for old, new in names.items():
            assert new in parsers[command].flags
            assert old not in parsers[command].flags


@pytest.mark.parametrize(
    ("command", "old", "new"), [(c, o, n) for c, names in OLD_NAMES.items() for o, n in names.items()]
)
def test_an_old_name_is_taken_in_words_and_in_files_with_a_sentence(parsers, capsys, command, old, new, tmp_path):
    value = str(tmp_path / "x")
    assert with_new_names(command, {old: value})[0] == {new: value}
    assert parsers[command]._with_new_names([f"--{old}", value]) == [f"--{new}", value]
    said = capsys.readouterr().err
    assert f"'--{old}' is called '--{new}' now, as in all commands." in said


def test_old_names_reach_commands_from_what_is_common(parsers):
    config = {"common": {"batch_size": 4, "reference": "sft", "split": "user"}, "evaluate": {"ref_model": "base"}}
    section, others = section_of(config, "evaluate", parsers["evaluate"].flags_of_all, "mine.yaml")
    assert with_new_names("evaluate", section)[0] == {"per_device_eval_batch_size": 4, "ref_model": "base"}
    assert others == ["split"]  # which `prepare` has


def test_a_push_takes_what_its_section_or_the_words_name(tmp_path, capsys):
    parser = push.make_parser("trl-sdpo push")
    (tmp_path / "data" / "data").mkdir(parents=True)
    (tmp_path / "data" / "data" / "train.parquet").touch()
    data, model = str(tmp_path / "data"), str(tmp_path / "model")
    for words in ([data], ["--directory", data], ["--dataset_name", data]):
        args = parser.parse_args([*words, "--repo_id", "me/x"])
        assert (args.model_name_or_path, args.dataset_name) == (None, data)
    assert parser.parse_args([model, "me/x"]).model_name_or_path == model
    (tmp_path / "mine.yaml").write_text(
        f"common:\n  dataset_name: {data}\npush:\n  directory: {model}\n  repo_id: me/x\n"
    )
    args = push.make_parser("trl-sdpo push").parse_args(["--config", str(tmp_path / "mine.yaml")])
    assert (args.model_name_or_path, args.dataset_name) == (model, None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--dataset_name", data, "--model_name_or_path", model, "--repo_id", "me/x"])
    assert "push one, then the other" in capsys.readouterr().err


class TestHelp:
    def test_has_one_layout(self, parsers, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        for name, parser in parsers.items():
            text = parser.format_help()
            assert text.startswith(f"usage: trl-sdpo {name} "), name
            description = text.split("\n\n")[1]
            assert re.fullmatch(r"[A-Z].*\.", description, re.DOTALL), name
            assert re.search(r"  --help +Show this help, and exit\.", text), name
            assert " -h," not in text
            # one spelling of a flag, a kind of value, no value as Python writes it
            assert not re.search(r"\[['\"\d]|\(0\.|<class|None\b", text), (name, re.search(r"\[['\"\d]|None\b", text))
