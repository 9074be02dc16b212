"""Episodes as colored text: nothing that a token holds steers the terminal or the page."""

import dataclasses
import html
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from textenv.env.render import color_is_shown, prompt_lines, save_html, to_ansi, to_html, visible
from textenv.rollouts.console import SafeConsole
from textenv.rollouts.tracking import comparison_markdown
from textenv.types import Episode, Prompt, Turn
from textenv.web.markup import fill, join

HOSTILE = ("<script>alert(1)</script>", '" onmouseover="x', "\x1b[31m", "\u202eabc", "\r\n", "&amp;", "日本", "\ufffd")


def episode(*tokens: str, kl: float = 1.0) -> Episode:
    n = len(tokens)
    return Episode(
        start=Prompt("The <b>film\x07", (1,)),
        completion="".join(tokens),
        completion_ids=tuple(range(n)),
        completion_tokens=tokens,
        log_probs=(0.0,) * n,
        ref_log_probs=(0.0,) * n,
        kl=tuple(kl * (-1) ** i for i in range(n)),
        token_rewards=(0.5,) * n,
        score=0.25,
        stop_reason="eos",
    )


def test_parts_of_the_score_and_what_was_logged_are_shown() -> None:
    shown = dataclasses.replace(
        episode("good"), scores={"vader": 0.5, "<b>": None}, logged={"answer": "<script>4</script>\x1b[31m"}
    )
    assert "score +0.250 (vader +0.500, <b> -), KL" in to_ansi(shown, color=False)
    page = to_html([shown])
    assert "score (vader +0.500, &lt;b&gt; -)" in page
    assert "<b>answer</b> &lt;script&gt;4&lt;/script&gt;\\x1b[31m" in page
    assert "(" not in to_ansi(episode("good"), color=False)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.styled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.styled += [value or "" for name, value in attrs if name == "style"]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


@given(st.text())
def test_visible_text_has_no_control_characters(text: str) -> None:
    assert visible(text).isprintable() or all(c.isprintable() or c.isspace() for c in visible(text))
    assert not set(visible(text)) & set(map(chr, range(32)))


def test_visible_leaves_what_people_read() -> None:
    assert visible("Ein Mädchen, 日本 😀 a b") == "Ein Mädchen, 日本 😀 a b"
    assert visible("a\n\x1b[0m\u202e") == "a\\n\\x1b[0m\\u202e"


def test_without_colors_the_terminal_gets_no_escape() -> None:
    text = to_ansi(episode(*HOSTILE), color=False)
    assert "\x1b" not in text
    assert "\n" not in text
    assert "score +0.250" in text
    assert "8 tokens, eos" in text


def test_with_colors_the_only_escapes_are_ours() -> None:
    text = to_ansi(episode("good", "\x1b[2Jbad"))
    escapes = [part.split("m")[0] for part in text.split("\x1b[")[1:]]
    assert all(code in {"0", "2"} or code.startswith("38;2;0;0;0;48;2;") for code in escapes)
    assert "\\x1b[2Jbad" in text


def test_color_tells_the_sign_and_size_of_the_kl() -> None:
    page = read(to_html([episode("a", "b", kl=4.0)]))
    assert any(style.startswith("background:rgba(220,38,38,0.70") for style in page.styled)
    assert any(style.startswith("background:rgba(37,99,235,0.70") for style in page.styled)


def test_an_unfinished_episode_has_no_score() -> None:
    text = to_ansi(episode("a"), color=False, finished=False)
    assert "unfinished" in text
    assert "score" not in text


def test_the_page_is_inert() -> None:
    page = read(to_html([episode(*HOSTILE)], title="<img src=x>\u202e", captions=["<img src=y>\u202e"]))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not any(name.startswith("on") or name in {"src", "href"} for name in page.attributes)
    assert "<script>alert(1)</script>" in page.text  # shown, not run
    assert "\u202e" not in page.text


def test_figures_of_a_token_and_of_the_episode_are_told() -> None:
    source = to_html([episode("a", kl=1.5)])
    assert "KL +1.500 nats&#10;reward +0.5000" in source
    assert "+0.250" in read(source).text


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    save_html(tmp_path / "x.html", [episode("a"), episode("b")])
    assert (tmp_path / "x.html").read_text("utf-8") == to_html([episode("a"), episode("b")])


def test_numbers_that_are_not_finite_are_shown() -> None:
    odd = dataclasses.replace(episode("a"), kl=(float("nan"),), token_rewards=(float("inf"),))
    assert "KL nan nats" in to_ansi(odd, color=False)
    assert "KL +nan nats" in to_html([odd])


SYSTEM = {"role": "system", "content": "Be <b>brief</b>.\nAlways."}
ASKED = {"role": "user", "content": "How is it?"}
BEGUN = {"role": "assistant", "content": "It was"}


def conversation(*messages: dict[str, str] | str) -> Episode:
    given: Any = messages[0] if isinstance(messages[0], str) else messages
    start = Prompt("<|im_start|>system and so on<|im_end|>", (1,), given=given)
    return dataclasses.replace(episode(" good", "."), start=start)


@pytest.mark.parametrize(
    ("given", "lines", "roles"),
    [
        ((SYSTEM, ASKED), ["system: Be <b>brief</b>.\\nAlways.", "user: How is it?", "assistant:  good."],
         ["system", "user", "assistant"]),
        ((ASKED, BEGUN), ["user: How is it?", "assistant: It was good."], ["user", "assistant"]),
        (("How is it?",), ["user: How is it?", "assistant:  good."], ["user", "assistant"]),
    ],
    ids=["two", "begun", "chat"],
)  # fmt: skip
def test_a_conversation_is_shown_by_its_roles(given: Any, lines: list[str], roles: list[str]) -> None:
    shown = conversation(*given)
    *before, last = to_ansi(shown, color=False).splitlines()
    assert [*before, last.partition("  [")[0]] == lines
    source = to_html([shown])
    assert re.findall("<h2>(.*?)</h2>", source) == roles
    assert not {"b", "script"} & {*read(source).tags[: read(source).tags.index("footer")]}
    assert prompt_lines(shown.start).splitlines()[0] == lines[0]
    for view in (source, to_ansi(shown), comparison_markdown([shown], [shown])):
        assert "im_start" not in view


def test_what_a_message_says_can_be_no_role() -> None:
    said = {"role": "user", "content": "x\nassistant: yes"}
    assert [line.partition(":")[0] for line in to_ansi(conversation(said), color=False).splitlines()] == [
        "user",
        "assistant",
    ]


def test_a_table_of_markdown_keeps_a_conversation_in_its_cell() -> None:
    shown = conversation(SYSTEM, {"role": "user", "content": "a | b\n**c**"})
    row = comparison_markdown([shown], [shown]).splitlines()[2]
    assert row.startswith(r"| **system:** Be \<b\>brief\</b\>.\\nAlways.<br>**user:** a \| b\\n\*\*c\*\* | ")
    assert len(re.findall(r"(?<!\\)\|", row)) == 7


@pytest.mark.parametrize(
    ("tokens", "spans", "kls"),
    [
        (("a", "", "é", "b"), ["a", "é", "b"], ["1.00", "-1.00 1.00", "-1.00"]),
        (("", "", "", "😀"), ["😀"], ["1.00 -1.00 1.00 -1.00"]),
        (("a", ""), ["a"], ["1.00 -1.00"]),
        (("", ""), [""], ["1.00 -1.00"]),
        (("", "é", "", "<end>"), ["é", "<end>"], ["1.00 -1.00", "1.00 -1.00"]),
        ((), [], []),
    ],
    ids=str,
)
def test_tokens_that_spell_a_character_are_shown_as_one(
    tokens: tuple[str, ...], spans: list[str], kls: list[str]
) -> None:
    source = to_html([episode(*tokens)])
    found = re.findall('<span class="t" style="([^"]*)" title="([^"]*)">(.*?)</span>', source)
    assert [html.unescape(text) for _, _, text in found] == spans
    told = [" ".join(f"{float(kl):.2f}" for kl in re.findall("KL ([+-][0-9.]+) nats", title)) for _, title, _ in found]
    assert told == kls  # each token's own figures
    for style, title, _ in found:
        total = sum(float(kl) for kl in re.findall("KL ([+-][0-9.]+) nats", title))
        assert style.endswith(f"{0.7 * min(abs(total) / 4, 1):.2f})")  # the color is of all of them
    colored = to_ansi(episode(*tokens))
    assert colored.count("\x1b[38;2;0;0;0") == len(spans)
    assert "".join(tokens) in to_ansi(episode(*tokens), color=False)


def test_a_character_that_is_being_written_is_not_shown_yet() -> None:
    begun = episode("a", "", "\ufffd")
    assert to_ansi(begun, color=False, finished=False).startswith("The <b>film\\x07a  [")
    assert to_ansi(begun, color=False).startswith("The <b>film\\x07a\ufffd  [")  # it ended within a character


@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        assert not os.environ.get("CI"), "CI installs Debian's chromium"
        pytest.skip("no chromium on this machine")
    save_html(tmp_path / "page.html", [episode(" good", *HOSTILE, kl=3.0)] * 3)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,700"]
    command += [f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    red = (picture[..., 0] - picture[..., 2] > 0.2).sum()
    blue = (picture[..., 2] - picture[..., 0] > 0.2).sum()
    assert red > 100
    assert blue > 100
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 20


def test_html_is_escaped_unless_it_was_made_here() -> None:
    inner = fill("<b title='{words}'>{words}</b>", words="\"'<&>\x1b\n{0}")
    assert inner == "<b title='&quot;&#x27;&lt;&amp;&gt;\\x1b\n{0}'>&quot;&#x27;&lt;&amp;&gt;\\x1b\n{0}</b>"
    assert fill("<p>{inner}{inner:s}{number:.2f}</p>", inner=inner, number=1.0) == f"<p>{inner}{inner}1.00</p>"
    assert fill("{given}", given=str(inner)) == html.escape(inner)  # a string that merely looks like it
    assert fill("<i>{all}</i>", all=join([inner, inner], ", ")) == f"<i>{inner}, {inner}</i>"


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x9b31m", "a\rb", "\u202eabc", "\x07", "[bold]b[/bold]", "[/x]", ":smile:"]
)
def test_a_console_shows_strings_as_they_are(text: str) -> None:
    console = SafeConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(text, table, Text("styled", style="red"))
    console.rule(text)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count(visible(text)) == 5
    assert not {"\x1b[31m", "\x9b", "\r", "\u202e", "\x07"} & {*shown, *re.findall("\x1b\\[[0-9;]*m", shown)}


@pytest.mark.parametrize(
    ("variables", "terminal", "shown"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_color_is_for_terminals_that_want_it(
    variables: dict[str, str], terminal: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert color_is_shown() is shown


def test_turns_are_shown_with_their_roles() -> None:
    turns = (
        Turn("4", 1, "stop", "\nHigher.\n", (7,), 0.0),
        Turn("6 <b>", 2, "length", ({"role": "tool", "content": "Right."},), (), 1.0),
    )
    episode = Episode(
        start=Prompt("Guess: ", (1,)), completion="4\nHigher.\n6 <b>", completion_ids=(4, 6, 8),
        completion_tokens=("4", "6", " <b>"), log_probs=(0.0,) * 3, ref_log_probs=(0.0,) * 3, kl=(0.0, 1.0, 2.0),
        token_rewards=(0.0, 0.0, 1.0), score=0.5, stop_reason="world", turns=turns,
    )  # fmt: skip
    lines = to_ansi(episode, color=False).split("\n")
    assert lines[:4] == ["world: Guess: ", "agent: 4", "world: Higher.", "agent: 6 <b>"]
    assert lines[4] == "tool: Right.  [score +1.500, KL 3.00 nats, 3 tokens, world]"
    page = to_html([episode])
    roles = re.findall(r"<h2>(\w+)</h2>", page)
    assert roles == ["world", "agent", "world", "agent", "tool"]
    assert "&lt;b&gt;" in page
    assert page.count('class="t"') == 3
