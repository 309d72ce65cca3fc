"""Puts this folder online as a Docker Space and says what it does; a second run changes nothing.

python -m tools.deploy USER/SPACE [--dry-run] [--secrets "NAME NAME"]

Exit codes: 0 what is here serves; 1 the Hub or the Space stopped it; 2 something must be changed
here first, and nothing was sent; 130 interrupted.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import httpx2
from dotenv import dotenv_values
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceInfo,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, OIDCError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars
from pathspec import GitIgnoreSpec

from src.config.settings import setting_problems
from tools.front_matter import SPACE, front_matter_problems

ROOT = Path(__file__).resolve().parents[1]

# ---- What is sent, and what never is ----

# Beside .gitignore, whatever it says. No secret, no database, nothing that can be made again.
NEVER = GitIgnoreSpec.from_lines(
    """
    .git
    .env
    .env.*
    !.env.example
    .envrc
    *.pem
    *.key
    *.p12
    *.pfx
    id_rsa*
    id_ed25519*
    .netrc
    .pgpass
    .pypirc
    .npmrc
    .git-credentials
    .aws
    .ssh
    /data/
    *.db
    *.db-*
    *.sqlite
    *.sqlite-*
    *.sqlite3
    *.sqlite3-*
    .venv
    venv
    node_modules
    __pycache__
    .cache
    .*_cache
    """.split()
)
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"://[^\s:/@]*:(\S+)@")
SECRETS_FILE = ".env.space"
SHORTEST_SECRET = 8


class Stop(Exception):
    """Ends the deploy with one sentence for people."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code


def files_to_send(folder: Path) -> dict[str, bytes]:
    """Return the content of each file by its path, without NEVER and what .gitignore files name.

    Symbolic links are left out: what they point to may be anything.
    """
    specs: dict[Path, GitIgnoreSpec] = {}

    def is_ignored(path: Path, ending: str = "") -> bool:
        if NEVER.match_file(f"{path.relative_to(folder).as_posix()}{ending}"):
            return True
        ignored = False
        for parent in [*reversed(path.relative_to(folder).parents)]:
            spec = specs.get(folder / parent)
            name = path.relative_to(folder / parent).as_posix()
            if spec and (said := spec.check_file(f"{name}{ending}").include) is not None:
                ignored = said
        return ignored

    found = {}
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if ".gitignore" in names:
            lines = (here / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
            specs[here] = GitIgnoreSpec.from_lines(lines)
        folders[:] = [name for name in folders if not is_ignored(here / name, "/")]
        for path in [here / name for name in names]:
            if path.is_file() and not path.is_symlink() and not is_ignored(path):
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return dict(sorted(found.items()))


def read_secrets(folder: Path, again: list[str]) -> dict[str, str]:
    """Return the secrets for the Space: those of .env.space, and those of the environment if named.

    Raise Stop if one has no value.
    """
    secrets = dict(dotenv_values(folder / SECRETS_FILE, interpolate=False))
    secrets |= {name: os.environ.get(name) for name in again if name not in secrets}
    empty = sorted(name for name, value in secrets.items() if not value)
    if empty:
        sentence = f"No value for {', '.join(empty)}: write NAME=value lines into {SECRETS_FILE}."
        raise Stop(sentence, 2)
    return {name: value for name, value in secrets.items() if value}


def secret_values(settings: dict[str, str | None]) -> dict[str, list[str]]:
    """Return by name what nobody may read: tokens and the like, and URLs with their passwords."""
    found: dict[str, list[str]] = {}
    for name, value in settings.items():
        passwords = PASSWORD_IN_URL.findall(value or "")
        candidates = [value] if value and (passwords or SECRET_NAME.search(name)) else []
        # a plain word such as "postgres" is everywhere, so that finding it proves nothing
        found[name] = [
            one
            for one in candidates + passwords
            if len(one) >= SHORTEST_SECRET and not one.isalpha()
        ]
    return found


def _is_same(content: bytes, remote: RepoFile | None) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == hashlib.sha256(content).hexdigest())
    blob = b"blob %d\0" % len(content) + content
    return bool(remote.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest())


# ---- The steps ----

REQUEST_TIMEOUT = 60.0
POLLS_TO_NOTICE = 12
POLLS_FOR_HEALTH = 120
LOG_LINES = 20
# stages that do not pass by themselves: which log says why, and what to do
ENDS = {
    "BUILD_ERROR": (
        "build",
        "The image could not be built: mend what the log above names, then make deploy.",
    ),
    "RUNTIME_ERROR": (
        "run",
        "The app ended, or never listened: mend what the log above names, then make deploy.",
    ),
    "CONFIG_ERROR": (
        None,
        "The Hub cannot use the Space's settings, or the front matter of README.md: compare it "
        "with {docs}.",
    ),
    "NO_APP_FILE": (
        None,
        "The Hub finds no Dockerfile at the top of the Space: is it ignored here?",
    ),
    "PAUSED": (None, "The Space is paused: restart it at {page}/settings, then make deploy."),
    "STOPPED": (None, "The Space is stopped: restart it at {page}/settings, then make deploy."),
    "SLEEPING": (None, "The Space sleeps: open {page}, which wakes it, then make deploy."),
    "DELETING": (None, "The Space is being deleted: wait, or name another with SPACE=user/name."),
}
FINAL = ("ok", "degraded", "unavailable")
DOCS = "https://huggingface.co/docs/hub/spaces-config-reference"


class Deploy:
    """One deploy of a folder to a Space."""

    def __init__(
        self, folder: Path, space: str, again: list[str], seconds: float, poll: float, *, dry: bool
    ) -> None:
        self.folder = folder
        self.space = space
        self.again = again
        self.seconds = seconds
        self.poll = poll
        self.dry = dry
        self.deadline = time.monotonic() + seconds
        self.hidden: set[str] = set()
        self.changed_at = float("-inf")

    def run(self) -> None:
        """Take all steps; raise Stop where one cannot be taken."""
        # the Hub's library asks again and again while another operation is in progress
        signal.signal(signal.SIGALRM, self._give_up)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        files, secrets = self.check()
        info = self.create()
        self.set_secrets(secrets, info)
        commit = self.upload(files, info)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.dry:
            self.say("build", "would wait until that runs, then ask /health")
            return
        self.wait(commit)
        self.ask_health()

    def _give_up(self, *_: object) -> NoReturn:
        raise Stop(f"Not done after {self.seconds / 60:g} minutes: make deploy goes on from here.")

    def say(self, step: str, text: str) -> None:
        """Print a line, in which no secret that is known here can be read."""
        print(f"{step:<8} {self.redact(text)}", flush=True)

    def quote(self, words: str) -> None:
        """Print what the Hub itself says, if anything."""
        if words:
            self.say("hub", " ".join(words.split()))

    def redact(self, text: str) -> str:
        """Return the text without known secrets, passwords in URLs, tokens of the Hub, controls."""
        for secret in sorted(self.hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        text = PASSWORD_IN_URL.sub("://***@", text)
        text = re.sub(r"\bhf_\w{8,}", "hf_***", text)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", text)

    def check(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return the files and the secrets to send; raise Stop with all that must be changed."""
        files = files_to_send(self.folder)
        problems = []
        if not SPACE.fullmatch(self.space) or self.space.startswith("your-username/"):
            problems.append(f"{self.space} is no Space of yours: make deploy SPACE=user/name")
        for name in ("README.md", "Dockerfile"):
            if name not in files:
                problems.append(f"{name} is missing here, or ignored")
        readme = files.get("README.md", b"").decode("utf-8", "replace")
        if readme:
            problems += [f"README.md, front matter: {one}" for one in front_matter_problems(readme)]
        secrets = read_secrets(self.folder, self.again)
        problems += [f"{SECRETS_FILE}: {one}" for one in setting_problems(secrets)]
        token = get_token()
        if not token:
            problems.append(
                "no token: make one that may write at https://huggingface.co/settings/tokens and "
                "set HF_TOKEN, or .venv/bin/hf auth login"
            )
        elif not token.isascii() or not token.isprintable():
            problems.append("HF_TOKEN holds characters that no token has: copy it again")
        local = dotenv_values(self.folder / ".env", interpolate=False)
        known = secret_values({**local, **secrets, "the token of the Hub": token})
        self.hidden = {value for values in known.values() for value in values}
        self.hidden |= {value for value in secrets.values() if len(value) >= SHORTEST_SECRET}
        problems += [
            f"{path} holds the value of {name}, which everybody could read"
            for path, content in files.items()
            for name, values in known.items()
            if any(value.encode() in content for value in values)
        ]
        if problems:
            lines = problems if len(problems) == 1 else [f"\n  {one}" for one in problems]
            raise Stop(f"Nothing was sent: {''.join(lines)}", 2)
        self.api = HfApi(token=token)
        self.say("check", f"front matter, token, {len(files)} files")
        return files, secrets

    @property
    def page(self) -> str:
        """The Space's page on the Hub."""
        return f"{self.api.endpoint}/spaces/{self.space}"

    def create(self) -> SpaceInfo | None:
        """Create the Space unless it is there; return what the Hub says of it, None when dry."""
        try:
            info = self.api.space_info(self.space)
            if info.sdk not in (None, "docker"):
                raise Stop(f"{self.page} is a {info.sdk} Space: name another with SPACE=user/name.")
            self.say("create", f"{self.page} is there")
            return info
        except RepositoryNotFoundError:
            if self.dry:
                self.say("create", f"would create the Docker Space {self.space}")
                return None
        self.api.create_repo(self.space, repo_type="space", space_sdk="docker")
        self.say("create", f"{self.page} is new")
        return self.api.space_info(self.space)

    def set_secrets(self, secrets: dict[str, str], info: SpaceInfo | None) -> None:
        """Set the secrets that the Space lacks and those to be set again.

        Each one restarts the Space, and none can be read back, so the others stay as they are.
        """
        if not secrets:
            self.say("secrets", f"none given ({SECRETS_FILE})")
            return
        variables = self.api.get_space_variables(self.space) if info else {}
        if doubles := sorted(secrets.keys() & variables):
            raise Stop(
                f"{', '.join(doubles)}: a variable of the Space, too, and the Hub starts none with "
                f"both: delete it at {self.page}/settings, then make deploy."
            )
        there = self.api.get_space_secrets(self.space) if info else {}
        wanted = [name for name in secrets if name not in there or name in self.again]
        kept = [name for name in secrets if name not in wanted]
        for name in wanted:
            if not self.dry:
                self.api.add_space_secret(self.space, name, secrets[name])
                self.changed_at = time.monotonic()
        if wanted:
            self.say("secrets", f"{'would set' if self.dry else 'set'} {', '.join(wanted)}")
        if kept:
            names = " ".join(kept)
            self.say("secrets", f'there already: {names} (to set again: SECRETS="{names}")')

    def upload(self, files: dict[str, bytes], info: SpaceInfo | None) -> str:
        """Make the Space hold these files and no others; return its commit."""
        remote = {}
        if info is not None:
            tree = self.api.list_repo_tree(self.space, repo_type="space", recursive=True)
            remote = {one.path: one for one in tree if isinstance(one, RepoFile)}
        changed = [
            path for path, content in files.items() if not _is_same(content, remote.get(path))
        ]
        # the Hub's own, which says what is kept in large file storage
        gone = sorted(remote.keys() - files.keys() - {".gitattributes"})
        for path in changed if self.dry else []:
            self.say("upload", f"+ {path}")
        for path in gone:
            self.say("upload", f"- {path}")
        if info is not None and not changed and not gone:
            self.say("upload", f"nothing has changed since commit {str(info.sha)[:7]}")
            return str(info.sha)
        summary = f"{len(changed)} files to send, {len(gone)} to delete"
        if self.dry:
            self.say("upload", summary)
            return ""
        operations = [CommitOperationAdd(path, files[path]) for path in changed]
        deletions = [CommitOperationDelete(path, is_folder=False) for path in gone]
        with warnings.catch_warnings(record=True) as warned:
            try:
                commit = self.api.create_commit(
                    self.space,
                    [*operations, *deletions],
                    commit_message="Deploy",
                    repo_type="space",
                )
            except ValueError as error:
                if isinstance(error, HfHubHTTPError):
                    raise
                said = " ".join(str(error).removeprefix("Invalid metadata in README.md.").split())
                sentence = f"The Hub refuses the front matter of README.md: {said}"
                raise Stop(self.redact(sentence)) from error
        for warning in warned:
            self.say("upload", " ".join(str(warning.message).split()))
        self.changed_at = time.monotonic()
        self.say("upload", f"{summary}: commit {commit.oid[:7]}")
        return commit.oid

    def running(self) -> tuple[str, str, str]:
        """Return the Space's stage, the commit that runs and what is wrong, each "" if nothing."""
        runtime = self.api.get_space_runtime(self.space)
        sha, problem = (str(runtime.raw.get(name) or "") for name in ("sha", "errorMessage"))
        return str(runtime.stage), sha, problem

    def wait(self, commit: str) -> None:
        """Return when the commit runs; raise Stop when it cannot, or not in time."""
        start, shown, stage, sha, problem = time.monotonic(), "", "", "", ""
        stages = set()
        while True:
            waited = time.monotonic() - start
            try:
                stage, sha, problem = self.running()
                stages.add(stage)
                state = f"{stage}, {f'commit {sha[:7]}' if sha else 'nothing'} serves"
            except (httpx2.TransportError, HfHubHTTPError) as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code in range(
                    400, 429
                ):
                    raise
                state = "the Hub does not answer; asking again"
            if stage == "RUNNING" and sha == commit:
                self.say("build", f"commit {commit[:7]} runs ({waited:.0f} s)")
                return
            # just after a change, the Space may still be as it was before
            has_changed = self.changed_at > float("-inf")
            is_known = not has_changed or len(stages) > 1 or waited >= POLLS_TO_NOTICE * self.poll
            if stage in ENDS and is_known:
                log, sentence = ENDS[stage]
                self.show_log(log)
                self.quote(problem)
                raise Stop(sentence.format(page=self.page, docs=DOCS))
            if state != shown:
                self.say("build", f"{state} ({waited:.0f} s)")
                shown = state
            if time.monotonic() + self.poll > self.deadline:
                self.out_of_time(stage, sha)
            time.sleep(self.poll)

    def out_of_time(self, stage: str, sha: str) -> NoReturn:
        """Raise Stop with what kept the commit from running."""
        after = f"after {self.seconds / 60:g} minutes"
        if stage == "RUNNING":
            self.show_log("build")
            raise Stop(f"The old commit {sha[:7]} still runs {after}: see {self.page}?logs=build.")
        is_starting = stage.endswith("APP_STARTING")
        self.show_log("run" if is_starting else "build")
        what = (
            "The app has not started" if is_starting else f"The Space is still {stage or 'silent'}"
        )
        raise Stop(f"{what} {after}: see {self.page}, then make deploy goes on waiting.")

    def show_log(self, kind: str | None) -> None:
        """Print the end of the build's or the app's log, if the Hub hands it out."""
        if kind is None:
            return
        lines: deque[str] = deque(maxlen=LOG_LINES)
        until = time.monotonic() + 10
        try:
            for text in self.api.fetch_space_logs(self.space, build=kind == "build"):
                lines.extend(text.splitlines())
                if time.monotonic() > until:
                    break
        except (httpx2.HTTPError, HfHubHTTPError):
            self.say("log", "the Hub hands out no log")
        for line in lines:
            self.say("log", f"| {line}")

    def ask_health(self) -> None:
        """Say which database serves and where; raise Stop if none does or nobody answers."""
        info = self.api.space_info(self.space)
        url = info.host or f"https://{info.subdomain}.hf.space"
        headers = {"Authorization": f"Bearer {self.api.token}"} if info.private else {}
        # one of its own: what is for the Hub is not for the app
        client = httpx2.Client(headers=headers, timeout=10)
        start, shown = time.monotonic(), ""
        for _ in range(POLLS_FOR_HEALTH):
            report = self._report(client, f"{url}/health")
            status = str(report.get("status", "no answer yet"))
            # the container that ran before a change may still answer for a moment
            if report.get("uptime_seconds", 0) > time.monotonic() - self.changed_at:
                status = "the old container still answers"
            if status in FINAL:
                break
            if status != shown:
                self.say("health", f"{status} ({time.monotonic() - start:.0f} s)")
                shown = status
            time.sleep(self.poll)
        else:
            raise Stop(f"The commit runs, but {url}/health does not say so: see {self.page}.")
        self.say("health", f"{status}: {report.get('database', {}).get('detail', '')}")
        self.say("online", url)
        if status == "unavailable":
            raise Stop(f"No database serves: look at DATABASE_URL under {self.page}/settings.")

    @staticmethod
    def _report(client: httpx2.Client, url: str) -> dict[str, Any]:
        try:
            report = client.get(url).json()
        except (httpx2.HTTPError, ValueError):
            return {}
        return report if isinstance(report, dict) else {}


def explain(error: Exception, space: str) -> str:
    """Return what to do about a failed call, in one sentence."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if error.response.url.path == "/oauth/token":
            return (
                "The Hub does not trust this workflow: under Trusted Publishers in the settings of "
                f"{space}, name this repository, the branch main and the workflow ci.yml."
            )
        sentences = {
            400: "The Hub refuses the request (400): mend what it names, or update "
            "huggingface-hub.",
            401: "The Hub does not know the token (401): make one that may write at "
            "https://huggingface.co/settings/tokens and set HF_TOKEN.",
            402: "A new Docker Space needs a paid plan (402): PRO for a person, Team or Enterprise "
            "for an organization, see https://huggingface.co/pricing.",
            403: f"The token may not write to {space} (403): give it the right to, or name another "
            "Space with SPACE=user/name.",
            404: f"The token cannot see {space} (404): use one that can.",
            409: f"The Hub says that {space} is taken or just changing (409): try again in a "
            "minute, or name another with SPACE=user/name.",
            429: "Too many requests for the Hub (429): wait five minutes, then make deploy.",
        }
        if status < 500:
            return sentences.get(status, f"The Hub refuses the request ({status}): try again.")
        return f"The Hub is not well ({status}): see https://status.huggingface.co, try later."
    if isinstance(error, httpx2.TimeoutException):
        return "The Hub did not answer in time: make deploy goes on from here."
    if isinstance(error, httpx2.HTTPError):
        return "The Hub cannot be reached: check the network (and HF_ENDPOINT, if set)."
    if isinstance(error, OIDCError):
        return "No identity from GitHub: the job needs the permission id-token: write."
    if isinstance(error, json.JSONDecodeError):
        return "Something else than the Hub answers: check the network (and HF_ENDPOINT, if set)."
    return f"A file here cannot be read: {error}."


def main() -> int:
    """Deploy and return the exit code; whatever can be foreseen ends with one sentence."""
    parser = argparse.ArgumentParser(description="Put this folder online as a Docker Space.")
    parser.add_argument("space", help="user/name")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--secrets", default="", help="names of secrets to set again")
    parser.add_argument("--timeout-minutes", type=float, default=30)
    parser.add_argument("--poll-seconds", type=float, default=5)
    arguments = parser.parse_args()
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # by itself, the Hub's library waits without end for an answer
    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=REQUEST_TIMEOUT))
    names = arguments.secrets.replace(",", " ").split()
    seconds, poll = arguments.timeout_minutes * 60, arguments.poll_seconds
    deploy = Deploy(ROOT, arguments.space, names, seconds, poll, dry=arguments.dry_run)
    try:
        deploy.run()
    except Stop as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("Interrupted: what was sent stays, and make deploy goes on.", file=sys.stderr)
        return 130
    except (httpx2.HTTPError, OIDCError, OSError, json.JSONDecodeError, UnicodeError) as error:
        deploy.quote(str(getattr(error, "server_message", None) or ""))
        print(explain(error, arguments.space), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
