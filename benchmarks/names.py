"""How long are the names that the package defines?

    python benchmarks/names.py          mean length, and the shortest names
    python benchmarks/names.py --all    every distinct name with where it is first defined

Counted are distinct names of modules, classes, functions, arguments, variables and attributes that
are assigned in `kdkit/`, underscores left out; the letters of the equations (one letter, perhaps
with an index, as in z, z_t, f_s, A) and dunder names do not count.
"""

import argparse
import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "kdkit"
LETTER = re.compile(r"[A-Za-z](_[A-Za-z0-9]{1,2}|\d)?|[A-Z]{1,2}\d?|tau|eps|lr|ce|kl|kd")


def defined(tree: ast.AST) -> list[tuple[str, int]]:
    """(name, line) of everything that a module defines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.append((node.name, node.lineno))
        elif isinstance(node, ast.arg):
            found.append((node.arg, node.lineno))
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found.append((name, node.lineno))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.append((node.name, node.lineno))
    return found


def names() -> dict[str, str]:
    """Distinct name -> file and line of its first definition."""
    places: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE.parent)
        places.setdefault(path.stem, str(where))
        for name, line in defined(ast.parse(path.read_text())):
            places.setdefault(name, f"{where}:{line}")
    return {
        name: place
        for name, place in places.items()
        if not name.startswith("__") and not LETTER.fullmatch(name.strip("_"))
    }


def mean_length(found: dict[str, str]) -> float:
    """Letters and digits of a name, underscores left out."""
    lengths = [len(name.replace("_", "")) for name in found]
    return sum(lengths) / len(lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="print every name")
    everything = parser.parse_args().all
    found = names()
    shown = sorted(found, key=lambda name: (len(name.replace("_", "")), name))
    for name in shown if everything else shown[:40]:
        print(f"{name:30} {found[name]}")
    print(f"{len(found)} names, {mean_length(found):.2f} letters on average")


if __name__ == "__main__":
    main()
