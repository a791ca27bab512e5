"""The masks by hand, in each of the forms that attention implementations take."""

import pytest
import torch
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
