"""Named sets of options: the honest one, and the one that made the published records."""

from ..prompts.templates import DOMAINS


DEFAULT, S_DPO = RECIPES = ("default", "s-dpo")

# The words of prompts by the first part of a source's name.
SOURCE_DOMAINS = {"movielens": "movies", "goodreads": "books", "goodbooks": "books", "lastfm": "music"}

# What the published records of the S-DPO paper (https://huggingface.co/papers/2406.09215) were made with, read off the
# files: docs/recipes.md says what differs from the default, and what that does to results.
_S_DPO = {
    "lastfm": {
        "min_interactions": 4,
        "k_core": "once",
        "order": "file-unchecked",
        "split": "user-by-time",
        "candidate_seed": "target",
        "prompt_style": "candidates",
    },
    "movielens": {
        "min_rating": 3.0,
        "order": "time-then-item",
        "split": "user-by-time",
        "eval_windows": "last",
        "candidate_seed": "target",
        "prompt_style": "candidates",
    },
}


def recipe_options(recipe: str, source: str) -> dict:
    """
    The options of a recipe for a source, as fields of [`RecordConfig`].

    Args:
        recipe (`str`):
            `"default"`: order by time, split by time, candidates by (seed, user, position). `"s-dpo"`: what the
            published S-DPO records did, leaks included, for `lastfm` and `movielens`.
        source (`str`):
            The name of a source, as [`load_source`] takes it.

    Returns:
        `dict`: The options that differ from the defaults of [`RecordConfig`].

    Raises:
        ValueError: there is no such recipe, or not for this source.

    Example:
        ```python
        >>> recipe_options("default", "lastfm")
        {'domain': 'music'}
        >>> recipe_options("s-dpo", "movielens-100k")["min_rating"]
        3.0

        ```
    """
    family = source.partition("-")[0]
    domain = {"domain": SOURCE_DOMAINS.get(family, DOMAINS[-1])}
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is none of {RECIPES}. Pass one of them.")
    if recipe == DEFAULT:
        return domain
    if family not in _S_DPO:
        raise ValueError(f"recipe 's-dpo' is known for {sorted(_S_DPO)}, not for {source!r}. Pass recipe='default'.")
    return domain | _S_DPO[family]


def recipe_loader_options(recipe: str, source: str) -> dict:
    """What the loader of the source needs to know of the recipe: published MovieLens ids with one title stay apart."""
    return {"merge_titles": False} if recipe == S_DPO and source.startswith("movielens") else {}
