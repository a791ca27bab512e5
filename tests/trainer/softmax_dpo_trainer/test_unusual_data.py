"""Data and tokenizers that are not what they seem: they train as what they show, or are refused by name."""

import copy
import json

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from helpers.tiny_models import build_llama
from trl_sdpo import data_utils
from trl_sdpo.scoring.log_probs import completion_log_probs
from trl_sdpo.tokenization import column_lengths, largest_token
from trl_sdpo.trainer.dataset_preparation import largest_pool


def rendered(rows):
    """A dataset of numbers, whose texts are made when a row is read."""
    return Dataset.from_list([{"index": i} for i in range(len(rows))]).with_transform(
        lambda batch: {name: [rows[i][name] for i in batch["index"]] for name in rows[0]}
    )


@pytest.fixture
def other_tokenizer(tokenizer):
    """A tokenizer of one's own to change."""
    return copy.deepcopy(tokenizer)


class TestFormats:
    FORMS = {
        "torch": lambda rows: Dataset.from_list(rows).with_format("torch"),
        "numpy": lambda rows: Dataset.from_list(rows).with_format("numpy"),
        "arrow": lambda rows: Dataset.from_list(rows).with_format("arrow"),
        "pandas": lambda rows: Dataset.from_list(rows).with_format("pandas"),
        "transform": rendered,
        "stream of torch": lambda rows: Dataset.from_list(rows).to_iterable_dataset().with_format("torch"),
        "stream of numpy": lambda rows: Dataset.from_list(rows).to_iterable_dataset().with_format("numpy"),
        "stream of arrow": lambda rows: Dataset.from_list(rows).with_format("arrow").to_iterable_dataset(),
    }

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("flat", [False, True])
    def test_trains_as_what_it_shows(self, llama, records, make_trainer, form, flat):
        rows = records(4)
        data = rows
        if flat:
            data = [{**row, **{f"rejected_{i}": text for i, text in enumerate(row["rejected"])}} for row in rows]
            data = [{name: value for name, value in row.items() if name != "rejected"} for row in data]
        prepared = make_trainer(llama(), self.FORMS[form](data), args={"max_steps": 1}).train_dataset
        expected = make_trainer(llama(), Dataset.from_list(rows), args={"max_steps": 1}).train_dataset
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        assert [[row[name] for name in names] for row in prepared] == [
            [row[name] for name in names] for row in expected
        ]

    def test_scores(self, llama, records, tokenizer):
        rows = records(4)
        expected = completion_log_probs(llama(), Dataset.from_list(rows), tokenizer)
        for form in ("torch", "transform"):
            found = completion_log_probs(llama(), self.FORMS[form](rows), tokenizer)
            assert [row.tolist() for row in found] == [row.tolist() for row in expected]


class TestNothingToTrainOn:
    def test_stream_of_which_nothing_fits(self, llama, records, make_trainer, caplog):
        stream = Dataset.from_list(records(12)).to_iterable_dataset()
        trainer = make_trainer(llama(), stream, args={"max_length": 5, "max_steps": 2})
        with pytest.raises(ValueError, match=r"step 0 of 2: the training data gave no batch.*`max_length=5`"):
            trainer.train()

    def test_stream_says_what_it_drops(self, llama, records, make_trainer, caplog):
        rows = records(12)
        rows[3]["prompt"] = "much longer " * 200 + rows[3]["prompt"]
        stream = Dataset.from_list(rows).to_iterable_dataset()
        trainer = make_trainer(llama(), stream, args={"max_length": 200, "max_steps": 2})
        with caplog.at_level("WARNING"):
            trainer.train()
        assert "1 of 4 records read so far from the stream of the train dataset" in caplog.text

    def test_fewer_records_than_a_batch(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(3), args={"dataloader_drop_last": True, "max_steps": 2})
        with pytest.raises(ValueError, match="dataloader_drop_last"):
            trainer.train()

    def test_evaluation_of_nothing(self, llama, records, make_trainer):
        stream = Dataset.from_list(records(4)).to_iterable_dataset()
        trainer = make_trainer(llama(), records(4), args={"max_steps": 2})
        trainer.args.max_length = 5
        with pytest.raises(ValueError, match=r"evaluation has read no record.*`max_length=5`"):
            trainer.evaluate(stream)
        with pytest.raises(ValueError, match="dict without a dataset"):
            make_trainer(llama(), records(4), eval_dataset={})


class TestTokenizers:
    def test_without_eos(self, llama, records, make_trainer, other_tokenizer, to_conversational):
        other_tokenizer.eos_token = None
        with pytest.raises(ValueError, match=r"no EOS token.*tokenizer\.eos_token"):
            make_trainer(llama(), records(4), processing_class=other_tokenizer)
        # the template ends the turns of a conversation
        make_trainer(llama(), to_conversational(records(4)), processing_class=other_tokenizer, args={"max_steps": 1})

    def test_that_appends_eos(self, llama, records, make_trainer, other_tokenizer):
        """The EOS of a prompt is cut off, and that of a completion is its end."""
        eos, eos_id = other_tokenizer.eos_token, other_tokenizer.eos_token_id
        other_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, eos_id)]
        )
        row = make_trainer(llama(), records(4), processing_class=other_tokenizer).train_dataset[0]
        assert eos_id not in row["prompt_ids"]
        assert all(ids[-1] == eos_id for ids in [row["chosen_ids"], *row["rejected_ids"]])

    def test_pad_token_outside_of_the_embeddings(self, llama, records, make_trainer, other_tokenizer):
        model = llama()
        other_tokenizer.add_special_tokens({"pad_token": "<another pad>"})
        with pytest.raises(
            ValueError, match=r"'<another pad>'.*has embeddings for \d+ tokens.*resize_token_embeddings"
        ):
            make_trainer(model, records(4), processing_class=other_tokenizer)
        with pytest.raises(ValueError, match="<another pad>"):
            completion_log_probs(model, Dataset.from_list(records(4)), other_tokenizer)

    def test_reference_of_a_smaller_vocabulary(self, records, make_trainer, llama):
        with pytest.raises(ValueError, match=r"of id \d+, and the reference has embeddings for 300 tokens"):
            make_trainer(llama(), records(4), ref_model=build_llama(300))

    def test_token_outside_of_the_embeddings(self, llama, records, make_trainer, other_tokenizer):
        other_tokenizer.add_tokens(["<item>"])
        rows = records(4)
        rows[2]["rejected"][1] += "<item>"
        with pytest.raises(ValueError, match="The train dataset holds the token '<item>'"):
            make_trainer(llama(), rows, processing_class=other_tokenizer)
        trainer = make_trainer(llama(), records(4), processing_class=other_tokenizer)
        with pytest.raises(ValueError, match="The eval dataset holds the token '<item>'"):
            trainer.evaluate(Dataset.from_list(rows))


class TestListsAsText:
    """As CSV files hold them: a text is the preference format of TRL, and would train as one completion."""

    @pytest.mark.parametrize("write", [json.dumps, repr])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_are_refused(self, llama, records, make_trainer, write, streaming):
        data = Dataset.from_list([{**row, "rejected": write(row["rejected"])} for row in records(4)])
        with pytest.raises(
            ValueError, match=r"Row 0, column `rejected`: a list of 3 completions that was written as a text"
        ):
            make_trainer(llama(), data.to_iterable_dataset() if streaming else data)

    def test_titles_with_brackets_are_titles(self, llama, records, make_trainer):
        rows = [
            {**row, "rejected": text} for row, text in zip(records(3), ["[REC] (2007)", "[1, 2]", "[]"], strict=True)
        ]
        make_trainer(llama(), rows, args={"max_steps": 1})


def test_rejected_completions_that_are_there_twice(llama, records, make_trainer, caplog):
    """Each counts in the loss, and a warning says so."""
    rows = records(4)
    rows[2]["rejected"][1] = rows[2]["rejected"][0]
    data_utils.logger.warning_once.cache_clear()
    make_trainer(llama(), rows, args={"max_steps": 1})
    assert caplog.text.count("have the same rejected completion more than once") == 1


class TestTokensDecide:
    """Texts that differ, of which the model sees the same tokens."""

    def test_eos_that_is_there_already(self, llama, records, make_trainer, tokenizer):
        rows = records(4)
        rows[2]["rejected"][1] = rows[2]["chosen"] + tokenizer.eos_token
        message = r"Row 2, column `rejected\[1\]`: rejected completion equal to the chosen once it is tokenized"
        with pytest.raises(ValueError, match=message):
            make_trainer(llama(), rows)

    def test_white_space_that_a_template_strips(
        self, llama, records, make_trainer, other_tokenizer, to_conversational
    ):
        other_tokenizer.chat_template = other_tokenizer.chat_template.replace(
            "message['content']", "message['content'] | trim"
        )
        rows = records(4)
        rows[1]["rejected"][0] = rows[1]["chosen"] + "  "
        with pytest.raises(ValueError, match=r"Row 1, column `rejected\[0\]`.*equal to the chosen"):
            make_trainer(llama(), to_conversational(rows), processing_class=other_tokenizer)
        rows = records(4)
        rows[1]["rejected"][0] = "   "
        with pytest.raises(ValueError, match=r"Row 1, column `rejected\[0\]`: empty completion"):
            make_trainer(llama(), to_conversational(rows), processing_class=other_tokenizer)


def test_lengths_and_tokens_by_arrow(records):
    """What is read off Arrow is what Python counts, in datasets that were shuffled, filtered and sliced, too."""
    rows = [
        {"prompt_ids": [1] * (i % 3), "chosen_ids": [i], "rejected_ids": [[i, 2]] * (1 + i % 4)} for i in range(50)
    ]
    dataset = Dataset.from_list(rows)
    for view in (
        dataset,
        dataset.shuffle(seed=1),
        dataset.select(range(7, 20)),
        dataset.filter(lambda r: r["chosen_ids"][0] < 9),
    ):
        assert column_lengths(view, "rejected_ids").tolist() == [len(row["rejected_ids"]) for row in view]
        assert largest_token(view) == max(max(row["chosen_ids"]) for row in view)
        assert largest_pool(view, None, "train") == 4
