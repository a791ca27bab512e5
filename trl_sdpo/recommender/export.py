"""A recommender for other engines: a merged model, the tokens of its titles, and a processor that keeps answers to them."""

import copy
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from ..files import write_text
from ..recsys.records.recommender_files import CATALOGUE_FILE, missing_file, save_recommender_files
from . import title_processor


if TYPE_CHECKING:
    from .recommender import Recommender

TITLES_FILE, PROCESSOR_FILE = "titles.json", "title_processor.py"


def export_recommender(recommender: "Recommender", folder: str | Path) -> Path:
    """
    Write a model that needs neither this package nor PEFT: what [`~transformers.GenerationMixin.generate`] or an inference
    server loads. An adapter is merged into a copy of its base, so there must be memory for both.

    Args:
        recommender ([`Recommender`]):
            With a catalogue, and a template that shows no candidates.
        folder (`str` or `Path`):
            Where to. It is made where it is missing.

    Returns:
        `Path`: The folder, with the model, its tokenizer, `recommender.json`, `catalogue.json`, `titles.json` (`tokens`,
        `titles`, `item_ids` and `eos_token_id`) and `title_processor.py`.

    Raises:
        ValueError: there is no catalogue, a title has the tokens of another, or the base is quantised.
    """
    folder = Path(folder)
    if recommender.catalogue is None:
        raise missing_file(recommender.name, CATALOGUE_FILE)
    model = recommender.model
    if getattr(model, "is_quantized", False) or getattr(getattr(model, "config", None), "quantization_config", None):
        raise ValueError(
            f"{recommender.name}: its base is quantised, and what is merged into it is rounded. Load it in the precision of "
            "the base, without `quantization_config`, and export that."
        )
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)
    recommender.processing_class.save_pretrained(folder)
    save_recommender_files(folder, recommender.config, recommender.catalogue)
    trie = recommender.trie
    titles = {
        "eos_token_id": recommender.processing_class.eos_token_id,
        "tokens": trie.paths(),
        "titles": [*recommender.catalogue.titles],
        "item_ids": [*recommender.catalogue.item_ids],
    }
    write_text(folder / TITLES_FILE, json.dumps(titles, ensure_ascii=False))
    write_text(folder / PROCESSOR_FILE, inspect.getsource(title_processor))
    return folder
