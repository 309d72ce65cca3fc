"""`.env.space` as people fill it: what is in it is sent under its name, or not at all, and never printed."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.project_tools import project_tool

Read = Callable[[Path, list[str]], dict[str, str]]
REFUSALS = re.compile(
    r"\.env\.space, line \d+: not NAME=value, or no value\. A value of several lines, such as a key, goes into quotes"
    r"|\.env\.space is not UTF-8: save it as that"
)
KEY = """-----BEGIN PRIVATE KEY-----
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj
Zm9vYmFy
c2VjcmV0=
-----END PRIVATE KEY-----"""


@pytest.fixture(scope="module")
def read() -> Read:
    """The function of the project, where it stands."""
    read: Read = project_tool("checks").read_secrets
    return read


def give(folder: Path, content: str | bytes) -> Path:
    (folder / ".env.space").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"API_TOKEN=one\nKEY={KEY}\n", 3),
        (f"\n\nKEY={KEY}\n", 4),
        (f'KEY="{KEY}\n', 1),
        ("API_TOKEN one\n", 1),
        ("API_TOKEN=one\n\n\nTWO WORDS=x\n", 4),
        ("A-B=x\n", 1),
        ("=x\n", 1),
        ("API_TOKEN\n", 1),
        ('A="x" y\n', 1),
        ("API_TOKEN=\n", 1),
        ("API_TOKEN=one\nOTHER=''\n", 2),
        # the end of a key
        ("KEY=MIIE\nZm9vYmFyc2VjcmV0aHVudGVyMg==\n", 2),
        ("KEY=MIIE\nZm9vYmFyc2VjcmV0aHVudGVy = # why\n", 2),
    ],
)
def test_a_line_that_is_no_secret_is_named_by_its_number(read: Read, tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(ValueError, match=REFUSALS) as refused:
        read(give(tmp_path, content), [])
    assert f"line {line}:" in str(refused.value)


def test_what_people_write_is_understood(read: Read, tmp_path: Path) -> None:
    content = f"\ufeff# Mine\r\nexport API_TOKEN = 'one # two'\r\n\r\nKEY=\"{KEY}\"\r\nURL=a=b#c # why\n"
    assert read(give(tmp_path, content), ["URL"]) == {"API_TOKEN": "one # two", "KEY": KEY, "URL": "a=b#c"}


@pytest.mark.parametrize(
    "names", [["HOME", "API_TOKEN=hunter2value"], ["HOME", "hunter2value"], ["HOME", "hunter2-value"]]
)
def test_what_is_no_name_or_has_no_value_is_told_by_its_place_among_the_names(
    read: Read, tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"\ASECRETS, name 2: ") as refused:
        read(tmp_path, names)
    assert "hunter2" not in str(refused.value)


def test_another_encoding_is_told(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=REFUSALS):
        read(give(tmp_path, "API_TOKEN=geheimnißvoll\n".encode("latin-1")), [])


# Lines as they stand in such files, and the pieces of which anything else is made.
PIECES = st.sampled_from(["KEY=", "a", "b/+=", '"', "'", "\\", "\n", "\r\n", "=", " ", "#", "export ", "\0", "é", KEY])
LINES = st.lists(st.one_of(st.text(), PIECES, st.from_regex(r"[A-Za-z0-9+/]{4,64}={0,2}", fullmatch=True)), max_size=12)


def check_a_pasted_key(read: Read, folder: Path, key: bytes, line_end: str, more: str) -> None:
    body = base64.encodebytes(key).decode().strip()
    give(folder, f"KEY={body}\n{more}".replace("\n", line_end))
    if "\n" in body:
        with pytest.raises(ValueError, match=REFUSALS):
            read(folder, [])
    else:
        assert read(folder, [])["KEY"] == body


def test_a_key_of_several_lines_without_quotes_is_refused_wherever_it_ends(read: Read, tmp_path: Path) -> None:
    # a line holds 57 bytes
    keys = st.binary(min_size=50, max_size=120)
    ends, others = st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "OTHER=one\n", "# mine\n"])
    check = given(st.just(read), st.just(tmp_path), keys, ends, others)(check_a_pasted_key)
    settings(max_examples=100, deadline=None)(check)()


def check_a_random_file(read: Read, folder: Path, parts: list[str]) -> None:
    give(folder, "".join(parts).encode("utf-8", "surrogatepass"))
    message, found = "", {}
    try:
        found = read(folder, [])
    except ValueError as refusal:
        message = str(refusal)
    # The whole message is ours, but for a number.
    assert not message or REFUSALS.fullmatch(message)
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) and value.strip("=") for name, value in found.items())
    # what is said of those that are sent is made of the names of settings
    told = list(project_tool("checks").secret_problems(found))
    assert [problem for problem in told if "KEY" in problem or "MII" in problem] == []


@examples(few=200, many=2000)
def test_no_file_at_all_makes_it_print_what_is_in_it(read: Read, tmp_path: Path, examples: int) -> None:
    check = given(st.just(read), st.just(tmp_path), LINES)(check_a_random_file)
    settings(max_examples=examples)(check)()
