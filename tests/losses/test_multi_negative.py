import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.closeness import assert_same_numbers
from trl_sdpo import dmpo_loss, mppo_loss, nca_loss, softmax_dpo_loss
from trl_sdpo.losses.multi_negative import check_finite


def random_logratios(seed, num_records=6, num_rejected=5, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logratios = scale * torch.randn(num_records, 1 + num_rejected, generator=generator, dtype=dtype)
    return logratios[:, 0], logratios[:, 1:]


class TestSoftmaxDPOLoss:
    def test_two_negatives_by_hand(self):
        """
        beta = 0.5 and log-ratios 2 (chosen), 0 and -2 give rewards 1, 0 and -1. The softmax of the chosen one is
        e / (e + 1 + 1/e) = 2.718282 / 4.086161 = 0.665241, and -ln 0.665241 = 0.407606.
        """
        loss = softmax_dpo_loss(torch.tensor([2.0]), torch.tensor([[0.0, -2.0]]), beta=0.5)
        assert loss.shape == (1,)
        assert loss.item() == pytest.approx(0.407606, abs=1e-6)

    def test_powers_of_two_by_hand(self):
        """
        Log-ratios ln 4 (chosen), ln 1, ln 1 and ln 2 at beta = 1: the chosen has 4 / (4 + 1 + 1 + 2) = 1/2, so the
        loss is ln 2. At beta = 2 it has 16 / (16 + 1 + 1 + 4) = 16/22, so the loss is ln(11/8).
        """
        chosen, rejected = torch.tensor([4.0]).log(), torch.tensor([[1.0, 1.0, 2.0]]).log()
        assert softmax_dpo_loss(chosen, rejected, beta=1.0).item() == pytest.approx(math.log(2), abs=1e-6)
        assert softmax_dpo_loss(chosen, rejected, beta=2.0).item() == pytest.approx(math.log(11 / 8), abs=1e-6)

    def test_records_do_not_mix(self):
        """One loss per record: (0; 0, 0) gives ln 3, and (ln 3; ln 1, ln 2) gives -ln(3/6) = ln 2."""
        chosen, rejected = torch.tensor([1.0, 3.0]).log(), torch.tensor([[1.0, 1.0], [1.0, 2.0]]).log()
        losses = softmax_dpo_loss(chosen, rejected, beta=1.0)
        torch.testing.assert_close(losses, torch.tensor([3.0, 2.0]).log())

    @pytest.mark.parametrize("num_rejected", [1, 3, 19, 63])
    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_starts_at_log_of_one_plus_k(self, num_rejected, beta):
        """Where policy and reference agree, all 1 + K rewards are 0, and so the chosen has 1 / (1 + K)."""
        losses = softmax_dpo_loss(torch.zeros(4), torch.zeros(4, num_rejected), beta=beta)
        torch.testing.assert_close(losses, torch.full((4,), math.log(1 + num_rejected)))

    def test_one_negative_is_dpo(self):
        chosen, rejected = random_logratios(0, num_rejected=1)
        losses = softmax_dpo_loss(chosen, rejected, beta=0.7)
        torch.testing.assert_close(losses, -F.logsigmoid(0.7 * (chosen - rejected[:, 0])))

    def test_order_of_negatives_does_not_matter(self):
        chosen, rejected = random_logratios(1)
        losses = softmax_dpo_loss(chosen, rejected, beta=1.0)
        for seed in range(5):
            order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(softmax_dpo_loss(chosen, rejected[:, order], beta=1.0), losses)

    def test_equals_equation_11_of_the_paper(self):
        """Eq. 11 as it is printed, -log sigmoid(-log sum_d exp(r_d - r_0)), in float64, which holds them."""
        chosen, rejected = random_logratios(2, num_records=50)
        beta = 0.8
        inner = np.log(np.exp(beta * rejected.numpy() - beta * chosen.numpy()[:, None]).sum(axis=1))
        expected = -np.log(1 / (1 + np.exp(inner)))
        assert_same_numbers(softmax_dpo_loss(chosen, rejected, beta).numpy(), expected)

    @pytest.mark.parametrize(
        ("chosen", "rejected", "expected"),
        [
            (1e4, [0.0, 0.0], 0.0),
            (-1e4, [0.0, 0.0], 1e4 + math.log(2)),
            (0.0, [90.0, 89.0], 90 + math.log(1 + math.exp(-1) + math.exp(-90))),  # exp(89) overflows in float32
            (0.0, [-105.0, -110.0], 0.0),  # exp(-105) is 0 in float32, and its logarithm -inf
            (0.0, [1e4, -1e4], 1e4),
        ],
    )
    def test_extreme_margins_are_finite(self, chosen, rejected, expected):
        """
        With one reward far above the others the loss is that reward minus the chosen one (plus ln 2 for two equal
        ones), or 0 when it is the chosen. log(sum(exp(.))) in float32 gives inf, or NaN in the gradient, on these.
        """
        chosen = torch.tensor([chosen], requires_grad=True)
        rejected = torch.tensor([rejected], requires_grad=True)
        loss = softmax_dpo_loss(chosen, rejected, beta=1.0)
        loss.sum().backward()
        assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert torch.isfinite(chosen.grad).all()
        assert torch.isfinite(rejected.grad).all()
        # the gradient pushes the chosen up as much as it pushes all rejected ones down
        assert (chosen.grad.sum() + rejected.grad.sum()).item() == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
    def test_gradient_is_equation_12_of_the_paper(self, beta):
        """
        Eq. 12: the chosen is pushed by -beta * sigma(log sum_d exp(r_d - r_0)), and each negative by the same times
        its weight exp(r_d) / sum_d' exp(r_d').
        """
        chosen, rejected = random_logratios(3, scale=1.0)
        chosen.requires_grad_()
        rejected.requires_grad_()
        softmax_dpo_loss(chosen, rejected, beta).sum().backward()
        r_chosen, r_rejected = beta * chosen.detach().numpy(), beta * rejected.detach().numpy()
        strength = 1 / (1 + np.exp(-np.log(np.exp(r_rejected - r_chosen[:, None]).sum(axis=1))))
        weights = np.exp(r_rejected) / np.exp(r_rejected).sum(axis=1, keepdims=True)
        assert_same_numbers(chosen.grad.numpy(), -beta * strength)
        assert_same_numbers(rejected.grad.numpy(), beta * strength[:, None] * weights)

    def test_gradient_by_hand(self):
        """Rewards ln 2, ln 1, ln 3: softmax 2/6, 1/6, 3/6. Gradient of the loss: softmax minus one at the chosen."""
        chosen, rejected = torch.tensor([2.0]).log(), torch.tensor([[1.0, 3.0]]).log()
        chosen.requires_grad_()
        rejected.requires_grad_()
        softmax_dpo_loss(chosen, rejected, beta=1.0).sum().backward()
        torch.testing.assert_close(chosen.grad, torch.tensor([-4 / 6]))
        torch.testing.assert_close(rejected.grad, torch.tensor([[1 / 6, 3 / 6]]))

    def test_gradcheck_in_float64(self):
        chosen, rejected = random_logratios(4, num_records=3)
        mask = torch.tensor([[True] * 5, [True, True, False, True, False], [True] + [False] * 4])
        inputs = (chosen.requires_grad_(), rejected.requires_grad_())
        assert softmax_dpo_loss(*inputs, 1.0).dtype == torch.float64
        assert torch.autograd.gradcheck(lambda c, r: softmax_dpo_loss(c, r, 0.5, mask), inputs)

    def test_half_precision_is_computed_in_float32(self):
        """
        All these log-ratios are bfloat16 numbers. Their rewards at beta = 0.1 are not: in bfloat16 12.8 and 12.7 would
        round to steps of 1/16. The loss must be that of float32 on the same numbers.
        """
        chosen, rejected = torch.tensor([128.0]), torch.tensor([[127.0, 126.0, 125.0]])
        expected = softmax_dpo_loss(chosen, rejected, beta=0.1)
        for dtype in (torch.bfloat16, torch.float16):
            losses = softmax_dpo_loss(chosen.to(dtype), rejected.to(dtype), beta=0.1)
            assert losses.dtype == torch.float32
            torch.testing.assert_close(losses, expected, rtol=0, atol=0)


def mppo(chosen, rejected, beta, mask=None):
    """MPPO takes log-probabilities and no beta."""
    return mppo_loss(-chosen.abs(), -rejected.abs(), mask)


LOSSES = [softmax_dpo_loss, nca_loss, dmpo_loss, mppo]


@pytest.mark.parametrize("loss_fn", LOSSES)
class TestAllLosses:
    @pytest.mark.parametrize("hidden", [0.0, 1e4, float("nan"), float("inf"), -float("inf")])
    def test_mask_gives_the_loss_of_the_shorter_record(self, loss_fn, hidden):
        """Whatever stands in a masked column, loss and gradient are those of the record without the column."""
        chosen, rejected = random_logratios(5, num_records=2)
        mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
        padded = rejected.masked_fill(~mask, hidden)
        chosen.requires_grad_()
        padded.requires_grad_()
        losses = loss_fn(chosen, padded, 1.0, mask)
        losses.sum().backward()

        short_chosen = chosen.detach()[1:].requires_grad_()
        short_rejected = rejected[1:, [0, 2]].clone().requires_grad_()
        short = loss_fn(short_chosen, short_rejected, 1.0)
        short.sum().backward()
        torch.testing.assert_close(losses[1:], short)
        torch.testing.assert_close(losses[0], loss_fn(chosen[:1], rejected[:1], 1.0)[0])
        torch.testing.assert_close(chosen.grad[1:], short_chosen.grad)
        torch.testing.assert_close(padded.grad[1, [0, 2]], short_rejected.grad[0])
        assert (padded.grad[1, [1, 3, 4]] == 0).all()

    def test_record_without_negatives_costs_nothing(self, loss_fn):
        chosen = torch.tensor([-3.0], requires_grad=True)
        loss = loss_fn(chosen, torch.tensor([[1.0, 2.0]]), 1.0, torch.zeros(1, 2, dtype=torch.bool))
        loss.sum().backward()
        assert loss.item() == 0
        assert chosen.grad.item() == 0

    def test_integer_mask(self, loss_fn):
        chosen, rejected = random_logratios(6)
        mask = torch.tensor([[1, 1, 0, 1, 0]] * 6)
        torch.testing.assert_close(
            loss_fn(chosen, rejected, 1.0, mask), loss_fn(chosen, rejected, 1.0, mask.bool()), rtol=0, atol=0
        )

    @pytest.mark.parametrize(
        ("chosen", "rejected", "mask", "message"),
        [
            ((4, 1), (4, 3), None, r"shape \(B,\).*got \(4, 1\) and \(4, 3\)"),
            ((4,), (4,), None, r"shape \(B, K\), got \(4,\) and \(4,\)"),
            ((), (1, 3), None, r"got \(\) and \(1, 3\)"),
            ((4,), (3, 2), None, r"\(3, 2\) for 4 records"),
            ((4,), (1, 2), None, r"\(1, 2\) for 4 records"),  # would broadcast
            ((4,), (4, 0), None, r"at least one column.*\(4, 0\)"),
            ((4,), (4, 2), (4, 3), r"`mask`.*\(4, 2\), got \(4, 3\)"),
            ((4,), (4, 2), (2,), r"`mask`.*\(4, 2\), got \(2,\)"),
        ],
    )
    def test_wrong_shapes_raise(self, loss_fn, chosen, rejected, mask, message):
        mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
        with pytest.raises(ValueError, match=message):
            loss_fn(torch.zeros(chosen), torch.zeros(rejected), 1.0, mask)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_gradcheck_in_float64(loss_fn):
    chosen, rejected = random_logratios(9, num_records=3, scale=1.0)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False], [True] + [False] * 4])
    inputs = (chosen.requires_grad_(), rejected.requires_grad_())
    assert loss_fn(*inputs, 1.0).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda c, r: loss_fn(c, r, 0.5, mask), inputs)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_half_precision_is_computed_in_float32(loss_fn):
    """All inputs are bfloat16 numbers; sums and means of them are not, nor are their products with 0.1."""
    chosen, rejected = torch.tensor([-0.125, 2.0]), torch.tensor([[-1.0, -0.0625, 3.0], [0.5, 1.0, -2.0]])
    losses = loss_fn(chosen.bfloat16(), rejected.bfloat16(), beta=0.1)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, loss_fn(chosen, rejected, beta=0.1), rtol=0, atol=0)


class TestNCALoss:
    def test_by_hand(self):
        """
        Rewards ln 3 (chosen), 0 and ln 3 at beta = 1: sigma is 3/4, 1/2 and 3/4, sigma of the negative 1/4, 1/2, 1/4.
        The loss is -ln 3/4 - (ln 1/4 + ln 1/2 + ln 1/4) / 3 = 0.287682 + 3.465736 / 3 = 1.442927.
        """
        losses = nca_loss(torch.tensor([3.0]).log(), torch.tensor([[1.0, 3.0]]).log(), beta=1.0)
        assert losses.item() == pytest.approx(1.442927, abs=1e-6)

    def test_beta_scales_the_rewards(self):
        """Log-ratios 2 ln 3, 0 and 2 ln 3 at beta = 0.5 are the rewards above."""
        losses = nca_loss(2 * torch.tensor([3.0]).log(), 2 * torch.tensor([[1.0, 3.0]]).log(), beta=0.5)
        assert losses.item() == pytest.approx(1.442927, abs=1e-6)

    @pytest.mark.parametrize("num_rejected", [1, 3, 19])
    def test_starts_at_two_log_two_whatever_k(self, num_rejected):
        losses = nca_loss(torch.zeros(2), torch.zeros(2, num_rejected), beta=0.3)
        torch.testing.assert_close(losses, torch.full((2,), 2 * math.log(2)))

    def test_is_the_limit_of_explicit_rewards(self):
        """The paper's loss for explicit rewards (1, 0, 0, 0, 0, 0) at alpha = 0.01, in numpy."""
        chosen, rejected = random_logratios(10)
        rewards = 0.7 * torch.cat([chosen[:, None], rejected], dim=1).numpy()
        explicit = np.exp(np.array([1.0, 0, 0, 0, 0, 0]) / 0.01)
        weights = explicit / explicit.sum()
        expected = (weights * np.log1p(np.exp(-rewards))).sum(axis=1) + np.log1p(np.exp(rewards)).mean(axis=1)
        assert_same_numbers(nca_loss(chosen, rejected, 0.7).numpy(), expected)

    def test_chosen_alone_is_pulled_up(self):
        """At the start the chosen gets -1/2 + 1/2 / (1 + K), each rejected one 1/2 / (1 + K), times beta."""
        chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
        nca_loss(chosen, rejected, beta=2.0).sum().backward()
        torch.testing.assert_close(chosen.grad, torch.tensor([2 * (-1 / 2 + 1 / 8)]))
        torch.testing.assert_close(rejected.grad, torch.full((1, 3), 2 / 8))


class TestDMPOLoss:
    def test_by_hand(self):
        """Rewards ln 3, and 0 and ln 9, whose mean is ln 3: -ln sigma(0) = ln 2. Alone, 0 gives -ln 3/4 = ln(4/3)."""
        chosen, rejected = torch.tensor([3.0]).log(), torch.tensor([[1.0, 9.0]]).log()
        assert dmpo_loss(chosen, rejected, beta=1.0).item() == pytest.approx(math.log(2), abs=1e-6)
        mask = torch.tensor([[True, False]])
        assert dmpo_loss(chosen, rejected, 1.0, mask).item() == pytest.approx(math.log(4 / 3), abs=1e-6)
        # at beta = 2 the margin of ln 3 is ln 9, of which sigma is 9/10
        assert dmpo_loss(chosen, rejected, 2.0, mask).item() == pytest.approx(math.log(10 / 9), abs=1e-6)

    @pytest.mark.parametrize("num_rejected", [1, 3, 19])
    def test_starts_at_log_two_whatever_k(self, num_rejected):
        losses = dmpo_loss(torch.zeros(2), torch.zeros(2, num_rejected), beta=0.3)
        torch.testing.assert_close(losses, torch.full((2,), math.log(2)))

    def test_all_negatives_weigh_the_same(self):
        chosen, rejected = torch.zeros(1), torch.tensor([[-3.0, 0.0, 3.0]], requires_grad=True)
        dmpo_loss(chosen, rejected, beta=0.6).sum().backward()
        torch.testing.assert_close(rejected.grad, torch.full((1, 3), 0.6 / 2 / 3))

    def test_is_at_most_dpo_over_the_pairs(self):
        chosen, rejected = random_logratios(11)
        pairs = -F.logsigmoid(chosen[:, None] - rejected)
        assert (dmpo_loss(chosen, rejected, 1.0) < pairs.mean(dim=1)).all()

    def test_one_negative_is_dpo(self):
        chosen, rejected = random_logratios(12, num_rejected=1)
        torch.testing.assert_close(dmpo_loss(chosen, rejected, 0.7), softmax_dpo_loss(chosen, rejected, 0.7))


class TestMPPOLoss:
    def test_by_hand(self):
        """
        Average likelihoods 1/2 (chosen), 1/4 and 3/8: the margin is 2/2 - 1/4 - 3/8 = 3/8, and
        -ln sigma(0.375) = ln(1 + exp(-0.375)) = ln 1.687289 = 0.523123.
        """
        losses = mppo_loss(torch.tensor([1 / 2]).log(), torch.tensor([[1 / 4, 3 / 8]]).log())
        assert losses.item() == pytest.approx(0.523123, abs=1e-6)

    def test_mask_lowers_k(self):
        """Without the second: 1/2 - 1/4 = 1/4, and ln(1 + exp(-0.25)) = 0.575939."""
        logps = torch.tensor([1 / 2]).log(), torch.tensor([[1 / 4, 3 / 8]]).log()
        assert mppo_loss(*logps, torch.tensor([[True, False]])).item() == pytest.approx(0.575939, abs=1e-6)

    def test_gradient_by_hand(self):
        """d/dlog p of -ln sigma(m) is -sigma(-m) dm/dp p, with dm/dp K for the chosen and -1 for a rejected one."""
        chosen = torch.tensor([1 / 2]).log().requires_grad_()
        rejected = torch.tensor([[1 / 4, 3 / 8]]).log().requires_grad_()
        mppo_loss(chosen, rejected).sum().backward()
        strength = 1 / (1 + math.exp(0.375))
        torch.testing.assert_close(chosen.grad, torch.tensor([-strength * 2 / 2]))
        torch.testing.assert_close(rejected.grad, torch.tensor([[strength / 4, strength * 3 / 8]]))

    def test_bounds(self):
        """Likelihoods of 1 and 0 are the best there is: a margin of K."""
        losses = mppo_loss(torch.zeros(1), torch.full((1, 4), -1e4))
        assert losses.item() == pytest.approx(math.log(1 + math.exp(-4)), abs=1e-6)


class TestCheckFinite:
    def test_names_the_records(self):
        losses = torch.tensor([1.0, math.inf, 2.0, math.nan])
        with pytest.raises(
            ValueError, match=r"loss is \[inf, nan\] for the records with `record_id` \[11, 13\] at step 7"
        ):
            check_finite(losses, torch.tensor([10, 11, 12, 13]), step=7)
        assert check_finite(losses[[0, 2]], None, step=7) is None
