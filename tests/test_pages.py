"""README and the other pages: their tables are those of the committed files, and what they name is there."""

import importlib.util
import inspect
import re
import shlex
import subprocess

import pytest
import yaml

from retroact_lib import __main__ as command_line
from retroact_lib import envs, pages, paths, stages
from retroact_lib.config import field_names

PROJECT = paths.project_dir()
PAGES = {file.relative_to(PROJECT).as_posix(): file.read_text() for file in pages.pages()}
README = PAGES["README.md"]
TABLES = re.compile(r"<!-- table: .*?<!-- end -->", re.S)
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r"\]\((?!http)([^)]+)\)")


# -- tables ---------------------------------------------------------------------------------------------------------


def test_tables_are_those_of_the_committed_files():
    differ = [str(page.relative_to(PROJECT)) for page in pages.write(check=True)]
    assert not differ, "run `python -m retroact_lib pages`"


def test_a_table_is_written_between_its_marks():
    marks = "before\n<!-- table: raw alfworld choices/engine_speed.csv -->\n{}<!-- end -->\nafter\n"
    new = pages.filled(marks.format("| of | another | day |\n"))
    assert "another" not in new and "| stock |" in new and new.startswith("before\n") and new.endswith("\nafter\n")
    assert pages.filled(new) == new == pages.filled(marks.format(""))


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- table: pie intercode_sql -->\n<!-- end -->", "unknown table 'pie'"),
        ("<!-- table: environments -->\n", "lacks its end"),
        ("<!-- end -->", "an end its mark"),
    ],
)
def test_a_mark_that_means_nothing_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        pages.filled(text)


def plain(text):
    """A page without tables, code and line ends."""
    return " ".join(re.sub(r"`[^`]*`", "", FENCES.sub("", TABLES.sub("", text))).split())


def cells(name):
    """What the written tables of a page and of the pages that it links to hold, without bold type."""
    linked = [(PROJECT / name).parent / target.partition("#")[0] for target in LINK.findall(PAGES[name])]
    linked = {file.resolve().relative_to(PROJECT).as_posix() for file in linked}
    text = " ".join(table for page in sorted({name} | (linked & PAGES.keys())) for table in TABLES.findall(PAGES[page]))
    return text.replace("**", "")


@pytest.mark.parametrize("name", [name for name in PAGES if TABLES.search(PAGES[name])])
def test_results_in_sentences_are_cells_of_the_tables(name):
    """Whatever reads like a result: 7 (1 to 13); from 28 to 41 %; 57 %."""
    text, known = plain(PAGES[name]), cells(name)
    differences = re.findall(r"-?\d+ \(-?\d+ to -?\d+\)", text)
    ranges = re.findall(r"\d+ to \d+(?= %)", text)
    shares = set(re.findall(r"(\d+) %", text)) - {"95"} - {part.split()[-1] for part in ranges}
    assert name != "README.md" or (differences and shares)
    missing = [found for found in differences + ranges if not re.search(rf"(?<![\d-]){re.escape(found)}", known)]
    missing += [f"{share} %" for share in shares if not re.search(rf"\| {share} \[", known)]
    assert not missing


def test_how_many_intervals_leave_out_zero_in_hotpotqa():
    found = re.findall(r"(\**)-?\d+ \(-?\d+ to -?\d+\)", pages.table("against hotpotqa"))
    assert (len(found), found.count("**")) == (27, 3)
    assert "Three of the 27 intervals" in plain(PAGES["results/laptop/hotpotqa/README.md"])


def test_earlier_runs_are_those_of_their_commits():
    try:
        found = pages.read_earlier()
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("the history is not here")
    assert found.to_csv(index=False) == (PROJECT / "docs" / "earlier.csv").read_text()


# -- what pages name ------------------------------------------------------------------------------------------------


def commands(word):
    """(page, command line) of all code blocks, and of code in sentences that begins with `word`."""
    for name, text in PAGES.items():
        blocks = [body for language, body in FENCES.findall(text) if language in ("bash", "sh")]
        lines = [line.split("  #")[0].strip() for body in blocks for line in body.splitlines()]
        lines += [" ".join(found.split()) for found in re.findall(r"`([^`\n]+)`", FENCES.sub("", text))]
        yield from ((name, line) for line in lines if line == word or line.startswith(f"{word} "))


def test_the_readme_is_short():
    assert len(README.encode()) <= 10_000


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), re.M))
    words = [word for _, line in commands("make") for word in shlex.split(line)[1:]]
    assert {"reproduce", "test"} <= {word for word in words if "=" not in word} <= targets
    assert {word.removeprefix("ENV=") for word in words if "ENV=" in word} <= envs.ENVIRONMENTS.keys()


def test_commands_resolve(capsys):
    lines = {line for _, line in commands("python -m retroact_lib")}
    assert len(lines) > 6
    for line in sorted(lines):
        arguments = shlex.split(line)[3:]
        if arguments[0] != "reproduce":
            with pytest.raises(SystemExit) as ended:
                command_line.main([arguments[0], "--help"])
            assert ended.value.code == 0, line
            continue
        if "--dry-run" not in arguments:
            arguments.append("--dry-run")
        assert command_line.main(arguments) == 0, line


def test_modules_in_commands_exist():
    found = {m for text in PAGES.values() for m in re.findall(r"python -m (retroact_lib\.[\w.]+)", text)}
    assert "retroact_lib.pages" in found
    assert all(importlib.util.find_spec(module) for module in found)


def test_papermill_commands_name_notebooks_and_settings():
    known = {name for env in envs.ENVIRONMENTS for name in field_names(env)}
    found = list(commands("papermill"))
    for _, line in found:
        words = shlex.split(line)
        assert (PROJECT / words[1]).exists()
        assert {words[i + 1] for i, word in enumerate(words) if word == "-p"} <= known
    named = {name for text in PAGES.values() for name in re.findall(r"`--set (\w+)=[^`]+`", text)}
    assert found and named and named <= known


@pytest.mark.parametrize("name", [name for name in PAGES if "```python" in PAGES[name]])
def test_lines_of_python_run(name, monkeypatch):
    """With the stages themselves replaced: their names, arguments and settings are right."""
    calls = []
    evaluated = inspect.signature(stages.evaluate)
    monkeypatch.setattr(stages, "train_sft", lambda config: calls.append(config.flat()))
    monkeypatch.setattr(stages, "train_joint_rl", lambda config: [calls.append(config.flat())])
    monkeypatch.setattr(stages, "evaluate", lambda *arguments: calls.append(evaluated.bind(*arguments)))
    exec("\n".join(body for language, body in FENCES.findall(PAGES[name]) if language == "python"), {})
    assert calls


def slug(heading):
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        for target in LINK.findall(text):
            path, _, anchor = target.partition("#")
            file = (PROJECT / name).parent / path if path else PROJECT / name
            assert file.exists(), (name, target)
            if anchor:
                assert anchor in map(slug, re.findall(r"^#+ (.+)$", file.read_text(), re.M)), (name, target)


def listed():
    """The paths in the README's tree."""
    tree = re.search(r"## Where things are\n.*?```\n(.*?)```", README, re.S)[1]
    folder, found = [], []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)([\w./-]+)", line).groups()
        folder[len(indent) // 2 :] = [name.rstrip("/")]
        found.append("/".join(folder))
    return found


def test_paths_in_the_tree_exist():
    assert all((PROJECT / path).exists() for path in listed())


def test_every_module_is_in_the_tree_or_on_its_environments_page():
    told = set(listed())
    for env in envs.ENVIRONMENTS:
        folder = f"retroact_lib/envs/{env}"
        assert folder in told
        told |= {
            f"{folder}/{module}" for module in re.findall(r"^\| \[`(\w+\.py)`\]", PAGES[f"{folder}/README.md"], re.M)
        }
    modules = {p.relative_to(PROJECT).as_posix() for p in (PROJECT / "retroact_lib").rglob("*.py") if p.stat().st_size}
    assert not modules - told


def test_tests_in_the_table_of_differences_exist():
    named = set(re.findall(r"`(test_\w+)`", README))
    assert named and named <= {file.stem for file in (PROJECT / "tests").glob("test_*.py")}


def test_the_picture_keeps_the_readers_colours():
    picture = dict(FENCES.findall(README))["mermaid"]
    assert not re.search(r"\b(style|classDef|fill|stroke|color|theme)\b|#[0-9a-f]{3}", picture)


def test_the_citation_file_names_the_paper():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["title"].startswith("Improving Retrospective Language Agents") and "2503.01490" in paper["url"]
