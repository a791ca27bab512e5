"""The data sets that have a name: who publishes them, under which terms, and how they are fetched."""

import difflib
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from .archives import unpack_zip
from .download import ANSWER_SECONDS, NETWORK_ERRORS, cache_dir, fetch_url, open_url
from .interactions import Interactions
from .sources.amazon import load_amazon
from .sources.goodbooks import load_goodbooks
from .sources.goodreads import load_goodreads
from .sources.lastfm import load_lastfm
from .sources.lastfm_1k import load_lastfm_1k
from .sources.movielens import load_movielens
from .sources.recbole import load_recbole
from .sources.steam import load_steam
from .sources.table import load_table


logger = logging.getLogger(__name__)

_HARPER = (
    "publications acknowledge them by citing F. M. Harper and J. A. Konstan (2015), The MovieLens Datasets: History "
    "and Context, ACM TiiS 5(4), 19, https://doi.org/10.1145/2827872"
)
MOVIELENS_TERMS = (
    "MovieLens data are GroupLens's (University of Minnesota): for research; no redistribution and no commercial use "
    f"without their permission; {_HARPER}"
)
MOVIELENS_CSV_TERMS = (
    "MovieLens data are GroupLens's (University of Minnesota): for research; no commercial use without their "
    f"permission; redistribution under these same terms only; {_HARPER}"
)
GOODREADS_TERMS = (
    "The UCSD Book Graph is for academic use; no redistribution and no commercial use; publications cite M. Wan and "
    "J. McAuley (2018), Item Recommendation on Monotonic Behavior Chains, RecSys, and M. Wan, R. Misra, N. Nakashole "
    "and J. McAuley (2019), Fine-Grained Spoiler Detection from Large-Scale Review Corpora, ACL"
)
GOODBOOKS_TERMS = "goodbooks-10k (Z. Zajac, 2017) is under CC BY-SA 4.0: https://github.com/zygmuntz/goodbooks-10k"
LASTFM_TERMS = (
    "The Last.fm data of HetRec 2011 are for non-commercial use; publications cite Last.fm, https://www.last.fm, and "
    "may cite I. Cantador, P. Brusilovsky and T. Kuflik (2011), 2nd Workshop on Information Heterogeneity and Fusion "
    "in Recommender Systems (HetRec 2011), RecSys"
)
LASTFM_1K_TERMS = (
    "The Last.fm data of a thousand users are for non-commercial use, with permission of Last.fm; publications cite "
    "Last.fm, https://www.last.fm, and O. Celma (2010), Music Recommendation and Discovery in the Long Tail, Springer"
)
AMAZON_TERMS = (
    "Amazon Reviews 2023 come without a licence; publications cite Y. Hou, J. Li, Z. He, A. Yan, X. Chen and J. McAuley "
    "(2024), Bridging Language and Items for Retrieval and Recommendation, arXiv:2403.03952"
)
STEAM_TERMS = (
    "The Steam data come without a licence; publications cite W.-C. Kang and J. McAuley (2018), Self-Attentive "
    "Sequential Recommendation, ICDM"
)

_GROUPLENS = "https://files.grouplens.org/datasets"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/goodreads"
_AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
_STEAM = "https://cseweb.ucsd.edu/~wckang"
# fmt: off
AMAZON_CATEGORIES = (
    "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products",
    "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry",
    "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products",
    "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store",
    "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden",
    "Pet_Supplies", "Software", "Sports_and_Outdoors", "Subscription_Boxes", "Tools_and_Home_Improvement",
    "Toys_and_Games", "Unknown", "Video_Games",
)
# fmt: on
GOODREADS_GENRES = (
    *("children", "comics_graphic", "fantasy_paranormal", "history_biography"),
    *("mystery_thriller_crime", "poetry", "romance", "young_adult"),
)
PUBLISHED_MD5 = "md5 of the publisher"


@dataclass(frozen=True)
class Source:
    """
    A data set as it is published.

    Args:
        load (`Callable`):
            The loader.
        terms (`str`, *optional*):
            What the publisher asks of those who use it.
        files (`dict[str, str | None]`, *optional*):
            What to download: URLs with their checksums, as [`download.fetch_url`] takes them, or `PUBLISHED_MD5`
            where the publisher puts `URL.md5` beside a file that changes. One zip archive, or other files.
        main (`str`, *optional*):
            The file in the archive by which it is seen that the unpacked folder is whole.
    """

    load: Callable[..., Interactions]
    terms: str | None = None
    files: dict[str, str | None] = field(default_factory=dict)
    main: str | None = None


def _movielens(name: str, checksum: str, terms: str, main: str) -> Source:
    return Source(load_movielens, terms, {f"{_GROUPLENS}/movielens/{name}.zip": checksum}, main)


def _goodreads(*names: str) -> Source:
    return Source(load_goodreads, GOODREADS_TERMS, {f"{_UCSD}/{name}": None for name in names})


_ML_100K = "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
_ML_1M = "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
_LASTFM = Source(
    load_lastfm,
    LASTFM_TERMS,
    {
        f"{_GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip": (
            "sha256:6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c"
        )
    },
    "user_taggedartists.dat",
)
SOURCES = {
    "movielens": Source(load_movielens),
    "movielens-100k": _movielens("ml-100k", _ML_100K, MOVIELENS_TERMS, "u.data"),
    "movielens-1m": _movielens("ml-1m", _ML_1M, MOVIELENS_TERMS, "ratings.dat"),
    "movielens-10m": _movielens("ml-10m", "md5:ce571fd55effeba0271552578f2648bd", MOVIELENS_TERMS, "ratings.dat"),
    "movielens-20m": _movielens("ml-20m", "md5:cd245b17a1ae2cc31bb14903e1204af3", MOVIELENS_CSV_TERMS, "ratings.csv"),
    "movielens-25m": _movielens("ml-25m", "md5:6b51fb2759a8657d3bfcbfc42b592ada", MOVIELENS_CSV_TERMS, "ratings.csv"),
    "movielens-32m": _movielens("ml-32m", "md5:d472be332d4daa821edc399621853b57", MOVIELENS_CSV_TERMS, "ratings.csv"),
    "movielens-latest": _movielens("ml-latest", PUBLISHED_MD5, MOVIELENS_CSV_TERMS, "ratings.csv"),
    "movielens-latest-small": _movielens("ml-latest-small", PUBLISHED_MD5, MOVIELENS_CSV_TERMS, "ratings.csv"),
    "lastfm": _LASTFM,
    "lastfm-hetrec2011": _LASTFM,
    "goodreads": _goodreads("goodreads_interactions_dedup.json.gz", "goodreads_books.json.gz"),
    "goodreads-csv": _goodreads("goodreads_interactions.csv", "book_id_map.csv", "goodreads_books.json.gz"),
    **{
        f"goodreads-{genre}": _goodreads(
            *(f"byGenre/goodreads_{kind}_{genre}.json.gz" for kind in ("interactions", "books"))
        )
        for genre in GOODREADS_GENRES
    },
    "goodbooks-10k": Source(
        load_goodbooks,
        GOODBOOKS_TERMS,
        {"https://github.com/zygmuntz/goodbooks-10k/releases/download/v1.0/goodbooks-10k.zip": None},
        "ratings.csv",
    ),
    "lastfm-1k": Source(load_lastfm_1k, LASTFM_1K_TERMS),
    "amazon": Source(load_amazon, AMAZON_TERMS),
    **{
        f"amazon-{category}": Source(
            load_amazon,
            AMAZON_TERMS,
            {
                f"{_AMAZON}/review_categories/{category}.jsonl.gz": None,
                f"{_AMAZON}/meta_categories/meta_{category}.jsonl.gz": None,
            },
        )
        for category in AMAZON_CATEGORIES
    },
    "steam": Source(
        load_steam, STEAM_TERMS, {f"{_STEAM}/steam_reviews.json.gz": None, f"{_STEAM}/steam_games.json.gz": None}
    ),
    "recbole": Source(load_recbole),
    "table": Source(load_table),
}


def find_source(source: str) -> Source:
    """The data set of a name. Raises a `ValueError` that names the nearest if there is none."""
    if source not in SOURCES:
        close = difflib.get_close_matches(source, SOURCES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if "json" in source:
            hint = " S-DPO json holds records and no interactions: read it with `load_sdpo_json`."
        first = dict.fromkeys(name.partition("-")[0] for name in SOURCES)
        raise ValueError(
            f"source {source!r} is not known.{hint} Pass one of {', '.join(first)} or, behind these names, of their parts, "
            "as movielens-1m: `trl-sdpo prepare --help` lists them."
        )
    return SOURCES[source]


@cache
def show_terms(terms: str) -> None:
    """Log what a publisher asks, once in a process."""
    logger.warning(terms)


def fetch_source(source: str) -> Path:
    """
    The folder with the files of a data set, downloaded if need be.

    Args:
        source (`str`):
            A name as in [`load_source`], of a data set that has files to download.

    Returns:
        `Path`:
            A folder in the cache.

    Raises:
        As [`load_source`].
    """
    entry, folder = find_source(source), cache_dir() / source
    for url, checksum in entry.files.items():
        name = Path(urlsplit(url).path).name
        if not name.endswith(".zip"):
            fetch_url(url, checksum, folder / name)
        elif not is_cached(source):
            if folder.is_dir():
                logger.warning("%s lacks %s: it is made anew", folder, entry.main)
                shutil.rmtree(folder)
            checksum = _published_md5(url) if checksum == PUBLISHED_MD5 else checksum
            archive = fetch_url(url, checksum, cache_dir() / name)
            unpack_zip(archive, folder)
            archive.unlink(missing_ok=True)
    return folder


def is_cached(source: str) -> bool:
    """Whether a data set from a zip archive is in the cache, whole."""
    return any((cache_dir() / source).rglob(find_source(source).main))


def _published_md5(url: str) -> str | None:
    """The checksum beside a file, as `MD5 (ml-latest.zip) = 0123...`."""
    try:
        with open_url(f"{url}.md5", ANSWER_SECONDS) as response:
            text = response.read(2**12).decode("utf-8", "replace")
    except NETWORK_ERRORS as error:
        logger.warning("%s.md5 cannot be had (%s), so the download goes without a checksum", url, error)
        return None
    digits = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    if not digits:
        raise ValueError(f"{url}.md5 holds {text[:80]!r} instead of a checksum: try again, or pass a path")
    return f"md5:{digits[0].lower()}"
