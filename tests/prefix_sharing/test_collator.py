import math

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trl_sdpo import DataCollatorForMultiPreference, draw_negatives
from trl_sdpo.prefix_sharing.collator import EpochCallback


RECORDS = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [[6], [7, 8]]},
    {"prompt_ids": [9, 10], "chosen_ids": [11], "rejected_ids": [[12, 13]]},
]


def assert_batch(batch, expected):
    assert list(batch) == list(expected)
    for name, values in expected.items():
        assert batch[name].tolist() == values, name
        assert batch[name].dtype == (torch.bool if name == "completion_exists" else torch.long), name


# The tokens 4, 5 | 6 | 7, 8 of the first record and 11 | 12, 13 of the second, in two times three completions
TARGETS = {
    "completion_exists": [[True, True, True], [True, True, False]],
    "target_ids": [4, 5, 6, 7, 8, 11, 12, 13],
    "target_completions": [0, 0, 1, 2, 2, 3, 4, 4],
}


class TestLayout:
    def test_shared_rows(self):
        batch = DataCollatorForMultiPreference(pad_token_id=0, pad_to_multiple_of=1)(RECORDS)
        assert_batch(
            batch,
            {
                "num_completions": [3, 2],
                "input_ids": [[1, 2, 3, 4, 5, 3, 6, 3, 7, 8], [9, 10, 11, 10, 12, 13, 0, 0, 0, 0]],
                "position_ids": [[0, 1, 2, 3, 4, 2, 3, 2, 3, 4], [0, 1, 2, 1, 2, 3, 0, 0, 0, 0]],
                "segment_ids": [[0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [0, 1, 1, 2, 2, 2, -1, -1, -1, -1]],
                "completion_mask": [[0, 0, 0, 1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 0, 1, 1, 0, 0, 0, 0]],
                "attention_mask": [[1] * 10, [1] * 6 + [0] * 4],
                "completion_exists": TARGETS["completion_exists"],
                "target_rows": [0, 0, 0, 0, 0, 1, 1, 1],
                "target_positions": [2, 3, 5, 7, 8, 1, 3, 4],
                "target_ids": TARGETS["target_ids"],
                "target_completions": TARGETS["target_completions"],
            },
        )

    def test_padded_rows(self):
        batch = DataCollatorForMultiPreference(pad_token_id=99, prefix_sharing=False)(RECORDS)
        assert_batch(
            batch,
            {
                "num_completions": [3, 2],
                "input_ids": [
                    [1, 2, 3, 4, 5],
                    [1, 2, 3, 6, 99],
                    [1, 2, 3, 7, 8],
                    [9, 10, 11, 99, 99],
                    [9, 10, 12, 13, 99],
                ],
                "segment_ids": [
                    [0, 0, 1, 1, 1],
                    [0, 0, 2, 2, -1],
                    [0, 0, 3, 3, 3],
                    [0, 1, 1, -1, -1],
                    [0, 2, 2, 2, -1],
                ],
                "completion_mask": [
                    [0, 0, 0, 1, 1],
                    [0, 0, 0, 1, 0],
                    [0, 0, 0, 1, 1],
                    [0, 0, 1, 0, 0],
                    [0, 0, 1, 1, 0],
                ],
                "attention_mask": [[1] * 5, [1, 1, 1, 1, 0], [1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
                "completion_exists": TARGETS["completion_exists"],
                "target_rows": [0, 0, 1, 2, 2, 3, 4, 4],
                "target_positions": [2, 3, 2, 2, 3, 1, 1, 2],
                "target_ids": TARGETS["target_ids"],
                "target_completions": TARGETS["target_completions"],
            },
        )

    @pytest.mark.parametrize("prefix_sharing", [True, False])
    def test_first_tensor_has_a_row_per_record(self, prefix_sharing):
        """transformers reads the number of records of a batch off the first tensor."""
        batch = DataCollatorForMultiPreference(pad_token_id=0, prefix_sharing=prefix_sharing)(RECORDS)
        assert next(iter(batch.values())).shape == (2,)

    @pytest.mark.parametrize(("prefix_sharing", "length"), [(True, 10), (False, 5)])
    @pytest.mark.parametrize("multiple", [1, 4, 5, 8])
    def test_pad_to_multiple_of(self, prefix_sharing, length, multiple):
        collator = DataCollatorForMultiPreference(0, pad_to_multiple_of=multiple, prefix_sharing=prefix_sharing)
        batch = collator(RECORDS)
        for name in ("input_ids", "segment_ids", "completion_mask", "attention_mask"):
            assert batch[name].size(1) == math.ceil(length / multiple) * multiple, name

    def test_shared_rows_are_padded_to_a_multiple_of_16(self):
        """Those of padded rows are TRL's, unless told otherwise."""
        for prefix_sharing, length in ((True, 16), (False, 5)):
            batch = DataCollatorForMultiPreference(0, prefix_sharing=prefix_sharing)(RECORDS)
            assert batch["input_ids"].size(1) == length
            assert batch["attention_mask"].sum() == (16 if prefix_sharing else 21)

    def test_prompt_of_one_token(self):
        record = {"prompt_ids": [7], "chosen_ids": [1], "rejected_ids": [[2, 3]]}
        batch = DataCollatorForMultiPreference(pad_token_id=0, pad_to_multiple_of=1)([record])
        assert batch["input_ids"].tolist() == [[7, 1, 7, 2, 3]]
        assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
        assert batch["segment_ids"].tolist() == [[1, 1, 2, 2, 2]]

    @pytest.mark.parametrize("prefix_sharing", [True, False])
    def test_empty_prompt(self, prefix_sharing):
        """The first token of a completion has nothing before it to be predicted from."""
        record = {"prompt_ids": [], "chosen_ids": [1, 4], "rejected_ids": [[2, 3]]}
        batch = DataCollatorForMultiPreference(0, pad_to_multiple_of=1, prefix_sharing=prefix_sharing)([record])
        assert batch["input_ids"].tolist() == ([[1, 4, 2, 3]] if prefix_sharing else [[1, 4], [2, 3]])
        assert batch["completion_mask"].tolist() == ([[0, 1, 0, 1]] if prefix_sharing else [[0, 1], [0, 1]])

    def test_preference_data_of_trl(self):
        pairs = [
            {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "record_id": 3},
            {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11], "record_id": 4},
        ]
        for pair in pairs:
            pair |= {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
        for options in (
            {},
            {"max_length": 4},
            {"max_length": 3, "truncation_mode": "keep_end"},
            {"pad_to_multiple_of": 8},
        ):
            ours = DataCollatorForMultiPreference(pad_token_id=0, **options)(pairs)
            theirs = DataCollatorForPreference(pad_token_id=0, **options)(pairs)
            assert list(ours) == list(theirs)
            for name, tensor in theirs.items():
                assert torch.equal(ours[name], tensor), name


class TestDraw:
    def test_by_the_arguments_alone(self):
        expected = draw_negatives(19, 3, seed=1, epoch=2, record_id=3)
        torch.manual_seed(0)
        assert draw_negatives(19, 3, seed=1, epoch=2, record_id=3) == expected
        assert len(set(expected)) == 3
        assert expected == sorted(expected)
        assert set(expected) <= set(range(19))

    def test_each_argument_matters(self):
        arguments = {"seed": 1, "epoch": 2, "record_id": 3}
        expected = draw_negatives(1000, 10, **arguments)
        for name in arguments:
            assert draw_negatives(1000, 10, **{**arguments, name: 17}) != expected, name
        # no sum of the three
        assert draw_negatives(1000, 10, seed=2, epoch=1, record_id=3) != expected

    @pytest.mark.parametrize("num_negatives", [None, 5, 6])
    def test_whole_pool(self, num_negatives):
        assert draw_negatives(5, num_negatives, seed=0, epoch=0, record_id=0) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("vary", ["epoch", "record_id"])
    def test_uniform(self, vary):
        """
        3 of 10 in 2,000 draws: each index is expected 600 times, with a standard deviation of sqrt(2000 * .3 * .7) =
        20.5. All within 5 of these.
        """
        counts = torch.zeros(10)
        for value in range(2000):
            counts[draw_negatives(10, 3, **{"seed": 4, "epoch": 0, "record_id": 0, vary: value})] += 1
        assert counts.sum() == 6000
        assert (counts - 600).abs().max() < 5 * 20.5

    def test_record_id_of_a_stream(self):
        assert len(draw_negatives(10, 3, seed=0, epoch=0, record_id=2**63 - 1)) == 3


def pool_records(num=4, pool=8):
    """The k-th rejected completion of record i is the token 100 * i + k."""
    return [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [[100 * i + k] for k in range(pool)], "record_id": i}
        for i in range(num)
    ]


def drawn_indices(batch):
    return [
        [token % 100 for token in row[mask.bool()].tolist()[1:]]
        for row, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]


class TestDrawInBatches:
    def test_takes_what_is_drawn(self):
        collator = DataCollatorForMultiPreference(0, num_negatives=3, seed=5)
        for epoch in (0, 1, 7):
            collator.epoch.fill_(epoch)
            batch = collator(pool_records())
            assert drawn_indices(batch) == [draw_negatives(8, 3, 5, epoch, i) for i in range(4)]
            assert batch["record_id"].tolist() == [0, 1, 2, 3]
            assert batch["num_completions"].tolist() == [4] * 4

    def test_place_in_the_batch_does_not_matter(self):
        collator = DataCollatorForMultiPreference(0, num_negatives=3)
        assert drawn_indices(collator(pool_records()[::-1])) == drawn_indices(collator(pool_records()))[::-1]

    def test_ragged_pools(self):
        collator = DataCollatorForMultiPreference(0, num_negatives=3)
        batch = collator([*pool_records(1), *pool_records(2, pool=2)[1:]])
        assert batch["num_completions"].tolist() == [4, 3]
        assert drawn_indices(batch)[1] == [0, 1]

    def test_without_record_id(self):
        collator = DataCollatorForMultiPreference(0, num_negatives=1)
        with pytest.raises(ValueError, match=r"`num_negatives=1` draws by the `record_id`.*Add a column `record_id`"):
            collator(RECORDS)

    @pytest.mark.parametrize("persistent_workers", [False, True])
    def test_workers_see_the_epoch_change(self, persistent_workers):
        collator = DataCollatorForMultiPreference(0, num_negatives=3, seed=5)
        callback = EpochCallback(collator.epoch)
        loader = DataLoader(
            pool_records(), batch_size=2, collate_fn=collator, num_workers=2, persistent_workers=persistent_workers
        )
        callback.epoch.fill_(0)
        for epoch in range(3):
            callback.epoch.fill_(epoch)
            drawn = [indices for batch in loader for indices in drawn_indices(batch)]
            assert drawn == [draw_negatives(8, 3, 5, epoch, i) for i in range(4)]

    def test_same_for_any_sharding(self):
        """Two processes with half of the records each draw what one process draws."""
        collator = DataCollatorForMultiPreference(0, num_negatives=3)
        whole = drawn_indices(collator(pool_records()))
        halves = [Dataset.from_list(pool_records()).shard(2, i, contiguous=False).to_list() for i in range(2)]
        sharded = [drawn_indices(collator(half)) for half in halves]
        assert [whole[0], whole[2]] == sharded[0]
        assert [whole[1], whole[3]] == sharded[1]


class TestReferenceLogps:
    def test_sliced_by_the_draw(self):
        """The cache is as wide as the largest pool; NaN fills what a record does not have."""
        records = [*pool_records(1), *pool_records(2, pool=2)[1:]]
        for i, record in enumerate(records):
            pool = len(record["rejected_ids"])
            record["ref_chosen_logps"] = -1.0 - i
            record["ref_rejected_logps"] = [-float(k) for k in range(pool)] + [float("nan")] * (8 - pool)
        collator = DataCollatorForMultiPreference(0, num_negatives=3, seed=5)
        batch = collator(records)
        first = draw_negatives(8, 3, 5, 0, 0)
        assert batch["ref_chosen_logps"].tolist() == [-1.0, -2.0]
        expected = torch.tensor([[-float(k) for k in first], [0.0, -1.0, math.nan]])
        torch.testing.assert_close(batch["ref_rejected_logps"], expected, equal_nan=True)

    @pytest.mark.parametrize("prefix_sharing", [True, False])
    def test_same_in_both_layouts(self, prefix_sharing):
        records = [{**record, "ref_chosen_logps": -1.0, "ref_rejected_logps": [-2.0, -3.0]} for record in RECORDS]
        batch = DataCollatorForMultiPreference(0, prefix_sharing=prefix_sharing)(records)
        expected = torch.tensor([[-2.0, -3.0], [-2.0, math.nan]])
        torch.testing.assert_close(batch["ref_rejected_logps"], expected, equal_nan=True)
        assert batch["ref_chosen_logps"].shape == (2,)
