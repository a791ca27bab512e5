"""The card of a data set of multi-preference records, out of the report of its preparation."""

from collections.abc import Sequence

from huggingface_hub import DatasetCard, DatasetCardData

from .card_parts import SDPO_CITATION, TEMPLATES, public_name, table, without_private
from .licences import Licence
from .privacy import PERSONAL


_SIZES = [
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10**7, "1M<n<10M"),
]
_COLUMNS = [
    ("`prompt`", "the history, and in some styles the candidates; text or messages"),
    ("`chosen`", "what the user chose next"),
    ("`rejected`", "a list of items that the user did not choose"),
]
_COUNTS = ("targets", "records", "histories_shortened", "users", "items")


def make_dataset_card(
    repo_id: str,
    splits: dict[str, int],
    licence: Licence,
    report: dict | None = None,
    figure: str | None = None,
    permitted: bool = False,
    people: Sequence[str] = (),
    pseudonymised: bool = False,
) -> DatasetCard:
    """
    Make the card of a data set.

    Args:
        repo_id (`str`):
            Where it is pushed to.
        splits (`dict[str, int]`):
            The number of records of each split.
        licence ([`Licence`]):
            Of its source.
        report (`dict`, *optional*):
            The contents of its `report.json`. Without it the card says that recipe and leaks are unknown.
        figure (`str`, *optional*):
            A figure in the repository.
        permitted (`bool`, *optional*, defaults to `False`):
            Whether whoever pushes it stated that they may pass it on.
        people (`Sequence[str]`, *optional*):
            The columns that tell of people, see [`~hub.privacy.personal_columns`].
        pseudonymised (`bool`, *optional*, defaults to `False`):
            Whether ids of users were replaced.

    Returns:
        [`~huggingface_hub.DatasetCard`]: Without any token or path of this machine.
    """
    source = public_name(report["source"]) if report else None
    pretty_name = f"{source or repo_id.split('/')[-1]}: multi-preference records"
    card = DatasetCard.from_template(
        _card_data(pretty_name, splits, licence),
        template_path=str(TEMPLATES / "dataset_card.md"),
        pretty_name=pretty_name,
        repo_id=repo_id,
        summary=(
            "Records for Softmax-DPO ([S-DPO](https://huggingface.co/papers/2406.09215)): one chosen completion and several "
            "rejected ones each, as `SoftmaxDPOTrainer` of trl_sdpo takes them."
        ),
        licence=_licence(licence, source, permitted),
        records=_records(splits, report),
        people=_people(people, pseudonymised),
        recipe=_recipe(report),
        leaks=_leaks(report),
        figure=figure,
        method_citation=SDPO_CITATION,
        data_citation=licence.citation,
    )
    return DatasetCard(without_private(str(card)))


def _card_data(pretty_name: str, splits: dict[str, int], licence: Licence) -> DatasetCardData:
    total = sum(splits.values())
    return DatasetCardData(
        license=licence.license,
        license_name=licence.name if licence.license == "other" else None,
        license_link=licence.link if licence.license == "other" else None,
        pretty_name=pretty_name,
        size_categories=[next((name for limit, name in _SIZES if total < limit), "n>10M")],
        task_categories=["text-ranking", "text-generation"],
        tags=["trl", "softmax-dpo", "recommendation", "preference"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits],
            }
        ],
    )


def _licence(licence: Licence, source: str | None, permitted: bool) -> str:
    link = f" Stated at {licence.link}." if licence.link else ""
    text = f"Made of {source or 'data whose source is not recorded'}. {licence.summary}{link} The same terms hold for what is made of it."
    if permitted and not licence.redistribution:
        text += " Whoever pushed this data set stated that they may pass it on."
    return text


def _people(columns: Sequence[str], pseudonymised: bool) -> str:
    if not columns:
        return "No column tells of a person."
    told = ", ".join(f"`{name}` ({PERSONAL[name]})" for name in columns)
    text = f"The records tell of people: {told}."
    if "user_id" not in columns:
        return text + " They hold no ids of users."
    ids = (
        "The ids of users are pseudonyms that were made for this push and cannot be turned back; records of one user have "
        "one id."
        if pseudonymised
        else "The ids of users are those of the source."
    )
    return f"{text} {ids} A history can tell who somebody is even so: keep the repository private unless all who are in it may be known."


def _records(splits: dict[str, int], report: dict | None) -> str:
    parts = [table(["column", ""], _COLUMNS)]
    if report is None:
        parts.append(table(["split", "records"], splits.items()))
    else:
        names = [name for name in _COUNTS if any(name in report.get(split, {}) for split in splits)]
        rows = [(split, *(report.get(split, {}).get(name, "") for name in names)) for split in splits]
        parts.append(table(["split", *(name.replace("_", " ") for name in names)], rows))
    return "\n\n".join(parts)


def _recipe(report: dict | None) -> str:
    if report is None:
        return "Not recorded: there was no `report.json`. `trl-sdpo prepare` writes one."
    rows = [(key, report[key]) for key in ("recipe", "split", "seed") if key in report]
    rows += [(f"`{name}`", f"`{value}`") for name, value in report["options"].items() if value is not None]
    return table(["", ""], rows)


def _leaks(report: dict | None) -> str:
    if report is None or not report.get("leak_probe"):
        return "Not probed. `trl_sdpo.recsys.leak_probe` looks whether the candidates give their target away."
    rows = [
        (name.replace("_", " "), "unknown" if value is None else value)
        for name, value in report.get("leaks", {}).items()
    ]
    parts = [table(["of the split", "count"], rows)] if rows else []
    return "\n\n".join([*parts, lists_tell_too_much(report["leak_probe"])])


def lists_tell_too_much(probe: dict) -> str:
    """What the leak probe of a report says, in a sentence or two."""
    low, high = probe["ci"]
    found = (
        f"Leak probe, a lookup that never sees the history: hr@1 {probe['hr_at_1']:.3f} (95% interval {low:.3f} to {high:.3f}, "
        f"n = {probe['n']:,}), where chance is {probe['chance']:.3f} and popularity {probe['popularity']:.3f}."
    )
    leaks = low > max(probe["popularity"], probe["chance"])
    return found + (
        " **The lists give their targets away: results on these records are not of the history.**"
        if leaks
        else " The lists tell no more of their targets than popularity does."
    )
