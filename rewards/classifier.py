"""A Hugging Face sequence classifier as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from textenv.models.loading import find_device, reading
from textenv.models.positions import longest_input
from textenv.rewards._texts import completion_texts, is_conversation
from textenv.types import TextEnvError, short
from textenv.validation import Count, NonEmpty, validated

__all__ = ["Classifier"]


class Classifier:
    """How sure a sequence classifier is that a text has a label.

    The classifier reads text with its own tokenizer; the policy may have another. A text that is too long for the
    classifier is cut at its beginning, never at its end. Dropout is off.

    A head with one output (a reward model, a regression) and one for several labels at once have a sigmoid for each
    output, whose log-odds is the output itself; any other head has a softmax, where the log-odds of label ``k`` is
    ``z_k - log(sum_{j != k} exp(z_j))``.

    Conversations, prompt and completion, are formatted by the classifier's own chat template, as in its training.
    Without the prompt, what the assistant said is read as plain text.

    Log-odds are a better signal for a policy than the probability, which saturates where the classifier is sure. A
    sentiment classifier replaces people in Ziegler et al., 2019: *Fine-Tuning Language Models from Human Preferences*.

    Args:
        model: A folder or a hub id, as ``from_pretrained`` takes it.
        label: The label, by name or index; may be left out where the head has one output.
        output: ``"log_odds"``, any number, or ``"probability"``, from 0 to 1.
        include_prompt: Whether the text is the prompt followed by the completion, or the completion alone.
        batch_size: Texts in one forward pass.
        max_length: Tokens read of a text; what the tokenizer and the model allow unless given.
        device: A torch device, or ``"auto"`` for a GPU if there is one. None for that of the environment, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, of the weights; scores are computed in float32.

    Raises:
        TextEnvError: If an argument is out of range, the model cannot be loaded, or it has no trained head.
    """

    @validated
    def __init__(
        self,
        model: NonEmpty,
        *,
        label: str | int | None = None,
        output: Literal["log_odds", "probability"] = "log_odds",
        include_prompt: bool = True,
        batch_size: Count = 32,
        max_length: Count | None = None,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        found_device = find_device("cpu" if device is None else device)  # before a model is loaded
        self.output = output
        self.include_prompt = include_prompt
        self.batch_size = batch_size
        self.model, self.tokenizer = _load(model, dtype)
        self.label = _label_index(label, self.model.config, model)
        longest = _longest_input(self.tokenizer, self.model)
        if max_length and longest and max_length > longest:
            raise TextEnvError(f"Classifier(max_length={max_length}): {model!r} reads {longest} tokens at most.")
        self.max_length = max_length or longest
        self.model.to(found_device)
        # A byte-level tokenizer turns an empty completion into no tokens, which a model cannot read.
        self._blank = "" if self.tokenizer("")["input_ids"] else self.tokenizer.pad_token

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` log-odds in nats, or probabilities."""
        texts, templated = completion_texts(completions), [False] * len(completions)
        if self.include_prompt:
            templated = [is_conversation(*pair) for pair in zip(prompts, completions, strict=True)]
            texts = [
                self._conversation([*prompt, *completion]) if chat else prompt + completion
                for prompt, completion, chat in zip(prompts, completions, templated, strict=True)
            ]
        scores = [0.0] * len(texts)
        for chat in (False, True):
            rows = [row for row, is_chat in enumerate(templated) if is_chat is chat]
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                for row, value in zip(batch, self._score([texts[row] for row in batch], chat), strict=True):
                    scores[row] = value
        return scores

    def _conversation(self, messages: list[Any]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise TextEnvError(
                f"Classifier({self.tokenizer.name_or_path!r}) has no chat template, and the prompts are conversations. "
                "Pass include_prompt=False to score what the assistant said alone, or give a reward model for chat."
            )
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template is a program, which can raise anything
            raise TextEnvError(
                f"The chat template of Classifier({self.tokenizer.name_or_path!r}) refuses {short(messages)}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error

    def _score(self, texts: Sequence[str], templated: bool = False) -> list[float]:
        inputs = self.tokenizer(
            [text or self._blank for text in texts],
            add_special_tokens=not templated,  # a template includes them
            padding=True,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = self.model(**inputs.to(self.model.device)).logits.float()
            sigmoid = logits.shape[-1] == 1 or self.model.config.problem_type == "multi_label_classification"
            scores = logits[:, self.label] if sigmoid else log_odds(logits, self.label)
            if self.output == "probability":
                scores = scores.sigmoid()
        return [float(score) for score in scores.tolist()]


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Return ``log p/(1-p)`` of one label of a softmax, without computing ``p``, which would round to 0 or 1.

    Args:
        logits: Shape ``(batch, labels)``, two labels or more.
        label: Index of the label.

    Returns:
        Log-odds in nats, shape ``(batch,)``.
    """
    others = [index for index in range(logits.shape[-1]) if index != label]
    return logits[:, label] - logits[:, others].logsumexp(-1)


def _load(name: str, dtype: str) -> tuple[Any, Any]:
    """Load a classifier without dropout, and a tokenizer that pads on the right and truncates on the left."""
    # Imported here because it takes seconds, and the other rewards do not need it.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

    expected = "Expected a folder or a hub id with a sequence classifier and its tokenizer, as save_pretrained writes."
    try:
        with reading(name, expected) as source:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                source, truncation_side="left", padding_side="right", trust_remote_code=False
            )
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=getattr(torch, dtype), output_loading_info=True, trust_remote_code=False
            )
    except TextEnvError as error:
        raise TextEnvError(f"Classifier(model={name!r}) cannot be loaded: {error}") from error
    # from_pretrained initializes missing weights at random: a language model would become a classifier that guesses.
    if loading["missing_keys"]:
        raise TextEnvError(
            f"Classifier(model={name!r}) lacks the weights {sorted(loading['missing_keys'])}: it wasn't trained to "
            "classify. Train it as a sequence classifier first."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise TextEnvError(
                f"Classifier(model={name!r}): its tokenizer has no padding token; set pad_token and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    # A decoder's score is read at the last token that isn't padding: model and tokenizer must agree on the padding id.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval().requires_grad_(False), tokenizer


def _label_index(label: str | int | None, config: Any, model: str) -> int:
    names = [config.id2label[index] for index in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise TextEnvError(
        f"Classifier(label={label!r}): expected one of the labels of {model!r}, {', '.join(map(repr, names))}, "
        f"or an index from 0 to {len(names) - 1}."
    )


def _longest_input(tokenizer: Any, model: Any) -> int | None:
    """Return the most tokens that both can take, ``None`` if neither has a limit."""
    limits = (tokenizer.model_max_length, longest_input(model))
    # A tokenizer without a limit gives one of 1e30.
    return min((int(limit) for limit in limits if limit and limit < 10**9), default=None)
