"""The trie of a large catalogue, made once and kept beside it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..files import TRIE_FILE
from ..recsys.records.catalogue.columns import ParquetColumn
from ..recsys.records.recommender_files import (
    CATALOGUE_FILE,
    Catalogue,
    find_file,
    load_recommender_files,
    missing_file,
)
from ..scoring.title_trie import TitleTrie


logger = logging.get_logger(__name__)


def catalogue_and_trie(
    asked: Catalogue | str | Path | None, own: Catalogue | None, model: str | Path, hub_kwargs: dict[str, Any]
) -> "tuple[Catalogue | None, KeptTrie | None]":
    """The catalogue that is asked for, or the model's own, and the trie that is kept of it."""
    if asked is None or isinstance(asked, Catalogue):
        catalogue = own if asked is None else asked
        return catalogue, None if catalogue is None else KeptTrie(catalogue, model, **hub_kwargs)
    catalogue = load_recommender_files(asked).catalogue
    if catalogue is None:
        raise missing_file(asked, CATALOGUE_FILE)
    return catalogue, KeptTrie(catalogue, asked)


class KeptTrie:
    """
    Where the trie of a catalogue that is a Parquet file is kept: `title_trie.safetensors` beside the file. One of another
    catalogue, template or tokenizer is made anew.

    Args:
        catalogue ([`Catalogue`]):
            The catalogue. That of a `catalogue.json` is small, and its trie is not kept.
        model (`str` or `Path`):
            Where the catalogue comes from: a directory, to which the trie is written, or a repository on the Hub, from
            which it may be read.
        **hub_kwargs:
            See [`load_recommender_files`].
    """

    def __init__(self, catalogue: Catalogue, model: str | Path, **hub_kwargs) -> None:
        self._catalogue, self._model, self._hub_kwargs = catalogue, model, hub_kwargs

    def get(
        self, make: Callable[[], TitleTrie], processing_class: PreTrainedTokenizerBase, depends_on: Any
    ) -> TitleTrie:
        """
        The trie that is kept, or the one that `make` makes, which is kept then.

        Args:
            make (`Callable`):
                Makes it.
            processing_class ([`~transformers.PreTrainedTokenizerBase`]):
                Its tokenizer.
            depends_on (`Any`):
                What else its tokens depend on, as JSON can hold it.
        """
        titles = self._catalogue.titles
        if not isinstance(titles, ParquetColumn):
            return make()
        made_of = _digest(titles.file.digest, processing_class, depends_on)
        path = find_file(self._model, TRIE_FILE, **self._hub_kwargs)
        try:
            kept = None if path is None else TitleTrie.load(path, made_of, titles)
        except SafetensorError as error:
            logger.warning(f"{path}: is damaged ({error}), and made anew.")
            kept = None
        if kept is not None:
            return kept
        logger.info(f"{self._model}: making the trie of {len(titles)} titles, which is kept.")
        trie = make()
        if Path(self._model).is_dir():
            try:
                trie.save(Path(self._model) / TRIE_FILE, made_of)
            except OSError as error:
                logger.warning(
                    f"{self._model}: {TRIE_FILE} cannot be kept there ({error}), so every process makes its own."
                )
        return trie


def _digest(catalogue: str, processing_class: PreTrainedTokenizerBase, depends_on: Any) -> str:
    """Of all that decides on the tokens of the titles."""
    if processing_class.is_fast:
        tokenizer = processing_class.backend_tokenizer.to_str()
    else:
        tokenizer = repr(sorted(processing_class.get_vocab().items()))
    parts = [catalogue, tokenizer, tokenizers.__version__, type(processing_class).__name__]
    parts += [processing_class.eos_token, processing_class.chat_template, depends_on]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
