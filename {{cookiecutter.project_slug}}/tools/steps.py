"""The steps of `make deploy`, which are safe to take again."""

import argparse
import json
import logging
import re
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceRuntime,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, OIDCError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars

from tools import checks, network
from tools.selection import LocalProblem, Selection, ignored, select, shown

ROOT = Path(__file__).resolve().parents[1]
POLLS_FOR_NEW_STAGE = 12
POLLS_FOR_HEALTH = 120
NAMED = 5
CODE_FOLDERS = ("src/", "web/")
LOG_LINES, LOG_SECONDS = 20, 10

# The stages that a Space does not leave by itself, and the logs that say why.
FINAL_STAGES = {
    "BUILD_ERROR": "The image could not be built: fix it as the log above says.",
    "RUNTIME_ERROR": "The app ended or never listened: fix it as the log above says.",
    "CONFIG_ERROR": "The Hub cannot use the Space's settings or the front matter of README.md: see "
    "https://huggingface.co/docs/hub/spaces-config-reference.",
    "NO_APP_FILE": "The Space has no Dockerfile: does a .gitignore here name it?",
    "PAUSED": "The Space is paused: restart it at {page}/settings, then make deploy.",
    "STOPPED": "The Space is stopped: restart it at {page}/settings, then make deploy.",
    "SLEEPING": "The Space sleeps: open {page} to wake it, then make deploy.",
    "DELETING": "The Space is being deleted: wait, or name another with SPACE=user/name.",
}
LOGS = {"BUILD_ERROR": "build", "RUNTIME_ERROR": "run"}
STATUS_ERRORS = {
    400: "The Hub refuses the request (400): fix what it names, or update huggingface-hub.",
    401: "The Hub does not know the token (401): create one with write access at "
    f"{checks.TOKENS_PAGE} and set HF_TOKEN.",
    402: "A new Docker Space needs a paid plan (402): PRO for a person, Team or Enterprise for an "
    "organization, see https://huggingface.co/pricing.",
    403: "The token may not write to {space} (403): give it write access, or name another Space "
    "with SPACE=user/name.",
    404: "The token cannot see {space} (404): use one that can.",
    409: "The Hub says that {space} is taken or just changing (409): try again in a minute, or "
    "name another with SPACE=user/name.",
    412: "Somebody else pushed to {space} meanwhile (412): look what, then make deploy again.",
    429: "Too many requests for the Hub (429): wait five minutes, then make deploy.",
}


# What is raised for a network, an address or an answer with which nothing can be done.
UNREACHABLE = (
    *(httpx2.HTTPError, httpx2.InvalidURL, OIDCError, OSError),
    *(json.JSONDecodeError, UnicodeError),
)


class DeployError(Exception):
    """Ends the deploy with one sentence for the user."""


class Output:
    """Prints one line at a time, with known secrets redacted."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.last_state = ""

    def hide(self, secrets: Iterable[str]) -> None:
        """Print *** in place of these, from now on."""
        self.secrets |= {secret for secret in secrets if len(secret) >= checks.SHORTEST_SECRET}

    def step(self, name: str, text: str) -> None:
        """Print what a step did."""
        print(f"{name:<8} {self.redact(text)}", flush=True)

    def waiting(self, name: str, state: str, start: float) -> None:
        """Print what a step waits for, and for how long so far, whenever that state changes."""
        if state != self.last_state:
            self.step(name, f"{state} ({time.monotonic() - start:.0f} s)")
        self.last_state = state

    def hub(self, message: str) -> None:
        """Print what the Hub itself says, if anything."""
        if message:
            self.step("hub", " ".join(message.split()))

    def error(self, sentence: str) -> None:
        """Print why the deploy ends."""
        print(self.redact(sentence), file=sys.stderr)

    def redact(self, text: str) -> str:
        """Remove secrets, passwords in URLs, tokens of the Hub, and control characters."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        text = checks.PASSWORD_IN_URL.sub("://***@", text)
        text = re.sub(r"\bhf_\w{8,}", "hf_***", text)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", text)


class Deploy:
    """The steps of one deploy."""

    def __init__(self, options: argparse.Namespace, output: Output) -> None:
        self.space: str = options.space
        self.dry_run: bool = options.dry_run
        self.replaced_secrets: list[str] = options.secrets.replace(",", " ").split()
        self.minutes: float = options.timeout_minutes
        self.poll_seconds: float = options.poll_seconds
        self.output = output
        self.api = HfApi()
        self.page = f"{self.api.endpoint}/spaces/{self.space}"
        self.deadline = time.monotonic() + self.minutes * 60
        # when this deploy last changed something that restarts the Space
        self.changed_at: float | None = None

    def run(self) -> None:
        """Run all steps; raise DeployError if one fails."""
        # huggingface_hub retries some requests forever, such as create_repo() after a 409.
        signal.signal(signal.SIGALRM, self.time_out)
        signal.setitimer(signal.ITIMER_REAL, self.minutes * 60)
        files, secrets = self.check()
        head = self.create()
        self.set_secrets(secrets, exists=head is not None)
        commit = self.upload(files, head)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.dry_run:
            self.output.step("build", "would wait until the commit runs, then ask /health")
            return
        self.wait(commit)
        self.check_health()

    def time_out(self, *_: object) -> NoReturn:
        """End the deploy if the Hub does not answer, or huggingface_hub retries forever."""
        after = f"after {self.minutes:g} minutes"
        raise DeployError(f"Not done {after}: make deploy goes on from here.")

    def check(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return files and secrets to send; raise LocalProblem listing all that must be fixed."""
        selected = select(ROOT)
        files = {path: file.read_bytes() for path, file in selected.files.items()}
        secrets = checks.read_secrets(ROOT, self.replaced_secrets)
        local = checks.read_local_settings(ROOT)
        token = get_token() or ""
        variables = {**local, **secrets, "the token of the Hub": token}
        confidential = list(checks.secret_values(variables, secrets))
        self.output.hide(secret for _, secret in confidential)
        self.output.hide(secrets.values())
        problems = [
            *checks.space_problems(self.space),
            *checks.file_problems(files),
            *checks.secret_problems(secrets),
            *checks.token_problems(token),
            *checks.leak_problems(files, confidential),
        ]
        if problems:
            indent = "\n  " if len(problems) > 1 else ""
            raise LocalProblem(self.output.redact(indent + indent.join(problems)))
        self.api.token = token
        self.validate_front_matter(files["README.md"])
        self.output.step("check", f"front matter, token, {len(files)} files")
        self.name_what_stays(selected)
        return files, secrets

    def name_what_stays(self, selected: Selection) -> None:
        """Print how much stays here; name what git does not ignore, or what stands by the code."""
        stay = list(ignored(ROOT, selected))
        names = [*selected.withheld, *(path for path in stay if path.startswith(CODE_FOLDERS))]
        names.sort(key=lambda path: not path.startswith(CODE_FOLDERS))
        named = [shown(name) for name in names[:NAMED]]
        if others := len(selected.withheld) + len(stay) - len(named):
            named.append(f"{others} more" if named else f"{others} ignored")
        if named:
            self.output.step("check", f"stays here: {', '.join(named)} (LIST=1 says why)")

    def validate_front_matter(self, readme: bytes) -> None:
        """Have the Hub check README.md as create_commit() does, but before anything is changed."""
        response = get_session().post(
            f"{self.api.endpoint}/api/validate-yaml",
            json={"content": readme.decode(), "repoType": "space"},
            headers={"Authorization": f"Bearer {self.api.token}"},
        )
        hf_raise_for_status(response)
        for warning in response.json().get("warnings", []):
            self.output.hub(warning["message"])

    def create(self) -> str | None:
        """Create the Space if it is missing; return its commit, or None if a dry run did not."""
        try:
            info = self.api.space_info(self.space)
        except RepositoryNotFoundError:
            if self.dry_run:
                self.output.step("create", f"would create the Docker Space {self.space}")
                return None
            self.api.create_repo(self.space, repo_type="space", space_sdk="docker")
            info = self.api.space_info(self.space)
        if info.sdk not in (None, "docker"):
            sentence = f"{self.page} is a {info.sdk} Space: name another with SPACE=user/name."
            raise DeployError(sentence)
        self.output.step("create", f"{self.page} exists")
        return info.sha

    def set_secrets(self, secrets: dict[str, str], *, exists: bool) -> None:
        """Set the secrets that the Space does not have, and those to be replaced.

        The others are kept: the Hub does not show their values, so they cannot be compared, and
        setting one restarts the Space.
        """
        if not secrets:
            self.output.step("secrets", f"none given ({checks.SECRETS_FILE})")
            return
        variables = self.api.get_space_variables(self.space) if exists else {}
        if both := sorted(secrets.keys() & variables):
            raise DeployError(
                f"{', '.join(both)}: a variable of the Space, too, and a Space with both does not "
                f"start: delete the variable at {self.page}/settings, then make deploy."
            )
        present = self.api.get_space_secrets(self.space) if exists else {}
        kept = [name for name in secrets if name in present and name not in self.replaced_secrets]
        for name in [name for name in secrets if name not in kept]:
            if not self.dry_run:
                self.api.add_space_secret(self.space, name, secrets[name])
                self.changed_at = time.monotonic()
            self.output.step("secrets", f"{'would set' if self.dry_run else 'set'} {name}")
        if kept:
            names = " ".join(kept)
            self.output.step("secrets", f'kept {names} (to set again: SECRETS="{names}")')

    def upload(self, files: dict[str, bytes], head: str | None) -> str:
        """Make the Space hold these files and no others, in one commit; return that commit."""
        changed, deleted = self.differences(files) if head else (list(files), [])
        for path in changed if self.dry_run else []:
            self.output.step("upload", f"+ {path}")
        for path in deleted:
            self.output.step("upload", f"- {path}")
        summary = f"nothing has changed since commit {str(head)[:7]}"
        if changed or deleted:
            summary = f"{len(changed)} files to send, {len(deleted)} to delete"
        self.output.step("upload", summary)
        if self.dry_run:
            return ""
        # create_commit() skips the files that have not changed.
        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        deletions = [CommitOperationDelete(path, is_folder=False) for path in deleted]
        try:
            commit = self.api.create_commit(
                self.space, [*additions, *deletions], commit_message="Deploy", repo_type="space"
            )
        except HfHubHTTPError as error:
            if error.response.status_code != 413:
                raise
            self.output.hub(error.server_message or "")
            # The storage has taken the others, and the Hub has what has not changed.
            in_the_request = [
                addition.path_in_repo
                for addition in additions
                if addition._upload_mode == "regular" and addition.path_in_repo in changed
            ]
            largest = max(in_the_request or files, key=lambda path: len(files[path]))
            raise DeployError(
                f"The Hub refuses files of this size (413): the largest is {largest},"
                f" {len(files[largest]) / 1e6:.1f} MB. Load it when the app starts, or list it in"
                " .gitignore."
            ) from None
        if commit.oid != head:
            self.changed_at = time.monotonic()
            self.output.step("upload", f"commit {commit.oid[:7]}")
        return commit.oid

    def differences(self, files: dict[str, bytes]) -> tuple[list[str], list[str]]:
        """Return the paths to send and the paths to delete."""
        tree = self.api.list_repo_tree(self.space, repo_type="space", recursive=True)
        remote = {
            file.path: file.lfs.sha256 if file.lfs else file.blob_id
            for file in tree
            if isinstance(file, RepoFile)
        }
        changed = [
            path
            for path, content in files.items()
            if remote.get(path) not in (git_hash(content), sha256(content).hexdigest())
        ]
        # The Hub writes .gitattributes itself.
        return changed, sorted(remote.keys() - files.keys() - {".gitattributes"})

    def wait(self, commit: str) -> None:
        """Wait until this commit runs; raise DeployError if it fails or takes too long."""
        start, stage, running = time.monotonic(), "", ""
        stages = set()
        while True:
            runtime = self.runtime()
            state = "the Hub does not answer; asking again"
            if runtime is not None:
                stage, running = str(runtime.stage), str(runtime.raw.get("sha") or "")
                stages.add(stage)
                if stage == "RUNNING" and running == commit:
                    self.output.waiting("build", f"commit {commit[:7]} runs", start)
                    return
                # Just after a change, the Hub may still report the previous stage.
                waited = time.monotonic() - start
                is_new = len(stages) > 1 or waited >= POLLS_FOR_NEW_STAGE * self.poll_seconds
                if stage in FINAL_STAGES and (is_new or self.changed_at is None):
                    self.fail(stage, str(runtime.raw.get("errorMessage") or ""))
                state = f"{stage}, {f'commit {running[:7]}' if running else 'nothing'} serves"
            self.output.waiting("build", state, start)
            if time.monotonic() + self.poll_seconds > self.deadline:
                self.give_up(stage, running)
            time.sleep(self.poll_seconds)

    def runtime(self) -> SpaceRuntime | None:
        """Return the current state of the Space, or None if the Hub does not answer now."""
        try:
            return self.api.get_space_runtime(self.space)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 429:
                raise
            return None

    def fail(self, stage: str, message: str) -> NoReturn:
        """End the deploy because the Space cannot run."""
        if log := LOGS.get(stage):
            self.show_log(log)
        self.output.hub(message)
        raise DeployError(FINAL_STAGES[stage].format(page=self.page))

    def give_up(self, stage: str, running: str) -> NoReturn:
        """End the deploy because the commit does not run in time."""
        if stage.endswith("APP_STARTING"):
            log, problem = "run", "The app has not started"
        elif stage == "RUNNING":
            log, problem = "build", f"The old commit {running[:7]} still runs"
        else:
            log, problem = "build", f"The Space is still {stage or 'silent'}"
        self.show_log(log)
        sentence = f"{problem} after {self.minutes:g} minutes: see {self.page}?logs={log}."
        raise DeployError(sentence)

    def show_log(self, kind: str) -> None:
        """Print the end of the log of the build or of the app ("run")."""
        end = time.monotonic() + LOG_SECONDS
        lines: deque[str] = deque(maxlen=LOG_LINES)
        try:
            texts = self.api.fetch_space_logs(self.space, build=kind == "build")
            for text in takewhile(lambda _: time.monotonic() < end, texts):
                lines.extend(text.splitlines())
        except httpx2.HTTPError:
            self.output.step("log", "the Hub hands out no log")
        for line in lines:
            self.output.step("log", f"| {line}")

    def check_health(self) -> None:
        """Print which database serves, and where; raise DeployError if the app cannot be used."""
        info = self.api.space_info(self.space)
        url = info.host or f"https://{info.subdomain}.hf.space"
        # A private Space answers only with the token; the app of a public one must not receive it.
        headers = {"Authorization": f"Bearer {self.api.token}"} if info.private else {}
        with network.client(headers) as client:
            status, detail = self.wait_for_health(client, f"{url}/health")
        self.output.step("health", f"{status}: {detail}")
        self.output.step("online", url)
        if status == "unavailable":
            raise DeployError(f"{detail} See {self.page}/settings.")

    def wait_for_health(self, client: httpx2.Client, url: str) -> tuple[str, str]:
        """Return status and detail as soon as the app is no longer starting."""
        start = time.monotonic()
        for _ in range(POLLS_FOR_HEALTH):
            try:
                report = client.get(url, timeout=10, follow_redirects=False).json()
                status, detail = str(report["status"]), str(report["database"]["detail"])
                # Just after a change, the previous container may still answer.
                started_at = time.monotonic() - report["uptime_seconds"]
                if self.changed_at and started_at < self.changed_at:
                    status = "the old container still answers"
            except (httpx2.HTTPError, ValueError, LookupError, TypeError):
                status, detail = "no health report yet", ""
            if status in ("ok", "degraded", "unavailable"):
                return status, detail
            self.output.waiting("health", status, start)
            time.sleep(self.poll_seconds)
        raise DeployError(f"The commit runs, but {url} does not confirm it: see {self.page}.")


def explain(error: Exception, space: str) -> str:
    """Return what failed and what to do about it, in one sentence."""
    if isinstance(error, HfHubHTTPError):
        status, path = error.response.status_code, error.response.url.path
        if path == "/oauth/token":
            return (
                "The Hub does not trust this workflow: under Trusted Publishers in the settings of "
                f"{space}, name this repository, the branch main and the workflow ci.yml."
            )
        if status == 400 and path.endswith("/api/validate-yaml"):
            return "The Hub refuses the front matter of README.md: fix what it names above."
        if status >= 500:
            return f"The Hub fails ({status}): see https://status.huggingface.co, try again later."
        other = f"The Hub refuses the request ({status}): try again."
        return STATUS_ERRORS.get(status, other).format(space=space)
    if isinstance(error, json.JSONDecodeError):
        return "What answers is not the Hub: check the network (and HF_ENDPOINT, if set)."
    if isinstance(error, OIDCError):
        return "No identity from GitHub: the job needs the permission id-token: write."
    if isinstance(error, OSError) and error.filename is not None:
        return f"A file here cannot be read: {error}."
    return network.explain(error)


def take(options: argparse.Namespace) -> int:
    """Take all steps and return the exit code; raise LocalProblem if nothing was sent."""
    output = Output()
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="huggingface_hub")
    network.share_certificates()
    set_client_factory(network.client)
    try:
        Deploy(options, output).run()
    except DeployError as error:
        output.error(str(error))
    except UNREACHABLE as error:
        output.hub(getattr(error, "server_message", None) or "")
        output.error(explain(error, options.space))
    else:
        return 0
    return 1
