"""The settings: what each refuses, and that the message repeats it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import pytest

from textenv.env.settings import TextEnvSettings
from textenv.types import TextEnvError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", 5),
        ("torch_dtype", "int8"),
        ("chat", "yes"),
        ("kl_estimator", "k4"),
        ("kl_mode", None),
        ("max_new_tokens", 0),
        ("max_new_tokens", None),
        ("max_new_tokens", 5.0),
        ("max_new_tokens", "five"),
        ("max_new_tokens", True),
        ("max_prompt_tokens", -1),
        ("kl_coef", -0.1),
        ("kl_coef", "0.1"),
        ("kl_coef", None),
        ("kl_target", math.inf),
        ("kl_horizon", 0),
        ("kl_horizon", 2.5),
        ("temperature", 0),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("missing_eos_penalty", math.inf),
        ("missing_eos_penalty", None),
        ("stop", ("",)),
        ("stop", [1]),
        ("stop", 5),
        ("top_k", 0),
        ("top_k", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
    ],
)
def test_what_is_not_expected_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(TextEnvError, match=f"^{name}=.*: expected") as caught:
        TextEnvSettings.of({name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("max_new_token", "unexpected keyword argument 'max_new_token'. Did you mean 'max_new_tokens'"),
        ("kl_coeff", "Did you mean 'kl_coef'"),
        ("dtype", "Did you mean 'torch_dtype'"),
        ("zzz", "unexpected keyword argument 'zzz'. Expected one of: model, device"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(given: str, message: str) -> None:
    with pytest.raises(TextEnvError) as caught:
        TextEnvSettings.of({given: 1})
    assert message in str(caught.value)
    assert isinstance(caught.value, TypeError)  # as of any function that does not have the keyword
    assert f"got an unexpected keyword argument {given!r}" in str(caught.value)


@pytest.mark.parametrize(("given", "kept"), [("END", ("END",)), (["a", "b"], ("a", "b")), ((), ())])
def test_stop_strings_come_one_or_many(given: Any, kept: tuple[str, ...]) -> None:
    assert TextEnvSettings(stop=given).stop == kept


def test_numbers_of_numpy_are_numbers() -> None:
    settings = TextEnvSettings(max_new_tokens=np.int64(3), temperature=np.float32(0.5), kl_coef=0)  # type: ignore[arg-type]
    assert settings.max_new_tokens == 3
    assert settings.temperature == 0.5


def test_settings_are_frozen_and_every_one_is_documented() -> None:
    settings = TextEnvSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.kl_coef = 1.0  # type: ignore[misc]
    text = inspect.getdoc(TextEnvSettings) or ""
    assert [field.name for field in dataclasses.fields(settings) if f"\n    {field.name}: " not in text] == []
