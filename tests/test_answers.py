"""Bad answers are refused, all problems in one list, and leave nothing on disk."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.bakery import ROOT, Bakery, RefusedError, cookiecutter_command
from tests.support.hooks import load_hook
from tests.support.machine import need
from tests.support.terminal import type_answers

GOOD = {
    "project_name": "My Space",
    "project_slug": "my-space",
    "hf_username": "your-username",
    "short_description": "Says hello",
    "emoji": "🚀",
    "color_from": "blue",
    "color_to": "green",
    "license": "mit",
    "python_version": "3.14",
}
BAD = {
    "project_slug": [
        "../x", "..", ".", "/", "/tmp/x", "a/b", "a/../b", "a\\b", "C:x", "~", "1abc", "a b", " abc", "abc ", "abc\n",
        "Abc", "a_b", "a.b", "a--b", "-a", "a-", "é", "日本", "x" * 50, "x" * 400, "a\0b", "\ud83d", "$HOME",
        "0-refused",
    ],
    "hf_username": [
        "", "x", "-me", "me-", "me--you", "me you", "me@home", "me/you", "me..you", ".me", "me.", "me_you", "mé",
        "x" * 43, "me\n", "٣٣٣",
    ],
    "short_description": ["", " ", "x" * 61, "🚀" * 31, "two\nlines", "bell\a", "\u2028", "\x85next", "\x7f", "\ud83d"],
    "emoji": [
        "", "🚀🚀", "🚀 ", " 🚀", "x", "1", "#", ":rocket:", "🚀x", "🇫🇷🇩🇪",
        "🇫", "\ufe0f", "\u200d", "👨‍👩‍", "❤️🔥", "\ud83d",
    ],
    "project_name": [
        "", " ", "two\nlines", "carriage\rreturn", "tab\tbed", "null\0", "\x1b[31mred", "\u2028", "\u2029", "a\x85b",
        "\ufffe", "\uffff", "\u200b", "\ud83d", "x" * 201,
    ],
}  # fmt: skip
NOT_OFFERED = {"color_from": "orange", "color_to": "Blue", "license": "MIT", "python_version": "2.7"}

FINE = {
    "project_slug": ["a", "a1", "my-space", "a-1-b", "x" * 49],
    "hf_username": ["me", "Me-2", "123-go", "x" * 42],
    "short_description": ["x" * 60, "é" * 60, "🚀" * 30, "{{7*7}}"],
    "emoji": ["🚀", "❤", "❤️", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "❤️‍🔥", "🇫🇷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "3️⃣", "#⃣", "🧑🏿‍🚀", "©️", "🫩"],
    "project_name": ["x", "x" * 200, "مرحبا", "\u202bשלום\u202c", "a\u200cb", "日本", "½", "🚀", "\ufeffBOM"],
}  # fmt: skip


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(question, answer) for question, answers in table.items() for answer in answers]


def with_the_rest_thorough(table: dict[str, list[str]], first: int) -> list[Any]:
    """The cases, of which `make test` renders the first ones of each question only."""
    rest = [
        pytest.param(question, answer, marks=pytest.mark.thorough)
        for question in table
        for answer in table[question][first:]
    ]
    return [*cases({question: answers[:first] for question, answers in table.items()}), *rest]


def problems(refusal: RefusedError | str) -> list[str]:
    """The lines of the list, of which each names its question."""
    return re.findall(r"^  - (\w+): ", str(refusal), re.MULTILINE)


@pytest.mark.parametrize(("question", "answer"), cases(BAD), ids=ascii)
def test_a_bad_answer_is_known_by_name(question: str, answer: str) -> None:
    answers = GOOD | {question: answer}
    found = load_hook("pre_gen_project", answers).problems(answers)
    assert [problem.partition(":")[0] for problem in found] == [question]


@pytest.mark.parametrize(("question", "answer"), with_the_rest_thorough(BAD, 4), ids=ascii)
def test_a_bad_answer_is_refused_by_name_and_leaves_nothing(bake: Bakery, question: str, answer: str) -> None:
    with pytest.raises(RefusedError) as refused:
        bake(**{question: answer})
    assert problems(refused.value) == [question]
    assert str(refused.value).isascii()
    assert refused.value.left_behind == []


@pytest.mark.parametrize(("question", "answer"), cases(FINE), ids=ascii)
def test_an_unusual_answer_is_accepted(question: str, answer: str) -> None:
    answers = GOOD | {question: answer}
    if question == "hf_username":
        answers["project_slug"] = "my-space"
    assert load_hook("pre_gen_project", answers).problems(answers) == []


def test_all_problems_are_told_at_once_in_a_line_each(bake: Bakery) -> None:
    bad = {question: answers[0] for question, answers in BAD.items()} | NOT_OFFERED
    with pytest.raises(RefusedError) as refused:
        bake.as_typed(**bad)
    assert sorted(problems(refused.value)) == sorted(GOOD)
    assert refused.value.left_behind == []


SLUGS = ["../x", "/tmp/space-that-is-refused", "a/b", "..", "1abc", "a b"]


@pytest.mark.parametrize("slug", [*SLUGS[:2], *(pytest.param(slug, marks=pytest.mark.thorough) for slug in SLUGS[2:])])
def test_the_command_refuses_a_bad_slug_and_leaves_nothing(bake: Bakery, tmp_path: Path, slug: str) -> None:
    folder = tmp_path / "here"
    rendering = cookiecutter_command(
        "--no-input", f"project_slug={slug}", "emoji=no", template=bake.template, folder=folder
    )
    assert rendering.exit_code == 1
    assert problems(rendering.output) == ["project_slug", "emoji"]
    assert "letter" in rendering.output
    assert rendering.output.endswith("  - emoji: exactly one emoji and nothing else (not 'no')\n")
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "here-home"]
    assert not Path("/tmp/space-that-is-refused").exists()


def test_a_refused_slug_never_touches_a_folder_that_exists(bake: Bakery, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "README.md").write_text("mine")
    rendering = cookiecutter_command(
        "--no-input",
        "--overwrite-if-exists",
        "project_slug=../precious",
        template=bake.template,
        folder=tmp_path / "here",
    )
    assert rendering.exit_code == 1
    assert (tmp_path / "precious" / "README.md").read_text() == "mine"
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [f"{question}={answer}" for question, answer in NOT_OFFERED.items()] + ["project_slug="],
)
def test_what_cookiecutter_itself_refuses_leaves_nothing(bake: Bakery, tmp_path: Path, answer: str) -> None:
    rendering = cookiecutter_command("--no-input", answer, template=bake.template, folder=tmp_path / "here")
    assert rendering.exit_code != 0
    assert list((tmp_path / "here").iterdir()) == []


def test_bad_answers_typed_at_the_prompts_are_refused(bake: Bakery, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    typed = ["My {{7*7}} Space", "../x", "me--you", "x" * 61, "🚀🚀", "1", "1", "1", "1"]
    exit_code, screen = type_answers(typed, template=bake.template, folder=folder)
    assert exit_code == 1
    assert problems(screen) == ["hf_username", "project_slug", "short_description", "emoji"]
    # The reasons are what is read last, and fit on the screen.
    assert "Traceback" not in screen
    reasons = screen.replace("\r", "").partition("What is allowed:\n")[2].splitlines()
    assert [line for line in reasons if not re.match(r"  - | {4}\S", line) or len(line) > 80] == []
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "x").exists()


def test_what_was_fine_need_not_be_typed_again(bake: Bakery, tmp_path: Path) -> None:
    given = ["project_name=Bob's API", "hf_username=me--you", "license=isc", "short_description={braces}"]
    refused = cookiecutter_command("--no-input", *given, template=bake.template, folder=tmp_path / "here")
    assert problems(refused.output) == ["hf_username"]
    (offered,) = re.findall(r"^  (project_name=.*)$", refused.output, re.MULTILINE)
    answers = dict(answer.split("=", 1) for answer in shlex.split(offered))
    assert answers.items() >= {"project_name": "Bob's API", "project_slug": "bob-s-api", "license": "isc"}.items()
    # What cookiecutter would render, and what not every console shows, is not offered.
    assert answers.keys() == GOOD.keys() - {"hf_username", "short_description", "emoji"}
    again = [*shlex.split(offered), "hf_username=me"]
    accepted = cookiecutter_command("--no-input", *again, template=bake.template, folder=tmp_path / "here")
    assert 'title: "Bob\'s API"' in (accepted.folder / "bob-s-api" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("My Space", "my-space"),
        ("3D Viewer", "space-3d-viewer"),
        ("🚀", "space"),
        ("日本", "ri-ben"),
        ('Bob\'s "API": v2 é', "bob-s-api-v2-e"),
        ("../../etc", "etc"),
        ("x" * 200, "x" * 30),
        ("a very long title that goes on and on for ever", "a-very-long-title-that-goes-on"),
    ],
)
def test_every_title_gives_a_slug_that_is_accepted(bake: Bakery, title: str, slug: str) -> None:
    assert bake(project_name=title).path.name == slug


def test_the_hook_knows_the_choices_that_are_offered(bake: Bakery) -> None:
    offered = {name: sorted(choices) for name, choices in bake.questions.items() if isinstance(choices, list)}
    known = load_hook("pre_gen_project", GOOD).CHOICES
    assert offered == {name: sorted(choices) for name, choices in known.items()}


def test_there_are_nine_questions_and_each_is_asked_in_plain_english(bake: Bakery) -> None:
    prompts = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["__prompts__"]
    assert list(bake.questions) == list(GOOD) == list(prompts)
    for question, choices in bake.questions.items():
        if isinstance(choices, list) and set(prompts[question]) != {"__prompt__"}:
            assert set(prompts[question]) == {"__prompt__", *choices}


def test_exactly_the_characters_that_unicode_calls_emoji_are_emoji() -> None:
    node = need("node", "it knows Unicode's emoji")
    script = """
        const kinds = {emoji: [], unassigned: []};
        for (let code = 0x80; code <= 0x10ffff; code++) {
          const character = String.fromCodePoint(code);
          if (/\\p{Emoji}/u.test(character) && !/\\p{Regional_Indicator}/u.test(character)) kinds.emoji.push(code);
          if (/\\p{Cn}/u.test(character)) kinds.unassigned.push(code);
        }
        console.log(JSON.stringify(kinds));
    """
    kinds = json.loads(subprocess.run([node, "-e", script], capture_output=True, check=True).stdout)  # noqa: S603
    pattern = load_hook("pre_gen_project", GOOD).EMOJI
    accepted = {code for code in range(0x80, 0x110000) if pattern.fullmatch(chr(code))}
    assert set(kinds["emoji"]) <= accepted
    # This machine's JavaScript may know an older Unicode.
    assert accepted - set(kinds["emoji"]) <= set(kinds["unassigned"])


def test_the_same_answers_are_baked_once_and_unknown_ones_not_at_all(bake: Bakery) -> None:
    assert bake(emoji="🐍").path == bake(emoji="🐍").path
    with pytest.raises(TypeError, match="databse"):
        bake(databse="x")
