"""Training a reward model: what is learned from which rankings, and that a killed run ends as one left alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import choix
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import build_lm
from textenv.models.loading import quiet
from textenv.models.reward_model import RewardModel
from textenv.rollouts.checkpoint import save_checkpoint
from textenv.training import loop
from textenv.training import reward_models as reward_training
from textenv.training.configs import RewardModelConfig
from textenv.training.ranked_texts import fit_scores, text_key
from textenv.training.reward_models import pair_accuracy, train_reward_model
from textenv.types import Ranking, TextEnvError

WORDS = ["great", "thin", "plot", "film"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    lm = build_lm()
    with quiet():
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    return str(folder)


def rankings(count: int, *, seed: int = 0, size: int = 3, best_only: bool = False) -> list[Ranking]:
    """Return rankings of texts of five words: the more of them are "great", the better."""
    rng = random.Random(seed)
    made: list[Ranking] = []
    while len(made) < count:
        texts = tuple(dict.fromkeys(" ".join(rng.choices(WORDS, k=5)) for _ in range(size)))
        order = sorted({text.count("great") for text in texts}, reverse=True)
        ranks: list[int | None] = [order.index(text.count("great")) for text in texts]
        if best_only:
            ranks = [0 if rank == 0 else None for rank in ranks]
        if len(texts) == size and ranks.count(0) == 1:
            made.append(Ranking("", texts, tuple(ranks), f"a{len(made) % 3}"))
    return made


def config(base: str, **changes: Any) -> RewardModelConfig:
    settings: dict[str, Any] = {"model": base, "learning_rate": 3e-3, "batch_size": 24, "precision": "float32"}
    return RewardModelConfig(**(settings | changes))


class TestLearning:
    @pytest.mark.parametrize("loss", ["pairs", "plackett_luce", "regression"])
    def test_the_better_text_gets_the_higher_score(self, base: str, tmp_path: Path, loss: Any) -> None:
        held_out = rankings(60, seed=1)
        report = train_reward_model(
            config(base, loss=loss, epochs=3), rankings(200), validation=held_out, out=tmp_path / "rm"
        )
        assert report.accuracy is not None
        assert report.accuracy > 0.9
        model = RewardModel.load(tmp_path / "rm")
        assert pair_accuracy(model, held_out) == pytest.approx(report.accuracy, abs=0.02)
        assert float(model.scores([""], ["great great great"])[0]) > float(model.scores([""], ["thin thin thin"])[0])

    def test_from_choices_of_the_best_of_four(self, base: str, tmp_path: Path) -> None:
        choices = rankings(200, size=4, best_only=True)
        settings = config(base, loss="plackett_luce", epochs=3)
        report = train_reward_model(settings, choices, validation=rankings(60, seed=1), out=tmp_path / "rm")
        assert report.accuracy is not None
        assert report.accuracy > 0.85

    def test_scores_are_normalized_on_the_reference(self, base: str, tmp_path: Path) -> None:
        reference = [("the ", "film"), ("", "great"), ("thin", " plot")]
        train_reward_model(config(base), rankings(20), reference=reference, out=tmp_path / "rm")
        scores = RewardModel.load(tmp_path / "rm").scores(*map(list, zip(*reference, strict=True)))
        assert [float(scores.mean()), float(scores.std())] == pytest.approx([0, 1], abs=1e-4)

    def test_a_text_is_read_once_an_epoch_however_many_ranked_it(
        self, base: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        read: list[int] = []
        forward = RewardModel.forward

        def counted(self: RewardModel, ids: Any) -> torch.Tensor:
            read.append(len(ids))
            return forward(self, ids)

        monkeypatch.setattr(RewardModel, "forward", counted)
        few = rankings(4)
        several = [dataclasses.replace(one, annotator=name) for one in few for name in "abc"]
        report = train_reward_model(config(base, batch_size=6), several, out=tmp_path / "rm")
        assert read == [6, 6, 12]  # two steps, and the reference samples
        assert (report.rankings, report.texts, report.steps) == (12, 12, 2)

    def test_readiness_to_tie_is_learned(self, base: str, tmp_path: Path) -> None:
        tied = [dataclasses.replace(one, ranks=(0, 0, 0)) for one in rankings(30)]
        train_reward_model(config(base), tied[:20] + rankings(20), out=tmp_path / "some")
        train_reward_model(config(base, ties="half"), tied[:20] + rankings(20), out=tmp_path / "half")
        first, second = (RewardModel.load(tmp_path / name).log_nu.item() for name in ("some", "half"))
        assert first != 0
        assert second == 0

    def test_layers_are_left_out(self, base: str, tmp_path: Path) -> None:
        train_reward_model(config(base, layers=1), rankings(10), out=tmp_path / "rm")
        assert RewardModel.load(tmp_path / "rm").model.config.num_hidden_layers == 1

    def test_tokens_are_left_out_but_the_first_and_the_last(self, base: str, tmp_path: Path, monkeypatch: Any) -> None:
        read: list[Any] = []
        forward = RewardModel.forward

        def watched(self: RewardModel, ids: Any) -> torch.Tensor:
            read.append(ids)
            return forward(self, ids)

        monkeypatch.setattr(RewardModel, "forward", watched)
        train_reward_model(config(base, token_dropout=0.5), rankings(20), out=tmp_path / "rm")
        whole = {len(ids) for ids in read[-1]}  # the reference samples
        thin = [ids for batch in read[:-1] for ids in batch]
        assert {(ids[0], ids[-1]) for ids in thin} == {(0, 0)}
        assert sum(len(ids) for ids in thin) / len(thin) < 0.75 * min(whole)

    def test_a_reward_model_learns_on(self, base: str, tmp_path: Path) -> None:
        train_reward_model(config(base, epochs=2), rankings(100), out=tmp_path / "first")
        before = RewardModel.load(tmp_path / "first")
        tiny = config(str(tmp_path / "first"), learning_rate=1e-9)
        train_reward_model(tiny, rankings(10, seed=2), out=tmp_path / "second")
        after = RewardModel.load(tmp_path / "second")
        texts = ["great film", "thin plot", "film film"]
        scores = [model.scores([""] * 3, texts) for model in (before, after)]
        assert np.corrcoef(scores[0], scores[1])[0, 1] == pytest.approx(1, abs=1e-5)


class TestRuns:
    def test_a_killed_run_ends_as_one_left_alone(self, base: str, tmp_path: Path, monkeypatch: Any) -> None:
        settings = config(base, checkpoint_every=2, epochs=2, token_dropout=0.3)
        data = rankings(40)
        expected = train_reward_model(settings, data, out=tmp_path / "whole")

        def killed(*args: Any, **kwargs: Any) -> None:
            save_checkpoint(*args, **kwargs)
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train_reward_model(settings, data, out=tmp_path / "cut")
        monkeypatch.undo()
        assert not (tmp_path / "cut" / "reward.json").exists()
        report = train_reward_model(settings, data, out=tmp_path / "cut")
        assert dataclasses.replace(report, seconds=0) == dataclasses.replace(expected, seconds=0)
        for name in ("model.safetensors", "reward_head.safetensors"):
            whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
            assert all(torch.equal(whole[key], cut[key]) for key in whole)

    def test_one_that_is_done_returns_its_report(self, base: str, tmp_path: Path, monkeypatch: Any) -> None:
        report = train_reward_model(config(base), rankings(8), out=tmp_path / "rm")
        monkeypatch.setattr(reward_training, "minimize", None)
        assert train_reward_model(config(base), rankings(8), out=tmp_path / "rm") == report
        assert json.loads((tmp_path / "rm" / "reward.json").read_text("utf-8"))["report"] == dataclasses.asdict(report)

    @pytest.mark.parametrize("other", ["settings", "rankings"])
    def test_refuses_the_folder_of_another(self, base: str, tmp_path: Path, other: str) -> None:
        train_reward_model(config(base), rankings(8), out=tmp_path / "rm")
        settings = config(base, seed=1) if other == "settings" else config(base)
        with pytest.raises(TextEnvError, match="seed differ" if other == "settings" else "rankings_sha256 differ"):
            train_reward_model(settings, rankings(9 - (other == "settings")), out=tmp_path / "rm")

    def test_needs_rankings(self, base: str, tmp_path: Path) -> None:
        with pytest.raises(TextEnvError, match="no rankings"):
            train_reward_model(config(base), [], out=tmp_path / "rm")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"loss": "hinge"},
            {"ties": "no"},
            {"error_rate": 1.0},
            {"token_dropout": -0.1},
            {"center_rewards_coefficient": -1.0},
            {"epochs": 0},
        ],
    )
    def test_refuses_settings(self, base: str, wrong: dict[str, Any]) -> None:
        with pytest.raises(TextEnvError, match=f"{next(iter(wrong))}="):
            config(base, **wrong)

    def test_refuses_layers_that_are_not_there(self, base: str, tmp_path: Path) -> None:
        with pytest.raises(TextEnvError, match="from 1 to 2"):
            train_reward_model(config(base, layers=3), rankings(8), out=tmp_path / "rm")


class TestFit:
    def test_agrees_with_choix(self) -> None:
        rng = random.Random(0)
        games = [(one, (one + rng.randrange(1, 5)) % 5) for one in rng.choices(range(5), k=200)]
        judged = [Ranking("", (str(one), str(other)), (0, 1)) for one, other in games]
        found = fit_scores(judged, prior=0.5)
        scores = [found[text_key(("", str(item)))] for item in range(5)]
        assert scores == pytest.approx(choix.opt_pairwise(5, games, alpha=0.25).tolist(), abs=1e-3)

    def test_what_always_wins_has_a_finite_score(self) -> None:
        found = fit_scores([Ranking("", ("a", "b"), (0, 1))] * 50)
        assert found[text_key(("", "a"))] == pytest.approx(-found[text_key(("", "b"))])
        assert 0 < found[text_key(("", "a"))] < 10

    def test_prompts_are_told_apart(self) -> None:
        judged = [Ranking("p", ("a", "b"), (0, 1)), Ranking("q", ("a", "b"), (1, 0))]
        found = fit_scores(judged)
        assert found[text_key(("p", "a"))] > 0 > found[text_key(("q", "a"))]
        assert len(found) == len(set(itertools.chain(found))) == 4
