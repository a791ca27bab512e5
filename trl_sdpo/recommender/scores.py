"""What a recommender ranks by: likelihood, likelihood less what says nothing of the user, or a fit with other scores."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import write_text
from ..recsys.baselines.saved import load_scorer, save_scorer
from ..recsys.baselines.scores import Scorer
from ..recsys.metrics.fusion import COLD, EVENTS, Fusion
from ..recsys.records.recommender_files import Catalogue, find_file
from ..scoring.catalogue_ranking import CatalogueScorer
from ..scoring.title_trie import TitleTrie


LIKELIHOOD, PMI, REWARD, FUSION = SCORES = ("likelihood", "pmi", "reward", "fusion")
# The likelihood in two, as features by these names: of what stands before a title, and of the title.
PARTS = ("attributes", "title")
FUSION_FILE, SCORERS_FILE = "fusion.json", "fusion_scorers.json"


def check_score(
    score: str, model: PreTrainedModel, ref_model: PreTrainedModel | None = None, has_fusion: bool = False
) -> None:
    """
    Raise if there is no such score, or nothing to compute it from.

    Args:
        score (`str`):
            - `"likelihood"`: log p(item | prompt), in nats;
            - `"pmi"`: pointwise mutual information, log p(item | prompt) - log p(item | prompt without history), which
              takes out how long or how frequent a title is;
            - `"reward"`: log p(item | prompt) - log p_ref(item | prompt), the implicit reward of DPO over beta (Eq. 5 of
              https://huggingface.co/papers/2305.18290): what training has changed;
            - `"fusion"`: the weighted sum of a recommender with a `fusion`, see [`FusedScores`].
        model ([`~transformers.PreTrainedModel`]), ref_model ([`~transformers.PreTrainedModel`], *optional*), has_fusion
            (`bool`, *optional*, defaults to `False`):
            What there is.
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r} is none of {', '.join(SCORES)}. Pass one of them.")
    if score == FUSION and not has_fusion:
        raise ValueError(
            "score='fusion': this recommender has no fusion. Fit one (`fit_fusion`) and pass it, or save it beside the model "
            "with `save_fusion`."
        )
    if score == REWARD and ref_model is None and not isinstance(model, PeftModel):
        raise ValueError("score='reward' needs the model before the training. Pass it as `ref_model`.")


@contextmanager
def reference_model(model: PreTrainedModel, ref_model: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """
    The reference of implicit rewards, for a while.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The trained model.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The model before the training. By default the base under an adapter, which is the reference where the adapter
            was new when S-DPO began.

    Raises:
        ValueError: there is no reference.
    """
    if ref_model is not None:
        yield ref_model
    elif isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        raise ValueError("score='reward' needs the model before the training. Pass it as `ref_model`.")


def reference_scores(
    model: PreTrainedModel, ref_model: PreTrainedModel | None, trie: TitleTrie, pad_token_id: int, batch_size: int
) -> Callable[[list[list[int]]], np.ndarray]:
    """Log-probabilities of all titles by the reference, see [`reference_model`] and [`CatalogueScorer`]."""
    with reference_model(model, ref_model) as reference:
        scorer = CatalogueScorer(reference, trie, pad_token_id, batch_size)

    def score(prompt_ids: list[list[int]]) -> np.ndarray:
        with reference_model(model, ref_model):
            return scorer.score(prompt_ids)

    return score


def beginnings(
    records: Sequence[dict[str, Any]], begun: Sequence[Sequence[str]], processing_class: PreTrainedTokenizerBase
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """
    Tokenized records whose completions end before the title.

    Args:
        records (`Sequence[dict]`):
            Of [`tokenize_multi_preference`].
        begun (`Sequence[Sequence[str]]`):
            For each completion what stands before the title.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.

    Returns:
        `tuple[list[dict], list[np.ndarray]]`: The records, and for each completion whether anything stands there. Where
        nothing does, one token stays, since no completion is empty.
    """
    cut, flags = [], []
    for record, texts in zip(records, begun, strict=True):
        completions = [record["chosen_ids"], *record["rejected_ids"]]
        texts = [*texts, *texts][: len(completions)]  # a single candidate is there twice
        counts = [_tokens_within(ids, text, processing_class) for ids, text in zip(completions, texts, strict=True)]
        some = [ids[: max(1, count)] for ids, count in zip(completions, counts, strict=True)]
        length = len(record["prompt_ids"]) + sum(map(len, some)) + len(some) - 1
        cut.append({**record, "chosen_ids": some[0], "rejected_ids": some[1:], "length": length})
        flags.append(np.array(counts[: len(texts)]) > 0)
    return cut, flags


def _tokens_within(ids: Sequence[int], text: str, processing_class: PreTrainedTokenizerBase) -> int:
    """How many of the first tokens of a completion are within a text that it begins with, white space aside."""
    text, count = text.strip(), 0
    if not text:
        return 0
    for end in range(1, len(ids)):
        begun = processing_class.decode(ids[:end], skip_special_tokens=True).strip()
        if begun.endswith("\ufffd"):  # a character of several tokens is not whole yet
            continue
        if not text.startswith(begun):
            break
        count = end
    return count


class FusedScores:
    """
    Scores of a language model, fused with what else is known of the candidates.

    Args:
        fusion ([`Fusion`]):
            The fit. Its features are those of `scorers` by name, `"log(1 + training events)"` and `"no training event"`, and
            one more, whatever its name: the log-likelihood of the language model. In its place `"attributes"` and `"title"`
            are the two parts of it that [`Recommender.score_parts`] gives.
        scorers (`Mapping[str, Callable]`):
            Models of ids by name, see [`score_records`].
        catalogue ([`Catalogue`], *optional*):
            With training counts.

    Raises:
        ValueError: there is no such feature or more than one, or training counts are missing.
    """

    def __init__(self, fusion: Fusion, scorers: Mapping[str, Scorer], catalogue: Catalogue | None) -> None:
        own = [name for name in fusion.features if name not in scorers and name not in (EVENTS, COLD)]
        self.by_parts = set(own) == set(PARTS)
        if len(own) != 1 and not self.by_parts:
            raise ValueError(
                f"fusion: {own} of its features {list(fusion.features)} are neither training counts nor among the scorers "
                f"{sorted(scorers)}; one has to be, the likelihood of the model. Pass a scorer for each of the others."
            )
        if catalogue is None or (catalogue.train_counts is None and {EVENTS, COLD} & set(fusion.features)):
            raise ValueError(
                "fusion: it needs a catalogue with train_counts. Pass that of the prepared data set, which has them."
            )
        self.fusion, self.own = fusion, own[0]
        self.scorers = {name: scorers[name] for name in fusion.features if name in scorers}
        self.counts = dict(zip(catalogue.item_ids, catalogue.train_counts or [0] * len(catalogue), strict=True))

    def __call__(
        self, log_probs: Sequence[np.ndarray], histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """
        The fused scores.

        Args:
            log_probs (`Sequence[numpy.ndarray]`):
                Of the candidates of each history by the language model; where it is fused `by_parts`, of shape
                `(candidates, 2)`.
            histories (`Sequence[Sequence[str]]`), candidates (`Sequence[Sequence[str]]`):
                Item ids.

        Returns:
            `list[numpy.ndarray]`: As [`Fusion.scores`] gives them.
        """
        counts = [np.array([self.counts[item] for item in row], dtype=np.float64) for row in candidates]
        parts: dict[str, Sequence[Any]] = {self.own: log_probs, EVENTS: [np.log1p(row) for row in counts]}
        if self.by_parts:
            parts |= {name: [row[:, place] for row in log_probs] for place, name in enumerate(PARTS)}
        parts[COLD] = [(row == 0).astype(float) for row in counts]
        asked = [list(row) for row in histories], [list(row) for row in candidates]
        parts |= {name: scorer(*asked) for name, scorer in self.scorers.items()}
        return self.fusion.scores(parts)


def save_fusion(directory: str | Path, fusion: Fusion, scorers: Mapping[str, Scorer] | None = None) -> None:
    """
    Write a fit and its models of ids beside a language model, where [`Recommender.from_pretrained`] finds them.

    Args:
        directory (`str` or `Path`):
            Of the model.
        fusion ([`Fusion`]):
            The fit, for `fusion.json`.
        scorers (`Mapping[str, Callable]`, *optional*):
            SASRec, GRU4Rec or content baselines by the names of the fit's features, for `fusion-NAME.safetensors`.

    Raises:
        ValueError: a scorer is of another kind.
    """
    directory, scorers = Path(directory), dict(scorers or {})
    files = {name: f"fusion-{number}.safetensors" for number, name in enumerate(sorted(scorers))}
    for name, scorer in scorers.items():
        save_scorer(scorer, directory / files[name])
    fusion.save(directory / FUSION_FILE)
    write_text(directory / SCORERS_FILE, json.dumps(files, indent=2) + "\n")


def load_fusion(model: str | Path, **hub_kwargs) -> tuple[Fusion, dict[str, Scorer]] | None:
    """
    What [`save_fusion`] wrote beside a model, `None` where there is nothing.

    Args:
        model (`str` or `Path`):
            Directory or Hub id.
        **hub_kwargs:
            `revision`, `token` and `cache_dir`.

    Raises:
        ValueError: a file is damaged or missing.
    """
    path, names = (find_file(model, name, **hub_kwargs) for name in (FUSION_FILE, SCORERS_FILE))
    if path is None or names is None:
        return None
    scorers = {}
    for name, file in json.loads(names.read_text(encoding="utf-8")).items():
        found = find_file(model, file, **hub_kwargs)
        if found is None:
            raise ValueError(f"{model}: {file}, which its {SCORERS_FILE} names, is missing. Save the fusion again.")
        scorers[name] = load_scorer(found)
    return Fusion.load(path), scorers
