"""Makes the README's pictures out of a real outage: `make pictures`. It needs chromium.

A Space is rendered and rehearsed (`make rehearse` in the project), and its status page is photographed at each change.
"""

import base64
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

from cookiecutter.main import cookiecutter
from playwright.sync_api import Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "pictures"
THEMES = ("light", "dark")
# What the rehearsal says, and what stands below the picture of that moment.
MOMENTS = {
    "PostgreSQL serves": "PostgreSQL serves",
    "/health says so": "It is killed under load",
    "rows acknowledged on SQLite": "Restarted: SQLite serves",
    "PostgreSQL serves, and has the rows of SQLite": "PostgreSQL is back",
}
COUNTED = {
    "acknowledged": "rows acknowledged",
    "found": "of them found in the end",
    "lost": "lost",
    "doubled": "doubled",
}
# Narrow, because a README shows the picture at half of its size.
SHOWN: ViewportSize = {"width": 360, "height": 560}
STYLE = """
body { margin: 0; padding: 16px; width: 1536px; font: 26px system-ui, sans-serif; background: BACKGROUND; color: TEXT }
main { display: grid; grid-template-columns: repeat(4, 362px); gap: 16px 29px }
figure, p { margin: 0 }
figcaption { margin: 0 0 10px; font-weight: 600; letter-spacing: -0.02em; white-space: nowrap }
img { border-radius: 12px; border: 1px solid #8886 }
p { text-align: center }
b { display: block; font-size: 52px; line-height: 1.1 }
"""
# A fifth of the size of what the browser takes itself.
AS_WEBP = """
async (png) => {
  const image = new Image();
  image.src = "data:image/png;base64," + png;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", 0.9).split(",")[1];
}
"""
COLORS = {"light": ("#ffffff", "#1f2328"), "dark": ("#0d1117", "#f0f6fc")}


class Photographer:
    """Looks at the status page whenever the rehearsal says that something has changed."""

    def __init__(self, pages: dict[str, Page]) -> None:
        """`pages` has a page of the browser for each theme."""
        self.pages = pages
        self.url: Callable[[], str] = str
        self.said: list[str] = []
        self.pictures: dict[str, dict[str, bytes]] = {theme: {} for theme in THEMES}

    def hear(self, text: str) -> None:
        """Print what the rehearsal says, and take the picture that belongs to it."""
        print(text, flush=True)
        self.said.append(text)
        step = re.sub(r"^ *[\d.]+ s +(?:\d+ (?=rows))?| \(after [\d.]+ s\)$", "", text)
        moment = MOMENTS.get(step)
        if moment and moment not in self.pictures["light"]:
            for theme, page in self.pages.items():
                page.goto(f"{self.url()}/status?__theme={theme}")
                self.pictures[theme][moment] = page.screenshot(animations="disabled")

    def composition(self, theme: str) -> str:
        """Return a page that shows all pictures of a theme, and below them what the ledger says in the end."""
        background, color = COLORS[theme]
        style = STYLE.replace("BACKGROUND", background).replace("TEXT", color)
        figures = "".join(
            f"<figure><figcaption>{escape(moment)}</figcaption>"
            f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}"></figure>'
            for moment, picture in self.pictures[theme].items()
        )
        counts = dict(re.findall(r"^ *(\w+)  (\d+)", self.said[-1], re.MULTILINE))
        ledger = "".join(f"<p><b>{counts[name]}</b>{text}</p>" for name, text in COUNTED.items())
        return f"<style>{style}</style><main>{figures}{ledger}</main>"


def main() -> None:
    """Render, rehearse, photograph, compose."""
    program = shutil.which("chromium") or sys.exit("chromium is needed: apt install chromium")
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder, sync_playwright() as playwright:
        project = cookiecutter(str(ROOT), no_input=True, output_dir=folder, default_config=True)
        sys.path.insert(0, project)
        from tools.rehearse import Rehearsal

        with playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser:
            photographer = Photographer(
                {theme: browser.new_page(viewport=SHOWN, device_scale_factor=1) for theme in THEMES}
            )
            rehearsal = Rehearsal(photographer.hear)
            photographer.url = lambda: rehearsal.url
            if not rehearsal.run(None, "/api/items", "title"):
                sys.exit("Rows were lost: that is no picture for a README.")
            PICTURES.mkdir(exist_ok=True)
            for theme in THEMES:
                # A page of its own: the policy of the status page, which allows no other style, would stay in force.
                page = browser.new_page(viewport={"width": 1568, "height": 400})
                page.set_content(photographer.composition(theme))
                picture = page.screenshot(full_page=True)
                encoded = page.evaluate(AS_WEBP, base64.b64encode(picture).decode())
                (PICTURES / f"outage-{theme}.webp").write_bytes(base64.b64decode(encoded))


if __name__ == "__main__":
    main()
