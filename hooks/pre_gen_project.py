"""Refuses answers that would not make a working Space: every problem in one list, nothing left on disk.

Answers that were typed or given have been judged by the same rules before (cookiecutter_fastapi_space.py). This is for
those that are replayed from a file: it runs in the new folder while that is still empty, and cookiecutter removes the
folder when this exits with 1.

Cookiecutter renders this file with Jinja before it runs it: no two braces may stand together in it.
"""

import json
import re
import shlex
import sys
import textwrap
import unicodedata

# As JSON in a raw string, because no quote or backslash in an answer can end it: inside JSON each quote has a backslash
# before it, so three never meet.
ANSWERS = r"""
{{ cookiecutter | tojson }}
"""

# Asked here again because answers that are replayed from a file were never compared with the choices.
COLORS = ["blue", "indigo", "purple", "pink", "red", "yellow", "green", "gray"]
LICENSES = ["mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0"]
LICENSES += ["lgpl-3.0", "gpl-3.0", "agpl-3.0", "eupl-1.2", "unlicense", "other"]
CHOICES = {
    "color_from": COLORS,
    "color_to": COLORS,
    "license": LICENSES,
    "python_version": ["3.14", "3.15", "3.13"],
}
TITLE_LENGTH = 200
DESCRIPTION_LENGTH = 60
HOST_LABEL_LENGTH = 63

# Unicode 17's Emoji property above ASCII, without the letters that flags are made of.
PICTOGRAPH = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa"
    "\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2604\u260e\u2611\u2614\u2615\u2618\u261d\u2620\u2622\u2623"
    "\u2626\u262a\u262e\u262f\u2638-\u263a\u2640\u2642\u2648-\u2653\u265f\u2660\u2663\u2665\u2666\u2668\u267b\u267e"
    "\u267f\u2692-\u2697\u2699\u269b\u269c\u26a0\u26a1\u26a7\u26aa\u26ab\u26b0\u26b1\u26bd\u26be\u26c4\u26c5\u26c8"
    "\u26ce\u26cf\u26d1\u26d3\u26d4\u26e9\u26ea\u26f0-\u26f5\u26f7-\u26fa\u26fd\u2702\u2705\u2708-\u270d\u270f\u2712"
    "\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763\u2764\u2795-\u2797"
    "\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299"
    "\U0001f004\U0001f0cf\U0001f170\U0001f171\U0001f17e\U0001f17f\U0001f18e\U0001f191-\U0001f19a\U0001f201\U0001f202"
    "\U0001f21a\U0001f22f\U0001f232-\U0001f23a\U0001f250\U0001f251\U0001f300-\U0001f321\U0001f324-\U0001f393"
    "\U0001f396\U0001f397\U0001f399-\U0001f39b\U0001f39e-\U0001f3f0\U0001f3f3-\U0001f3f5\U0001f3f7-\U0001f4fd"
    "\U0001f4ff-\U0001f53d\U0001f549-\U0001f54e\U0001f550-\U0001f567\U0001f56f\U0001f570\U0001f573-\U0001f57a"
    "\U0001f587\U0001f58a-\U0001f58d\U0001f590\U0001f595\U0001f596\U0001f5a4\U0001f5a5\U0001f5a8\U0001f5b1\U0001f5b2"
    "\U0001f5bc\U0001f5c2-\U0001f5c4\U0001f5d1-\U0001f5d3\U0001f5dc-\U0001f5de\U0001f5e1\U0001f5e3\U0001f5e8"
    "\U0001f5ef\U0001f5f3\U0001f5fa-\U0001f64f\U0001f680-\U0001f6c5\U0001f6cb-\U0001f6d2\U0001f6d5-\U0001f6d8"
    "\U0001f6dc-\U0001f6e5\U0001f6e9\U0001f6eb\U0001f6ec\U0001f6f0\U0001f6f3-\U0001f6fc\U0001f7e0-\U0001f7eb"
    "\U0001f7f0\U0001f90c-\U0001f93a\U0001f93c-\U0001f945\U0001f947-\U0001f9ff\U0001fa70-\U0001fa7c"
    "\U0001fa80-\U0001fa8a\U0001fa8e-\U0001fac6\U0001fac8\U0001facd-\U0001fadc\U0001fadf-\U0001faea"
    "\U0001faef-\U0001faf8]"
)
SKIN_TONE_OR_STYLE = "[\U0001f3fb-\U0001f3ff\ufe0f]?"
REGION = "(?:[\U000e0020-\U000e007e]+\U000e007f)?"
JOINER = "\u200d"
FLAG = "[\U0001f1e6-\U0001f1ff][\U0001f1e6-\U0001f1ff]"
KEYCAP = "[0-9#*]\ufe0f?\u20e3"
ONE = PICTOGRAPH + SKIN_TONE_OR_STYLE + REGION
EMOJI = re.compile(FLAG + "|" + KEYCAP + "|" + ONE + "(?:" + JOINER + ONE + ")*")

SLUG = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
USERNAME = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")


def is_one_line_of_text(value: str) -> bool:
    """Whether people can see something in it, and every YAML parser reads it back as it is."""
    categories = [unicodedata.category(character) for character in value]
    seen = any(category[0] not in "CZ" for category in categories)
    unwritable = {"Cc", "Cs", "Zl", "Zp"}.intersection(categories)
    return seen and not unwritable and "\ufffe" not in value and "\uffff" not in value


def hub_length(value: str) -> int:
    """How many characters the Hub counts: it is written in JavaScript, where most emoji count as two."""
    return len(value.encode("utf-16-le", "surrogatepass")) // 2


def problems(answers: "dict[str, str]") -> "list[str]":
    """What must be changed, one sentence for each answer that cannot be used."""
    found = []

    def refuse(name: str, value: str, allowed: str) -> None:
        shown = ascii(value if len(value) <= 80 else value[:77] + "...")
        found.append(f"{name}: {allowed} (not {shown})")

    title = answers["project_name"]
    if not is_one_line_of_text(title) or len(title) > TITLE_LENGTH:
        refuse("project_name", title, f"one line of 1 to {TITLE_LENGTH} characters, none of them a control character")

    username = answers["hf_username"]
    if not USERNAME.fullmatch(username) or not 2 <= len(username) <= 42:
        refuse("hf_username", username, "2 to 42 letters and digits, with single hyphens between them, as on the Hub")

    slug = answers["project_slug"]
    # Spaces answer at https://<user name>-<slug>.hf.space.
    room = HOST_LABEL_LENGTH - len("-") - min(len(username), 42)
    if not SLUG.fullmatch(slug) or len(slug) > room:
        refuse(
            "project_slug",
            slug,
            "lower-case letters and digits, with single hyphens between them, a letter first, "
            f"{room} characters at most with this user name",
        )

    description = answers["short_description"]
    if not is_one_line_of_text(description) or hub_length(description) > DESCRIPTION_LENGTH:
        refuse(
            "short_description",
            description,
            f"one line of 1 to {DESCRIPTION_LENGTH} characters, none of them a control character; "
            f"this has {hub_length(description)}, and an emoji counts as two or more",
        )

    if not EMOJI.fullmatch(answers["emoji"]):
        refuse("emoji", answers["emoji"], "exactly one emoji and nothing else")

    for name, choices in CHOICES.items():
        if answers[name] not in choices:
            refuse(name, answers[name], "one of " + ", ".join(choices))
    return found


def refusal(answers: "dict[str, str]") -> str:
    """What to tell who gave these answers, or "" if nothing is wrong with them."""
    found = problems(answers)
    if not found:
        return ""
    # Cookiecutter renders what is in braces, and not every console shows more than ASCII.
    refused = [problem.partition(":")[0] for problem in found]
    kept = [
        name + "=" + shlex.quote(value)
        for name, value in answers.items()
        if name[0] != "_" and name not in refused and value.isascii() and value.isprintable() and "{" not in value
    ]
    lines = ["These answers cannot make a Space, so nothing was written."]
    if kept:
        lines += ["What need not be typed again if it is added to the command:", "", "  " + " ".join(kept), ""]
    wrapped = [textwrap.fill("  - " + problem, 80, subsequent_indent="    ") for problem in found]
    return "\n".join([*lines, "What is allowed:", *wrapped])


def main() -> None:
    """Print all problems and exit with 1, or say nothing."""
    sys.exit(refusal(json.loads(ANSWERS)) or 0)


if __name__ == "__main__":
    main()
