"""Functions that the agent calls, and environments as TRL takes them."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from tests.complaints import plain
from tests.conftest import build_lm
from tests.families import make_family
from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import TextEnvError
from textenv.models.chat import end_of_turn, with_tools
from textenv.testing import WorldContract
from textenv.worlds import find
from textenv.worlds.tools import Tools


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return a + b


async def shout(text: str) -> str:
    """Say it loudly.

    Args:
        text: What to say.
    """
    return text.upper()


def vague(x):  # type: ignore[no-untyped-def]
    """Do something."""


class Counter:
    """A class as in TRL's documentation: counts up to a number that its seed draws."""

    made: ClassVar[int] = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.closed = False

    def reset(self, seed: int | None = None, start: int = 0, **columns: Any) -> str | None:
        """Begin."""
        self._count, self.columns = start, columns
        self._goal = random.Random(seed).randint(1, 4)
        return f" Count from {start} to {self._goal}."

    def count(self, by: int) -> str:
        """Count on.

        Args:
            by: How far.

        Returns:
            Where that leads.
        """
        if by < 0:
            raise ValueError("Nobody counts backwards.")
        self._count += by
        return f"{self._count}"

    async def get_reward(self) -> float:
        """Return 1 at the goal, and less the further away it is."""
        return 1.0 - abs(self._goal - self._count) / 10

    def _secret(self) -> None:
        """Is no tool."""


class Plain:
    """Another: it is reset without columns, and its reward is an attribute."""

    def reset(self, **_: Any) -> None:
        """Begin."""
        self.reward = 0.0

    def win(self) -> str:
        """Win.

        Returns:
            A text.
        """
        self.reward = 2.0
        return "won"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class TestTools(WorldContract):
    texts = (
        call("add", a=1, b=2),
        call("add"),
        "Done.",
        "",
        "<tool_call>",
        call("shout", text="a") * 2,
        "<tool_call>[",
    )
    most_turns = 60

    def make_world(self) -> Tools:
        return Tools(tools=[add, shout])


class TestToolsOfAnEnvironment(WorldContract):
    texts = (call("count", by=1), call("count", by=2), call("count", by=-1), call("reset"), "Done.")
    most_turns = 60

    def make_world(self) -> Tools:
        return Tools(environment=Counter)

    def options(self) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": "Go."}], "start": 1, "level": "easy"}


@pytest.mark.parametrize(
    ("written", "content"),
    [
        (call("add", a=2, b=3), "5"),
        (call("add", a=2), "3"),
        (call("shout", text="hi"), "HI"),
        ('I add. <tool_call>{"name": "add", "arguments": {"a": 1}}', "2"),  # a stop string took the end
        (call("add"), "missing 1 required positional argument: 'a'"),
        (call("add", a=1, c=2), "unexpected keyword argument 'c'"),
        (call("add", a="x"), "can only concatenate str"),
        (call("sub", a=1), "There is no tool 'sub'; expected one of add, shout."),
        ("<tool_call>add(1, 2)</tool_call>", "Expecting value: line 1 column 1"),
        ("<tool_call>[1]</tool_call>", 'expected {"name": ..., "arguments": {...}}, not [1]'),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "expected {"),
        ('<tool_call>{"arguments": {}}</tool_call>', "There is no tool 'None'"),
        ("<tool_call></tool_call>", "Expecting value"),
        ('{"name": "add", "parameters": {"a": 2, "b": 3}}', "5"),
        ('<|python_tag|>{"name": "add", "arguments": {"a": 2}}', "3"),
        ('{"name": "sub", "parameters": {}}', "There is no tool 'sub'"),
        ('{"name": "add", "parameters": [1]}', "expected {"),
    ],
)
def test_a_call_is_answered_by_its_result_or_its_error(written: str, content: str) -> None:
    world = Tools(tools=[add, shout])
    world.reset(seed=0)
    answers, reward, terminated, truncated, _ = world.step(written)
    assert (len(answers), reward, terminated, truncated) == (1, 0.0, False, False)
    assert answers[0]["role"] == "tool"
    assert set(answers[0]) == {"role", "name", "content"}
    assert content in answers[0]["content"].replace('\\"', '"')
    if "error" in answers[0]["content"]:
        assert answers[0]["content"].startswith("{'error': ")


def test_calls_of_a_turn_are_made_one_after_the_other_and_a_turn_without_ends() -> None:
    world = Tools(tools=[add, shout])
    world.reset(seed=0)
    said, *_ = world.step(f"First {call('add', a=1)}, then {call('shout', text='b')}.")
    assert said == [
        {"role": "tool", "name": "add", "content": "2"},
        {"role": "tool", "name": "shout", "content": "B"},
    ]
    for text in ("That is all.", "5", '{"name": "add"}', "{" * 5, '["name"]'):
        assert world.step(text) == ("", 0.0, True, False, {})


# How the templates of Qwen 2.5 and of Llama 3.1 write tools, in short.
_QWEN = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{{ '# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
    "{{ '\\n</tools><|im_end|>\\n' }}{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + "
    "'\\n</tool_response><|im_end|>\\n' }}{% elif m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA = (
    "{% for m in messages %}{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + "
    '\'<|end_header_id|>\\n\\n\' }}{% if tools and loop.first %}{{ \'Write {"name": function name, "parameters": '
    "dictionary}.' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '\\n\\n' }}{% endif %}"
    "{{ m.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def parameters(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments})


@pytest.mark.parametrize(
    ("family", "template", "write_call"), [("qwen2", _QWEN, call), ("llama", _LLAMA, parameters)], ids=["Qwen", "Llama"]
)
def test_a_template_that_takes_tools_writes_them(family: str, template: str, write_call: Any) -> None:
    lm = make_family(family, max_position_embeddings=2048)
    lm.tokenizer.chat_template = template
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add."}]
    schemas = Tools(tools=[add]).reset()[1]["tools"]

    def rendered(conversation: list[dict[str, Any]]) -> list[int]:
        how: dict[str, Any] = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        return list(lm.tokenizer.apply_chat_template(conversation, tools=schemas, **how)["input_ids"])

    settings: dict[str, Any] = {"prompts": [{"prompt": messages}], "max_tokens": 2000, "max_new_tokens": 200}
    with env_of(lm, {"name": "tools", "tools": [add]}, **settings) as env:
        obs, _ = env.reset(seed=0)
        assert obs["input_ids"][: obs["attention_mask"].sum()].tolist() == rendered(messages)
        over = False
        written = lm.tokenizer(write_call("add", a=2, b=3), add_special_tokens=False)["input_ids"]
        end = end_of_turn(lm.tokenizer)
        assert end is not None
        for token in (*written, end):
            obs, _, over, _, _ = env.step(token)
        assert not over
        said = [*messages, {"role": "assistant", "content": write_call("add", a=2, b=3)}]
        answer = {"role": "tool", "name": "add", "content": "5"}
        assert obs["input_ids"][: obs["attention_mask"].sum()].tolist() == rendered([*said, answer])
        _, over, _, info = write(env, "5")
        assert over
        assert info["turns"][0].answer == (answer,)
        (episode,) = env.batch.last_episodes
        assert episode is not None
        assert episode.start.given == tuple(messages)


def test_with_any_other_template_a_system_message_says_which_tools_there_are() -> None:
    world = Tools(tools=[add, shout], environment=Counter)
    said, info = world.reset(seed=0)
    assert list(world.tools) == ["add", "shout", "count"]
    tokenizer = make_family("qwen2").tokenizer
    (system, user), left = with_tools(tokenizer, tuple(said), info["tools"])
    assert (system["role"], user, list(left)) == ("system", said[0], [])
    content = str(system["content"])
    described = [
        json.loads(line) for line in content.split("<tools>\n")[1].split("\n</tools>", maxsplit=1)[0].split("\n")
    ]
    assert described == info["tools"]
    assert [tool["function"]["name"] for tool in described] == list(world.tools)
    assert described[0]["function"]["parameters"]["required"] == ["a"]
    assert described[0]["function"]["description"] == "Add two numbers."
    assert user["content"].startswith(" Count from 0 to ")
    conversation = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."})
    said, info = world.reset(seed=0, options={"prompt": conversation})
    (first, second), _ = with_tools(tokenizer, tuple(said), info["tools"])
    assert first["content"] == f"Be brief.\n\n{content}"
    assert second["content"] == f"Hi.{user['content']}"
    assert conversation[0]["content"] == "Be brief."
    assert Tools(tools=[add], describe=False).reset(options={"prompt": "Add."}) == (
        [{"role": "user", "content": "Add."}],
        {},
    )


def test_an_environment_is_given_the_columns_and_a_seed() -> None:
    world: Any = Tools(environment=Counter)
    said, _ = world.reset(seed=3, options={"prompt": "Go.", "start": 2, "level": "easy"})
    assert said[-1]["content"] == f"Go. Count from 2 to {random.Random(3).randint(1, 4)}."
    assert world._environment.columns == {"prompt": "Go.", "level": "easy"}
    world.reset(seed=3, options={"prompt": "Go.", "seed": 5})
    assert world._environment._goal == random.Random(5).randint(1, 4)  # a column comes first
    made = Counter.made
    world.reset(seed=4)
    assert Counter.made == made


def test_the_rewards_of_the_turns_sum_to_that_of_the_environment() -> None:
    world: Any = Tools(environment=Counter)
    for seed in range(5):
        world.reset(seed=seed)
        paid = [world.step(text)[1] for text in (call("count", by=3), call("count", by=-1), "Done.")]
        assert sum(paid) == pytest.approx(1.0 - abs(world._environment._goal - 3) / 10)
        assert paid[1:] == [0.0, 0.0]


def test_the_reward_may_be_an_attribute() -> None:
    world = Tools(environment=Plain)
    for _ in range(2):
        world.reset(seed=0)
        assert [world.step(text)[1] for text in ("nothing", call("win"), call("win"))] == [0.0, 2.0, 0.0]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    made: Any = ModuleType("my_tools")
    made.add, made.Counter, made.number, made.vague = add, Counter, 3, vague
    monkeypatch.setitem(sys.modules, "my_tools", made)
    return "my_tools"


def test_tools_and_environments_have_import_paths(module: str) -> None:
    tools: Any = find({"name": "tools", "tools": [f"{module}:add"], "environment": f"{module}:Counter"})[1]()
    trl: Any = find({"name": f"trl:{module}:Counter", "tools": [f"{module}:add"]})[1]()
    for world in (tools, trl):
        assert list(world.tools) == ["add", "count"]
    assert list(find(f"trl:{module}:Counter")[1]().tools) == ["count"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tools", r"The tools are \[\]; expected at least one"),
        ({"name": "tools", "tools": [add, add]}, r"The tools are \['add', 'add'\]; expected .* names that differ"),
        ({"name": "tools", "tools": ["my_tools:nonesuch"]}, "The tool 'my_tools:nonesuch' cannot be imported"),
        ({"name": "tools", "tools": ["add"]}, "The tool 'add': expected 'package.module:attribute'"),
        ({"name": "tools", "tools": ["my_tools:number"]}, "is 3; expected something that can be called"),
        ({"name": "tools", "tools": ["my_tools:vague"]}, "The tool 'vague' cannot be described"),
        ({"name": "tools", "environment": dict}, r"The environment of tools \{\} has no method reset"),
        ({"name": "tools", "tool": []}, "unexpected keyword argument 'tool'.* Did you mean 'tools'"),
        ("trl:os:abort", r"is <built-in function abort>; expected a class with reset, or a function"),
        ("trl:Counter", "The environment of tools 'Counter': expected 'package.module:attribute'"),
        ("trl:nonesuch:Counter", "The environment of tools 'nonesuch:Counter' cannot be imported"),
    ],
    ids=plain,
)
def test_what_are_no_tools_is_one_line(spec: Any, message: str, module: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        find(spec)[1]()


def test_in_an_environment() -> None:
    lm = make_family("qwen2", max_position_embeddings=2048)
    world = {"name": "tools", "environment": Counter}
    settings: dict[str, Any] = {"max_tokens": 2000, "max_turns": 3}
    passes_both_checkers(lm, world, max_new_tokens=2, **settings)
    prompts = [{"prompt": [{"role": "user", "content": "Go."}], "start": 1}]
    with env_of(lm, world, kl_coef=0.0, prompts=prompts, max_new_tokens=200, **settings) as env:
        _, info = env.reset(options={"world_seed": 3})
        goal = random.Random(3).randint(1, 4)
        assert f"Go. Count from 1 to {goal}.<|im_end|>\n<|im_start|>assistant\n" in info["prompt"]
        paid, terminated, *_ = write(env, call("count", by=goal - 1))
        assert (paid, terminated) == (1.0, False)
        paid, terminated, truncated, info = write(env, "Done.")
        assert (paid, terminated, truncated, info["stop_reason"]) == (0.0, True, False, "world")
        first = info["turns"][0]
        assert first.text == call("count", by=goal - 1)
        assert first.answer == ({"role": "tool", "name": "count", "content": str(goal)},)


def test_a_model_without_a_chat_template_is_told(tmp_path: Path) -> None:
    with env_of(build_lm(), {"name": "tools", "tools": [add]}) as env, pytest.raises(TextEnvError, match="chat templ"):
        env.reset()
