"""
MovieLens-100k from end to end: supervised fine-tuning, Softmax-DPO, and a ranking of 20 candidates before and after.

    python examples/movielens.py                                                 # minutes on a laptop
    python examples/movielens.py --model HuggingFaceTB/SmolLM2-135M-Instruct     # any causal language model
    python examples/movielens.py --help

The steps are those of recommendation.py, which all examples share.
"""

from dataclasses import dataclass, field

from recommendation import RecommendationArguments, Source, main, parse

from trl_sdpo.recsys.interactions.sources.movielens_100k import load_movielens_100k


MOVIELENS = Source("movielens-100k", "MovieLens-100k", load_movielens_100k, domain="movies")


@dataclass
class MovieLensArguments(RecommendationArguments):
    """Flags of the example, see [`RecommendationArguments`]."""

    data: str | None = field(
        default=None, metadata={"help": "Directory or zip of MovieLens-100k. Default: downloaded once and cached."}
    )
    output_dir: str = field(default="outputs/movielens", metadata={"help": "Where results and models go."})


if __name__ == "__main__":
    main(parse(MovieLensArguments), MOVIELENS)
