import numpy as np
import pytest
from datasets import Dataset

from trl_sdpo.prefix_sharing.collator import DataCollatorForMultiPreference
from trl_sdpo.trainer.dataset_preparation import DrawnLengths, LengthGroupedSampler


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
