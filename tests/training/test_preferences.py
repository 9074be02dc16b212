"""The losses of preferences against hand-made numbers and against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import choix
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from textenv.training.preferences import (
    center_loss,
    pair_loss,
    plackett_luce_loss,
    rank_tensor,
    ranking_loss,
)
from textenv.types import Ranking, TextEnvError

INF, NAN = math.inf, math.nan


def double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def one(loss: torch.Tensor) -> float:
    assert loss.shape == (1,)
    return float(loss)


class TestPairs:
    def test_bradley_terry(self) -> None:
        losses = pair_loss(double(math.log(3), 0.0), double(0.0, math.log(3)))
        assert losses.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])

    def test_a_margin_is_taken_off_the_lead(self) -> None:
        assert one(pair_loss(double(1.0), double(0.5), margin=double(0.5))) == pytest.approx(math.log(2))

    def test_a_tie_without_its_outcome_is_half_of_either(self) -> None:
        loss = one(pair_loss(double(math.log(3)), double(0.0), torch.tensor([True])))
        assert loss == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)

    def test_a_tie_has_no_margin(self) -> None:
        tied = torch.tensor([True])
        args = (double(1.0), double(0.0), tied)
        assert one(pair_loss(*args, margin=double(9.0))) == one(pair_loss(*args))

    def test_davidson(self) -> None:
        """Strengths 4 and 1 with nu = 1/2: 4, 1 and sqrt(4 * 1) / 2 = 1 parts of 6."""
        log_nu = torch.tensor(math.log(0.5), dtype=torch.float64)
        strong, weak = double(math.log(4)), double(0.0)
        found = [
            one(pair_loss(strong, weak, log_nu=log_nu)),
            one(pair_loss(weak, strong, log_nu=log_nu)),
            one(pair_loss(weak, strong, torch.tensor([True]), log_nu=log_nu)),
        ]
        assert [math.exp(-loss) for loss in found] == pytest.approx([4 / 6, 1 / 6, 1 / 6])

    def test_judgements_made_at_random(self) -> None:
        assert one(pair_loss(double(50.0), double(0.0), error_rate=0.1)) == pytest.approx(-math.log(0.95))
        assert one(pair_loss(double(0.0), double(1e4), error_rate=0.1)) == pytest.approx(-math.log(0.05))
        log_nu = torch.tensor(0.0, dtype=torch.float64)
        assert one(pair_loss(double(0.0), double(1e4), error_rate=0.3, log_nu=log_nu)) == pytest.approx(-math.log(0.1))

    def test_scores_far_apart_stay_finite(self) -> None:
        better = torch.tensor([-1e4], requires_grad=True)
        loss = pair_loss(better, torch.tensor([1e4])).sum()
        loss.backward()
        assert float(loss.detach()) == pytest.approx(2e4)
        assert float(better.grad) == pytest.approx(-1.0)  # type: ignore[arg-type]

    @pytest.mark.parametrize("rate", [-0.1, 1.0, NAN])
    def test_refuses_what_is_no_share(self, rate: float) -> None:
        with pytest.raises(TextEnvError, match="error_rate="):
            pair_loss(double(0.0), double(0.0), error_rate=rate)

    def test_refuses_shapes_that_broadcast(self) -> None:
        with pytest.raises(TextEnvError, match=r"'worse': \(2, 1\)"):
            pair_loss(torch.zeros(2), torch.zeros(2, 1))


class TestRankings:
    def test_all_pairs_of_a_ranking(self) -> None:
        scores = double(2.0, 0.5, 1.0)
        pairs = [pair_loss(scores[i], scores[j]) for i, j in ((1, 0), (1, 2), (2, 0))]
        assert one(ranking_loss(scores[None], double(2, 0, 1)[None])) == pytest.approx(float(sum(pairs)) / 3)

    def test_agrees_with_the_pairs_that_a_ranking_names(self) -> None:
        rng = np.random.default_rng(0)
        log_nu = torch.tensor(-0.3, dtype=torch.float64)
        for ranks in ((0, 0, 1), (0, None, None, None), (1, 0, 1, 2, None), (0, 2, 0)):
            ranking = Ranking("p", tuple("abcde"[: len(ranks)]), ranks, margin=1.5)
            scores = torch.tensor(rng.normal(size=len(ranks)))
            better, worse, tied = (torch.tensor(part) for part in zip(*ranking.pairs(), strict=True))
            expected = pair_loss(scores[better], scores[worse], tied, log_nu=log_nu, error_rate=0.1).mean()
            found = ranking_loss(scores[None], rank_tensor([ranking]), log_nu=log_nu, error_rate=0.1)
            assert one(found) == pytest.approx(float(expected))

    def test_rows_are_filled_up_without_effect(self) -> None:
        scores = double(0.3, 0.1, 7.0, 9.0)
        short, long = double(0, 1)[None], double(0, 1, NAN, NAN)[None]
        assert one(ranking_loss(scores[None], long)) == one(ranking_loss(scores[None, :2], short))
        assert one(plackett_luce_loss(scores[None], long)) == one(plackett_luce_loss(scores[None, :2], short))

    def test_a_margin_is_shared_out_by_ranks(self) -> None:
        margin = torch.tensor([2.0], dtype=torch.float64)
        scores = torch.zeros(1, 3, dtype=torch.float64)
        halves, whole = math.log1p(math.e), math.log1p(math.e**2)
        found = ranking_loss(scores, double(0, 1, 2)[None], margins=margin)
        assert one(found) == pytest.approx((2 * halves + whole) / 3)
        assert one(ranking_loss(scores, double(0, INF, INF)[None], margins=margin)) == pytest.approx(whole)
        assert one(ranking_loss(scores, double(0, 1, NAN)[None], margins=margin)) == pytest.approx(whole)

    def test_refuses_a_ranking_that_says_nothing(self) -> None:
        with pytest.raises(TextEnvError, match="order of at least two"):
            ranking_loss(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.0, NAN]]))

    def test_ranks_of_rankings(self) -> None:
        found = rank_tensor([Ranking("p", ("a", "b", "c"), (1, 0, None)), Ranking("p", ("a", "b"), (0, 0))])
        assert found.numpy() == pytest.approx(np.array([[1.0, 0.0, INF], [0.0, 0.0, NAN]]), nan_ok=True)


class TestPlackettLuce:
    def test_by_hand(self) -> None:
        """Strengths 1, 2 and 3: the order 3, 1, 2 has probability 3/6 * 1/3."""
        scores = double(*np.log([1.0, 2.0, 3.0]))[None]
        assert one(plackett_luce_loss(scores, double(1, 2, 0)[None])) == pytest.approx(-math.log(1 / 6))

    def test_the_probabilities_of_all_orders_sum_to_1(self) -> None:
        scores = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64)
        losses = plackett_luce_loss(scores.expand(len(orders), 4), orders)
        assert float((-losses).exp().sum()) == pytest.approx(1.0)

    def test_two_are_a_comparison(self) -> None:
        scores = double(0.7, -0.2)[None]
        assert one(plackett_luce_loss(scores, double(0, 1)[None])) == pytest.approx(
            one(pair_loss(scores[:, 0], scores[:, 1]))
        )

    def test_the_best_of_four(self) -> None:
        scores = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = plackett_luce_loss(scores, double(INF, INF, 0, INF)[None])
        assert one(found) == pytest.approx(float(cross_entropy(scores, torch.tensor([2]))))
        by_hand = plackett_luce_loss(double(*np.log([1.0, 2.0, 3.0, 4.0]))[None], double(INF, INF, INF, 0)[None])
        assert one(by_hand) == pytest.approx(-math.log(0.4))

    def test_ties_are_chosen_from_the_same(self) -> None:
        scores = double(*np.log([1.0, 2.0, 3.0]))[None]
        assert one(plackett_luce_loss(scores, double(0, 0, 1)[None])) == pytest.approx(-math.log(1 / 6 * 2 / 6))

    def test_its_minimum_is_the_fit_of_choix(self) -> None:
        orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1), (0, 1, 2), (1, 2, 0)]
        ranks = torch.tensor(np.argsort(orders, axis=1), dtype=torch.float64)
        scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = plackett_luce_loss(scores.expand(len(ranks), 3), ranks).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        found = scores.detach() - scores.detach().mean()
        assert found.tolist() == pytest.approx(choix.ilsr_rankings(3, orders).tolist(), abs=1e-5)


def test_centering_by_hand() -> None:
    scores = torch.stack([double(1.0, -1.0, 2.0), double(2.0, 1.0, 100.0)])
    ranks = torch.tensor([[0.0, 1.0, 1.0], [0.0, INF, NAN]])
    assert center_loss(scores, ranks).tolist() == pytest.approx([(0 + 9 + 1) / 3, 9.0])


RANKS = torch.tensor([[0.0, 1.0, 1.0, INF], [2.0, 0.0, NAN, 1.0]])
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "pairs": lambda s, n: ranking_loss(s, RANKS),
    "ties, margins and errors": lambda s, n: ranking_loss(
        s, RANKS, margins=torch.ones(2, dtype=s.dtype), log_nu=n, error_rate=0.1
    ),
    "plackett-luce": lambda s, n: plackett_luce_loss(s, RANKS),
    "center": lambda s, n: center_loss(s, RANKS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    log_nu = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], (scores, log_nu))
