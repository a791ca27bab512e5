"""The model card of a trained recommender: facts in, Markdown out."""

import json
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from ..files import write_text
from .card_parts import SDPO_CITATION, TEMPLATES, TRL_CITATION, public_name, table, without_private
from .dataset_card import lists_tell_too_much
from .evaluation_results import Evaluation, describe_evaluations, to_eval_results
from .licences import Licence, find_licence


CURVES_FILE, REPORT_FILE = "training_curves.png", "report.json"
TAGS, SFT_TAGS = ("trl", "dpo", "softmax-dpo", "recommendation"), ("trl", "sft", "recommendation")
_FRAMEWORKS = ("trl", "transformers", "peft", "torch", "datasets")
# Two titles of a history and two candidates, by the domain of `recommender.json`
_EXAMPLES = {
    "movies": ("Alien (1979)", "Ran (1985)", "Heat (1995)", "Fargo (1996)"),
    "books": ("Emma", "Middlemarch", "Moby Dick; or, The Whale", "Dracula"),
    "music": ("Nina Simone", "Radiohead", "Portishead", "Miles Davis"),
    None: ("title of an item", "title of the next one", "title of a candidate", "title of another"),
}
_MODEL_VARIABLE = re.compile(r'(from_pretrained\(|\bmodel=)"[^"\n]*"')


@dataclass
class ModelFacts:
    """
    What a card says of a model. Whatever is not known stays out.

    Args:
        model_name (`str`):
            The heading.
        repo_id (`str`):
            What the example of the card loads.
        base_model (`str`, *optional*):
            The base model: the id of a repository, or a path, of which the last part is shown.
        base_on_hub (`bool`, *optional*):
            Whether `base_model` is a repository of the Hub. By default as it looks: `user/name`, and no path.
        adapter (`str`, *optional*):
            The kind of adapter; `None` for a full model.
        method (`str`, *optional*, defaults to `"s-dpo"`):
            How it was trained: `"s-dpo"` or `"sft"`.
        recipe (`dict[str, object]`, *optional*):
            Settings of training.
        evaluations (`list[Evaluation]`, *optional*):
            The last metrics.
        recommender (`dict`, *optional*):
            The contents of `recommender.json`.
        report (`dict`, *optional*):
            The contents of the `report.json` of the prepared data set.
        dataset_name (`str`, *optional*):
            The id of the training data on the Hub.
        num_records (`int`, *optional*):
            Training records.
        multi_preference (`bool`, *optional*, defaults to `True`):
            Whether a record has a list of rejected completions.
        figure (`str`, *optional*):
            The file of the training curves in the repository.
        tags (`list[str]`, *optional*):
            More tags.
        links (`dict[str, str]`, *optional*):
            Pages of the run, by the name of the tracker.
        tokens (`list[str]`, *optional*):
            Tokens that must not be in the card.
    """

    model_name: str
    repo_id: str
    base_model: str | None = None
    base_on_hub: bool | None = None
    adapter: str | None = None
    method: str = "s-dpo"
    recipe: dict[str, object] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    recommender: dict | None = None
    report: dict | None = None
    dataset_name: str | None = None
    num_records: int | None = None
    multi_preference: bool = True
    figure: str | None = None
    tags: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)


def make_model_card(facts: ModelFacts) -> ModelCard:
    """
    Make the card of a model.

    Args:
        facts ([`ModelFacts`]):
            What is known of it.

    Returns:
        [`~huggingface_hub.ModelCard`]: With the evaluation as `model-index` metadata. No token and no path of this
        machine is in it, see [`without_private`].
    """
    base_model = facts.base_model
    on_hub = is_on_hub(facts)
    source = _source(facts) or public_name(facts.dataset_name) or "evaluation"
    results = [result for evaluation in facts.evaluations for result in to_eval_results(evaluation, source)]
    dataset_name = facts.dataset_name if public_name(facts.dataset_name) == facts.dataset_name else None
    card_data = ModelCardData(
        base_model=base_model if on_hub else None,
        datasets=dataset_name,
        library_name="peft" if facts.adapter else "transformers",
        model_name=facts.model_name,
        pipeline_tag="text-generation",
        tags=["generated_from_trainer", *facts.tags, *(SFT_TAGS if facts.method == "sft" else TAGS)],
        eval_results=results or None,
    )
    usage, usage_note = _usage(facts)
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / "model_card.md"),
        model_name=facts.model_name,
        summary=_summary(facts, public_name(base_model), on_hub),
        usage=usage,
        usage_note=usage_note,
        training=_training(facts),
        recipe=table(["", ""], facts.recipe.items())
        if facts.recipe
        else "The settings of training were not recorded.",
        figure=facts.figure,
        links="\n".join(f"- [{name}]({url})" for name, url in facts.links.items()),
        data=_data(facts),
        evaluation=describe_evaluations(facts.evaluations),
        versions=", ".join([f"trl_sdpo {__version__}", *(f"{name} {version(name)}" for name in _FRAMEWORKS)]),
        method_citation=SDPO_CITATION,
        trl_citation=TRL_CITATION,
        data_citation=_licence(facts).citation,
    )
    return ModelCard(without_private(str(card), facts.tokens))


def is_on_hub(facts: ModelFacts) -> bool:
    """Whether the base model is a repository of the Hub, so far as is known."""
    if facts.base_model is None or facts.base_on_hub is not None:
        return bool(facts.base_on_hub)
    return facts.base_model.count("/") == 1 and public_name(facts.base_model) == facts.base_model


def _source(facts: ModelFacts) -> str | None:
    known = facts.recommender or {}
    return public_name((facts.report or {}).get("source") or known.get("source"))


def _licence(facts: ModelFacts) -> Licence:
    report, recommender = facts.report or {}, facts.recommender or {}
    return find_licence(
        [report.get("source"), recommender.get("source"), report.get("source_name"), facts.dataset_name]
    )


def _summary(facts: ModelFacts, base_model: str | None, on_hub: bool) -> str:
    domain = (facts.recommender or {}).get("domain") or "items"
    what = (
        f"A language model that recommends {domain}: from what a user chose before, it ranks or names what comes next"
        if facts.recommender or facts.multi_preference
        else "A language model that was aligned to preferences"
    )
    kind = f"{facts.adapter} adapter of" if facts.adapter else "fine-tuned from"
    if base_model is None:
        base = ""
    elif on_hub:
        base = f" It is {'a ' if facts.adapter else ''}{kind} [{base_model}](https://huggingface.co/{base_model})."
    else:
        base = (
            f" It is {'a ' if facts.adapter else ''}{kind} `{public_name(base_model)}`, a local model that is not on the Hub under "
            "this name" + (", so the adapter loads only where that model is." if facts.adapter else ".")
        )
    method = (
        "fine-tuned on what users chose next, the stage before Softmax-DPO ([S-DPO](https://huggingface.co/papers/2406.09215)),"
        if facts.method == "sft"
        else "trained with Softmax-DPO ([S-DPO](https://huggingface.co/papers/2406.09215))"
    )
    return f"{what}. It was {method} by [TRL](https://github.com/huggingface/trl) and trl_sdpo.{base}"


def _usage(facts: ModelFacts) -> tuple[str, str]:
    if facts.recommender is not None:
        code = [
            "from trl_sdpo import Recommender",
            "",
            f'recommender = Recommender.from_pretrained("{facts.repo_id}")',
            f"history, candidates = {_examples(facts)}",
            'for item in recommender.recommend(history, candidates, unknown_titles="keep"):',
            "    print(item.title, item.score)",
        ]
        note = (
            "Titles are worded as in the training data. With a catalogue beside the model, or given as `catalogue`, "
            "`recommender.recommend(history)` searches all of it."
        )
        return "\n".join(code), note
    prompt = (
        "This user has watched Alien (1979), Ran (1985), Big (1988). Next:"
        if facts.multi_preference
        else "If you could go to the past or to the future once, which would you choose?"
    )
    code = [
        "from transformers import pipeline",
        "",
        f'generator = pipeline("text-generation", model="{facts.repo_id}")',
        f'prompt = "{prompt}"',
        'print(generator(prompt, max_new_tokens=20, return_full_text=False)[0]["generated_text"])',
    ]
    note = "Word the prompt as those of the training data."
    if facts.adapter:
        note += " PEFT must be installed, which loads the adapter on its base model."
    return "\n".join(code), note


def _examples(facts: ModelFacts) -> str:
    """A history and candidates of the kind that the model recommends."""
    first, second, *others = _EXAMPLES.get((facts.recommender or {}).get("domain"), _EXAMPLES[None])
    return ", ".join(f"[{', '.join(json.dumps(title) for title in titles)}]" for titles in ((first, second), others))


def with_repo_id(card: str, repo_id: str) -> str:
    """The card with the example loading the repository that it is pushed to."""
    return _MODEL_VARIABLE.sub(rf'\g<1>"{repo_id}"', card)


def _training(facts: ModelFacts) -> str:
    records = "" if facts.num_records is None else f"{facts.num_records:,} records, "
    if facts.method == "sft":
        return f"{records}of each the prompt and the chosen completion: the loss is that of a language model."
    if facts.multi_preference:
        return (
            f"{records}each with one chosen completion against several rejected ones. The loss is −log softmax(r)₀ with the "
            "implicit rewards r = β·log(π/π_ref), index 0 the chosen (Eq. 11 of the paper), unless `loss` says otherwise."
        )
    return f"{records}each with one chosen and one rejected completion."


def _data(facts: ModelFacts) -> str:
    source, licence, report = _source(facts), _licence(facts), facts.report or {}
    recommender = facts.recommender or {}
    name = facts.dataset_name if public_name(facts.dataset_name) == facts.dataset_name else None
    parts = [f"Trained on [{name}](https://huggingface.co/datasets/{name})."] if name else []
    if source:
        link = f" ({licence.link})" if licence.link else ""
        parts.append(f"The source of the records is {source}. Licence: {licence.summary}{link}")
    if not parts:
        parts.append("Where the training data come from was not recorded.")
    rows = [(key, report[key]) for key in ("recipe", "split", "seed") if key in report]
    options = report.get("options", {})
    names = ("prompt_style", "template", "history_size", "num_candidates", "pool_size", "negatives", "conversational")
    rows += [(key, options[key]) for key in names if options.get(key) is not None]
    if not options:
        rows += [(key, recommender[key]) for key in ("history_size", "conversational") if key in recommender]
    templates = [one.get("text") for one in recommender.get("templates", []) if isinstance(one, dict)]
    if templates and templates[0]:
        rows.append(
            (
                "template",
                f"`{json.dumps(templates[0], ensure_ascii=False)}`"
                + (f" and {len(templates) - 1} more" if templates[1:] else ""),
            )
        )
    text = " ".join(parts)
    if rows:
        text += "\n\n" + table(["Records", ""], [(key.replace("_", " "), value) for key, value in rows])
    if report.get("leak_probe"):
        text += "\n\n" + lists_tell_too_much(report["leak_probe"])
    return text


def adapter_kind(peft_type: str | None) -> str | None:
    """What a card calls an adapter of PEFT, such as "LoRA"."""
    return {"LORA": "LoRA", "ADALORA": "AdaLoRA"}.get(peft_type, peft_type)


def read_json(path: Path) -> dict | None:
    """A JSON object beside a model, or `None` where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_data_report(folder: Path) -> dict | None:
    """The `report.json` of a prepared data set; another file of that name is passed over."""
    report = read_json(folder / REPORT_FILE)
    return report if report and {"recipe", "source", "options"} <= report.keys() else None


def copy_data_report(dataset_dir: str | Path, output_dir: str | Path) -> None:
    """Put the report of a prepared data set beside a model, whose card it informs. Nothing is done where there is none."""
    if read_data_report(Path(dataset_dir)) is not None:
        write_text(Path(output_dir) / REPORT_FILE, (Path(dataset_dir) / REPORT_FILE).read_text(encoding="utf-8"))
