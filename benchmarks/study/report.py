"""What the study says of the scores on disk: metrics over seeds, paired differences, fusions, and the files of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trl_sdpo.evaluation.breakdowns import breakdowns
from trl_sdpo.evaluation.fusion import cold_features
from trl_sdpo.pipeline.training import TrainedStage
from trl_sdpo.recsys import (
    difference_interval,
    fit_fusion,
    holm_correction,
    mean_reciprocal_rank,
    ndcg,
    ranks,
    recommendation_ranks,
    sign_flip_test,
    wilson_interval,
)

from .data import Setting
from .plan import MORE_SFT, SEED
from .scores import (
    ATTRIBUTES_OF,
    BASELINES,
    COLD,
    COLD_VALIDATION,
    LISTS,
    SASREC_TEXT,
    TEXT,
    read,
    read_catalogue_lists,
    read_prior,
)


SFT, SFT_TITLES = "SFT", "SFT, titles alone"
IDS, CONTENT = "ids", "content"
IDS_AND_CONTENT = f"{IDS} + {CONTENT}"
PMI, FITTED = " (mutual information)", " (parts, fitted)"
_NAMES = (*BASELINES, TEXT, SASREC_TEXT)
_TRAINING_EVENTS = "training events of the target"


@dataclass
class Model:
    """
    A language model of the study.

    Args:
        setting ([`Setting`]):
            The records that it has scored.
        places (`list[Path]`):
            The directories of its seeds.
        stage ([`~trl_sdpo.pipeline.TrainedStage`], *optional*):
            Of the first seed, for its log.
        learning_rate (`float`, *optional*):
            Of the second stage.
    """

    setting: Setting
    places: list[Path]
    stage: TrainedStage | None = None
    learning_rate: float | None = None


def summary(placed: Sequence[np.ndarray], users: Sequence, k: int = 1) -> dict:
    """
    Metrics of a system over its seeds.

    Args:
        placed (`Sequence[np.ndarray]`):
            For each seed the ranks of the targets, shape `(n,)`.
        users (`Sequence`):
            The user of each record.
        k (`int`, *optional*, defaults to `1`):
            The cut-off of the hit rate.

    Returns:
        `dict`: `hr@k` (the mean over seeds), `seeds` (of each), `ci` (95%, over users, of the mean over seeds), `ndcg@10`,
        `mrr` and `n`.
    """
    hits = hits_of(placed, k)
    return {
        f"hr@{k}": float(hits.mean()),
        "seeds": [float((one <= k).mean()) for one in placed],
        "ci": list(wilson_interval(hits, users)),
        "ndcg@10": float(np.mean([ndcg(one) for one in placed])),
        "mrr": float(np.mean([mean_reciprocal_rank(one) for one in placed])),
        "n": len(hits),
    }


def hits_of(placed: Sequence[np.ndarray], k: int = 1) -> np.ndarray:
    """Of each record the share of seeds that put its target among the first k."""
    return np.mean([one <= k for one in placed], axis=0)


def paired_difference(first: np.ndarray, second: np.ndarray, users: Sequence) -> dict:
    """
    How much higher one system is than another on the same records.

    Args:
        first (`np.ndarray`), second (`np.ndarray`):
            A value per record from 0 to 1, shape `(n,)`, such as the share of seeds that put the target first.
        users (`Sequence`):
            The user of each record.

    Returns:
        `dict`: `mean`; `ci`, its 95% interval over users; and `p`, two-sided, of a permutation test that swaps the systems
        of a user.
    """
    difference = np.asarray(first, float) - second
    p = sign_flip_test(first, second, users, seed=SEED)
    return {"mean": float(difference.mean()), "ci": list(difference_interval(difference, users)), "p": p}


def differences(placed: Mapping[str, list[np.ndarray]], pairs: Sequence[tuple[str, str]], users: Sequence) -> list:
    """[`paired_difference`] of hr@1 of pairs of systems, with `p_holm`, corrected over all of them."""
    pairs = [pair for pair in pairs if pair[0] != pair[1] and set(pair) <= set(placed)]
    found = [paired_difference(hits_of(placed[one]), hits_of(placed[other]), users) for one, other in pairs]
    corrected = holm_correction([one["p"] for one in found])
    rows = zip(pairs, found, corrected, strict=True)
    return [{"system": one, "minus": other, **row, "p_holm": p} for (one, other), row, p in rows]


def baseline_scores(setting: Setting, split: str) -> dict[str, list[np.ndarray]]:
    """Scores of the systems without a language model, by name."""
    found = {name: read(setting, setting.directory / "baselines" / name, split) for name in _NAMES}
    return {name: one for name, one in found.items() if one is not None}


def model_scores(model: Model, split: str) -> list[list[np.ndarray]]:
    """For each seed that has been scored the scores of a split."""
    found = [read(model.setting, place, split) for place in model.places]
    return [one for one in found if one is not None]


def minus(scores: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Mutual information, or the implicit reward over β: log-probabilities minus others."""
    return [one - other for one, other in zip(scores, others, strict=True)]


def fused(setting: Setting, models: Mapping[str, Model]) -> tuple[dict[str, list[np.ndarray]], dict]:
    """
    Ranks of the test records by fits on validation records: of what models of ids, counts and content say, and with the
    log-probabilities of each language model, with and without the history, besides.

    Returns:
        `tuple[dict, dict]`: For each fit the ranks of its seeds; and of the first seed of each the weights, their standard
        errors and what the fit loses without a feature, in nats a record.
    """
    known = {
        split: baseline_scores(setting, split) | cold_features(setting.held_out(split), setting.catalogue)
        for split in ("validation", "test")
    }
    users = setting.held_out("validation")["user_id"]
    ids = {"item-knn", "sasrec", *cold_features(setting.held_out("test").select(range(1)), setting.catalogue)}

    def fit(names, more):
        features = {split: {name: known[split][name] for name in names} | more[split] for split in known}
        fusion = fit_fusion(features["validation"], groups=users)
        return ranks(fusion.scores(features["test"])), fusion

    without = {"validation": {}, "test": {}}
    fits = {IDS: [fit(sorted(ids), without)]}
    fits[IDS_AND_CONTENT] = [fit(sorted({*ids, CONTENT, TEXT}), without)]
    for name, model in models.items():
        for place in model.places:
            more = {split: _language_features(model, place, split) for split in known}
            if all(more.values()):
                fits.setdefault(f"{IDS} + {name}", []).append(fit(sorted(ids), more))
                fits.setdefault(f"{IDS_AND_CONTENT} + {name}", []).append(fit(sorted({*ids, CONTENT, TEXT}), more))
    weights = {name: vars(seeds[0][1]) for name, seeds in fits.items()}
    return {name: [placed for placed, _ in seeds] for name, seeds in fits.items()}, weights


def _language_features(model: Model, place: Path, split: str) -> dict[str, list[np.ndarray]]:
    scores, prior = (find(model.setting, place, split) for find in (read, read_prior))
    return {} if scores is None or prior is None else {"likelihood": scores, "without history": prior}


def cold_ranks(setting: Setting, models: Mapping[str, Model]) -> dict[str, list[np.ndarray]]:
    """
    Ranks among candidates that are all cold: by likelihood; by it less that without the history; and by
    fits on validation records of these and of the attributes before the titles, without and with the content baseline.
    """
    content = {split: baseline_scores(setting, split) for split in (COLD_VALIDATION, COLD)}
    placed = {name: [ranks(one)] for name, one in content[COLD].items()}
    users = setting.held_out(COLD_VALIDATION)["user_id"]
    for name, model in models.items():
        for place in model.places:
            parts = {split: _language_features(model, place, split) for split in content}
            if not all(parts.values()):
                continue
            found = {name: parts[COLD]["likelihood"], name + PMI: minus(*parts[COLD].values())}
            for split, features in parts.items():
                if (scores := read(model.setting, place, ATTRIBUTES_OF + split)) is not None:
                    features["attributes"] = scores
            if "attributes" in parts[COLD]:
                both = {split: {CONTENT: content[split][CONTENT], **parts[split]} for split in parts}
                for kind, features in ((name + FITTED, parts), (f"{CONTENT} + {name}", both)):
                    found[kind] = fit_fusion(features[COLD_VALIDATION], groups=users).scores(features[COLD])
            for kind, scores in found.items():
                placed.setdefault(kind, []).append(ranks(scores))
    return placed


def catalogue_rows(setting: Setting, models: Mapping[str, Model]) -> dict[str, dict]:
    """hr@10 of lists from the whole catalogue, of one seed."""
    records = setting.held_out(LISTS)
    targets = list(map(str, records["item_id"]))
    places = {name: (setting, setting.directory / "baselines" / name) for name in _NAMES}
    places |= {name: (model.setting, model.places[0]) for name, model in models.items() if model.places}
    lists = {name: read_catalogue_lists(*place) for name, place in places.items()}
    return {
        name: summary([recommendation_ranks(one, targets)], records["user_id"], k=10)
        for name, one in lists.items()
        if one is not None
    }


def by_training_events(setting: Setting, placed: Mapping[str, list[np.ndarray]]) -> dict:
    """hr@1 by the training events of the target."""
    hits = {name: hits_of(one) for name, one in placed.items()}
    found = breakdowns(hits, setting.held_out("test"), setting.catalogue)
    return next(one for one in found if one["name"] == _TRAINING_EVENTS)


def collect(setting: Setting, models: Mapping[str, Model], search: list[dict], curves: dict[str, list]) -> dict:
    """
    All that the report says of a data set, as in results.json.

    Args:
        setting ([`Setting`]):
            The records with attributes.
        models (`Mapping[str, Model]`):
            The language models by name, SFT first.
        search (`list[dict]`), curves (`dict[str, list]`):
            What the search and SFT saw on validation records.

    Returns:
        `dict`: Plain values.
    """
    test = setting.held_out("test")
    users, aligned = test["user_id"], [name for name in models if name not in (SFT, SFT_TITLES)]
    placed = {name: [ranks(one)] for name, one in baseline_scores(setting, "test").items()}
    placed |= {name: [*map(ranks, found)] for name, one in models.items() if (found := model_scores(one, "test"))}
    fits, weights = fused(setting, models)
    pairs = [
        (SASREC_TEXT, "sasrec"),
        (SFT, SFT_TITLES),
        *((name, SFT) for name in aligned),
        *((name, MORE_SFT) for name in aligned),
    ]
    pairs += [(name, "DPO, 1 negative") for name in aligned if name.startswith("S-DPO")]
    fusion_pairs = [(name, IDS) for name in fits if not name.startswith(f"{IDS_AND_CONTENT} +")]
    fusion_pairs += [(name, IDS_AND_CONTENT) for name in fits if name != IDS]
    fusion_pairs += [(f"{IDS} + {name}", f"{IDS} + {SFT}") for name in aligned]
    content = {"facts": facts(setting), "search": search, "curves": curves}
    content["systems"] = {name: summary(one, users) | _more(models.get(name)) for name, one in placed.items()}
    content["reward"] = reward_rows(models, aligned, users)
    content["differences"] = differences(placed, pairs, users)
    content["by training events"] = by_training_events(setting, placed | fits)
    content["fusion"] = {name: summary(one, users) for name, one in fits.items()}
    content["fusion differences"] = differences(fits, fusion_pairs, users)
    content["weights"] = weights
    among, cold_users = cold_ranks(setting, models), setting.held_out(COLD)["user_id"]
    content["cold"] = {name: summary(one, cold_users) for name, one in among.items()}
    cold_pairs = [(name + PMI, SFT + PMI) for name in models]
    cold_pairs += [(kind, CONTENT) for name in models for kind in (name + PMI, name + FITTED, f"{CONTENT} + {name}")]
    content["cold differences"] = differences(among, cold_pairs, cold_users)
    content["catalogue"] = catalogue_rows(setting, models)
    content["negatives"] = {name: _negatives(model.stage) for name, model in models.items() if model.stage}
    return content


def facts(setting: Setting) -> dict:
    """What the records are."""
    found = {}
    for split in ("train", "validation", "test", COLD):
        records = setting.records["train"] if split == "train" else setting.held_out(split)
        found[split] = {"records": len(records), "users": len(set(records["user_id"][:]))}
    counts = np.array(setting.catalogue.train_counts)
    return found | {"items": len(counts), "items without training event": int((counts == 0).sum())}


def reward_rows(models: Mapping[str, Model], names: Sequence[str], users: Sequence) -> dict[str, dict]:
    """hr@1 by the implicit reward, the SFT checkpoint being the reference."""
    reference = model_scores(models[SFT], "test") if SFT in models else []
    found = {name: model_scores(models[name], "test") for name in names} if reference else {}
    return {
        name: summary([ranks(minus(one, reference[0])) for one in seeds], users)
        for name, seeds in found.items()
        if seeds
    }


def _more(model: Model | None) -> dict:
    return {} if model is None or model.learning_rate is None else {"learning_rate": model.learning_rate}


def _negatives(stage: TrainedStage) -> list[dict]:
    """How many negatives counted in a step, by what the trainer logs."""
    names = ("negatives/effective_number", "negatives/hardest_weight")
    return [
        {"step": entry["step"], **{name.partition("/")[2]: entry[name] for name in names}}
        for entry in stage.log
        if names[0] in entry
    ]


def read_results(directory: Path) -> dict[str, dict]:
    """What is there of each data set."""
    paths = sorted(directory.glob("*/results.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}
