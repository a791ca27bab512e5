"""The masks by hand, in each of the forms that attention implementations take."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from trl_sdpo.prefix_sharing.masks import shared_prefix_mask, shared_prefix_masks, windows_of_layers


SEGMENTS = torch.tensor([[0, 0, 1, 1, 2, 2, -1]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 2, 3, 0]])
EXPECTED = torch.tensor(
    [  # keys: p1 p2 | p3 c1 | p3 r1 | padding
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
).bool()
# A token sees the two positions before its own at most; padding stands at position 0
EXPECTED_IN_A_WINDOW_OF_3 = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
).bool()


@pytest.mark.parametrize(("window", "expected"), [(None, EXPECTED), (3, EXPECTED_IN_A_WINDOW_OF_3), (4, EXPECTED)])
class TestByHand:
    def test_boolean(self, window, expected):
        mask = shared_prefix_mask(SEGMENTS, POSITIONS, "sdpa", torch.bool, window)
        assert mask.dtype == torch.bool
        assert mask.shape == (1, 1, 7, 7)
        assert torch.equal(mask[0, 0], expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    def test_additive(self, window, expected, attn_implementation, dtype):
        mask = shared_prefix_mask(SEGMENTS, POSITIONS, attn_implementation, dtype, window)
        assert mask.dtype == dtype
        assert (mask[0, 0][expected] == 0).all()
        assert (mask[0, 0][~expected] == torch.finfo(dtype).min).all()

    def test_flex_attention_takes_a_block_mask(self, window, expected):
        mask = shared_prefix_mask(SEGMENTS, POSITIONS, "flex_attention", torch.float32, window)
        index = torch.arange(7)
        assert mask.shape == (1, 1, 7, 7)
        assert torch.equal(mask.mask_mod(0, 0, index.view(-1, 1), index.view(1, -1)), expected)


@pytest.mark.parametrize("window", [None, 1])
def test_no_row_is_empty(window):
    """A query without a key gives NaN in softmax, in padding too."""
    padding = torch.full((2, 5), -1)
    assert shared_prefix_mask(padding, torch.zeros_like(padding), "sdpa", torch.bool, window).any(dim=-1).all()


class TestWindows:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (LlamaConfig(), {"full_attention": None}),
            (MistralConfig(sliding_window=None), {"full_attention": None}),
            (MistralConfig(sliding_window=8), {"sliding_attention": 8}),
            (
                Gemma3TextConfig(num_hidden_layers=6, sliding_window=8),
                {"full_attention": None, "sliding_attention": 8},
            ),
            (Gemma3TextConfig(num_hidden_layers=2, sliding_window=8), {"sliding_attention": 8}),
            (Qwen2Config(use_sliding_window=False, sliding_window=8), {"full_attention": None}),
            (
                Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1),
                {"full_attention": None, "sliding_attention": 8},
            ),
        ],
    )
    def test_of_layers(self, config, expected):
        assert windows_of_layers(config) == expected

    def test_a_mask_for_each_type_of_layer(self):
        batch = {"segment_ids": SEGMENTS, "position_ids": POSITIONS}
        config = Gemma3TextConfig(num_hidden_layers=6, sliding_window=3)
        config._attn_implementation = "sdpa"
        masks = shared_prefix_masks(config, batch, torch.bool)
        assert torch.equal(masks["full_attention"][0, 0], EXPECTED)
        assert torch.equal(masks["sliding_attention"][0, 0], EXPECTED_IN_A_WINDOW_OF_3)

    def test_one_mask_for_layers_of_one_type(self):
        batch = {"segment_ids": SEGMENTS, "position_ids": POSITIONS}
        config = MistralConfig(sliding_window=3)
        config._attn_implementation = "sdpa"
        assert torch.equal(shared_prefix_masks(config, batch, torch.bool)[0, 0], EXPECTED_IN_A_WINDOW_OF_3)


@st.composite
def shared_rows(draw):
    """Rows of a prompt and of segments, the first of which need not be 1, with padding at the end."""
    rows, width = [], 0
    for _ in range(draw(st.integers(1, 3))):
        prompt, first = draw(st.integers(0, 400)), draw(st.integers(1, 3))
        lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
        segments, positions = [0] * prompt, list(range(prompt))
        for number, length in enumerate(lengths, start=first):
            segments += [number] * length
            positions += range(prompt, prompt + length)
        rows.append((segments, positions))
        width = max(width, len(segments))
    width += draw(st.sampled_from([0, 1, 128, 200]))
    filled = [(s + [-1] * (width - len(s)), p + [0] * (width - len(p))) for s, p in rows]
    return torch.tensor([s for s, _ in filled]), torch.tensor([p for _, p in filled])


@settings(deadline=None, max_examples=40)
@given(rows=shared_rows(), window=st.sampled_from([None, 1, 100, 128, 300]))
def test_blocks_are_those_of_the_dense_mask(rows, window):
    """`create_block_mask` looks at every entry; a block that it finds empty may be visited here under a window alone."""
    segments, positions = rows
    ours = shared_prefix_mask(segments, positions, "flex_attention", torch.float32, window)
    size, length = segments.shape
    dense = create_block_mask(ours.mask_mod, size, None, length, length, device="cpu")
    assert ours.seq_lengths == dense.seq_lengths
    assert ours.BLOCK_SIZE == dense.BLOCK_SIZE
    visited, needed = ours.to_dense().bool(), dense.to_dense().bool()
    assert not (needed & ~visited).any()
    if window is None:
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(ours, name), getattr(dense, name)), name
        assert torch.equal(visited, needed)
        assert torch.equal(_full(ours), _full(dense))
    else:
        assert not (_full(ours) & ~_full(dense)).any()


def _full(mask):
    """Blocks in which nothing is masked, of shape `(B, 1, blocks, blocks)`."""
    full = torch.zeros(mask.full_kv_indices.shape, dtype=torch.bool)
    there = torch.arange(full.size(-1)) < mask.full_kv_num_blocks.unsqueeze(-1)
    return full.scatter(-1, mask.full_kv_indices.long(), there)


def test_flex_attention_makes_no_square_of_the_row():
    length = 8 * 128
    segments = torch.arange(length).div(100, rounding_mode="floor").unsqueeze(0)
    with LargestTensor() as seen:
        shared_prefix_mask(segments, torch.arange(length).unsqueeze(0), "flex_attention", torch.float32, 50)
    assert seen.most <= length


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of a tensor that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(one.numel() for one in tree_leaves(output) if isinstance(one, torch.Tensor))])
        return output


def test_rows_of_a_trainer_are_whole_blocks_under_flex_attention(llama, records, make_trainer):
    for attention, multiple in (("flex_attention", 128), ("sdpa", 16)):
        model = llama()
        model.set_attn_implementation(attention)
        trainer = make_trainer(model, records(8), ref_model=llama())
        assert next(iter(trainer.get_train_dataloader()))["input_ids"].size(1) % multiple == 0
        assert (trainer.data_collator.pad_to_multiple_of or 16) == multiple
