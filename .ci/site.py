"""What the site is beside docs/: the README as its first page, pages from the root, a reference of the public names.

MkDocs calls the functions below (`hooks:` in mkdocs.yml). They stop the build where a page has no reader, a link leads
nowhere, a public name has no sentence, or a page would load anything from elsewhere.
"""

from __future__ import annotations

import ast
import functools
import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import make_tables  # noqa: E402  (lies in docs/)

PAGES = {
    "README.md": ("index.md", "everyone, first"),
    "docs/first_look.ipynb": ("first_look.md", "everyone who wants to see it work first; as a notebook in docs/"),
    "CHANGELOG.md": ("changes.md", "those who upgrade"),
    "CONTRIBUTING.md": ("contributing.md", "those who change lvlm-guard, or add a method, a family, a matcher"),
    "SECURITY.md": ("security.md", "those who found a hole, or have to close one"),
    "recipes/README.md": ("custom_generate.md", "those who can hand transformers a name and nothing else"),
}
"""Files outside docs/, the pages that they become, and who reads them."""

REFERENCE = {
    "lvlm_guard": "engineers: the names of `import lvlm_guard`",
    "methods": "engineers and researchers: the decoding methods and their knobs",
    "matching": "those who bring a matcher, or look at what one saw",
    "verify": "engineers: whether what an answer names is there",
    "adapters": "trainers: adapters read back from their folders",
    "engine": "authors of a method",
    "evals.spec.items": "authors of an evaluation's task",
    "evals.metrics.metric": "authors of a score",
    "errors": "engineers: what a guarded call may raise",
    "report": "those who draw what a guard did",
}
"""Packages whose public names have a page, and who reads it."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\brel=["']?stylesheet["']?[^>]*//"""
)


def public_names(package: str) -> list[str]:
    """Return the names that a package shows: its `__all__`, or what its first file imports as itself, or defines."""
    path = ROOT / "lvlm_guard" / package.replace(".", "/") if package != "lvlm_guard" else ROOT / "lvlm_guard"
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            listed: list[str] = ast.literal_eval(node.value)
            return [name for name in listed if not name.startswith("_") and name != "methods"]
    shown = [
        a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names if a.asname == a.name
    ]
    made = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return shown or [name for name in made if not name.startswith("_")]


@functools.cache
def package_() -> Any:
    """Return the package as its source tells it; nothing is imported."""
    return griffe.load("lvlm_guard", search_paths=[ROOT], resolve_aliases=True, resolve_external=False)


def undocumented(package: str, names: list[str]) -> list[str]:
    """Return the public names, and public methods of public classes, that no docstring of theirs or a base's has."""
    dotted = "lvlm_guard" if package == "lvlm_guard" else f"lvlm_guard.{package}"
    module: Any = package_() if package == "lvlm_guard" else package_()[package]
    found = []
    for name in names:
        thing = module[name]
        thing = thing.final_target if thing.is_alias else thing
        if not thing.has_docstring:
            found.append(f"{dotted}.{name}")
        for member in thing.members.values() if thing.is_class else ():
            plain = not member.name.startswith("_") and not member.is_alias and member.is_function
            bases = [base.members.get(member.name) for base in thing.mro()] if plain else []
            if plain and not member.has_docstring and not any(base and base.has_docstring for base in bases):
                found.append(f"{dotted}.{name}.{member.name}")
    return found


def reference(package: str) -> str:
    """Return the page of a package's public names.

    Raises:
        PluginError: one has no docstring.
    """
    names = public_names(package)
    missing = undocumented(package, names)
    if missing:
        raise PluginError(f"Public names without a sentence: {', '.join(missing)}.")
    dotted = "lvlm_guard" if package == "lvlm_guard" else f"lvlm_guard.{package}"
    parts = [f"# {dotted}", f"*For {REFERENCE[package]}.*"]
    parts.append(f"::: {dotted}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}")
    return "\n\n".join([*parts, *(f"::: {dotted}.{name}" for name in names)]) + "\n"


def linked(text: str, at: str, page: str) -> str:
    """Return a text whose links fit the site.

    Args:
        text: Markdown.
        at: where it lies in the repository, such as "docs/engineer.md".
        page: where it lies in the site.

    Raises:
        PluginError: a link leads to a file that there is not.
    """

    def fitting(match: re.Match[str]) -> str:
        image, said, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(at), path))
        if not (ROOT / there).exists():
            raise PluginError(f"{at} links to {target}, which is not there.")
        lies = PAGES[there][0] if there in PAGES else there.removeprefix("docs/")
        if there not in PAGES and not (there.startswith("docs/") and Path(there).suffix in (".md", ".png")):
            return f"{said}, `{there}`"  # a file of the repository, which the site has not
        back = posixpath.relpath(lies, posixpath.dirname(page) or ".")
        return f"{image}[{said}]({back}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(fitting, part) for part in parts)


def cells(notebook: str) -> str:
    """Return a notebook's cells as Markdown; it is kept without outputs."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/, and the reference."""
    for source, (page, reader) in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = cells(text) if source.endswith(".ipynb") else make_tables.filled(text)
        text = re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)
        if page != "index.md":
            text = re.sub(r"\A(# .+\n)", lambda m, r=reader: f"{m[1]}\n*For {r}.*\n", text)
        files.append(File.generated(config, page, content=linked(text, source, page)))
    for package in REFERENCE:
        files.append(File.generated(config, f"reference/{package}.md", content=reference(package)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill a page's tables from docs/results, fit its links, and refuse it where it does not say who it is for."""
    made = page.file.generated_by is not None
    text = markdown if made else linked(make_tables.filled(markdown), f"docs/{page.file.src_uri}", page.file.src_uri)
    opening = re.sub(r"\A# .+\n+", "", text.lstrip())
    if page.file.src_uri != "index.md" and not opening.startswith(("For ", "*For ")):
        raise PluginError(f"{page.file.src_uri} does not say whom it is for: begin it with a paragraph 'For ...'.")
    return text


def on_post_build(config: Any) -> None:
    """Refuse a page that loads a script, a style or a picture from elsewhere."""
    for path in Path(config["site_dir"]).rglob("*.html"):
        found = LOADED.search(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{path.name} loads something from elsewhere: {found[0][:200]}")
