"""What is known of the model in a folder, whoever wrote it: kept by the trainer beside the model, read again for a push."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from ..files import write_text
from .evaluation_results import Evaluation, read_evaluations
from .model_card import ModelFacts, adapter_kind, read_data_report, read_json


# Not pushed, as all that begins with "_": it holds paths of this machine
FACTS_FILE, CARD_FILE, RECOMMENDER_FILE, METRICS_FILE = (
    "_card.json",
    "README.md",
    "recommender.json",
    "eval_results.json",
)
_PEFT_VERSIONS = re.compile(r"\n+###? Framework versions\s+- PEFT \S+\s*")
# Templates that libraries leave where nobody wrote a card
_EMPTY_CARDS = ("# Model Card for Model ID", "If you had a time machine")


def keep_facts(folder: str | Path, facts: ModelFacts, card: str) -> None:
    """
    Keep what a card was made of beside it.

    Args:
        folder (`str` or `Path`):
            Of the model.
        facts ([`ModelFacts`]):
            What is known.
        card (`str`):
            The card as it is written, to tell later whether a person wrote in it.
    """
    known = {name: value for name, value in dataclasses.asdict(facts).items() if name != "tokens"}
    write_text(
        Path(folder) / FACTS_FILE, json.dumps({"digest": _digest(card), "facts": known}, ensure_ascii=False, indent=1)
    )


def facts_of(folder: str | Path, repo_id: str) -> ModelFacts:
    """
    What is known of the model in a folder: what its trainer kept, and what lies there now.

    Args:
        folder (`str` or `Path`):
            Of the model.
        repo_id (`str`):
            Where it goes.

    Returns:
        [`ModelFacts`]: For [`make_model_card`]. The metrics are those of `eval_results.json` where the trainer knew none.
    """
    folder = Path(folder)
    kept = (read_json(folder / FACTS_FILE) or {}).get("facts")
    if kept is None:
        adapter, config = read_json(folder / "adapter_config.json") or {}, read_json(folder / "config.json") or {}
        facts = ModelFacts(
            model_name=repo_id,
            repo_id=repo_id,
            base_model=adapter.get("base_model_name_or_path") or config.get("_name_or_path"),
            adapter=adapter_kind(adapter.get("peft_type")),
        )
    else:
        kept["evaluations"] = [Evaluation(**one) for one in kept.get("evaluations", [])]
        names = {field.name for field in dataclasses.fields(ModelFacts)}
        facts = ModelFacts(**{name: value for name, value in kept.items() if name in names})
    if not facts.evaluations:
        facts.evaluations = read_evaluations([read_json(folder / METRICS_FILE) or {}])
    return dataclasses.replace(
        facts,
        model_name=repo_id.split("/")[-1],
        repo_id=repo_id,
        recommender=read_json(folder / RECOMMENDER_FILE),
        report=read_data_report(folder) or facts.report,
        figure=facts.figure if facts.figure and (folder / facts.figure).is_file() else None,
    )


def card_of_a_person(folder: str | Path) -> str | None:
    """
    The card in a folder, if a person wrote it or wrote in it; `None` for one that was made, or is a template.

    Args:
        folder (`str` or `Path`):
            Of the model.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        return None
    card = path.read_text(encoding="utf-8")
    kept = read_json(Path(folder) / FACTS_FILE) or {}
    if any(words in card for words in _EMPTY_CARDS) or kept.get("digest") == _digest(card):
        return None
    return without_peft_versions(card)


def without_peft_versions(card: str) -> str:
    """The card without the versions that PEFT writes at its end whenever it saves, where the card names them itself."""
    first = card.find("## Framework versions")
    if first < 0:
        return card
    return card[: first + 22] + _PEFT_VERSIONS.sub("\n", card[first + 22 :])


def _digest(card: str) -> str:
    """Of the words alone: whoever saves an adapter orders the header anew and adds versions."""
    _, _, text = card.partition("\n---\n")
    return hashlib.sha256(" ".join(without_peft_versions(text or card).split()).encode()).hexdigest()
