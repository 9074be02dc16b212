"""The pre-training mix of PPO-ptx: its gradient, its metric, resuming, what it is for, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.agents.test_agents import LEARNERS, make, parameters
from tests.agents.test_ppo import make_envs
from tests.complaints import one_line
from textenv.agents import find
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.pretraining import PretrainingMix
from textenv.models.causal_lm import CausalLM
from textenv.training.bits_per_character import bits_per_character

TEXT = "the film was a great film, and the plot of it was thin."
ENVIRONMENT: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "kl_mode": "dense"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(f"{TEXT}\n\n{TEXT} It was great.\n\n", "utf-8")
    return path


def gradients(agent: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of the first minibatch of the agent's first iteration."""
    found: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        if not found:
            found.update({n: p.grad.clone() for n, p in agent.policy.named_parameters() if p.grad is not None})

    hook = agent.optimizer.register_step_pre_hook(note)
    agent.learn(1)
    hook.remove()
    return found


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_gradient_is_the_agents_own_and_that_of_the_mean_log_likelihood(
    name: str, micro: int | None, tiny_lm: CausalLM, tmp_path: Path
) -> None:
    ids = [*tiny_lm.encode(TEXT)]  # it begins with the token that ends a text: one example, whichever is drawn
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    shared: dict[str, Any] = {"max_grad_norm": 1e9, "minibatch_size": None, "seed": 3, "micro_batch_size": micro}
    plain = gradients(make(name, tiny_lm, env=ENVIRONMENT, **shared))
    ptx: dict[str, Any] = {"ptx_coef": 2.5, "ptx_files": (str(tmp_path / "text.txt"),), "ptx_context": len(ids) - 1}
    agent = make(name, tiny_lm, env=ENVIRONMENT, **shared, **ptx)
    before = {n: p.detach().clone() for n, p in agent.policy.named_parameters()}
    metrics: dict[str, float] = {}
    mixed = gradients(agent)

    policy = make(name, tiny_lm, env=ENVIRONMENT).policy
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters())
    log_probs = torch.log_softmax(policy.model(input_ids=torch.tensor([ids])).logits[0, :-1], dim=-1)
    loss = -log_probs.gather(1, torch.tensor(ids)[1:, None]).mean()
    loss.backward()
    for key, parameter in policy.named_parameters():
        expected = plain[key] + (0 if parameter.grad is None else 2.5 * parameter.grad)
        torch.testing.assert_close(mixed[key], expected, atol=1e-4, rtol=1e-3)
    make(name, tiny_lm, env=ENVIRONMENT, **shared, **ptx).learn(1, progress=lambda _, found: metrics.update(found))
    assert metrics["train/ptx_loss"] >= 0
    if "updates" not in agent.Config.__dataclass_fields__ and getattr(agent.config, "epochs", 1) == 1:
        assert metrics["train/ptx_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_examples_are_windows_of_all_documents_in_their_order(tiny_lm: CausalLM, text: Path) -> None:
    config = PPOConfig(ptx_coef=1.0, ptx_files=(str(text),), ptx_context=4, ptx_examples=3, seed=5)
    mix = PretrainingMix(tiny_lm, config)
    stream = [*tiny_lm.encode(TEXT), *tiny_lm.encode(f"{TEXT} It was great.")]
    windows = {tuple(stream[at : at + 5]) for at in range(len(stream) - 4)}
    drawn = [tuple(example) for example in mix.draw(200).tolist()]
    assert len(drawn) == 600
    assert set(drawn) == windows


def test_a_document_ends_with_the_token_that_ends_a_text(make_lm: Any, text: Path) -> None:
    lm = make_lm()
    lm.tokenizer.backend_tokenizer.post_processor = None  # as of GPT-2, which begins no text with a token
    config = PPOConfig(ptx_coef=1.0, ptx_files=(str(text),), ptx_context=8)
    first = len(lm.tokenizer(TEXT)["input_ids"])
    assert PretrainingMix(CausalLM(lm.model, lm.tokenizer), config)._stream[first] == lm.eos_ids[0]


@pytest.mark.parametrize("name", ["ppo", "soft_q"])
def test_it_resumes_bit_for_bit_and_refuses_other_text(
    name: str, tiny_lm: CausalLM, text: Path, tmp_path: Path
) -> None:
    def agent() -> Any:
        return make(name, tiny_lm, ptx_coef=1.0, ptx_files=(str(text),), ptx_context=8, learning_rate=1e-2)

    whole = agent().learn(200)
    agent().learn(200, progress=lambda steps, _: steps < 80, checkpoints=tmp_path / "run", checkpoint_every=1)
    resumed = agent().learn(200, checkpoints=tmp_path / "run", checkpoint_every=1)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert whole.steps == resumed.steps

    text.write_text(f"{TEXT}\n\n{TEXT} It was thin.\n\n", "utf-8")
    with one_line("other pre-training text"):
        agent().learn(200, checkpoints=tmp_path / "run")


def test_it_learns_with_lora_and_in_conversations(make_lm: Any, text: Path) -> None:
    lm = make_lm()
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    losses: list[float] = []
    agent = PPO(
        make_envs(lm, chat=True),
        PPOConfig(
            lora_rank=2, learning_rate=1e-2, ptx_coef=5.0, ptx_files=(str(text),), ptx_context=8, lr_schedule="constant"
        ),
    )
    agent.learn(600, progress=lambda _, metrics: losses.append(metrics["train/ptx_loss"]))
    assert sum(losses[-3:]) < sum(losses[:3])
    after = {key.replace(".base_layer", ""): value for key, value in lm.model.state_dict().items()}
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.slow
def test_it_keeps_the_likelihood_of_the_text_where_ppo_lets_it_fall(make_lm: Any, text: Path) -> None:
    lm = make_lm()
    known = f"{TEXT} It was great."
    _teach(lm, known)

    def bits(**settings: Any) -> tuple[float, float]:
        """Return bits per character of the text after PPO, and what it has gained in score."""
        rates: dict[str, Any] = {"learning_rate": 3e-3, "embedding_learning_rate": None, "lr_schedule": "constant"}
        agent = PPO(make_envs(lm, 32, kl_coef=0.0), PPOConfig(**rates, **settings, seed=1))
        scores: list[float] = []
        agent.learn(3000, progress=lambda _, metrics: scores.append(metrics["objective/score"]))
        return bits_per_character(agent.policy.model, lm.tokenizer, [known]), scores[-1] - scores[0]

    start = bits_per_character(lm.model, lm.tokenizer, [known])
    forgotten, _ = bits()
    kept, gained = bits(ptx_coef=1.0, ptx_files=(str(text),), ptx_context=16)
    assert forgotten > start + 0.3
    assert kept < start + 0.15
    assert gained > 0.1


def _teach(lm: CausalLM, text: str) -> None:
    model = lm.model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ids = torch.tensor([[*lm.encode(text), lm.eos_ids[0]]])
    for _ in range(60):
        optimizer.zero_grad()
        loss: Any = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"ptx_coef": -1.0, "ptx_files": ("text.txt",)}, "ptx_coef=-1.0"),
        ({"ptx_coef": float("nan"), "ptx_files": ("text.txt",)}, "ptx_coef=nan"),
        ({"ptx_coef": 1.0}, "ptx_coef=1.0 without text"),
        ({"ptx_files": ("text.txt",)}, "with ptx_coef=0"),
        ({"ptx_coef": 1.0, "ptx_files": ("",)}, "ptx_files"),
        ({"ptx_coef": 1.0, "ptx_files": ("text.txt",), "ptx_context": 0}, "ptx_context=0"),
        ({"ptx_coef": 1.0, "ptx_files": ("text.txt",), "ptx_examples": 0}, "ptx_examples=0"),
    ],
    ids=["negative", "nan", "no-text", "no-weight", "no-name", "no-context", "no-examples"],
)
def test_settings_that_make_no_mix(settings: dict[str, Any], what: str) -> None:
    for name in LEARNERS:
        with one_line(what):
            find(name).Config(**settings)


@pytest.mark.parametrize(
    ("content", "context", "what"),
    [
        (None, 8, "text.txt"),
        ("", 8, "no text in it"),
        ("the film", 8, "for one example"),
        (TEXT * 20, 128, "the model takes 128"),
    ],
    ids=["missing", "empty", "too-short", "too-long"],
)
def test_text_that_makes_no_example(
    content: str | None, context: int, what: str, tiny_lm: CausalLM, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content, "utf-8")
    with one_line(what):
        make("ppo", tiny_lm, ptx_coef=1.0, ptx_files=(str(path),), ptx_context=context)
