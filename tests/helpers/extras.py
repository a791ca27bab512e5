"""
What each extra is for, tried where it is installed and where it is not: `python -m helpers.extras FOLDER [BLOCKED ...]` prints
for every extra "works", or the error or warning that a user gets. Modules of the names BLOCKED are as if not installed.
"""

import importlib.machinery
import json
import logging
import os
import sys
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
# Those that the package has a use for, with what they bring; `docs` and `test` are for those who work on it
EXTRAS = {
    "demo": ("gradio", "uvicorn"),
    "examples": ("gguf", "matplotlib"),
    "quantization": ("bitsandbytes",),
    "serve": ("fastapi", "swagger_ui_bundle", "uvicorn"),
}


class Blocking(importlib.machinery.PathFinder):
    """Finds all modules but some."""

    blocked: frozenset = frozenset()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in cls.blocked else super().find_spec(fullname, path, target)


def block(modules):
    Blocking.blocked = frozenset(modules)
    place = sys.meta_path.index(importlib.machinery.PathFinder)
    sys.meta_path[place] = Blocking


def make_model(folder):
    """A tiny recommender on the disk, and its catalogue."""
    from helpers.tiny_models import TITLES, build_llama, build_tokenizer
    from trl_sdpo import Catalogue, RecommenderConfig, save_recommender_files
    from trl_sdpo.recsys import get_template

    tokenizer = build_tokenizer()
    build_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    catalogue = Catalogue([str(number) for number in range(len(TITLES))], TITLES)
    save_recommender_files(folder, RecommenderConfig([get_template("watched")]), catalogue)
    return str(folder)


def use_server(command, model):
    """All of a server but its listening."""
    from trl_sdpo.commands import demo, serve

    made = []
    try:
        import uvicorn

        uvicorn.run = lambda app, **options: made.append(app)
    except ImportError:
        pass
    module, arguments = {"demo": (demo, demo.DemoArguments), "serve": (serve, serve.ServeArguments)}[command]
    module.run(arguments(model_name_or_path=model))
    assert len(made) == 1


def use_examples(folder):
    """Figures, and the weights in a file of llama.cpp."""
    import polars as pl

    from trl_sdpo._errors import check_extra
    from trl_sdpo.pipeline import base_models
    from trl_sdpo.recsys import Interactions, prepare

    events = [(user, (7 * user + 11 * step) % 60, 1000 + 40 * step + user) for user in range(30) for step in range(20)]
    events = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": range(60), "title": [f"Film{number} (1999)" for number in range(60)]})
    prepare(Interactions(events, items, "made up"), folder / "data", num_candidates=5)
    said = [] if (folder / "data" / "report.png").is_file() else [WARNINGS[-1]]
    try:
        check_extra("gguf", "examples", base_models.SMOLLM2)  # whose wheel, with such a file, is not fetched here
    except ImportError as error:
        said.append(str(error))
    if said:
        raise ImportError(" ".join(said))


def use_quantization(model, folder):
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig

    from trl_sdpo import SoftmaxDPOConfig
    from trl_sdpo.pipeline.models import load_policy

    args = SoftmaxDPOConfig(str(folder / "out"), use_cpu=True, bf16=False)
    _, _, kwargs = load_policy(ModelConfig(model_name_or_path=model, load_in_4bit=True, use_peft=True), args)
    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=kwargs["quantization_config"])
    assert loaded.is_loaded_in_4bit


WARNINGS = []


def main(folder, blocked):
    block(blocked)

    class Keep(logging.Handler):
        def emit(self, record):
            WARNINGS.append(record.getMessage())

    logging.getLogger("trl_sdpo").addHandler(Keep())
    folder = Path(folder)
    model = make_model(folder / "model")
    said = {}
    for name, use in {
        "demo": lambda: use_server("demo", model),
        "examples": lambda: use_examples(folder),
        "quantization": lambda: use_quantization(model, folder),
        "serve": lambda: use_server("serve", model),
    }.items():
        try:
            use()
            said[name] = "works"
        except ImportError as error:
            said[name] = str(error)
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
