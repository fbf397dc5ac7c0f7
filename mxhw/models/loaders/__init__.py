"""Models from outside: files and folders that become a :class:`~mxhw.models.llama.Llama`.

A file is input, not trusted: its sizes are checked before memory is taken, pickles are refused, and
every refusal names the file, the field and what was expected.
"""

import hashlib
from pathlib import Path

from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama
from mxhw.models.loaders.checked import FileReader
from mxhw.models.loaders.tokenizer import ModelTokenizer

__all__ = ["fingerprint", "is_model_path", "load_path", "model_name"]

_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ZIP_MAGIC = b"PK\x03\x04"
_GGUF_MAGIC = b"GGUF"
_CHUNK_BYTES = 1 << 20


def is_model_path(name: str) -> bool:
    """Whether a model's name is a path and not the name of a bundled one."""
    return "/" in name or "\\" in name or "." in name or Path(name).exists()


def model_name(path: str) -> str:
    """A short name for a model's files: the name of its folder, or of its file without its end."""
    resolved = Path(path).resolve()
    return resolved.name if resolved.is_dir() else resolved.stem


def load_path(
    path: Path, *, context: int | None = None, tokenizer: Path | None = None
) -> tuple[Llama, ModelTokenizer, LlamaConfig]:
    """Load a model from a file of llama2.c, a GGUF file or a Hugging Face folder.

    Parameters
    ----------
    path : Path
    context : int, optional
        Positions, at most those that the model was made for; by default those, at most 1024.
    tokenizer : Path, optional
        Tokenizer of a llama2.c file.

    Raises
    ------
    UserError
        If there is no such file, it is of no known kind, or it is malformed.
    ToolError
        If its kind needs a package that is not installed.
    """
    if path.is_dir():
        from mxhw.models.loaders.huggingface import load_huggingface

        return load_huggingface(path, context)
    with FileReader(path) as file:
        magic = file.read(min(4, file.left), "magic")
    if magic == _GGUF_MAGIC:
        from mxhw.models.loaders.gguf import load_gguf

        return load_gguf(path, context)
    if path.suffix in _PICKLES or magic == _ZIP_MAGIC or magic[:1] == b"\x80":
        raise UserError(
            f"{path}: file is a pickle, which can run code and is never read; save the model as "
            f"safetensors"
        )
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: give the folder that holds it and its config.json")
    if path.suffix == ".bin":
        from mxhw.models.loaders.llama2c import load_llama2c

        return load_llama2c(path, context, tokenizer)
    raise UserError(
        f"{path}: file must be a GGUF file, a .bin file of llama2.c or a Hugging Face folder"
    )


def fingerprint(path: Path, tokenizer: Path | None = None) -> str:
    """SHA-256 of a model's files: another model at the same path is another model.

    Raises
    ------
    UserError
        If a file cannot be read.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path, *sorted(path.parent.glob("tok*"))]
    digest = hashlib.sha256()
    try:
        for file in [*files, *([tokenizer] if tokenizer else [])]:
            if not file.is_file():
                continue
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
    except OSError as error:
        raise UserError(f"{error.filename}: file cannot be read: {error.strerror}") from error
    return digest.hexdigest()
