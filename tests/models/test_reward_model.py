"""The reward model: what it reads and where, how it is kept, and as a reward."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv  # noqa: F401 (registers the ids)
from tests.conftest import build_lm
from textenv.data.reviews import load_reviews
from textenv.models.reward_model import Ensemble, RewardModel, bundled_reward_folder
from textenv.rewards import Learned, make
from textenv.testing import RewardContract
from textenv.types import Reward, TextEnvError

TEXTS = ["", "a great film", "the plot was thin, and the film was a great, great bore", "x" * 40, "日本の猫"]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def build(seed: int = 0, **kwargs: Any) -> RewardModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RewardModel(build_lm(seed=seed), **kwargs)


def blanks(count: int) -> list[str]:
    return [""] * count


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: RewardModel) -> Path:
    path = tmp_path_factory.mktemp("reward") / "model"
    model.normalize(blanks(5), TEXTS)
    model.save(path)
    return path


class TestReading:
    def test_the_score_is_the_heads_reading_at_the_last_token(self, model: RewardModel) -> None:
        ids = model.encode(["the "], ["film"])[0]
        assert ids[-1] == model.lm.eos_ids[0]
        hidden = model.lm.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = float((hidden @ model.head.weight[0] + model.head.bias[0]).detach())
        assert float(model([ids]).detach()) == pytest.approx(expected, abs=1e-5)

    def test_prompt_and_completion_are_one_text(self, model: RewardModel) -> None:
        assert model.encode(["the f"], ["ilm"]) == model.encode([""], ["the film"])

    def test_a_long_text_loses_its_beginning(self) -> None:
        model = build(max_tokens=8)
        whole = build().encode([""], [TEXTS[2]])[0]
        assert model.encode([""], [TEXTS[2]])[0] == whole[-8:]
        assert model.scores([""], [TEXTS[2]]) == model.scores(["a prompt "], ["more and more " + TEXTS[2]])

    def test_the_longest_text_is_what_the_model_takes(self, model: RewardModel) -> None:
        assert len(model.encode([""], ["film " * 1000])[0]) == 128
        assert np.isfinite(model.scores([""], ["film " * 1000])).all()

    def test_neighbors_and_order_do_not_matter(self, model: RewardModel) -> None:
        alone = [float(model.scores([""], [text])[0]) for text in TEXTS]
        assert model.scores(blanks(5), TEXTS) == pytest.approx(alone, abs=1e-5)
        assert model.scores(blanks(5), TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)

    def test_scores_keep_no_graph_even_in_inference_mode(self, model: RewardModel, monkeypatch: Any) -> None:
        enabled: list[bool] = []
        forward = model.forward

        def watched(ids: Any) -> torch.Tensor:
            enabled.append(torch.is_grad_enabled())
            return forward(ids)

        monkeypatch.setattr(model, "forward", watched)
        with torch.inference_mode():
            model.scores([""], ["film"])
        assert enabled == [False]

    def test_conversations_are_written_by_the_template(self) -> None:
        model = build()
        model.lm.tokenizer.chat_template = TEMPLATE
        asked = ({"role": "user", "content": "a film?"},)
        answer = [{"role": "assistant", "content": "thin"}]
        ids = model.encode([asked], [answer])[0]
        assert model.lm.tokenizer.decode(ids[:-1]).startswith("user: a film?\nassistant: thin")
        assert model.encode([asked], ["thin"])[0] == ids
        begun = (*asked, {"role": "assistant", "content": "th"})
        assert model.encode([begun], ["in"])[0] == ids

    def test_conversations_need_a_template(self, model: RewardModel) -> None:
        with pytest.raises(TextEnvError, match="no chat template"):
            model.scores([({"role": "user", "content": "a film?"},)], ["thin"])

    @pytest.mark.parametrize("tokens", [0, 129])
    def test_refuses_more_tokens_than_the_model_takes(self, tokens: int) -> None:
        with pytest.raises(TextEnvError, match=rf"max_tokens={tokens}\b.*expected a whole number"):
            build(max_tokens=tokens)


class TestHead:
    def test_its_weights_are_drawn_as_in_the_paper(self) -> None:
        weights = torch.cat([build(seed).head.weight.detach().flatten() for seed in range(40)])
        assert float(weights.std()) == pytest.approx(1 / math.sqrt(32 + 1), rel=0.05)
        assert float(weights.mean()) == pytest.approx(0.0, abs=0.02)

    def test_scores_are_normalized_on_the_reference_samples(self) -> None:
        model = build()
        model.normalize(blanks(5), TEXTS)
        scores = model.scores(blanks(5), TEXTS)
        assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
        assert float(scores.var()) == pytest.approx(1, abs=1e-4)

    @pytest.mark.parametrize("texts", [[], ["one"], ["same", "same"]])
    def test_refuses_samples_without_variance(self, model: RewardModel, texts: list[str]) -> None:
        with pytest.raises(TextEnvError, match="reference samples"):
            build().normalize(blanks(len(texts)), texts)


class TestFolder:
    def test_what_is_saved_scores_the_same(self, model: RewardModel, folder: Path) -> None:
        again = RewardModel.load(folder)
        assert again.scores(blanks(5), TEXTS) == pytest.approx(model.scores(blanks(5), TEXTS).tolist(), abs=1e-6)
        assert (again.shift, again.scale, again.max_tokens) == (model.shift, model.scale, model.max_tokens)

    def test_it_holds_safetensors_and_json_alone(self, folder: Path) -> None:
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}

    def test_half_precision_is_half_the_size(self, model: RewardModel, folder: Path, tmp_path: Path) -> None:
        model.save(tmp_path / "half", dtype=torch.float16)
        sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
        assert sizes[0] < 0.6 * sizes[1]
        assert model.lm.model.dtype == torch.float32
        scores = RewardModel.load(tmp_path / "half").scores(blanks(5), TEXTS)
        assert scores == pytest.approx(model.scores(blanks(5), TEXTS).tolist(), abs=0.1)

    @pytest.mark.parametrize("spoil", ["missing", "json", "key", "shape"])
    def test_refuses_what_is_no_reward_model(self, folder: Path, tmp_path: Path, spoil: str) -> None:
        model = RewardModel.load(folder)
        path = tmp_path / "spoilt"
        if spoil == "shape":
            model.head = torch.nn.Linear(31, 1)
        model.save(path)
        about = path / "reward.json"
        if spoil == "missing":
            about.unlink()
        elif spoil == "json":
            about.write_text("{", "utf-8")
        elif spoil == "key":
            about.write_text(json.dumps({"shift": 0.0, "scale": 1.0}), "utf-8")
        with pytest.raises(TextEnvError, match=r"expected \{|cannot be read as a reward model|is no reward model"):
            RewardModel.load(path)


class TestEnsemble:
    def test_ways_to_combine(self) -> None:
        members = [build(0), build(1), build(2)]
        each = np.stack([member.scores(blanks(5), TEXTS) for member in members])
        expected = {"mean": each.mean(0), "min": each.min(0), "variance": each.mean(0) - 2 * each.var(0)}
        for combine, wanted in expected.items():
            found = Ensemble(members, combine, penalty=2.0).scores(blanks(5), TEXTS)  # type: ignore[arg-type]
            assert found == pytest.approx(wanted.tolist(), abs=1e-5)

    @pytest.mark.parametrize("wrong", [{"members": []}, {"combine": "max"}, {"penalty": -1.0}, {"penalty": math.nan}])
    def test_refuses(self, model: RewardModel, wrong: dict[str, Any]) -> None:
        given: dict[str, Any] = {"members": [model]} | wrong
        with pytest.raises(TextEnvError, match=r"Ensemble.*expected"):
            Ensemble(**given)


class TestBundled:
    PRAISE = (
        "A masterpiece, funny and moving.",
        "One of the best films of the year.",
        "A delightful, charming comedy.",
    )
    BLAME = ("A dull, pointless mess.", "One of the worst films of the year.", "Boring, and badly acted throughout.")

    def test_it_prefers_praise_to_blame(self) -> None:
        scores = RewardModel.load().scores(blanks(6), [*self.PRAISE, *self.BLAME])
        assert min(scores[:3]) > max(scores[3:])

    def test_it_is_the_default_of_the_environment(self) -> None:
        env = gym.make("textenv/MovieReview-v0", max_new_tokens=3).unwrapped
        _, info = env.reset(seed=0)
        over = False
        while not over:
            _, _, over, _, info = env.step(env.action_space.sample())
        text = info["prompt"] + info["completion"]
        assert info["score"] == pytest.approx(float(RewardModel.load().scores([""], [text])[0]), abs=1e-4)

    def test_its_size(self) -> None:
        assert sum(path.stat().st_size for path in bundled_reward_folder().iterdir()) < 7.5 * 2**20

    @pytest.mark.slow
    def test_figures_on_the_validation_split(self) -> None:
        try:
            reviews = load_reviews("validation")
        except TextEnvError as error:
            pytest.skip(f"the reviews cannot be fetched here: {error}")
        scores = RewardModel.load().scores(blanks(len(reviews)), [review.text for review in reviews])
        assert np.corrcoef(scores, [review.rating_mean for review in reviews])[0, 1] > 0.69


class TestLearned(RewardContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.folder = str(folder)

    def make_reward(self) -> Reward:
        return make({"name": "learned", "model": self.folder})

    def test_without_the_prompt(self) -> None:
        reward = Learned(self.folder, include_prompt=False)
        scores = reward(prompts=["one", "two"], completions=["film", "film"], completion_ids=[[1], [1]])
        assert scores[0] == pytest.approx(scores[1])
        assert scores == pytest.approx(RewardModel.load(self.folder).scores(blanks(2), ["film"] * 2).tolist())

    def test_several_models(self) -> None:
        reward = make({"name": "learned", "model": [self.folder, self.folder], "combine": "min"})
        one = self.make_reward()
        assert self.score(reward) == pytest.approx(self.score(one), abs=1e-6)

    def test_refuses_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(TextEnvError, match="textenv reward train"):
            make({"name": "learned", "model": str(tmp_path)})

    def test_refuses_another_data_type(self) -> None:
        with pytest.raises(TextEnvError, match="dtype='int8'"):
            Learned(self.folder, dtype="int8")  # type: ignore[arg-type]
