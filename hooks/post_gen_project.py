"""Writes the README's front matter, the Dockerfile and the app's title, out of one description of the Space.

What the Hub, the image and the app must agree on (port, user, health check) is therefore written once. Functions
return text, `main()` alone writes. No network, clock or randomness: the same answers give the same bytes, which is
also what lets `cruft update` merge these files. Imports are few because they are most of what a render waits for.

Cookiecutter renders this file with Jinja before it runs it: no two braces may stand together in it.
"""

import json
import os

# As JSON in a raw string, because no quote or backslash in an answer can end it.
ANSWERS = r"""
{{ cookiecutter | tojson }}
"""

# What stands in cookiecutter.json until somebody answers.
PLACEHOLDER = "your-username"
PORT = 7860
USER = 1000
HOME = "/home/user"
APP = HOME + "/app"
ENTRY_POINT = ["python", "-m", "space_runtime.entrypoint"]
COMMAND = ["uvicorn", "src.main:app", "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104
# With bash, because a slim image has no curl, and Python would take many times the processor and memory.
HEALTH_CHECK = [
    "bash",
    "-c",
    "exec 3<>/dev/tcp/127.0.0.1/${PORT:-" + str(PORT) + "} && printf 'GET /health/live HTTP/1.0\\r\\n\\r\\n' >&3"
    " && read -r _ status _ <&3 && [[ $status == 200 ]]",
]


def front_matter(answers: "dict[str, str]") -> str:
    """The block that must open README.md on the Hub."""
    fields = {
        "title": answers["project_name"],
        "emoji": answers["emoji"],
        "colorFrom": answers["color_from"],
        "colorTo": answers["color_to"],
        "sdk": "docker",
        "app_port": PORT,
        "pinned": False,
        "license": answers["license"],
        "short_description": answers["short_description"],
    }
    # JSON is YAML, and unescaped JSON is what Python's and JavaScript's parsers read alike.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items()]
    return "---\n" + "".join(lines) + "---\n\n"


def dockerfile(answers: "dict[str, str]") -> str:
    """The image that the Hub builds and runs."""
    return f"""\
FROM python:{answers["python_version"]}-slim

# The Hub runs Spaces as user {USER}. The folders are that user's too: SQLite writes its journal beside the database.
RUN useradd --no-create-home --home-dir {HOME} --user-group --uid {USER} user \\
    && install --directory --owner={USER} --group={USER} {HOME} {APP} {APP}/data
WORKDIR {APP}

# Debian packages, if there is an apt.txt that names some. COPY wants one file at least.
COPY --chown={USER}:{USER} alembic.ini apt.tx[t] ./
RUN if [ -f apt.txt ]; then sed -i 's/#.*//' apt.txt && apt-get update \\
    && xargs --arg-file=apt.txt apt-get install --yes --no-install-recommends && rm -rf /var/lib/apt/lists/*; fi

# Before the code, so that a change of code does not install everything again. What a base image of another maker
# brought with its own packages stays, and is not used; pip itself leaves no bytecode of its own.
COPY --chown={USER}:{USER} requirements.lock ./
RUN PYTHONDONTWRITEBYTECODE=1 pip install --no-cache-dir --root-user-action=ignore --ignore-installed \\
    --require-hashes --requirement requirements.lock

COPY --chown={USER}:{USER} migrations/ migrations/
COPY --chown={USER}:{USER} space_runtime/ space_runtime/
COPY --chown={USER}:{USER} web/ web/
COPY --chown={USER}:{USER} src/ src/
# Bytecode belongs in the image: a container with a read-only root could not keep it, and each start would compile.
# The import is for what a start needs of the standard library, of which the official image brings none. Not of src:
# what that does when it is imported may take secrets, which no build has, or a model.
RUN python -m compileall -q migrations space_runtime src \\
    && python -c "import alembic.command, concurrent.futures.thread, encodings.idna, glob, uvicorn" \\
    && python -c "import space_runtime.http.application"

ENV HOME={HOME} container=oci \\
    PATH={HOME}/.local/bin:$PATH \\
    PYTHONUNBUFFERED=1 \\
    UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=15

# By number, because Kubernetes cannot tell from a name that it is not root.
USER {USER}
EXPOSE {PORT}
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD {json.dumps(HEALTH_CHECK)}

# In exec form, so that the server itself receives SIGTERM and can finish its requests. The entry point hears it from
# the first moment on, and serves at PORT instead, and on IPv6, too.
ENTRYPOINT {json.dumps(ENTRY_POINT)}
CMD {json.dumps(COMMAND)}
"""


def about(answers: "dict[str, str]") -> str:
    """What the app says about itself, as data, so that no answer ever stands in Python code."""
    facts = {
        "title": answers["project_name"],
        "emoji": answers["emoji"],
        "description": answers["short_description"],
        "color_from": answers["color_from"],
        "color_to": answers["color_to"],
    }
    return json.dumps(facts, ensure_ascii=False, indent=2) + "\n"


def without_front_matter(readme: str) -> str:
    """The README's text: with `--skip-if-file-exists` an earlier run's README is still there, front matter and all."""
    return readme.split("\n---\n\n", 1)[1] if readme.startswith("---\n") else readme


def next_steps(answers: "dict[str, str]") -> str:
    """What the terminal says last."""
    slug = answers["project_slug"]
    deploy, remark = "make deploy", ""
    if answers["hf_username"] == PLACEHOLDER:
        deploy += f" SPACE=<your user name>/{slug}"
        remark = f"Makefile, README.md and LICENSE still name {PLACEHOLDER}.\n"
    return f"""
Next:
  cd {slug}
  make dev
  {deploy}   (README.md, "Put it online")
{remark}"""


def tidy() -> None:
    """Undo what a render takes over from the template's files besides their text.

    Whoever works in the template leaves caches in it. And in a checkout that is read-only, so are the rendered files.
    """
    for folder, subfolders, files in os.walk("."):
        for name in files:
            path = os.path.join(folder, name)
            os.chmod(path, os.stat(path).st_mode | 0o200)
        for name in list(subfolders):
            if name == "__pycache__" or (name.startswith(".") and name.endswith("_cache")):
                import shutil  # only here, because clones hold no caches

                shutil.rmtree(os.path.join(folder, name))
                subfolders.remove(name)


def write(path: str, text: str) -> None:
    """Write the same bytes on every system."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def main() -> None:
    """Complete the project in the working directory."""
    answers = json.loads(ANSWERS)
    tidy()
    if answers["license"] == "other":
        os.remove("LICENSE")
    with open("README.md", encoding="utf-8") as file:
        readme = without_front_matter(file.read())
    write("README.md", front_matter(answers) + readme)
    write("Dockerfile", dockerfile(answers))
    write("src/config/about.json", about(answers))
    print(next_steps(answers), end="")


if __name__ == "__main__":
    main()
