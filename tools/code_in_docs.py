"""Copy the functions that a page of the docs shows from the source: python -m tools.code_in_docs

A page marks such a block with a comment that names the file and the function, e.g.
`<!-- loop: sdpersonal/training/loop.py:fit -->`, in front of a block of Python.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs" / "architecture.md"]
BLOCK = re.compile(r"(<!-- loop: (?P<path>\S+):(?P<name>\w+) -->\n+```python\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def function_source(path: Path, name: str) -> str:
    """Return the source of a module-level function or class, with its decorators."""
    text = path.read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])
    raise SystemExit(f"{path} has no function {name}: correct the comment in the page")


def update(page: str) -> str:
    """Return the page with today's source in each marked block."""
    return BLOCK.sub(lambda match: match[1] + function_source(ROOT / match["path"], match["name"]), page)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        if (updated := update(text)) != text:
            page.write_text(updated)
            print(f"{page.relative_to(ROOT)} is updated")


if __name__ == "__main__":
    main()
