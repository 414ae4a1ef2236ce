"""Floors without circles: what is read for figures loads no model library, and no module imports one above it."""

import ast
import subprocess
import sys

from retroact_lib import files

HEAVY = ("torch", "peft", "transformers", "bitsandbytes")


def test_tables_and_figures_need_no_model_library():
    modules = ("config", "envs", "evaluation", "files", "pages", "paths", "plots", "tables")
    code = f"import sys; from retroact_lib import {', '.join(modules)}\n"
    code += "[envs.env_class(name) for name in envs.ENVIRONMENTS]\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the library that it imports when it is loaded (lazy imports aside)."""
    found = {}
    for file in files.LIBRARY.rglob("*.py"):
        parts = ("retroact_lib", *file.relative_to(files.LIBRARY).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = set()
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retroact_lib"):
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= below | {node.module}
    return {name: {other for other in others if other in found} for name, others in found.items()}


def test_no_circles():
    left = imports()
    while free := {name for name, others in left.items() if not others & (left.keys() - {name})}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"
