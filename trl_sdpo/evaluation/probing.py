"""What records tell without their histories, and of time: the same for every system, so said once in a report."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ..recsys.interactions.registry import load_source
from ..recsys.metrics.facts import record_facts
from ..recsys.metrics.leaks import LeakProbe, leak_probe
from ..recsys.metrics.probes import leak_probes
from ..recsys.records.recommender_files import Catalogue
from ..scoring.memorisation import file_sequences, memorisation_probe
from .sections import users_of
from .systems import Task, load_model


_PROBED = 2000
# Training records that rules learn from, evenly spread.
_LEARNED_FROM = 50_000


def probe_all(
    splits: Mapping[str, Dataset],
    split: str,
    records: Dataset,
    catalogue: Catalogue | None,
    seed: int | None = None,
) -> dict:
    """
    All that a report says of the records themselves.

    Args:
        splits (`Mapping[str, Dataset]`), split (`str`):
            All records, and which of them are evaluated.
        records (`Dataset`):
            Those of the split that are.
        catalogue ([`Catalogue`], *optional*):
            With training counts, for popularity and what training has not seen.
        seed (`int`, *optional*):
            Deprecated, see [`leak_probe`].

    Returns:
        `dict`: `leak_probe`, `leak_probes` and `record_facts`, as [`collect_results`] takes them.
    """
    train = splits.get("train") if split != "train" else None
    counts = None
    if catalogue is not None and catalogue.train_counts is not None:
        counts = dict(zip(catalogue.item_ids, catalogue.train_counts, strict=True))
    others = [one for name, one in splits.items() if name != split and isinstance(one, Dataset)]
    return {
        "leak_probe": probe_records(records, train, seed),
        "leak_probes": probe_rules(records, train, counts),
        "record_facts": record_facts(records, others, counts),
    }


def probe_records(records: Dataset, train: Dataset | None, seed: int | None = None) -> dict | None:
    """
    The score of a lookup that never sees a history, see [`leak_probe`], or `None` for records without texts.

    Args:
        records (`Dataset`):
            The records that are evaluated.
        train (`Dataset`, *optional*):
            Training records to look up in. If `None`, the records before each one.
        seed (`int`, *optional*):
            Deprecated, see [`leak_probe`].

    Returns:
        `dict`: The fields of [`LeakProbe`].
    """
    if not {"chosen", "rejected"} <= set(records.column_names):
        return None
    parts = [records] if train is None else [records, _some(train)]

    def probe_columns(*names: str) -> LeakProbe:
        read = [part.select_columns([name for name in names if name in part.column_names]) for part in parts]
        return leak_probe(*read, max_records=_PROBED, seed=seed)

    try:
        probe = probe_columns("chosen", "rejected", "user_id", "candidates")
    except ValueError:  # titles of the list are not the texts of the completions
        probe = probe_columns("chosen", "rejected", "user_id")
    return probe._asdict() | {"ci": list(probe.ci)}


def probe_rules(records: Dataset, train: Dataset | None, counts: Mapping[Any, int] | None = None) -> list[dict]:
    """
    How often rules that know nothing of tastes find the target, see [`leak_probes`]; none for records without texts.

    Args:
        records (`Dataset`):
            The records that are evaluated.
        train (`Dataset`, *optional*):
            The training records.
        counts (`Mapping`, *optional*):
            Training events by item id.

    Returns:
        `list[dict]`: The fields of every [`Probe`], with its verdict.
    """
    if not {"chosen", "rejected"} <= set(records.column_names):
        return []
    if users_of(records) is None and "user_id" in records.column_names:
        records = records.remove_columns("user_id")
    options: dict[str, Any] = {"counts": counts, "max_records": _PROBED, "max_reference": _LEARNED_FROM}
    try:
        probes = leak_probes(records, train, **options)
    except ValueError:  # titles of the list are not the texts of the completions
        if "candidates" not in records.column_names:
            raise
        probes = leak_probes(records.remove_columns("candidates"), train, **options)
    return [probe.as_dict() for probe in probes]


def probe_memorisation(task: Task, models: Mapping[str, str], path: str) -> dict[str, dict]:
    """
    Whether models know the file of the data by heart, see [`memorisation_probe`]: asked of models from before any training.

    Args:
        task ([`Task`]):
            The task, whose `recommender.json` names the source.
        models (`Mapping[str, str]`):
            Directories or Hub ids by name.
        path (`str`):
            The files of the source, as [`load_source`] takes them.

    Returns:
        `dict[str, dict]`: For each model the fields of [`MemorisationProbe`], with its verdict.

    Raises:
        ValueError: the source is not known, or is no publisher's.
    """
    if task.config is None or task.config.source is None:
        raise ValueError(
            f"{task.dataset}: nothing says of which source it is. Make the records with `trl-sdpo prepare`."
        )
    if task.config.source == "table":
        raise ValueError(
            f"{task.dataset}: is of a table of one's own, of which no pretraining can know the rows. The probe is for the files "
            "of a publisher."
        )
    sequences = file_sequences(load_source(task.config.source, path))
    found = {}
    for name, model in models.items():
        recommender = load_model(task, model)
        given = (recommender.model, recommender.processing_class, sequences)
        probe = memorisation_probe(*given, seed=task.seed, batch_size=task.batch_size)
        found[name] = probe._asdict() | {"ci": list(probe.ci), "verdict": probe.verdict}
    return found


def _some(train: Dataset) -> Dataset:
    size = len(train)
    return (
        train if size <= _LEARNED_FROM else train.select([row * size // _LEARNED_FROM for row in range(_LEARNED_FROM)])
    )
