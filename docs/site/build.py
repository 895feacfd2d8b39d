"""Build of the docs' site: `python docs/site/build.py [DIRECTORY]`, by default `build/site`.

The pages are those of `docs/`, the documents at the root of the repository, and pages made from the code. They are laid
out beside the site, with links that fit there; Zensical turns them into HTML. A broken link, an anchor that is missing
or a request to the network ends the build: the site is read offline, from `file://` too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import links
import reference

ROOT = reference.ROOT
HERE = Path(__file__).parent
SHIM = re.compile(r"<script src=\"https://unpkg\.com/iframe-worker/shim\"[^>]*></script>")
"""Zensical's own way to search from `file://`, which asks the network."""
INSERT = re.compile(r"^<!-- insert: ([\w ]+) -->$", re.MULTILINE)
COMMENT = re.compile(r"^<!-- (?!insert).*? -->\n", re.MULTILINE | re.DOTALL)
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
MADE_PAGES = {"examples.md": reference.examples, "decisions/index.md": reference.decisions}


def sources() -> dict[str, str]:
    """Return the hand-written pages: paths in the repository, and paths in the site's pages."""
    found = {
        str(path.relative_to(ROOT)): str(path.relative_to(ROOT / "docs"))
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if HERE not in path.parents
    }
    if "docs/index.md" in found:
        return {**found, **{name: page for name, page in ROOT_PAGES.items() if name != "README.md"}}
    return {**found, **ROOT_PAGES}


def places() -> dict[str, str]:
    """Return the page, and perhaps the anchor in it, that shows a path of the repository."""
    found = {"README.md": "index.md", **sources(), "examples": "examples.md", "docs/decisions": "decisions/index.md"}
    found |= {f"examples/{path.name}": f"examples.md#{path.stem}" for path in (ROOT / "examples").glob("*.py")}
    found |= {
        f"docs/screens/{path.name}": f"screens/{path.name}" for path in (ROOT / "docs" / "screens").glob("*.[sp][vn]g")
    }
    return found


def lay_out(pages: Path) -> None:
    """Write all pages, made ones included, with links that fit the site.

    Raises:
        LookupError: a page links to a file without a page, or takes an insert that does not exist.
    """
    known = places()
    for source, staged in sources().items():
        text = COMMENT.sub("", (ROOT / source).read_text("utf-8"))
        text = INSERT.sub(lambda match: reference.INSERTS[match[1]](), text)
        target = pages / staged
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(links.rewrite(text, source, staged, known), "utf-8")
    for staged, make in MADE_PAGES.items():
        (pages / staged).write_text(make(), "utf-8")
    if (ROOT / "docs" / "screens").is_dir():
        shutil.copytree(ROOT / "docs" / "screens", pages / "screens", dirs_exist_ok=True)


def build(site: Path) -> None:
    """Build the site into a directory, which is replaced.

    Raises:
        LookupError: a link leads nowhere.
        RuntimeError: Zensical refused the pages, or the site asks the network for something.
    """
    work = site.with_name(f".{site.name}")
    for directory in (site, work):
        shutil.rmtree(directory, ignore_errors=True)
    (work / "pages").mkdir(parents=True)
    shutil.copy(HERE / "zensical.toml", work / "zensical.toml")
    lay_out(work / "pages")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", "zensical.toml"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr))
    made = work / "site"
    shutil.copy(HERE / "worker-from-file.js", made / "assets" / "javascripts")
    for path in made.rglob("*.html"):
        up = "/" if path.name == "404.html" else "../" * (len(path.relative_to(made).parts) - 1)
        text = path.read_text("utf-8")
        own = f'<script src="{up}assets/javascripts/worker-from-file.js"></script>'
        path.write_text(SHIM.sub(own, text), "utf-8")
    if found := links.broken(made):
        raise LookupError("\n".join(found))
    if found := links.outside(made):
        raise RuntimeError("requests to the network:\n" + "\n".join(found))
    made.rename(site)
    shutil.rmtree(work)


def main() -> int:
    """Build, and print the place."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").absolute()
    try:
        build(site)
    except (LookupError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"built {len(list(site.rglob('*.html')))} pages: {site}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
