"""The page of `trl-sdpo demo` as a Space of the Hub: a folder with an app, what it needs, and a card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..files import write_text
from ..hub.licences import Licence, why_not_public


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_APP = '''\
"""The lists of a recommender, to look at: https://github.com/huggingface/trl and trl-sdpo."""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from trl_sdpo import Recommender
from trl_sdpo.serving.demo import Page, make_page, page_options


MODELS = {models}

recommenders = {{model.split("/")[-1]: Recommender.from_pretrained(model) for model in MODELS}}
make_page(Page(recommenders), {title}).launch(**page_options())
'''
_CARD = """\
---
title: {title}
sdk: gradio
app_file: app.py
pinned: false
models:
{models}
tags:
- softmax-dpo
- recommendation
---

# {title}

Build a history, see what {names} would recommend next, and what the list depends on. Made by `trl-sdpo demo --space`.

{licence}
"""


def write_space(folder: str | Path, models: Sequence[str], title: str, licence: Licence) -> Path:
    """
    Write a Space.

    Args:
        folder (`str` or `Path`):
            Where to. It is made where it is missing.
        models (`Sequence[str]`):
            Ids of models on the Hub, with their `recommender.json` and `catalogue.json`: the first, and those beside it.
        title (`str`):
            What stands above the page.
        licence ([`~hub.licences.Licence`]):
            Of the titles that the page shows.

    Returns:
        `Path`: The folder, with `app.py`, `requirements.txt` and `README.md`.

    Raises:
        ValueError: a model is a folder of this machine, which a Space does not have.
    """
    folder = Path(folder)
    check_models(models)
    folder.mkdir(parents=True, exist_ok=True)
    title_text = json.dumps(title, ensure_ascii=False)
    link = f" ({licence.link})" if licence.link else ""
    card = _CARD.format(
        title=title_text, names=" and ".join(models), models="\n".join(f"- {model}" for model in models),
        licence=f"Titles: {licence.summary}{link}" if licence.summary else "",
    )  # fmt: skip
    write_text(folder / "app.py", _APP.format(models=json.dumps([*models]), title=title_text))
    write_text(folder / "requirements.txt", f"trl-sdpo[demo]=={__version__}\n")
    write_text(folder / "README.md", card.rstrip() + "\n")
    return folder


def check_models(models: Sequence[str]) -> None:
    """
    A Space has none of the folders of this machine.

    Raises:
        ValueError: a model is one.
    """
    for model in models:
        if Path(model).exists() or model.count("/") != 1:
            raise ValueError(
                f"{model}: a Space loads its models from the Hub. Push it first: `trl-sdpo push {model} user/name`, and pass "
                "that id."
            )


def push_space(
    folder: Path, repo_id: str, licence: Licence, *, private: bool = True, redistribution_permitted: bool = False
) -> "CommitInfo":
    """
    Push a Space that [`write_space`] wrote. It shows titles, so the licence of their source is kept.

    Raises:
        PermissionError: the licence forbids it. The message gives the reason.
        HubPushError: the Hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    from ..hub.pushes import explained

    reason = why_not_public(licence, "the titles of the catalogue", private, redistribution_permitted)
    if reason is not None and not private:
        raise PermissionError(
            f"{reason} A public Space would show them. Leave out --public, or, if you may, state so: "
            "--redistribution_permitted."
        )
    command = f"trl-sdpo demo ... --space {repo_id} --push"
    with explained(folder, command):
        api = HfApi(library_name="trl_sdpo")
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        return api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=folder, commit_message="Upload the page of trl-sdpo demo"
        )
