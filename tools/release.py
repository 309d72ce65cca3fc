"""Tags a release with its section of CHANGELOG.md and pushes it: `make release VERSION=1.2.0`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Check, tag, push; or say in one line what stands in the way."""
    version = sys.argv[1] if len(sys.argv) > 1 else ""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit("Which version? make release VERSION=1.2.0")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    notes = section(changelog, version)
    if not notes:
        sys.exit(f"CHANGELOG.md has no section {version}: rename Unreleased to it, and commit that.")
    if git("status", "--porcelain"):
        sys.exit("There are changes that are not committed.")
    tag = f"v{version}"
    if git("tag", "--list", tag):
        sys.exit(f"{tag} exists. A tag that people may have rendered is not moved: take the next number.")
    # Not Markdown's headings, which git would take for comments of its own.
    git("tag", "--annotate", tag, "--cleanup=verbatim", "--message", f"{tag}\n\n{notes}\n")
    git("push", "--atomic", "origin", "HEAD", tag)
    print(f"{tag} is out: cookiecutter gh:ORG/cookiecutter-fastapi-space --checkout {tag}")


def section(changelog: str, version: str) -> str:
    """Return what stands below the heading of this version, or "" if there is none."""
    found = re.search(rf"^## {re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def git(*arguments: str) -> str:
    """Return what git prints; end with its own message if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    return done.stdout.strip()


if __name__ == "__main__":
    main()
