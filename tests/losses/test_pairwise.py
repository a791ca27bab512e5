import math

import pytest
import torch

from helpers.closeness import assert_same_numbers
from trl_sdpo.losses.pairwise import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    exo_pair_loss,
    f_divergence_scores,
    hinge_loss,
    ipo_loss,
    length_desensitized_log_probs,
    mean_over_pairs,
    nca_pair_loss,
    robust_loss,
    sigmoid_loss,
    sppo_hard_loss,
    wpo_weights,
)


LN3 = math.log(3)


class TestLossesOfMargins:
    """A margin of 2 ln 3 at beta = 0.5, or its negative: sigma is 3/4, or 1/4."""

    MARGINS = torch.tensor([[2 * LN3, -2 * LN3]])

    @pytest.mark.parametrize(
        ("losses", "expected"),
        [
            (sigmoid_loss(MARGINS, 0.5), [math.log(4 / 3), math.log(4)]),
            (hinge_loss(MARGINS, 0.5), [0.0, 1 + LN3]),
            # 1 / (2 beta) is 1
            (ipo_loss(MARGINS, 0.5), [(2 * LN3 - 1) ** 2, (2 * LN3 + 1) ** 2]),
            # (1 - e) log-likelihood of the label, minus e times that of the other, over 1 - 2e, here with e = 1/4
            (
                robust_loss(MARGINS, 0.5, 0.25),
                [(3 * math.log(4 / 3) - math.log(4)) / 2, (3 * math.log(4) - math.log(4 / 3)) / 2],
            ),
            # KL of (3/4, 1/4), or (1/4, 3/4), to (3/4, 1/4): 0, and 1/4 ln 1/3 + 3/4 ln 3 = ln(3) / 2
            (exo_pair_loss(MARGINS, 0.5, 0.25), [0.0, LN3 / 2]),
            # at tau = 0.5 the modulation is sigma(2 ln 3) = 9/10, and exp(-ln 3) = 1/3
            (
                discopop_loss(MARGINS, 0.5, 0.5),
                [math.log(4 / 3) / 10 + 9 / 10 / 3, math.log(4) * 9 / 10 + 3 / 10],
            ),
        ],
        ids=["sigmoid", "hinge", "ipo", "robust", "exo_pair", "discopop"],
    )
    def test_by_hand(self, losses, expected):
        assert losses.shape == (1, 2)
        assert_same_numbers(losses, torch.tensor([expected]))


class TestLossesOfLogratios:
    """Log-ratios 2 ln 3 of the chosen and -2 ln 2 of the rejected at beta = 0.5: sigma is 3/4 and 1/3."""

    LOGRATIOS = (torch.tensor([[2 * LN3]]), torch.tensor([[-2 * math.log(2)]]))

    @pytest.mark.parametrize(
        ("losses", "expected"),
        [
            (nca_pair_loss(*LOGRATIOS, 0.5), math.log(4 / 3) + math.log(4) / 2 + math.log(3 / 2) / 2),
            (bco_pair_loss(*LOGRATIOS, 0.5), math.log(4 / 3) + math.log(3 / 2)),
            # 1 / (2 beta) is 1
            (sppo_hard_loss(*LOGRATIOS, 0.5), (2 * LN3 - 1) ** 2 + (-2 * math.log(2) + 1) ** 2),
            (apo_zero_loss(*LOGRATIOS, 0.5), 1 / 4 + 1 / 3),
            # the difference of rewards is ln 6, of which sigma is 6/7
            (apo_down_loss(*LOGRATIOS, 0.5), 3 / 4 + 1 / 7),
        ],
        ids=["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"],
    )
    def test_by_hand(self, losses, expected):
        assert losses.item() == pytest.approx(expected, abs=1e-6)


class TestMeanOverPairs:
    def test_counts_what_exists(self):
        losses = torch.tensor([[1.0, 2.0, 6.0], [4.0, math.nan, math.inf], [1.0, 1.0, 1.0]])
        mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
        torch.testing.assert_close(mean_over_pairs(losses, mask), torch.tensor([3.0, 4.0, 0.0]))


class TestFDivergenceScores:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("reverse_kl", math.log(4)),
            ("forward_kl", 1 - 1 / 4),
            ("js_divergence", math.log(2 * 4 / 5)),
            ("alpha_divergence", (1 / 2 - 1) / (-1 / 2)),  # 4 ** (0.5 - 1) = 1/2
        ],
    )
    def test_at_a_ratio_of_four(self, name, expected):
        scores = f_divergence_scores(torch.tensor([4.0]).log(), name)
        assert scores.item() == pytest.approx(expected, abs=1e-6)

    def test_alpha_of_one_is_the_limit(self):
        logratios = torch.linspace(-2, 2, 5)
        assert torch.equal(f_divergence_scores(logratios, "alpha_divergence", 1.0), logratios)
        near = f_divergence_scores(logratios.double(), "alpha_divergence", 1.0001)
        torch.testing.assert_close(near.float(), logratios, rtol=1e-3, atol=1e-3)

    def test_alpha_divergence_does_not_overflow(self):
        scores = f_divergence_scores(torch.tensor([-1e4]), "alpha_divergence", 0.5)
        assert torch.isfinite(scores).all()

    def test_unknown(self):
        with pytest.raises(ValueError, match="Unknown f_divergence_type: hellinger"):
            f_divergence_scores(torch.zeros(1), "hellinger")


class TestLengthDesensitization:
    # chosen of 3 tokens, rejected of 1, 3 and 4 tokens
    TOKEN_LOG_PROBS = torch.tensor(
        [[[-1.0, -2.0, -4.0, 0.0], [-8.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -2.0, 0.0], [-1.0, -1.0, -1.0, -32.0]]]
    )
    NUM_TOKENS = torch.tensor([[3.0, 1.0, 3.0, 4.0]])

    def test_by_hand(self):
        """
        At alpha = 0.5 the chosen is -1 - (2 + 4)/2 = -4 against the first, and -7, whole, against the two others, of
        which only the last is longer: -3 - 32/2 = -19.
        """
        chosen, rejected = length_desensitized_log_probs(self.TOKEN_LOG_PROBS, self.NUM_TOKENS, 0.5)
        torch.testing.assert_close(chosen, torch.tensor([[-4.0, -7.0, -7.0]]))
        torch.testing.assert_close(rejected, torch.tensor([[-8.0, -4.0, -19.0]]))

    def test_alpha_of_zero_cuts(self):
        chosen, rejected = length_desensitized_log_probs(self.TOKEN_LOG_PROBS, self.NUM_TOKENS, 0.0)
        torch.testing.assert_close(chosen, torch.tensor([[-1.0, -7.0, -7.0]]))
        torch.testing.assert_close(rejected, torch.tensor([[-8.0, -4.0, -3.0]]))

    def test_alpha_of_one_is_the_sum(self):
        chosen, rejected = length_desensitized_log_probs(self.TOKEN_LOG_PROBS, self.NUM_TOKENS, 1.0)
        torch.testing.assert_close(chosen, torch.tensor([[-7.0, -7.0, -7.0]]))
        torch.testing.assert_close(rejected, self.TOKEN_LOG_PROBS[:, 1:].sum(dim=2))


class TestWPOWeights:
    def test_from_distributions(self):
        """Two tokens of probabilities 1/2 and 1/4 under (1/2, 1/2) and (1/4, 1/4, 1/4, 1/4): weight 1, then less."""
        log_sum_sq_probs = torch.tensor([math.log(1 / 2) + math.log(1 / 4)] * 2)
        log_probs = torch.tensor([math.log(1 / 2) + math.log(1 / 4), math.log(1 / 8) + math.log(1 / 16)])
        log_probs.requires_grad_()
        weights = wpo_weights(log_probs, log_sum_sq_probs, torch.tensor([2.0, 2.0]))
        assert_same_numbers(weights.numpy(), [1.0, 1 / 4])
        assert not weights.requires_grad

    def test_completion_that_does_not_exist(self):
        assert wpo_weights(torch.zeros(1), torch.zeros(1), torch.zeros(1)).item() == 1
