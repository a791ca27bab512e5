"""Whether records made of a publisher's data may be passed on, under which licence, and what to cite."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """
    The terms of a publisher.

    Args:
        name (`str`):
            What the licence is called, as `license_name` of a card.
        summary (`str`):
            What it allows, in a sentence.
        redistribution (`bool` or `None`):
            Whether data, and what is made of them, may be passed on; `None` if nothing is known of the source.
        license (`str`, *optional*, defaults to `"other"`):
            The Hub's identifier of the licence.
        link (`str`, *optional*):
            Where the publisher states it.
        citation (`str`, *optional*):
            BibTeX of what the publisher asks to cite.
    """

    name: str
    summary: str
    redistribution: bool | None
    license: str = "other"
    link: str | None = None
    citation: str | None = None


_HARPER = """\
@article{harper2015movielens,
    title   = {{The MovieLens Datasets: History and Context}},
    author  = {F. Maxwell Harper and Joseph A. Konstan},
    year    = 2015,
    journal = {ACM Transactions on Interactive Intelligent Systems},
    volume  = 5,
    number  = 4,
    pages   = {19:1--19:19},
    doi     = {10.1145/2827872},
}"""
_WAN = """\
@inproceedings{wan2018item,
    title     = {{Item Recommendation on Monotonic Behavior Chains}},
    author    = {Mengting Wan and Julian McAuley},
    year      = 2018,
    booktitle = {Proceedings of the 12th ACM Conference on Recommender Systems},
}

@inproceedings{wan2019fine,
    title     = {{Fine-Grained Spoiler Detection from Large-Scale Review Corpora}},
    author    = {Mengting Wan and Rishabh Misra and Ndapa Nakashole and Julian McAuley},
    year      = 2019,
    booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational Linguistics},
}"""
_CANTADOR = """\
@inproceedings{cantador2011hetrec,
    title     = {{2nd Workshop on Information Heterogeneity and Fusion in Recommender Systems (HetRec 2011)}},
    author    = {Iv{\\'a}n Cantador and Peter Brusilovsky and Tsvi Kuflik},
    year      = 2011,
    booktitle = {Proceedings of the 5th ACM Conference on Recommender Systems},
}"""
_CELMA = """\
@book{celma2010music,
    title     = {{Music Recommendation and Discovery in the Long Tail}},
    author    = {\\`{O}scar Celma},
    year      = 2010,
    publisher = {Springer},
}"""
_HOU = """\
@article{hou2024bridging,
    title   = {{Bridging Language and Items for Retrieval and Recommendation}},
    author  = {Yupeng Hou and Jiacheng Li and Zhankui He and An Yan and Xiusi Chen and Julian McAuley},
    year    = 2024,
    journal = {arXiv preprint arXiv:2403.03952},
}"""
_KANG = """\
@inproceedings{kang2018self,
    title     = {{Self-Attentive Sequential Recommendation}},
    author    = {Wang-Cheng Kang and Julian McAuley},
    year      = 2018,
    booktitle = {Proceedings of the IEEE International Conference on Data Mining},
}"""
_ZAJAC = """\
@misc{zajac2017goodbooks,
    title  = {{Goodbooks-10k: a new dataset for book recommendations}},
    author = {Zygmunt Zaj{\\k{a}}c},
    year   = 2017,
    url    = {https://github.com/zygmuntz/goodbooks-10k},
}"""

_MOVIELENS = "https://files.grouplens.org/datasets/movielens"
UNKNOWN = Licence("unknown", "Nothing is known of the licence of this source.", None)
_SAME_TERMS = Licence(
    "movielens",
    "For research; no commercial use without permission of GroupLens; redistribution under these same terms only.",
    redistribution=True,
    link=f"{_MOVIELENS}/ml-32m-README.html",
    citation=_HARPER,
)
# The first pattern that is found in the name of a source decides.
_LICENCES = [
    (r"(movielens|ml)-?(20m|25m|32m|latest)", _SAME_TERMS),
    (
        r"movielens|\bml-?(100k|1m|10m)",
        Licence(
            "movielens",
            "For research; no redistribution and no commercial use without permission of GroupLens.",
            redistribution=False,
            link=f"{_MOVIELENS}/ml-100k-README.txt",
            citation=_HARPER,
        ),
    ),
    (
        r"goodbooks",
        Licence(
            "cc-by-sa-4.0", "CC BY-SA 4.0.", True, "cc-by-sa-4.0", "https://github.com/zygmuntz/goodbooks-10k", _ZAJAC
        ),
    ),
    (
        r"goodreads",
        Licence(
            "ucsd-book-graph",
            "For academic use; no redistribution and no commercial use.",
            redistribution=False,
            link="https://mengtingwan.github.io/data/goodreads.html",
            citation=_WAN,
        ),
    ),
    (
        r"last-?\.?fm-(dataset-)?1k",
        Licence(
            "lastfm-1k",
            "For non-commercial use, with permission of Last.fm; no redistribution is granted.",
            redistribution=False,
            link="http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html",
            citation=_CELMA,
        ),
    ),
    (
        r"amazon",
        Licence(
            "amazon-reviews-2023",
            "The publisher names no licence.",
            redistribution=False,
            link="https://amazon-reviews-2023.github.io",
            citation=_HOU,
        ),
    ),
    (
        r"\bsteam\b",
        Licence(
            "steam",
            "The publisher names no licence.",
            redistribution=False,
            link="https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
            citation=_KANG,
        ),
    ),
    (
        r"last-?\.?fm|hetrec",
        Licence(
            "hetrec2011-lastfm-2k",
            "For non-commercial use; the publisher grants no redistribution.",
            redistribution=False,
            link="https://grouplens.org/datasets/hetrec-2011/",
            citation=_CANTADOR,
        ),
    ),
]


def find_licence(names: Iterable[str | None]) -> Licence:
    """
    The licence of a source.

    Args:
        names (`Iterable[str | None]`):
            What the source is called: as in [`load_source`], or as its folder is. `None` is passed over.

    Returns:
        [`Licence`]: The first that fits any of the names; one of which nothing is known if none does.

    Example:
        ```python
        >>> find_licence(["movielens", "ml-latest-small"]).redistribution
        True
        >>> find_licence(["movielens", "my_copy"]).redistribution
        False
        >>> find_licence(["table"]).redistribution is None
        True

        ```
    """
    known = [name.lower() for name in names if name]
    return next((one for pattern, one in _LICENCES for name in known if re.search(pattern, name)), UNKNOWN)


def why_not_public(licence: Licence, source: str, private: bool, redistribution_permitted: bool) -> str | None:
    """
    Why data of a source may not be pushed.

    Args:
        licence ([`Licence`]):
            Of the source.
        source (`str`):
            What messages call the source.
        private (`bool`):
            Whether nobody else can see the repository.
        redistribution_permitted (`bool`):
            Whether the user states that they may pass the data on.

    Returns:
        `str` or `None`: The reason; `None` if they may be pushed. Data of an unknown licence may be, to a private
        repository.
    """
    if redistribution_permitted or licence.redistribution or (licence.redistribution is None and private):
        return None
    link = f" ({licence.link})" if licence.link else ""
    return f"{source}: {licence.summary}{link}"
