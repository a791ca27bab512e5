import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset

from trl_sdpo.data_utils import drop_too_long
from trl_sdpo.prefix_sharing.collator import DataCollatorForMultiPreference
from trl_sdpo.tokenization import tokenize_dataset
from trl_sdpo.trainer.dataset_preparation import DrawnLengths, LengthGroupedSampler, OwnShards


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(10, 500, size=1003)


def padded_share(lengths, order, batch_size):
    batches = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    return sum(len(batch) * batch.max() for batch in batches) / lengths.sum()


class TestLengthGroupedSampler:
    @pytest.mark.parametrize("size", [1, 3, 4, 100, 101, 1003])
    def test_takes_every_record_once(self, lengths, size):
        sampler = LengthGroupedSampler(lengths[:size], batch_size=4, seed=0)
        assert len(sampler) == size
        assert sorted(sampler) == list(range(size))

    def test_by_seed_and_epoch_alone(self, lengths):
        sampler = LengthGroupedSampler(lengths, batch_size=4, seed=3)
        first = list(sampler)
        np.random.seed(1)
        assert list(sampler) == first
        sampler.set_epoch(1)
        second = list(sampler)
        assert second != first
        again = LengthGroupedSampler(lengths, batch_size=4, seed=3)
        again.set_epoch(1)
        assert list(again) == second
        assert list(LengthGroupedSampler(lengths, batch_size=4, seed=4)) != first

    def test_little_is_padding(self, lengths):
        """Lengths from 10 to 500 in batches of 8: at random about 1.7 tokens for each, here at most 1.05."""
        order = list(LengthGroupedSampler(lengths, batch_size=8, seed=0))
        assert padded_share(lengths, np.random.default_rng(1).permutation(len(lengths)), 8) > 1.5
        assert padded_share(lengths, order, 8) < 1.05

    def test_longest_first_and_the_short_batch_last(self, lengths):
        order = list(LengthGroupedSampler(lengths, batch_size=8, seed=0))
        assert lengths[order[0]] == lengths.max()
        # 1003 = 125 batches of 8 and one of 3, of like length too
        firsts = [lengths[order[i]] for i in range(0, len(order), 8)]
        assert len(firsts) == 126
        # after the first the batches are in no order of length
        assert abs(np.corrcoef(np.arange(1, 125), firsts[1:125])[0, 1]) < 0.3


def test_lengths_of_what_is_drawn():
    """As the collator lays them out in that epoch, and little padding where pools differ and draws do not."""
    generator = np.random.default_rng(0)

    def tokens(low, high):
        return [5] * int(generator.integers(low, high))

    rows = [
        {
            "record_id": 7 * i,
            "prompt_ids": tokens(1, 40),
            "chosen_ids": tokens(1, 9),
            "rejected_ids": [tokens(1, 9) for _ in range(int(generator.integers(1, 60)))],
        }
        for i in range(200)
    ]
    lengths = DrawnLengths(Dataset.from_list(rows), num_negatives=3, seed=4)
    collator = DataCollatorForMultiPreference(pad_token_id=0, num_negatives=3, seed=4, pad_to_multiple_of=1)
    for epoch in (0, 2):
        collator.epoch.fill_(epoch)
        expected = [collator([row])["attention_mask"].sum().item() for row in rows]
        assert lengths(epoch).tolist() == expected
    sampler = LengthGroupedSampler(lengths, batch_size=8, seed=0)
    sampler.set_epoch(2)
    batches = np.array(expected)[list(sampler)].reshape(-1, 8)
    assert (batches.max(axis=1) * 8).sum() / batches.sum() < 1.1


class TestOwnShards:
    @pytest.fixture
    def stream(self):
        return Dataset.from_list([{"number": number} for number in range(20)]).to_iterable_dataset(num_shards=5)

    def test_passes_follow_each_other(self, stream):
        """Every record once in each, in the order of the shards and then in another one, which the seed decides."""
        rows = [*itertools.islice(OwnShards(stream, 3, 4, 0, 1), 60)]
        assert [row["stream_pass"] for row in rows] == [0] * 20 + [1] * 20 + [2] * 20
        passes = [[row["number"] for row in rows[start : start + 20]] for start in (0, 20, 40)]
        assert passes[0] == [*range(20)]
        assert [sorted(numbers) for numbers in passes] == [[*range(20)]] * 3
        assert len({tuple(numbers) for numbers in passes}) == 3
        assert rows == [*itertools.islice(OwnShards(stream, 3, 4, 0, 1), 60)]
        assert rows != [*itertools.islice(OwnShards(stream, 4, 4, 0, 1), 60)]

    def test_processes_and_their_workers_share_them_out(self, stream):
        """What accelerate keeps of a batch of all processes is what a process has read."""
        own = ([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], [4, 5, 6, 7, 12, 13, 14, 15])
        for process in (0, 1):
            part = OwnShards(stream, 0, 3, process, 2)
            kept = IterableDatasetShard(part, batch_size=3, num_processes=2, process_index=process)
            rows = [*itertools.islice(kept, 24)]
            assert [row["number"] for row in rows][: len(own[process])] == own[process]
            assert [row["stream_pass"] for row in rows] == [place // len(own[process]) for place in range(24)]
        loader = torch.utils.data.DataLoader(OwnShards(stream, 0, 1, 0, 2), batch_size=None, num_workers=2)
        found = [row["number"] for row in itertools.islice(loader, 32) if row is not None]
        assert {*range(4), *range(8, 12), *range(16, 20)} == {*found}

    def test_shards_without_a_record_are_an_error(self, stream):
        few = stream.filter(lambda row: row["number"] not in (4, 5, 6, 7, 12, 13, 14, 15))
        with pytest.raises(
            ValueError, match=r"The shards \[1, 3\] of the training stream, which has 5, hold no record"
        ):
            [*itertools.islice(OwnShards(few, 0, 1, 1, 2), 2)]

    def test_memory_does_not_grow_with_the_records(self, tokenizer, records):
        """Of what a process reads, nothing is kept but the tokens of completions, which recur."""
        stream = tokenize_dataset(Dataset.from_list(records(40)).to_iterable_dataset(num_shards=2), tokenizer, "")
        reader = iter(OwnShards(drop_too_long(stream, 1_000, "train"), 0, 1, 0, 1))
        sizes = []
        for _ in range(3):
            for _ in range(200):
                next(reader)
            if not sizes:
                tracemalloc.start()
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert sizes[2] - sizes[1] < 50_000  # 250 bytes a record
