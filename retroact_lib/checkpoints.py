"""From the name of a checkpoint to something ``from_pretrained`` loads.

Three forms of name work wherever a checkpoint is named: the default, a local folder, a model-hub id. The default,
SmolLM2-135M-Instruct, comes from a Python package as a Q4_1 GGUF file. Reading that takes 10 s each time, so it is
written once to the cache as float32 safetensors (0.5 GB); after that, resolving it costs nothing and imports nothing.

`make setup` calls::

    python -m retroact_lib.checkpoints --prepare [NAME]  # convert into the cache, or say what is wrong with NAME
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from retroact_lib.data_files import DATA_FILES, verified
from retroact_lib.files import sha256_of
from retroact_lib.paths import cache_dir

log = logging.getLogger(__name__)

DEFAULT = "SmolLM2-135M-Instruct"
"""The checkpoint that needs no model hub."""

PAD_TOKEN = "<|endoftext|>"
"""Pad token of the default checkpoint; as shipped its pad is its end-of-turn token, which training must not mask."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint name stands for."""

    name: str
    """The name as given."""
    path_or_hub_id: str
    """First argument for ``from_pretrained``, of the model and of the tokenizer."""
    digest: str | None
    """SHA-256 of the weights (for the default, of the GGUF they came from); None for a hub id."""
    source: str
    licence: str


def resolve(name: str) -> Checkpoint:
    """Turn the name of a checkpoint into something ``from_pretrained`` loads.

    ``name`` is DEFAULT, a local folder with a config.json, or a hub id ``org/name`` (passed through: transformers
    fetches it). The first use of DEFAULT converts it into the cache, 10-20 s and 1.5 GB of memory.
    Raises ValueError for anything else, FileNotFoundError for a folder without its files or a missing package,
    RuntimeError if the conversion fails.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"checkpoint name {name!r} is empty or not text: {_EXPECTED}")
    if name == DEFAULT:
        return _resolve_default()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _resolve_folder(name, folder)
    if folder.exists():
        raise ValueError(f"checkpoint {name!r} is a file: {_EXPECTED}")
    if _HUB_ID.fullmatch(name):
        return Checkpoint(name, name, None, f"model hub: {name}", "see the model's page")
    raise ValueError(f"no checkpoint {name!r}: {_EXPECTED}")


_EXPECTED = f"expected {DEFAULT!r}, a local folder that holds config.json, or a hub name such as 'org/name'"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GGUF = DATA_FILES[0]
FORMAT = 1
"""Version of the converted default checkpoint: raise it when `_convert` writes something else."""
_SIDECAR = "retroact_checkpoint.json"


def _resolve_folder(name: str, folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"checkpoint folder {name!r} holds no config.json: {_EXPECTED}")
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        raise FileNotFoundError(f"checkpoint folder {name!r} holds no weights: expected *.safetensors or *.bin in it")
    digests = [_cached_sha256(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in weights]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return Checkpoint(name, str(folder.absolute()), digest, f"local folder {folder.name}", "not stated")


@functools.lru_cache(maxsize=256)
def _cached_sha256(path: str, size: int, mtime_ns: int) -> str:
    return sha256_of(path)


def _resolve_default() -> Checkpoint:
    target = cache_dir() / "checkpoints" / f"{DEFAULT}-{_GGUF.sha256[:12]}-v{FORMAT}"
    if not _is_whole(target):
        _build(target, verified(_GGUF))
    return Checkpoint(DEFAULT, str(target), _GGUF.sha256, _GGUF.source, _GGUF.licence)


def _is_whole(folder: Path) -> bool:
    """True if the sidecar is there, every file has the size it names, and the safetensors header fits its file.

    Reads a few kilobytes only. A changed byte in the middle of the weights goes unnoticed; a cut-off file does not.
    """
    try:
        sizes = json.loads((folder / _SIDECAR).read_text(encoding="utf-8"))["sizes"]
        return (
            any(name.endswith(".safetensors") for name in sizes)
            and all((folder / name).stat().st_size == size for name, size in sizes.items())
            and all(_header_fits(folder / name) for name in sizes if name.endswith(".safetensors"))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False


def _header_fits(path: Path) -> bool:
    """Whether the file has exactly the bytes that its header's offsets name."""
    length, header = _header(path)
    return path.stat().st_size == 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)


def _header(path: Path) -> tuple[int, dict[str, dict]]:
    """safetensors: 8 bytes of header length, then a JSON header with each tensor's shape and offsets.

    Raises ValueError where there is no such header.
    """
    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path} is shorter than its header.")
        header = json.loads(stream.read(length))
    return length, {name: entry for name, entry in header.items() if name != "__metadata__"}


def matrices(found: Checkpoint) -> set[str]:
    """The last names of the matrices in a local checkpoint's layers, such as ``q_proj``; none for a hub name.

    Only the headers of the files are read. Raises ValueError for one that is damaged.
    """
    names: set[str] = set()
    for file in sorted(Path(found.path_or_hub_id).glob("*.safetensors")):
        try:
            inner = [name for name, e in _header(file)[1].items() if len(e["shape"]) == 2 and "layers." in name]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}); fetch the checkpoint again.") from None
        names.update(name.removesuffix(".weight").rpartition(".")[2] for name in inner)
    return names


def _build(target: Path, gguf: Path) -> None:
    """Convert ``gguf`` into ``target`` so that other processes see all of it or nothing.

    A damaged ``target`` is replaced. Two processes may do this at once: one of them wins, both are right.
    """
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent)
        work = parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
        work.mkdir()
    except OSError as error:
        raise RuntimeError(
            f"cannot write the checkpoint cache {parent} ({error.strerror}): set RETROACT_CACHE to a folder that can be"
        ) from error
    try:
        log.info("converting %s into %s, once", gguf.name, target)
        _convert(gguf, work)
        sizes = {p.name: p.stat().st_size for p in sorted(work.iterdir()) if p.is_file()}
        note = {"name": DEFAULT, "gguf_sha256": _GGUF.sha256, "format": FORMAT, "sizes": sizes}
        (work / _SIDECAR).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        if not _is_whole(work):
            raise RuntimeError(f"the conversion of {gguf.name} wrote no whole checkpoint into {work}")
        _swap_in(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap_in(work: Path, target: Path) -> None:
    for _ in range(5):
        try:
            os.rename(work, target)
            return
        except OSError as error:
            failure = error
        if _is_whole(target):
            return  # another process was faster
        try:  # a damaged folder stands there: move it aside, never leave a moment with half of one
            aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
            os.rename(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
        except FileNotFoundError:
            pass
    raise RuntimeError(f"cannot put the converted checkpoint at {target}: {failure}") from failure


def _remove_leftovers(parent: Path, older_than_s: float = 3600.0) -> None:
    """Delete temporary folders of conversions that were killed; young ones may belong to a live process."""
    for folder in parent.glob(".*-v*.*"):
        try:
            if time.time() - folder.stat().st_mtime > older_than_s:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass


def _convert(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as a float32 checkpoint into ``folder``, in a process of its own.

    So its memory returns to the system, its progress bars are not shown, and nothing it sets stays behind.
    """
    packages = str(Path(__file__).resolve().parents[1])
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        HF_HUB_OFFLINE="1",
        CUDA_VISIBLE_DEVICES="",
    )
    command = [sys.executable, "-m", "retroact_lib.checkpoints", "--convert", str(gguf), str(folder)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
        reason = (errors or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"cannot convert {gguf.name} ({reason}); it needs 2 GB of free memory and 0.6 GB of disk")


def _convert_here(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _read_tokenizer(gguf)
    tokenizer.save_pretrained(folder)

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # De-quantised already; while these marks stand, save_pretrained refuses.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.config.dtype = torch.float32
    model.save_pretrained(folder)


def _read_tokenizer(gguf: Path):
    """The tokenizer in a GGUF file, built from its own lists; the same whatever the version of transformers.

    transformers' reader drops the "smollm" pre-tokenizer (digits one by one, then byte level), and up to 5.17 takes
    <|im_start|> for the end-of-turn token.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def read(key):
        return fields[f"tokenizer.{key}"].contents()

    tokens, types, control = read("ggml.tokens"), read("ggml.token_type"), 3
    merges = [tuple(pair.split(" ")) for pair in read("ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    specials = [token for token, type_ in zip(tokens, types, strict=True) if type_ == control]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[read("ggml.bos_token_id")],
        eos_token=tokens[read("ggml.eos_token_id")],
        unk_token=tokens[read("ggml.unknown_token_id")],
        pad_token=PAD_TOKEN,
        chat_template=read("chat_template"),
        model_max_length=fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status, 1 with one sentence on stderr if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m retroact_lib.checkpoints", description="Checkpoints by name.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--prepare", nargs="?", const=DEFAULT, metavar="NAME", help="resolve a checkpoint name")
    group.add_argument("--convert", nargs=2, metavar=("GGUF", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.convert:
        _convert_here(Path(args.convert[0]), Path(args.convert[1]))
        return 0
    try:
        checkpoint = resolve(args.prepare)
        print(f"checkpoint {checkpoint.name}: {checkpoint.path_or_hub_id}")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
