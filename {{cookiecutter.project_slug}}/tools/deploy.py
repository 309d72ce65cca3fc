"""Deploy this folder to a Docker Space on Hugging Face. It is safe to run again.

python -m tools.deploy USER/SPACE [--list] [--dry-run] [--secrets "NAME NAME"]

Exit codes: 0 the Space serves this folder; 1 the Hub refused a step, or the Space failed;
2 something here must be fixed first, and nothing was sent; 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

from tools import network
from tools.selection import LocalProblem, left_out, select, shown

ROOT = Path(__file__).resolve().parents[1]


def deploy(options: argparse.Namespace) -> int:
    """Check how the Hub is reached, take all steps, and return the exit code."""
    if problems := list(network.problems()):
        raise LocalProblem("; ".join(problems))
    try:
        # huggingface_hub reads its variables when it is imported.
        from tools import steps
    except ValueError:
        raise LocalProblem(network.unusable_variables()) from None
    return steps.take(options)


def list_files() -> None:
    """Print what would be sent, what not, and why, without asking the Hub."""
    selected = select(ROOT)
    for path, file in selected.files.items():
        real = file.relative_to(ROOT).as_posix()
        print(f"sent     {shown(path)}{f' (from {shown(real)})' * (real != path)}")
    left = left_out(ROOT, selected)
    for path, reason in left.items():
        print(f"stays    {shown(path)} ({shown(reason)})")
    print(f"list     {len(selected.files)} files to send, {len(left)} that stay")


def main() -> int:
    """Deploy, or list the files alone, and return the exit code."""
    parser = argparse.ArgumentParser(description="Deploy this folder to a Docker Space.")
    parser.add_argument("space", help="user/name")
    parser.add_argument("--list", action="store_true", help="only say what would be sent")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--secrets", default="", help="names of secrets to set again")
    parser.add_argument("--timeout-minutes", type=float, default=30)
    parser.add_argument("--poll-seconds", type=float, default=5)
    options = parser.parse_args()
    try:
        if not options.list:
            return deploy(options)
        list_files()
    except LocalProblem as problem:
        print(f"Nothing was sent: {problem}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        message = "Interrupted: what was sent stays, and make deploy goes on from here."
        print(message, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
