"""A stranger's file runs no code, reads no environment variable, and says who would have."""

import ast
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import build_lm
from tests.test_imports import modules
from textenv.agents import find
from textenv.clips.saved import load_policy
from textenv.commands.cli import main
from textenv.compare.plan import Compare, make_plan
from textenv.env.trust import Source
from textenv.feedback.exchange import _decoder
from textenv.models.causal_lm import CausalLM
from textenv.rewards.classifier import Classifier
from textenv.types import TextEnvError

TINY = ["--total-steps", "20", "--num-envs", "2", "--eval-episodes", "2", "--max-new-tokens", "3"]
TINY += ["--max-prompt-tokens", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    lm = build_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    common = ["--model", str(model), "--reward", "vader", *TINY]
    assert main(["train", "--out", str(out), *common]) == 0
    return out


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Put a module ``trap`` where it can be imported; the fixture tells whether it was."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return (tmp_path / "sprung").exists


@pytest.fixture
def spoil(run: Path) -> Iterator[Callable[..., list[str]]]:
    """Write other values into the config.json of the run; returns the arguments that sample it."""
    path = run / "config.json"
    text = path.read_text()

    def write(**changed: Any) -> list[str]:
        config = json.loads(text)
        settings = {**config["settings"], **changed.pop("settings", {})}
        path.write_text(json.dumps({**config, "settings": settings, **changed}))
        return ["sample", str(run), "--prompt", "it"]

    yield write
    path.write_text(text)


def wrapped(spec: Any) -> dict[str, Any]:
    inner = {"name": "weighted_sum", "rewards": ["vader", {"name": "clip", "reward": spec, "low": 0, "high": 1}]}
    return {"name": "normalize", "reward": inner}


def test_a_reward_that_is_a_command_does_not_run(
    spoil: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = {"name": "os:system", "command": f"touch {tmp_path / 'sprung'}"}
    for spec in (json.dumps(command), command, json.dumps(wrapped(command)), wrapped(command)):
        sample = spoil(reward=spec)
        assert main(sample) == 0  # sampling takes no reward
        assert main([*sample, "--reward", "run"]) == 1
        out = capsys.readouterr().out
        assert "config.json: reward 'os:system' imports a module" in out
        assert "--trust" in out
        assert main([*sample, "--reward", "run", "--trust"]) == 1  # trusted, and still no reward
        assert "which is no reward" in capsys.readouterr().out
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"reward": "trap:reward"}, "trap:reward"),
        ({"reward": wrapped("trap:reward")}, "trap:reward"),
        ({"env": "trap:Evil-v0"}, "trap:Evil-v0"),
        ({"agent": "trap:Agent"}, "trap:Agent"),
        ({"settings": {"reward": "trap:reward"}}, "trap:reward"),
        ({"settings": {"env_id": ["trap:Evil-v0"]}}, "trap:Evil-v0"),
        ({"settings": {"world": "trap:World"}}, "trap:World"),
        ({"settings": {"world": {"name": "trap:World"}}}, "trap:World"),
        ({"settings": {"world": "trl:trap:World"}}, "trl:trap:World"),
        ({"settings": {"world": "gymnasium:trap:Evil-v0"}}, "gymnasium:trap:Evil-v0"),
        ({"settings": {"world": "openenv:http://127.0.0.1:9"}}, "openenv:http://127.0.0.1:9"),
        ({"settings": {"world": {"name": "tools", "tools": ["trap:tool"]}}}, "trap:tool"),
        ({"settings": {"world": {"name": "tools", "environment": "trap:World"}}}, "trap:World"),
    ],
    ids=str,
)
def test_what_a_runs_file_names_is_imported_on_trust_alone(
    changed: dict[str, Any],
    name: str,
    spoil: Callable[..., list[str]],
    trap: Callable[[], bool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample = [*spoil(**changed), "--reward", "run"]
    assert main(sample) == 1
    assert name in (out := capsys.readouterr().out)
    assert "--trust" in out
    assert not trap()


def test_the_trap_can_be_sprung(spoil: Callable[..., list[str]], trap: Callable[[], bool]) -> None:
    assert main([*spoil(agent="trap:Agent"), "--trust"]) == 1  # it has no agent
    assert trap()


def test_an_environment_variable_is_not_sent_away(
    spoil: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    http = {"name": "http", "url": "http://127.0.0.1:9/score", "headers": {"X": "${SECRET_KEY}"}, "retries": 0}
    for spec in (http, wrapped(http), {**http, "headers": {}, "url": "http://127.0.0.1:9/${SECRET_KEY}"}):
        assert main([*spoil(reward=spec), "--reward", "run"]) == 1
        out = capsys.readouterr().out
        assert "${SECRET_KEY}" in out
        assert "reads an environment variable" in out
        assert "s3cret" not in out
    assert main([*spoil(reward=http), "--reward", "run", "--trust"]) == 1
    assert "127.0.0.1:9/score" in (out := capsys.readouterr().out)  # it asked, and nobody listens there
    assert "s3cret" not in out


def test_an_id_that_is_not_registered_is_refused(
    spoil: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(spoil(env="Evil-v0")) == 1
    assert "'Evil-v0' is not registered" in capsys.readouterr().out


def test_what_was_typed_is_trusted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_reward.py").write_text("def reward(completions, **_):\n    return [0.25] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["sample", str(run), "--prompt", "it", "--reward", "typed_reward:reward"]) == 0


TOML = """
rewards = ["dense"]
[[agents]]
name = "ppo"
[[envs]]
id = "textenv/Exact-v0"
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (TOML.replace('"ppo"', '"trap:Agent"'), "trap:Agent"),
        (TOML.replace('"dense"', '"trap:reward"'), "trap:reward"),
        (TOML.replace('"dense"', """'{"name": "trap:reward"}'"""), "trap:reward"),
        (TOML + 'rewards = [{name = "clip", reward = "trap:reward", low = 0, high = 1}]', "trap:reward"),
        (TOML + 'settings = {reward = "trap:reward"}', "trap:reward"),
        (TOML + 'settings = {world = "trap:World"}', "trap:World"),
        (TOML + 'settings = {world = {name = "tools", tools = ["trap:tool"]}}', "trap:tool"),
        (TOML + 'settings = {world = {name = "openenv:http://x/"}}', "openenv:http://x/"),
        (TOML + 'rewards = [{name = "http", url = "http://x/", headers = {A = "${HOME}"}}]', "${HOME}"),
        (TOML.replace("textenv/Exact-v0", "GymV26Environment-v0") + 'settings = {env_id = "trap:E-v0"}', "trap:E-v0"),
    ],
)
def test_a_comparisons_file_imports_on_trust_alone(
    text: str, value: str, tmp_path: Path, trap: Callable[[], bool]
) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(TextEnvError, match=r"plan\.toml: .*Give --trust") as refused:
        make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml"))
    assert value in str(refused.value)
    assert not trap()


def test_a_comparisons_file_that_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(TOML.replace('"ppo"', '"textenv.agents.ppo:PPO"'))
    assert make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml", trust=True)).agents[0].label == "PPO"


def test_a_policy_of_clips_imports_on_trust_alone(tmp_path: Path, trap: Callable[[], bool]) -> None:
    import safetensors.torch
    import torch

    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    about = {"agent": "ppo", "task": "trap:Evil-v0", "task_settings": {}, "agent_settings": {}}
    wrapper = {**about, "task": "GymV26Environment-v0", "task_settings": {"env_id": "trap:Evil-v0"}}
    for config in (about, wrapper):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(TextEnvError, match=r"config\.json: .*'trap:Evil-v0' .*Give trust=True"):
            load_policy(tmp_path)
        assert not trap()


def test_texts_that_are_no_imports_pass() -> None:
    source = Source(Path("x"), trust=False)
    spec = {"name": "pattern", "pattern": "a:b|http://x", "mode": "count"}
    assert source.reward(spec) == spec
    settings: dict[str, Any] = {
        "stop": ["User:hi", "${x}"],
        "prompts": ["Question:What"],
        "xml_file": "C:\\x",
        "reward": "vader",
    }
    settings["world"] = {"name": "word_memory", "words": ["a: b", "c"], "turns": 2}
    assert source.settings(settings) == settings


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("trap:World", "trap:World"),
        ("gem:game:GuessTheNumber-v0-easy", "gem:game:GuessTheNumber-v0-easy"),
        ({"name": "textarena:TicTacToe-v0", "opponent": "random"}, "textarena:TicTacToe-v0"),
        ({"name": "mine", "opponent": "trap:move"}, "trap:move"),
        ({"name": "mine", "deep": [{"er": {"trap:key": 1}}]}, "trap:key"),
        ({"name": "mine", "url": "https://example.org/reset"}, "https://example.org/reset"),
        ({"name": "mine", "token": "a ${SECRET_KEY}"}, "a ${SECRET_KEY}"),
    ],
    ids=str,
)
def test_a_world_of_a_file_imports_and_asks_on_trust_alone(spec: Any, value: str) -> None:
    path = Path("config.json")
    checks: list[tuple[Any, Any]] = [(Source.world, spec), (Source.settings, {"world": spec})]
    for check, given in checks:
        with pytest.raises(TextEnvError, match=r"config\.json: world .*Give --trust") as refused:
            check(Source(path, trust=False), given)
        assert repr(value) in str(refused.value)
        assert check(Source(path, trust=True), given) == given


@pytest.mark.parametrize("spec", ["trap:reward", {"name": "weighted_sum", "rewards": ["trap:reward"]}], ids=str)
def test_a_potential_of_a_file_imports_on_trust_alone(spec: Any) -> None:
    settings, path = {"potential": spec}, Path("config.json")
    with pytest.raises(TextEnvError, match=r"config\.json: potential 'trap:reward' imports a module.*Give --trust"):
        Source(path, trust=False).settings(settings)
    assert Source(path, trust=True).settings(settings) == settings
    with pytest.raises(TextEnvError, match=r"potential .* reads an environment variable"):
        Source(path, trust=False).settings({"potential": {"name": "http", "url": "http://127.0.0.1/${KEY}"}})
    assert Source(path, trust=False).settings({"potential": "vader"}) == {"potential": "vader"}


def test_another_environment_may_have_a_keyword_of_that_name() -> None:
    source = Source(Path("x"), trust=False)
    for world in (1, None, ["forest", 2]):
        assert source.settings({"world": world}) == {"world": world}
    with pytest.raises(TextEnvError, match="'trap:World' looks like the import of a module"):
        source.settings({"world": ["trap:World"]})
    with pytest.raises(TextEnvError, match=r"x: world 3: expected a name, or an object with 'name'"):
        source.world(3)


@pytest.mark.parametrize("name", ["os:system", "os:path", "pathlib:Path", "textenv.agents.ppo:PPOConfig"])
def test_an_agent_has_the_protocol(name: str) -> None:
    with pytest.raises(TextEnvError, match=r"see textenv\.agents\.find"):
        find(name)


# -- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_models_own_code_is_not_run(
    file: str, model: Path, tmp_path: Path, trap: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    shutil.copy(tmp_path / "trap.py", folder / "trap.py")
    about = json.loads((folder / file).read_text())
    if file == "config.json":
        about |= {"model_type": "trap", "auto_map": {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M"}}
    else:
        about |= {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": [None, "trap.T"]}}
    (folder / file).write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked says yes
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 1)
    for load in (CausalLM.from_pretrained, lambda where: Classifier(str(where)), lambda where: _decoder(str(where))):
        with contextlib.suppress(TextEnvError):
            load(folder)
        assert not trap()
    with pytest.raises(TextEnvError, match="could not be loaded"):
        CausalLM.from_pretrained(folder)


def test_every_load_says_that_it_trusts_no_code() -> None:
    loaders = {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "load"}
    found = 0
    for module, path in modules().items():
        tree = ast.parse(path.read_text("utf-8"))
        names = loaders - {"load"}
        aliases = {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "from_pretrained"
        }
        assert aliases <= loaders, module
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            direct = (
                isinstance(called, ast.Attribute)
                and called.attr == "from_pretrained"
                and isinstance(called.value, ast.Name)
                and called.value.id in names
            )
            if direct or (isinstance(called, ast.Name) and called.id in aliases):
                found += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{module}, line {node.lineno}"
    assert found >= 6


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.parametrize(
    "changed", [{"megatron_config": {"x": 1}, "megatron_core": "trap"}, {"peft_type": "IA3"}], ids=["megatron", "ia3"]
)
def test_an_adapter_imports_nothing(
    changed: dict[str, Any], model: Path, tmp_path: Path, trap: Callable[[], bool]
) -> None:
    peft = pytest.importorskip("peft")
    base = CausalLM.from_pretrained(model).model
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    about = {**json.loads(path.read_text()), "base_model_name_or_path": str(model)}
    path.write_text(json.dumps(about))
    CausalLM.from_pretrained(model).tokenizer.save_pretrained(tmp_path / "adapter")
    assert CausalLM.from_pretrained(tmp_path / "adapter").vocab_size == base.config.vocab_size
    kept = {"peft_type": "IA3", "base_model_name_or_path": str(model), "target_modules": ["k_proj"]}
    path.write_text(json.dumps({**(kept if "peft_type" in changed else about), **changed}))
    with pytest.raises(TextEnvError, match="expected a plain LoRA adapter"):
        CausalLM.from_pretrained(tmp_path / "adapter")
    assert not trap()


def test_a_chat_template_is_sandboxed(model: Path, tmp_path: Path) -> None:
    import shutil

    import jinja2

    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (folder / "chat_template.jinja").write_text(escape)
    with pytest.raises((TextEnvError, jinja2.exceptions.SecurityError)):
        CausalLM.from_pretrained(folder).encode_conversation(({"role": "user", "content": "x"},))
