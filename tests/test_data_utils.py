import copy
import json
import logging

import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.data_utils import is_conversational

from trl_sdpo import (
    check_multi_preference,
    from_flat_columns,
    is_multi_preference,
    to_preference_pairs,
    to_prompt_completion,
)
from trl_sdpo.data_utils import drop_too_long, tokenize_multi_preference
from trl_sdpo.prefix_sharing.rows import shared_prefix_row


USER = [{"role": "user", "content": "Next?"}]


def answer(text):
    return [{"role": "assistant", "content": text}]


class TestRecognise:
    @pytest.mark.parametrize(
        "example",
        [
            {"prompt": "p", "chosen": "a", "rejected": ["b", "c"]},
            {"prompt": "p", "chosen": "a", "rejected": ["b"]},
            {"prompt": "p", "chosen": "a", "rejected": []},
            {"prompt": USER, "chosen": answer("a"), "rejected": [answer("b"), answer("c")]},
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [[3], [4]]},
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": []},
        ],
    )
    def test_multi_preference(self, example):
        assert is_multi_preference(example)

    @pytest.mark.parametrize(
        "example",
        [
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": USER, "chosen": answer("a"), "rejected": answer("b")},
            {"chosen": USER + answer("a"), "rejected": USER + answer("b")},
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3, 4]},
            {"prompt": "p", "completion": "a"},
            {"prompt": "p", "chosen": "a", "rejected": None},
            {},
        ],
    )
    def test_other_formats(self, example):
        assert not is_multi_preference(example)


def record(**changes):
    return {"prompt": "p", "chosen": "a", "rejected": ["b", "c"], **changes}


class TestCheck:
    @pytest.mark.parametrize(
        "example",
        [
            record(),
            record(prompt=""),
            record(prompt=USER, chosen=answer("a"), rejected=[answer("b")]),
            {"prompt_ids": [], "chosen_ids": [2], "rejected_ids": [[3]]},
        ],
    )
    def test_good_records(self, example):
        assert check_multi_preference(example, 0) is None

    @pytest.mark.parametrize(
        ("example", "message"),
        [
            (record(prompt=None), r"Row 5, column `prompt`: missing value, got None\. A multi-preference record has"),
            ({"prompt": "p", "rejected": ["b"]}, "Row 5, column `chosen`: missing value"),
            (record(rejected=None), "Row 5, column `rejected`: missing value"),
            (record(prompt=3), "Row 5, column `prompt`: expected a text or a list of messages, got 3"),
            (record(rejected="b"), "Row 5, column `rejected`: expected a list of completions, got 'b'"),
            (record(rejected=[]), r"Row 5, column `rejected`: no rejected completion, got \[\]\. Remove the record"),
            (record(chosen=" "), "Row 5, column `chosen`: empty completion, got ' '. Remove it, or fill in the text"),
            (record(rejected=["b", ""]), r"Row 5, column `rejected\[1\]`: empty completion, got ''"),
            (record(rejected=["b", None]), r"Row 5, column `rejected\[1\]`: expected a text.*, got None"),
            (record(rejected=["b", 7]), r"Row 5, column `rejected\[1\]`: expected a text, as the prompt is, got 7"),
            (record(rejected=[answer("b")]), r"Row 5, column `rejected\[0\]`: expected a text, as the prompt is"),
            (record(prompt=USER), "Row 5, column `chosen`: expected a list of messages, as the prompt is, got 'a'"),
            (record(rejected=["b", "a"]), r"Row 5, column `rejected\[1\]`: .*equal to the chosen, got 'a'\. Remove"),
            (record(prompt=USER, chosen=[], rejected=[answer("b")]), "column `chosen`: empty completion"),
            ({"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [[3]]}, "column `chosen_ids`: empty completion"),
            ({"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": [[3]]}, r"column `rejected_ids\[0\]`: .*equal to"),
            ({"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": []}, "`rejected_ids`: no rejected completion"),
            ({"chosen_ids": [3], "rejected_ids": [[4]]}, "Row 5, column `prompt_ids`: missing value"),
        ],
    )
    def test_bad_records(self, example, message):
        with pytest.raises(ValueError, match=message):
            check_multi_preference(example, 5)

    def test_long_values_are_cut(self):
        with pytest.raises(ValueError, match="equal to the chosen") as error:
            check_multi_preference(record(chosen="a" * 10_000, rejected=["a" * 10_000]), 0)
        assert len(str(error.value)) < 500

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"chosen": [{"role": "assistant", "content": ""}]}, "Row 7, column `chosen`: empty completion"),
            ({"rejected": [[{"role": "assistant"}]]}, r"Row 7, column `rejected\[0\]`: empty completion"),
            ({"rejected": [["x"]]}, r"Row 7, column `rejected\[0\]`: expected a message with `role`.*got 'x'"),
            ({"prompt": ["x"]}, "Row 7, column `prompt`: expected a message with `role`.*got 'x'"),
        ],
    )
    def test_bad_messages(self, change, message):
        record = {name: [{"role": "assistant", "content": name}] for name in ("prompt", "chosen", "rejected")}
        record["rejected"] = [record["rejected"]]
        check_multi_preference(record, 7)
        with pytest.raises(ValueError, match=message):
            check_multi_preference({**record, **change}, 7)

    def test_a_message_that_calls_a_tool_needs_no_content(self):
        call = [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "play"}}]}]
        other = [{"role": "assistant", "content": "No."}]
        check_multi_preference(
            {"prompt": [{"role": "user", "content": "Play."}], "chosen": call, "rejected": [other]}, 0
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt_ids": "x"}, "Row 7, column `prompt_ids`: expected a list of token ids, got 'x'"),
            ({"chosen_ids": []}, "Row 7, column `chosen_ids`: empty completion"),
            (
                {"rejected_ids": [[1.5]]},
                r"Row 7, column `rejected_ids\[0\]`: expected a list of token ids, got \[1.5\]",
            ),
        ],
    )
    def test_bad_tokens(self, change, message):
        record = {"prompt_ids": [], "chosen_ids": [1], "rejected_ids": [[2]]}
        check_multi_preference(record, 7)
        with pytest.raises(ValueError, match=message):
            check_multi_preference({**record, **change}, 7)

    @pytest.mark.parametrize("record_id", ["a", -1])
    def test_bad_record_id(self, tokenizer, record_id):
        record = {"prompt_ids": [3], "chosen_ids": [1], "rejected_ids": [[2]], "record_id": record_id}
        with pytest.raises(
            ValueError, match=f"Row 7, column `record_id`: expected an integer from 0, got {record_id!r}"
        ):
            tokenize_multi_preference(record, 7, tokenizer, tokenizer.eos_token)


class TestFeatures:
    """The types of the columns say what the value of a first row may not."""

    @pytest.mark.parametrize(
        ("rejected", "expected"),
        [
            ([None, [" b"]], True),
            ([[], [" b"]], True),
            ([None, " b"], False),
            ([None, [{"role": "assistant", "content": "b"}]], False),
            ([None, [[{"role": "assistant", "content": "b"}]]], True),
        ],
    )
    def test_texts_and_messages(self, rejected, expected):
        dataset = Dataset.from_dict({"prompt": ["a", "a"], "chosen": [" c", " c"], "rejected": rejected})
        assert is_multi_preference(dataset[0], dataset.features) is expected

    @pytest.mark.parametrize(("rejected_ids", "expected"), [([None, [[1]]], True), ([None, [1]], False)])
    def test_tokens(self, rejected_ids, expected):
        dataset = Dataset.from_dict({"rejected_ids": rejected_ids})
        assert is_multi_preference(dataset[0], dataset.features) is expected


class TestFlatColumns:
    def test_both_kinds_of_columns(self):
        dataset = Dataset.from_dict({"prompt": ["a"], "chosen": [" b"], "rejected": [" c"], "rejected1": [" d"]})
        with pytest.raises(ValueError, match=r"both a column `rejected` and \['rejected1'\]"):
            from_flat_columns(dataset)

    @pytest.mark.parametrize(
        "names", [["rejected1", "rejected2", "rejected10"], ["rejected_1", "rejected_2", "rejected_10"]]
    )
    def test_order_is_by_number(self, names):
        columns = dict(zip(reversed(names), (["D"], ["C"], ["B"]), strict=True))
        dataset = from_flat_columns(Dataset.from_dict({"prompt": ["p"], "chosen": ["A"], **columns, "user_id": [9]}))
        assert dataset[0] == {"prompt": "p", "chosen": "A", "rejected": ["B", "C", "D"], "user_id": 9}

    def test_tuples_of_sentence_transformers(self):
        columns = {"anchor": ["p"], "positive": ["A"], "negative_1": ["B"], "negative_2": ["C"]}
        assert from_flat_columns(Dataset.from_dict(columns))[0] == {
            "prompt": "p",
            "chosen": "A",
            "rejected": ["B", "C"],
        }

    def test_missing_values_make_shorter_records(self):
        columns = {"rejected1": ["B", None, "F"], "rejected2": [None, "D", ""], "rejected3": ["C", "E", None]}
        dataset = from_flat_columns(Dataset.from_dict({"prompt": ["p"] * 3, "chosen": ["A"] * 3, **columns}))
        assert dataset["rejected"][:] == [["B", "C"], ["D", "E"], ["F"]]

    def test_messages(self):
        rows = [{"prompt": USER, "chosen": answer("a"), "rejected1": answer("b"), "rejected2": answer("c")}]
        assert from_flat_columns(Dataset.from_list(rows))[0]["rejected"] == [answer("b"), answer("c")]

    def test_stream(self):
        columns = {"prompt": ["p"], "chosen": ["A"], "rejected1": ["B"], "rejected2": ["C"]}
        stream = from_flat_columns(Dataset.from_dict(columns).to_iterable_dataset())
        assert list(stream) == [{"prompt": "p", "chosen": "A", "rejected": ["B", "C"]}]

    def test_no_such_columns(self):
        with pytest.raises(
            ValueError, match=r"no columns `rejected1..K`.*only \['prompt', 'rejected', 'rejected1x'\]"
        ):
            from_flat_columns(Dataset.from_dict({"prompt": ["p"], "rejected": ["b"], "rejected1x": ["c"]}))


class TestConversions:
    def test_pairs(self, records):
        rows = [{**row, "user_id": i} for i, row in enumerate(records(3, 1, 3))]
        expected = [{**row, "rejected": text} for row in rows for text in row["rejected"]]
        assert to_preference_pairs(Dataset.from_list(rows)).to_list() == expected
        assert list(to_preference_pairs(Dataset.from_list(rows).to_iterable_dataset())) == expected

    def test_pairs_have_scores_of_their_own(self, records):
        rows = [{**row, "chosen_score": 5.0} for row in records(2, 2, 2)]
        scores = [[1.0, None], None]
        rows = [{**row, "rejected_scores": own} for row, own in zip(rows, scores, strict=True)]
        pairs = to_preference_pairs(Dataset.from_list(rows))
        assert pairs["rejected_score"] == [1.0, None, None, None]
        assert "rejected_scores" not in pairs.column_names

    def test_conversational_pairs(self, records, to_conversational):
        rows = to_conversational(records(2))
        expected = [{**row, "rejected": text} for row in rows for text in row["rejected"]]
        assert to_preference_pairs(Dataset.from_list(rows)).to_list() == expected

    def test_prompt_completion(self, records):
        rows = [{**row, "user_id": 4} for row in records(3)]
        expected = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        assert to_prompt_completion(Dataset.from_list(rows)).to_list() == expected
        assert list(to_prompt_completion(Dataset.from_list(rows).to_iterable_dataset())) == expected


TOOL = {"type": "function", "function": {"name": "look_up", "description": "Finds a title.", "parameters": {}}}
TEMPLATE = (
    "{% if tools %}{{ 'tools: ' + (tools | tojson) + '\n' }}{% endif %}{% if style %}{{ style + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenize(rows, tokenizer):
    return [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]


class TestTokenize:
    def trl_pairs(self, rows, llama, tokenizer, tmp_path):
        """What DPOTrainer makes of each pair."""
        args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
        pairs = to_preference_pairs(Dataset.from_list(rows))
        trainer = DPOTrainer(llama(), llama(), args, train_dataset=pairs, processing_class=tokenizer)
        return trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).to_list()

    def assert_same_as_trl(self, rows, llama, tokenizer, tmp_path):
        expected = self.trl_pairs(rows, llama, tokenizer, tmp_path)
        names = ("prompt_ids", "chosen_ids")
        ours = [
            {**{name: row[name] for name in names}, "rejected_ids": rejected}
            for row in tokenize(rows, tokenizer)
            for rejected in row["rejected_ids"]
        ]
        assert ours == expected
        assert all(pair["chosen_ids"] and pair["rejected_ids"] for pair in ours)

    def test_text(self, records, llama, tokenizer, tmp_path):
        self.assert_same_as_trl(records(4, 1, 4), llama, tokenizer, tmp_path)

    def test_text_that_ends_with_eos(self, records, llama, tokenizer, tmp_path):
        rows = records(2)
        rows[0]["chosen"] += tokenizer.eos_token
        rows[1]["rejected"][1] += tokenizer.eos_token
        self.assert_same_as_trl(rows, llama, tokenizer, tmp_path)

    def test_messages(self, records, to_conversational, llama, tokenizer, tmp_path):
        self.assert_same_as_trl(to_conversational(records(4, 1, 4)), llama, tokenizer, tmp_path)

    @pytest.mark.parametrize("as_json", [False, True])
    def test_tools_and_template_arguments(self, records, to_conversational, llama, tmp_path, tokenizer, as_json):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = TEMPLATE
        tools = json.dumps([TOOL]) if as_json else [TOOL]
        rows = [
            {**row, "tools": tools, "chat_template_kwargs": {"style": "brief"}}
            for row in to_conversational(records(2))
        ]
        rows = rows if as_json else Dataset.from_list(rows).to_list()
        self.assert_same_as_trl(rows, llama, tokenizer, tmp_path)
        text = tokenizer.decode(tokenize(rows, tokenizer)[0]["prompt_ids"])
        assert text.startswith("tools:")
        assert "look_up" in text
        assert "brief\n" in text

    def test_boundary_where_tokens_merge(self, tokenizer, caplog):
        """
        " Red River" is trained as tokens that begin with the space. A prompt that ends with the space loses it to the
        completion where they merge, and then for all completions alike.
        """
        row = {"prompt": "Next: ", "chosen": "Red River (1948)", "rejected": ["Blue Hotel (1984)", "!"]}
        with caplog.at_level(logging.WARNING):
            ids = tokenize([row], tokenizer)[0]
        assert tokenizer.decode(ids["prompt_ids"]) == "Next:"
        completions = [tokenizer.decode(tokens) for tokens in [ids["chosen_ids"], *ids["rejected_ids"]]]
        assert completions == [f" {text}<|im_end|>" for text in [row["chosen"], *row["rejected"]]]

    def test_already_tokenized(self):
        row = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [[4, 5], [6]]}
        ids = tokenize_multi_preference(row, 7, None, None)
        # the row in shared-prefix form: 2 + 4 tokens, and a repeated prompt token for each completion but the first
        assert ids == {**row, "record_id": 7, "length": 8}

    def test_length_is_that_of_the_shared_row(self, records, tokenizer):
        for row in tokenize(records(6, 1, 5), tokenizer):
            shared = shared_prefix_row(row["prompt_ids"], [row["chosen_ids"], *row["rejected_ids"]])
            assert row["length"] == len(shared["input_ids"])

    def test_completion_without_tokens(self, tokenizer):
        """A template that leaves the answer out gives nothing to train on."""
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
        )
        row = {"prompt": USER, "chosen": answer("a"), "rejected": [answer("b")]}
        with pytest.raises(
            ValueError, match=r"Row 0, column `chosen`: completion without a token.*Check the chat template"
        ):
            tokenize([row], tokenizer)

    def test_a_given_record_id_is_kept(self, tokenizer):
        assert tokenize([record(record_id=77)], tokenizer)[0]["record_id"] == 77


@pytest.mark.parametrize("conversational", [False, True])
def test_sft_trains_on_the_tokens_of_the_chosen(
    records, to_conversational, llama, tokenizer, tmp_path, conversational
):
    rows = to_conversational(records(4)) if conversational else records(4)
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    dataset = to_prompt_completion(Dataset.from_list(rows))
    trainer = SFTTrainer(llama(), args, train_dataset=dataset, processing_class=tokenizer)
    for ours, theirs in zip(tokenize(rows, tokenizer), trainer.train_dataset, strict=True):
        assert ours["prompt_ids"] + ours["chosen_ids"] == theirs["input_ids"]
        assert [-100] * len(ours["prompt_ids"]) + ours["chosen_ids"] == theirs["labels"]


def test_result_does_not_depend_on_the_hash_seed(tokenizer, monkeypatch):
    """
    TRL's `is_conversational` looks at one key, and of a set of them the hash seed says which: on a list of rejected
    completions it says no. So it must get one key only, as it is called here for real.
    """
    asked = []

    def recording(example):
        asked.append(set(example))
        return is_conversational(example)

    monkeypatch.setattr("trl_sdpo.data_utils.is_conversational", recording)
    row = {"prompt": USER, "chosen": answer("a"), "rejected": [answer("b"), answer("c")]}
    assert not is_conversational({"rejected": row["rejected"]})  # the trap
    ids = tokenize([row], tokenizer)[0]
    assert asked == [{"prompt"}]
    assert tokenizer.decode(ids["prompt_ids"]).endswith("<|im_start|>assistant\n")


class TestStreams:
    def ids(self, dataset, tokenizer, stream):
        kwargs = {"processing_class": tokenizer, "eos_token": tokenizer.eos_token, "stream": stream}
        mapped = dataset.map(tokenize_multi_preference, with_indices=True, fn_kwargs=kwargs)
        return {row["chosen"] + str(row["rejected"]): row["record_id"] for row in mapped}

    def test_record_ids_survive_a_shuffle(self, records, tokenizer):
        stream = Dataset.from_list(records(8, 1, 3)).to_iterable_dataset()
        ids = self.ids(stream, tokenizer, stream=True)
        assert len(set(ids.values())) == 8
        assert all(0 <= record_id < 2**63 for record_id in ids.values())
        assert self.ids(stream.shuffle(seed=3, buffer_size=8), tokenizer, stream=True) == ids

    def test_record_ids_of_a_dataset_are_its_rows(self, records, tokenizer):
        ids = self.ids(Dataset.from_list(records(8, 1, 3)), tokenizer, stream=False)
        assert list(ids.values()) == list(range(8))


class TestDropTooLong:
    ROWS = [
        {"prompt_ids": [1] * 5, "chosen_ids": [2], "rejected_ids": [[3, 3], [4]]},  # 7 with its longest completion
        {"prompt_ids": [1] * 5, "chosen_ids": [2], "rejected_ids": [[3], [4], [5, 5, 5]]},  # 8
        {"prompt_ids": [1] * 5, "chosen_ids": [2] * 4, "rejected_ids": [[3]]},  # 9
    ]

    @pytest.mark.parametrize(("max_length", "kept"), [(7, 1), (8, 2), (9, 3)])
    def test_prompt_with_the_longest_completion(self, max_length, kept, caplog):
        with caplog.at_level(logging.WARNING):
            dataset = drop_too_long(Dataset.from_list(self.ROWS), max_length, "train")
        assert dataset.to_list() == self.ROWS[:kept]
        message = f"{3 - kept} of 3 records of the train dataset"
        assert (message in caplog.text) == (kept < 3)

    def test_none_left(self):
        with pytest.raises(
            ValueError, match=r"3 of 3 records of the eval dataset.*`max_length=6`.*Raise `max_length`"
        ):
            drop_too_long(Dataset.from_list(self.ROWS), 6, "eval")

    def test_stream(self):
        assert list(drop_too_long(Dataset.from_list(self.ROWS).to_iterable_dataset(), 8, "train")) == self.ROWS[:2]


def test_the_prompt_ends_where_all_completions_leave_it(tokenizer):
    """A rejected completion that merges with the end of the prompt moves the boundary, whatever the chosen one does."""
    record = {"prompt": "Next: Re", "chosen": "?", "rejected": ["d River (1948)"]}
    ids = tokenize_multi_preference(record, 0, tokenizer, tokenizer.eos_token)
    assert len(ids["prompt_ids"]) < len(tokenizer(record["prompt"])["input_ids"])
    texts, completions = [record["chosen"], *record["rejected"]], [ids["chosen_ids"], *ids["rejected_ids"]]
    for text, completion in zip(texts, completions, strict=True):
        whole = tokenizer(record["prompt"] + text + tokenizer.eos_token)["input_ids"]
        assert ids["prompt_ids"] + completion == whole


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_identity_of_a_streamed_record_is_of_all_that_it_holds(tokenizer, column):
    record = {"prompt": "Next:", "chosen": " Heat (1995)", "rejected": [" Big (1988)", " Ran (1985)"]}
    other = {**record, column: [" Big (1988)", " Clue (1985)"] if column == "rejected" else "Then: x"}
    first, again, third = (
        tokenize_multi_preference(one, 0, tokenizer, tokenizer.eos_token, stream=True)["record_id"]
        for one in (record, dict(record), other)
    )
    assert first == again != third
