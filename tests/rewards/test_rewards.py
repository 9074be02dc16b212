"""The built-in rewards: each keeps the contract, and agrees with numbers computed some other way."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from textenv.env.reward_calls import Batch
from textenv.env.reward_parts import evaluate, part_names
from textenv.rewards import (
    Bleu,
    Chrf,
    Classifier,
    Clip,
    CounterfactualGap,
    Length,
    Normalize,
    Pattern,
    Rouge,
    Vader,
    WeightedSum,
    bleu,
    make,
    names,
    vader,
)
from textenv.rewards.classifier import log_odds
from textenv.testing import COMPLETIONS, RewardContract
from textenv.types import Reward, TextEnvError

WORDS = ["the", "film", "was", "great", "awful", "and", "I", "slept", "."]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
SCORES = st.floats(-1e3, 1e3, allow_subnormal=False)


def run(reward: Reward, *completions: str, prompts: Sequence[str] = (), **columns: Sequence[Any]) -> list[float]:
    """Score completions; each has as many token ids as bytes, and an empty prompt unless given."""
    ids = [list(completion.encode()) for completion in completions]
    prompts = prompts or [""] * len(completions)
    return list(reward(prompts=prompts, completions=list(completions), completion_ids=ids, **columns))


def from_column(*, completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward that is told what to return."""
    return list(columns["given"])


def constant(value: Any) -> Callable[..., list[Any]]:
    """A reward that says the same of everything."""

    def constantly(*, completions: Sequence[str], **columns: Any) -> list[Any]:
        return [value] * len(completions)

    return constantly


class TestVader(RewardContract):
    def make_reward(self) -> Reward:
        return Vader()

    def test_scores_a_lexicon_word_as_the_paper_does(self) -> None:
        # "good" has valence 1.9 in the lexicon, and the compound score is x / sqrt(x^2 + 15).
        good = round(1.9 / math.sqrt(1.9**2 + 15), 4)
        assert run(Vader(), "good", "not good", "", "table") == [good, pytest.approx(-0.3412), 0, 0]


class TestLength(RewardContract):
    def make_reward(self) -> Reward:
        return Length(target=4)

    def test_is_the_ratio_of_the_shorter_to_the_longer(self) -> None:
        assert run(Length(4), "a b c d", "a b", "a b c d e f g h", "", " \n") == [1, 0.5, 0.5, 0, 0]

    def test_counts_tokens(self) -> None:
        reward = Length(4, unit="tokens")
        assert reward(prompts=["", ""], completions=["a b c d", ""], completion_ids=[[7], [7] * 8]) == [0.25, 0.5]

    @given(target=st.integers(1, 1000), length=st.integers(0, 2000))
    def test_is_best_on_target_and_falls_on_both_sides(self, target: int, length: int) -> None:
        reward = Length(target, unit="tokens")
        ids = [[0] * length, [0] * (length + 1), [0] * target]
        here, longer, best = reward(prompts=[""] * 3, completions=[""] * 3, completion_ids=ids)
        assert 0 <= here <= best == 1
        assert (here < longer) == (length < target)

    @pytest.mark.parametrize("target", [0, -1, 2.5, "20", None])
    def test_refuses_a_target_below_one(self, target: Any) -> None:
        with pytest.raises(TextEnvError, match=r"Length\(target=.*\): expected a whole number of at least 1"):
            Length(target)

    def test_refuses_an_unknown_unit(self) -> None:
        with pytest.raises(TextEnvError, match=r"expected one of \['words', 'tokens'\]"):
            Length(3, unit="characters")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class TestPattern(RewardContract):
    def make_reward(self) -> Reward:
        return Pattern(r"\w+", mode="count")

    @pytest.mark.parametrize(
        ("mode", "scores"), [("search", [1, 1, 0, 0]), ("fullmatch", [1, 0, 0, 0]), ("count", [1, 2, 0, 0])]
    )
    def test_modes(self, mode: Any, scores: list[float]) -> None:
        assert run(Pattern("a+", mode=mode), "aaa", "aa-a", "bbb", "") == scores

    def test_flags_are_part_of_the_pattern(self) -> None:
        assert run(Pattern("(?is)yes.*no", mode="fullmatch"), "Yes\nNo", "yes") == [1, 0]

    @pytest.mark.parametrize("pattern", ["(", "*"])
    def test_refuses_what_does_not_compile(self, pattern: Any) -> None:
        with pytest.raises(TextEnvError, match=r"is not a regular expression.*re\.escape"):
            Pattern(pattern)

    def test_refuses_an_unknown_mode(self) -> None:
        with pytest.raises(TextEnvError, match=r"expected one of \['search', 'fullmatch', 'count'\]"):
            Pattern("a", mode="match")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class ReferenceContract(RewardContract):
    """What every reward with a column of references must do."""

    reward_class: ClassVar[Callable[..., Reward]]

    def make_reward(self) -> Reward:
        return type(self).reward_class()

    def columns(self, n: int) -> dict[str, list[Any]]:
        return {"reference": ["a great success", ["a", "b"], "4", "日本の猫", "", "x"][:n]}

    def test_is_one_for_the_reference_and_zero_for_other_words(self, reward: Reward) -> None:
        text = "the cat sat on the mat"
        assert run(reward, text, "", "quiz", reference=[text, text, text]) == [1, 0, 0]

    def test_takes_the_best_of_several_references(self, reward: Reward) -> None:
        assert run(reward, "the cat sat down", reference=[["no", "the cat sat down"]]) == [1]

    def test_reads_the_column_it_was_told_to(self) -> None:
        reward = type(self).reward_class(column="summary")
        assert run(reward, "a b", summary=["a b"], reference=["c d"]) == [1]

    def test_says_which_columns_there_are(self, reward: Reward) -> None:
        with pytest.raises(TextEnvError, match=r"needs the column 'reference'.*\['answer', 'label'\]"):
            run(reward, "a", label=["a"], answer=["a"])
        with pytest.raises(TextEnvError, match="no columns"):
            run(reward, "a")

    def test_refuses_a_column_of_another_length(self, reward: Reward) -> None:
        with pytest.raises(TextEnvError, match="1 values for 2 completions"):
            run(reward, "a", "b", reference=["a"])

    @pytest.mark.parametrize("value", [None, [], 3, ["a", None], {"text": "a"}])
    def test_names_the_row_that_holds_no_reference(self, reward: Reward, value: Any) -> None:
        with pytest.raises(TextEnvError, match="Row 1 of the column 'reference'"):
            run(reward, "a", "b", reference=["a", value])

    @pytest.mark.parametrize("column", ["", None, 3])
    def test_refuses_a_column_without_a_name(self, column: Any) -> None:
        with pytest.raises(TextEnvError, match=r"\(column=.*\): expected a text that is not empty"):
            type(self).reward_class(column=column)


class TestBleu(ReferenceContract):
    reward_class = Bleu

    def test_a_hand_computed_score(self) -> None:
        # Precisions 2/2 and 1/1 (longer n-grams don't fit in), and a brevity penalty of exp(1 - 4/2).
        assert run(Bleu(), "the cat", reference=["the cat sat down"]) == [pytest.approx(math.exp(-1))]

    @given(completion=TEXTS, targets=st.lists(TEXTS, min_size=1, max_size=3))
    def test_is_the_number_of_sacrebleu(self, completion: str, targets: list[str]) -> None:
        theirs = sacrebleu.sentence_bleu(completion, targets).score / 100
        assert run(Bleu(), completion, reference=[targets]) == [pytest.approx(theirs)]

    @given(text=st.lists(st.sampled_from(WORDS), min_size=4, max_size=12).map(" ".join), target=TEXTS)
    def test_is_that_of_a_corpus_of_one_where_all_orders_fit(self, text: str, target: str) -> None:
        theirs = sacrebleu.corpus_bleu([text], [[target]]).score / 100
        assert run(Bleu(), text, reference=[target]) == [pytest.approx(theirs)]

    def test_options_reach_sacrebleu(self) -> None:
        assert run(Bleu(lowercase=True), "THE CAT", reference=["the cat"]) == [1]
        assert run(Bleu(), "THE CAT", reference=["the cat"]) == [0]
        assert run(Bleu(tokenize="char"), "日本", reference=["日本人"]) == [pytest.approx(math.exp(-0.5))]
        with pytest.raises(TextEnvError, match=r"tokenize='words'.*13a"):
            Bleu(tokenize="words")


class TestChrf(ReferenceContract):
    reward_class = Chrf

    def test_a_hand_computed_score(self) -> None:
        # Unigrams: precision 2/2, recall 2/3. F with beta 2 is 5PR / (4P + R).
        assert run(Chrf(char_order=1), "ab", reference=["abc"]) == [pytest.approx((5 * 2 / 3) / (4 + 2 / 3))]

    @given(completion=TEXTS, targets=st.lists(TEXTS, min_size=1, max_size=3), word_order=st.sampled_from([0, 2]))
    def test_is_the_number_of_sacrebleu(self, completion: str, targets: list[str], word_order: int) -> None:
        theirs = sacrebleu.corpus_chrf([completion], [[target] for target in targets], word_order=word_order).score
        assert run(Chrf(word_order=word_order), completion, reference=[targets]) == [pytest.approx(theirs / 100)]

    @pytest.mark.parametrize(("name", "value"), [("char_order", 0), ("word_order", -1), ("beta", 0), ("beta", 1.5)])
    def test_refuses_numbers_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(TextEnvError, match=rf"Chrf\({name}={value}\): expected a whole number of at least"):
            Chrf(**{name: value})


class TestRouge(ReferenceContract):
    reward_class = Rouge

    @pytest.mark.parametrize(
        ("variant", "precision", "recall"),
        # Completion "the cat on mat", reference "the cat sat on the mat".
        [("rouge1", 4 / 4, 4 / 6), ("rouge2", 1 / 3, 1 / 5), ("rougeL", 4 / 4, 4 / 6), ("rougeLsum", 4 / 4, 4 / 6)],
    )
    def test_hand_computed_scores(self, variant: Any, precision: float, recall: float) -> None:
        f_measure = 2 * precision * recall / (precision + recall)
        assert run(Rouge(variant), "the cat on mat", reference=["the cat sat on the mat"]) == [pytest.approx(f_measure)]

    def test_stems(self) -> None:
        assert run(Rouge(), "sleeping", reference=["sleeps"]) == [0]
        assert run(Rouge(stem=True), "sleeping", reference=["sleeps"]) == [1]

    def test_refuses_an_unknown_variant(self) -> None:
        with pytest.raises(TextEnvError, match=r"expected one of \['rouge1', 'rouge2', 'rougeL', 'rougeLsum'\]"):
            Rouge("rouge3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class TestMissingLibraries:
    @pytest.mark.parametrize(
        ("reward", "module", "cached", "install"),
        [
            (Bleu, "sacrebleu.metrics", bleu._metric, r"textenv\[metrics\]"),
            (Vader, "vaderSentiment.vaderSentiment", vader._analyzer, "vaderSentiment"),
        ],
    )
    def test_says_what_to_install(
        self, reward: type[Any], module: str, cached: Any, install: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        cached.cache_clear()
        with pytest.raises(TextEnvError, match=rf"needs '{module}'.*pip install '{install}'"):
            reward()


class TestClip(RewardContract):
    def make_reward(self) -> Reward:
        return Clip(Vader(), -0.25, 0.25)

    @given(scores=st.lists(SCORES, min_size=1), low=SCORES, width=st.floats(0.1, 10))
    def test_is_numpy_clip(self, scores: list[float], low: float, width: float) -> None:
        clipped = run(Clip(from_column, low, low + width), *[""] * len(scores), given=scores)
        assert clipped == np.clip(scores, low, low + width).tolist()

    @pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 0), (math.nan, 1), (0, math.inf)])
    def test_refuses_bounds_out_of_order(self, low: float, high: float) -> None:
        with pytest.raises(TextEnvError, match=r"expected (finite numbers with low < high|a finite number)"):
            Clip(Vader(), low, high)


class TestWeightedSum(RewardContract):
    def make_reward(self) -> Reward:
        return WeightedSum([Vader(), Length(3)], [1.0, -0.5])

    def test_adds_up(self) -> None:
        assert run(WeightedSum([constant(2), constant(3)], [0.5, -1]), "", "") == [-2, -2]
        assert run(WeightedSum([constant(2), constant(3)]), "") == [5]

    @pytest.mark.parametrize("rewards", [[], "vader", Vader(), None])
    def test_refuses_anything_but_a_list_of_rewards(self, rewards: Any) -> None:
        with pytest.raises(TextEnvError, match="expected a non-empty list of rewards"):
            WeightedSum(rewards)

    @pytest.mark.parametrize("weights", [[], [1], [1, 2, 3], [1, math.nan]])
    def test_refuses_weights_that_do_not_fit(self, weights: list[float]) -> None:
        with pytest.raises(
            TextEnvError, match=r"expected (2 finite numbers, one for each reward|a list, each item a finite number)"
        ):
            WeightedSum([Vader(), Vader()], weights)


def men(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """Twice the number of "he" in the prompt, and that in the completion."""
    return [
        2.0 * prompt.lower().split().count("he") + completion.lower().split().count("he")
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


class TestCounterfactualGap(RewardContract):
    def make_reward(self) -> Reward:
        return CounterfactualGap(WeightedSum([Vader(), Length(3)]))

    def test_is_the_difference_to_the_swapped_text(self) -> None:
        completions = [" is good", " is good", " and he too", " and she too", "", " film of a man"]
        prompts = ["He", "The film", "He", "He", "She", "The"]
        assert run(CounterfactualGap(men), *completions, prompts=prompts) == [-2, 0, -3, -1, -2, 0]

    def test_in_a_mix_it_is_a_part_with_a_weight(self) -> None:
        gap = {"name": "counterfactual_gap", "reward": men}
        mix = make({"name": "weighted_sum", "rewards": [men, gap], "weights": [1.0, 0.5]})
        assert part_names(mix) == ("men", "counterfactual_gap")
        assert run(mix, " he and she", " she and she", prompts=["He", ""]) == [3 - 0.5 * 2, 0 - 0.5 * 2]

    def test_what_it_wraps_may_be_awaited_log_score_tokens_and_not_apply(self) -> None:
        async def long(*, completions: Any, completion_ids: Any, log_metric: Any, **_: Any) -> list[Any]:
            log_metric("texts", len(completions))
            rows = zip(completions, completion_ids, strict=True)
            return [[1.0] * (len(ids) - 1) + [float(text.count(" he is"))] if text else None for text, ids in rows]

        mix = [long, constant(0.0)]
        assert run(CounterfactualGap(make(mix)), "A film he is in", "it is", "") == [-1.0, 0.0, 0.0]
        batch = Batch([""], [""], [[]], {})
        with pytest.raises(TextEnvError, match="returned None"):
            evaluate(make({"name": "counterfactual_gap", "reward": long}), batch)
        assert evaluate(CounterfactualGap(make(mix)), batch).metrics == {"texts": 1.0, "texts_2": 1.0}

    def test_conversations(self) -> None:
        said: dict[str, Any] = {"prompts": [[{"role": "user", "content": "he"}]], "completion_ids": [[1]]}
        answer = [[{"role": "assistant", "content": "He is good"}]]
        asked: list[Any] = []

        def remember(prompts: Any, completions: Any, **_: Any) -> list[float]:
            asked.append((prompts[0][0]["content"], completions[0][0]["content"]))
            return [0.0]

        CounterfactualGap(remember)(**said, completions=answer)
        assert asked == [("he", "He is good"), ("she", "She is good")]


class TestNormalize(RewardContract):
    stateful = True

    def make_reward(self) -> Reward:
        return Normalize(Vader())

    @given(batches=st.lists(st.lists(SCORES, min_size=1, max_size=8), min_size=1, max_size=5), keep_mean=st.booleans())
    def test_agrees_with_numpy_over_all_scores_seen(self, batches: list[list[float]], keep_mean: bool) -> None:
        reward = Normalize(from_column, keep_mean=keep_mean)
        seen: list[float] = []
        for batch in batches:
            seen += batch
            normalized = run(reward, *[""] * len(batch), given=batch)
            mean, std = float(np.mean(seen)), float(np.std(seen))
            assert reward.count == len(seen)
            assert reward.mean == pytest.approx(mean, abs=1e-9)
            assert reward.std == pytest.approx(std, rel=1e-6, abs=1e-9)
            if std > 1e-6:
                expected = [(score - (0 if keep_mean else mean)) / std for score in batch]
                assert normalized == pytest.approx(expected, rel=1e-5, abs=1e-5)

    def test_keeps_precision_far_from_zero(self) -> None:
        # The textbook formula, the mean of squares less the square of the mean, gives 0 here.
        reward = Normalize(from_column)
        run(reward, "", "", "", given=[1e9, 1e9 + 1, 1e9 + 2])
        assert reward.std == pytest.approx(math.sqrt(2 / 3))

    def test_scores_that_do_not_differ_pass_at_their_own_scale(self) -> None:
        reward = Normalize(constant(0.1))
        assert [run(reward, "", "", "") for _ in range(100)] == [[0.1] * 3] * 100

    def test_does_not_learn_while_it_evaluates(self) -> None:
        reward = Normalize(from_column)
        run(reward, "", "", given=[0.0, 4.0])
        reward.training = False
        assert run(reward, "", given=[100.0]) == [50.0]
        assert reward.count == 2

    def test_resumes_from_a_state_of_json_values(self) -> None:
        first, second = Normalize(from_column), Normalize(from_column)
        run(first, "", "", "", given=[0.1, 0.2, 0.7])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert run(second, "", given=[0.3]) == run(first, "", given=[0.3])
        assert second.state_dict() == first.state_dict()

    def test_is_resumed_inside_other_rewards(self) -> None:
        def wrapped() -> tuple[Clip, Normalize]:
            inner = Normalize(from_column)
            return Clip(WeightedSum([Vader(), Normalize(inner)]), -1, 1), inner

        (first, inner), (second, copy) = wrapped(), wrapped()
        run(first, "", "", given=[0.1, 0.7])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.state_dict() == first.state_dict()
        assert copy.count == inner.count == 2

    @pytest.mark.parametrize(
        ("reward", "state"),
        [
            (Normalize(Vader()), {}),
            (Normalize(Vader()), {"count": 1, "mean": math.nan, "squares": 0, "reward": {}}),
            (Normalize(Vader()), {"count": 1, "mean": 0, "squares": -1, "reward": {}}),
            (Normalize(Vader()), {"count": -1, "mean": 0, "squares": 0, "reward": {}}),
            (Clip(Vader(), 0, 1), {"reward": {"count": 1}}),
            (Clip(Normalize(Vader()), 0, 1), {"reward": None}),
            (WeightedSum([Vader()]), {"rewards": []}),
            (WeightedSum([Vader()]), {"reward": {}}),
        ],
    )
    def test_refuses_the_state_of_another_reward(self, reward: Any, state: Mapping[str, Any]) -> None:
        with pytest.raises(TextEnvError):
            reward.load_state_dict(state)


@pytest.mark.parametrize("wrap", [lambda reward: Clip(reward, 0, 1), Normalize, lambda reward: WeightedSum([reward])])
class TestWrappers:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, None, "good"])
    def test_do_not_hide_a_broken_score(self, wrap: Callable[[Any], Reward], bad: Any) -> None:
        with pytest.raises(TextEnvError, match=r"The reward .*constantly.* returned .*Expected a finite"):
            run(wrap(constant(bad)), "")

    def test_do_not_hide_a_missing_score(self, wrap: Callable[[Any], Reward]) -> None:
        with pytest.raises(TextEnvError, match="1 scores for 2 completions"):
            run(wrap(from_column), "", "", given=[1.0])

    @pytest.mark.parametrize("inner", ["vader", None, Vader])
    def test_refuse_what_is_no_reward(self, wrap: Callable[[Any], Reward], inner: Any) -> None:
        with pytest.raises(TextEnvError, match=r"expected a callable, such as make\('vader'\) returns"):
            wrap(inner)


# A classifier: a tiny random model, and a tokenizer of words (BERT) or of bytes (GPT-2), which has no padding token.


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = BertConfig(
        vocab_size=len(special + WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        id2label={0: "neutral", 1: "sad", 2: "glad"},
        initializer_range=1.0,
        hidden_dropout_prob=0.5,
    )
    return save(config, tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]"}, tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*vocabulary, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = GPT2Config(
        vocab_size=len(ids),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        id2label={0: "score"},
        bos_token_id=ids["<eos>"],
        eos_token_id=ids["<eos>"],
        initializer_range=1.0,
    )
    return save(config, tokenizer, {"eos_token": "<eos>"}, tmp_path_factory.mktemp("gpt2"))


def save(config: Any, tokenizer: Tokenizer, special: dict[str, str], folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


class TestClassifier(RewardContract):
    tolerance = 1e-4

    @pytest.fixture(autouse=True, params=["bert", "gpt2"])
    def _folder(self, request: pytest.FixtureRequest) -> None:
        self.folder: Path = request.getfixturevalue(request.param)
        self.label = {"bert": "glad", "gpt2": None}[request.param]

    def make_reward(self) -> Reward:
        return Classifier(str(self.folder), label=self.label, include_prompt=False, batch_size=4)

    def test_tells_texts_apart(self) -> None:
        assert len({round(score, 4) for score in run(self.make_reward(), "great film", "awful", "I slept")}) == 3


@pytest.mark.parametrize(
    "wrap", [lambda spec: spec, lambda spec: {"name": "clip", "reward": spec, "low": 0, "high": 1}]
)
def test_rewards_with_a_model_run_where_the_environment_does(wrap: Callable[[Any], Any], bert: Path) -> None:
    for spec in ({"name": "learned"}, {"name": "classifier", "model": str(bert), "label": 0}):
        with pytest.raises(TextEnvError, match="cuda:77"):
            make(wrap(spec), device="cuda:77")
        make(wrap({**spec, "device": "cpu"}), device="cuda:77")
        make(wrap(spec))  # on the CPU


class TestClassifierHeads:
    def test_log_odds_are_those_of_the_softmax(self) -> None:
        logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for label in range(4):
            torch.testing.assert_close(log_odds(logits, label), logits.softmax(-1)[:, label].logit())

    def test_log_odds_of_two_labels_are_their_difference(self) -> None:
        assert log_odds(torch.tensor([[1000.0, -1000.0]]), 1).tolist() == [-2000.0]

    def test_probabilities_of_all_labels_sum_to_one(self, bert: Path) -> None:
        per_label = [run(Classifier(str(bert), label=label, output="probability"), "great") for label in range(3)]
        assert sum(scores[0] for scores in per_label) == pytest.approx(1)
        assert run(Classifier(str(bert), label="sad", output="probability"), "great") == per_label[1]

    def test_agrees_with_the_model_itself(self, gpt2: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(gpt2).eval()
        reward = Classifier(str(gpt2))
        ids = reward.tokenizer("great", return_tensors="pt")
        assert run(reward, "great") == [pytest.approx(model(**ids).logits.item(), rel=1e-4)]

    def test_a_head_for_several_labels_at_once_has_a_sigmoid_for_each(self, bert: Path) -> None:
        reward = Classifier(str(bert), label="glad")
        reward.model.config.problem_type = "multi_label_classification"
        ids = reward.tokenizer("great", return_tensors="pt")
        logit = reward.model(**ids).logits[0, 2].item()
        assert run(reward, "great") == [pytest.approx(logit)]
        reward.output = "probability"
        assert run(reward, "great") == [pytest.approx(1 / (1 + math.exp(-logit)))]

    def test_reads_the_prompt_too_unless_told_otherwise(self, bert: Path) -> None:
        both, alone = Classifier(str(bert), label=0), Classifier(str(bert), label=0, include_prompt=False)
        assert run(both, " great", prompts=["film"]) == run(alone, "film great")
        assert run(both, " great", prompts=["film"]) != run(alone, " great", prompts=["film"])

    def test_conversations_are_written_by_its_own_chat_template(self, gpt2: Path) -> None:
        reward = Classifier(str(gpt2), batch_size=1)
        turn = "{{ m['role'] + ': ' + m['content'] + eos_token }}"
        reward.tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
        prompts = [[{"role": "user", "content": "How?"}], "film"]
        completions = [[{"role": "assistant", "content": "great"}], " great"]
        ids = reward.tokenizer("user: How?<eos>assistant: great<eos>", return_tensors="pt")
        expected = [reward.model(**ids).logits.item(), *run(reward, " great", prompts=["film"])]
        scores = reward(prompts=prompts, completions=completions, completion_ids=[[1], [2]])
        assert scores == pytest.approx(expected, rel=1e-4)

    def test_without_a_chat_template_it_reads_what_the_assistant_said(self, bert: Path) -> None:
        completion = [{"role": "assistant", "content": "great"}]
        arguments: Any = {"prompts": [[{"role": "user", "content": "film"}]], "completions": [completion]}
        with pytest.raises(TextEnvError, match=r"has no chat template.*include_prompt=False"):
            Classifier(str(bert), label=0)(**arguments, completion_ids=[[1]])
        alone = Classifier(str(bert), label=0, include_prompt=False)
        assert alone(**arguments, completion_ids=[[1]]) == run(alone, "great")

    def test_a_long_text_keeps_its_end(self, bert: Path) -> None:
        reward = Classifier(str(bert), label=0, max_length=6)  # four words between [CLS] and [SEP]
        end = "I slept and slept"
        assert run(reward, "great " * 50 + end) == run(reward, end)
        assert run(reward, end + " great" * 50) != run(reward, end)

    def test_reads_no_more_than_the_model_has_positions_for(self, bert: Path, gpt2: Path) -> None:
        assert (Classifier(str(bert), label=0).max_length, Classifier(str(gpt2)).max_length) == (16, 64)

    def test_positions_that_no_token_gets_are_not_counted(self, tmp_path: Path) -> None:
        config = RobertaConfig(
            vocab_size=4 + len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=34, pad_token_id=1, id2label={0: "score"},
        )  # fmt: skip
        names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *WORDS]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0))
        reward = Classifier(str(save(config, tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]"}, tmp_path)))
        assert reward.max_length == 32
        assert run(reward, "great " * 100) == run(reward, "great " * 30)

    def test_other_precisions(self, bert: Path) -> None:
        (exact,) = run(Classifier(str(bert), label=0), "great")
        (rough,) = run(Classifier(str(bert), label=0, dtype="bfloat16"), "great")
        assert rough == pytest.approx(exact, rel=0.2)
        assert rough != exact

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, r"label=None.*'neutral', 'sad', 'glad', or an index from 0 to 2"),
            ({"label": "happy"}, "label='happy'.*'glad'"),
            ({"label": 3}, "label=3"),
            ({"label": -1}, "label=-1"),
            ({"label": 0, "output": "logit"}, "'log_odds', 'probability'"),
            ({"label": 0, "dtype": "int8"}, "'float32', 'bfloat16', 'float16'"),
            ({"label": 0, "batch_size": 0}, "batch_size=0"),
            ({"label": 0, "max_length": 0}, "max_length=0"),
            ({"label": 0, "max_length": 17}, "reads 16 tokens at most"),
        ],
    )
    def test_refuses_arguments_out_of_range(self, bert: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(TextEnvError, match=message):
            Classifier(str(bert), **arguments)

    def test_refuses_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(TextEnvError, match="cannot be loaded"):
            Classifier(str(tmp_path))

    def test_refuses_a_tokenizer_that_cannot_pad(self, gpt2: Path, tmp_path: Path) -> None:
        AutoModelForSequenceClassification.from_pretrained(gpt2).save_pretrained(tmp_path)
        bare = Tokenizer.from_file(str(gpt2 / "tokenizer.json"))
        PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(tmp_path)
        with pytest.raises(TextEnvError, match="its tokenizer has no padding token"):
            Classifier(str(tmp_path))

    def test_refuses_a_model_without_a_trained_head(self, bert: Path, tmp_path: Path) -> None:
        AutoModel.from_pretrained(bert).save_pretrained(tmp_path)
        PreTrainedTokenizerFast.from_pretrained(bert).save_pretrained(tmp_path)
        with pytest.raises(TextEnvError, match=r"lacks the weights \['classifier.bias', 'classifier.weight'\]"):
            Classifier(str(tmp_path))


class Brevity:
    """A third party's reward, as a class with an argument."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, /, *, completions: Sequence[str], **columns: Any) -> list[float]:
        return [-self.scale * len(completion) for completion in completions]


class TestThirdParty(RewardContract):
    picklable = False  # the contract can be told so

    def make_reward(self) -> Reward:
        return make(Brevity(0.5))


def make_brevity(scale: float = 1.0) -> Brevity:
    return Brevity(scale)


def make_closure() -> Callable[..., list[float]]:
    return from_column


def make_nothing() -> Reward:
    return None  # type: ignore[return-value]


def says_nothing(command):  # type: ignore[no-untyped-def]
    raise AssertionError("it was called")


@pytest.fixture
def their_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("their_rewards")
    module.__dict__.update(
        Brevity=Brevity,
        from_column=from_column,
        make_brevity=make_brevity,
        make_closure=make_closure,
        brevity=Brevity(),
        pi=3.14,
        broken=make_nothing,
        says_nothing=says_nothing,
        trl=lambda completions, **kwargs: [0.0] * len(completions),
    )
    monkeypatch.setitem(sys.modules, "their_rewards", module)
    return module


class TestMake:
    def test_every_file_is_a_reward_with_its_name(self) -> None:
        built_in = "bleu chrf classifier clip counterfactual_gap length normalize pattern rouge vader weighted_sum"
        assert set(built_in.split()) <= set(names())
        assert list(names()) == sorted(names())

    @pytest.mark.parametrize(
        ("spec", "reward"),
        [
            ("vader", Vader()),
            ({"name": "vader"}, Vader()),
            ({"name": "length", "target": 20, "unit": "tokens"}, Length(20, unit="tokens")),
            ({"name": "clip", "reward": "vader", "low": -0.5, "high": 0.5}, Clip(Vader(), -0.5, 0.5)),
            (
                {"name": "weighted_sum", "rewards": ["vader", {"name": "length", "target": 20}], "weights": [1.0, 0.1]},
                WeightedSum([Vader(), Length(20)], [1.0, 0.1]),
            ),
            (
                {"name": "normalize", "reward": {"name": "clip", "reward": Vader(), "low": 0, "high": 1}},
                Normalize(Clip(Vader(), 0, 1)),
            ),
            (Vader, Vader()),
        ],
    )
    def test_builds_what_the_specification_says(self, spec: Any, reward: Reward) -> None:
        assert make(spec) == reward

    def test_leaves_the_specification_alone(self) -> None:
        spec = {"name": "clip", "reward": {"name": "vader"}, "low": 0, "high": 1}
        before = json.dumps(spec)
        make(spec)
        assert json.dumps(spec) == before

    def test_passes_a_callable_through(self) -> None:
        assert make(from_column) is from_column

    def test_imports_a_class_a_factory_or_the_reward_itself(self, their_module: ModuleType) -> None:
        assert isinstance(make("their_rewards:Brevity"), Brevity)
        assert isinstance(make("their_rewards:make_brevity"), Brevity)
        assert make("their_rewards:make_closure") is from_column
        assert make("their_rewards:brevity") is their_module.brevity
        assert make("their_rewards:from_column") is from_column
        assert make("their_rewards:trl") is their_module.trl

    def test_hands_arguments_to_an_imported_class_or_factory(self, their_module: ModuleType) -> None:
        for name in ("Brevity", "make_brevity"):
            assert run(make({"name": f"their_rewards:{name}", "scale": 2}), "abc") == [-6]

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("vadar", r"no reward named 'vadar'\. Did you mean 'vader'\? .*bleu, chrf,.*weighted_sum"),
            ("zzz", "no reward named 'zzz'. Expected one of bleu"),
            (
                {"name": "length", "taget": 3},
                r"'length' has no argument 'taget'\. Did you mean 'target'\?.*unit='words'",
            ),
            ({"name": "length"}, r"'length' needs \['target'\].*target, unit='words'"),
            ({"name": "vader", "model": "x"}, "Its arguments: none"),
            ({"name": "clip", "reward": "vadar", "low": 0, "high": 1}, "Did you mean 'vader'"),
            ({"target": 3}, "has no name"),
            ({"name": 3}, "has no name"),
            (3, "3 is no reward"),
            (None, "None is no reward"),
            ("their_rewards:nope", "cannot be imported.*no attribute 'nope'"),
            ("no_such_module:reward", "cannot be imported.*No module named"),
            ("not a module:reward", "cannot be imported"),
            ("their_rewards:pi", r"3\.14; expected something to call"),
            ("their_rewards:broken", "returned None; expected a reward"),
            ({"name": "os:system", "command": "exit 3"}, "takes no 'completions'"),
            ({"name": "subprocess:Popen", "args": "exit 3"}, "takes no 'completions'"),
            ({"name": "their_rewards:says_nothing", "command": "x"}, "'-> Reward' that makes one"),
            ({"name": "builtins:eval", "source": "1"}, "takes no 'completions'"),
            ({"name": "clip", "reward": {"name": "os:system", "command": "x"}, "low": 0, "high": 1}, "no reward"),
            ({"name": "their_rewards:Brevity", "size": 1}, "no argument 'size'.*scale=1.0"),
            ({"name": "their_rewards:trl", "size": 1}, "is itself the reward and takes no arguments"),
        ],
    )
    def test_says_what_is_wrong_with_a_specification(self, spec: Any, message: str, their_module: ModuleType) -> None:
        with pytest.raises(TextEnvError, match=message):
            make(spec)

    def test_the_contract_looks_at_more_than_plain_english(self) -> None:
        assert "" in COMPLETIONS
        assert any(not completion.isascii() for completion in COMPLETIONS)
