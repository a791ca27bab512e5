"""Mistakes in a file of several commands: each is named before the first command."""

import pytest

from helpers.run_file import SECTIONS, main, write


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"trian": {}}, 1, "'trian' is no section. Did you mean 'train'?"),
        (
            {"train": SECTIONS["train"] | {"bta": 1}},
            2,
            "trl-sdpo train: error: --config: 'bta' is no flag. Did you mean",
        ),
        ({"prepare": SECTIONS["prepare"] | {"negatvies": "hard"}}, 2, "Did you mean 'negatives'?"),
        ({"prepare": SECTIONS["prepare"] | {"split": "leave-one-uot"}}, 2, "Did you mean 'leave-one-out'?"),
        (
            {"prepare": SECTIONS["prepare"] | {"loader_options": ["user=user", "timestmap=time"]}},
            2,
            "--loader_options: table has no option 'timestmap'. Did you mean 'timestamp'?",
        ),
        (
            {"prepare": SECTIONS["prepare"] | {"path": "lg.csv"}},
            2,
            "there is no 'lg.csv' here. Did you mean 'log.csv'?",
        ),
        ({"prepare": SECTIONS["prepare"] | {"source": "tabel"}}, 2, "Did you mean 'table'?"),
        ({"prepare": SECTIONS["prepare"] | {"min_history": 0}}, 2, "--min_history 0 is below 1"),
        (
            {"sft": SECTIONS["sft"] | {"model_name_or_path": "modle"}},
            1,
            "sft: model_name_or_path: modle: no such directory here, and config.json could neither be fetched",
        ),
        ({"sft": SECTIONS["sft"] | {"model_name_or_path": "modle"}}, 1, "Did you mean 'model'?"),
        ({"train": SECTIONS["train"] | {"model_name_or_path": "stf"}}, 1, "train: model_name_or_path: stf: no such"),
        ({"train": SECTIONS["train"] | {"dataset_name": "daat"}}, 1, "train: dataset_name: 'daat' is no file or"),
        ({"train": SECTIONS["train"] | {"output_dir": "./sft"}}, 1, "sft and train: both have output_dir './sft'"),
        ({"evaluate": {"output_dir": "report"}}, 2, "--model_name_or_path is missing, and --scores too"),
        ({"recommend": {"model_name_or_path": "s-dpo"}}, 2, "pass either --history or --histories"),
        ({"train": SECTIONS["train"] | {"beta": "much"}}, 2, "argument --beta: invalid float value: 'much'"),
        ({"train": SECTIONS["train"] | {"num_proceses": 2}}, 2, "Did you mean '--num_processes'?"),
        ({"train": SECTIONS["train"] | {"loss_type": "sofmax"}}, 2, "--loss_type 'sofmax' is none of"),
        ({"train": SECTIONS["train"] | {"loss_type": ["softmax", "sfd"]}}, 2, "Did you mean 'sft'?"),
        ({"train": SECTIONS["train"] | {"num_negatives": 0}}, 2, "--num_negatives must be at least 1, got 0"),
        ({"common": SECTIONS["common"] | {"sead": 1}}, 2, "'sead' in the section 'common' is no flag of any command"),
        ({"train": {"output_dir": "s-dpo"}}, 2, "--model_name_or_path is missing"),
        ({"train": "s-dpo"}, 1, "the section 'train' holds 's-dpo' where `name: value` is expected"),
    ],
)
def test_mistakes_in_any_section_are_found_before_the_first_command(workplace, start, capsys, change, status, says):
    write(SECTIONS | change)
    assert main("run", "mine.yaml") == status
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert start == []
    assert not (workplace / "data").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.beta"], "'train.beta' is not SECTION.FLAG=VALUE"),
        (["trian.beta=1"], "mine.yaml has no section 'trian'. Did you mean 'train'?"),
        (["train.beta=[1"], "'[1' is no YAML value"),
        (["--stages", "evaluate"], "mine.yaml has no section 'evaluate'"),
    ],
)
def test_mistakes_in_words_are_named(workplace, start, capsys, words, says):
    assert main("run", "mine.yaml", *words) == 1
    assert says in capsys.readouterr().err
    assert start == []


def test_what_is_no_model_is_told_before_the_first_command(workplace, start, capsys):
    assert main("run", "mine.yaml", "--stages", "prepare") == 0
    start.clear()
    assert main("run", "mine.yaml", "sft.model_name_or_path=data") == 1
    assert "sft: model_name_or_path: data: is a prepared data set" in capsys.readouterr().err
    assert start == []
    # and by the command itself, which would speak of tokenizers
    words = ["--model_name_or_path", "data", "--dataset_name", "data", "--output_dir", "out"]
    assert main("sft", *words) == 1
    assert "--model_name_or_path: data: is a prepared data set" in capsys.readouterr().err


def test_old_names_of_flags_are_taken_with_a_sentence(workplace, start, capsys):
    old = {name: dict(section) for name, section in SECTIONS.items()}
    old["prepare"]["output"] = old["prepare"].pop("output_dir")
    write(old)
    assert main("run", "mine.yaml", "--stages", "prepare") == 0
    assert "'output' is called 'output_dir' now, as in all commands" in capsys.readouterr().err
    write(SECTIONS)  # the same by another name
    start.clear()
    assert main("run", "mine.yaml", "--stages", "prepare") == 0
    assert start == []
    assert main("run", "mine.yaml", "prepare.output=data2", "--stages", "prepare") == 0
    assert (workplace / "data2" / "report.json").is_file()
    assert main("prepare", "--config", "mine.yaml", "--output", "data3") == 0
    assert "'--output' is called '--output_dir' now" in capsys.readouterr().err
    write(SECTIONS | {"prepare": SECTIONS["prepare"] | {"output": "x"}})
    assert main("run", "mine.yaml") == 1
    assert "'output' and 'output_dir' are one flag" in capsys.readouterr().err
