"""
Pushes to the Hugging Face Hub of models and of prepared data sets: what goes, what stays, and what to run after a push
that failed. Uploads, and their retries, are those of `huggingface_hub`.
"""

import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import CATALOGUE_FILES, TRIE_FILE, write_text
from .card_facts import card_of_a_person, facts_of
from .card_parts import public_name, without_private
from .dataset_card import make_dataset_card
from .licences import find_licence, why_not_public
from .model_card import is_on_hub, make_model_card, read_data_report, read_json, with_repo_id
from .privacy import personal_columns, pseudonymise_users


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

CARD_FILE, RECOMMENDER_FILE = "README.md", "recommender.json"
_WITH_TITLES = (*CATALOGUE_FILES, TRIE_FILE)  # as text or as tokens
LAST_CHECKPOINT = "last-checkpoint"
# As `Trainer` has it ("_*" and checkpoints); hidden files; the reference; a checkpoint that came from the Hub
NOT_PUSHED = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*", ".*", "ref/*", "reference.safetensors", f"{LAST_CHECKPOINT}/*")
_STAGE = "_push-"
_WEIGHTS = ("adapter_model.*", "model*.safetensors", "pytorch_model*.bin", "*.gguf")


class HubPushError(ConnectionError):
    """A push that failed. Nothing on this machine was changed, and the message says what to run to try again."""


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = True,
    redistribution_permitted: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> CommitInfo:
    """
    Push a directory with a trained model.

    The policy goes alone: checkpoints, the reference and hidden files stay. So does the catalogue (`catalogue.json` or
    `catalogue.parquet`, with its `title_trie.safetensors`) where the licence of its source forbids redistribution, with a
    warning. A directory without a card gets one in the
    repository, as does one with a template that a library left; a card that a person wrote is kept. The card has the
    metrics of `eval_results.json`, and says where the base of an adapter is not on the Hub, which a warning says as well.

    Args:
        folder (`str` or `Path`):
            What `trainer.save_model` wrote. Nothing in it is changed.
        repo_id (`str`):
            The repository, as `user/name`. It is made where it is missing.
        private (`bool`, *optional*, defaults to `True`):
            Whether a repository that is made is private. `None` leaves it to the settings of the organisation.
        redistribution_permitted (`bool`, *optional*, defaults to `False`):
            The statement that you may pass on the titles in the catalogue.
        revision (`str`, *optional*):
            The branch. By default the main one.
        token (`str`, *optional*):
            By default the one that is logged in with.
        commit_message (`str`, *optional*, defaults to `"Upload model"`):
            The message.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.

    Raises:
        ValueError: the directory holds no model, or the name of the repository is none.
        HubPushError: the Hub refused or could not be reached, also after the retries of `huggingface_hub`.

    Example:
        ```python
        from trl_sdpo import push_model

        push_model("outputs/movielens/s-dpo", "me/movielens-s-dpo")
        ```
    """
    folder = Path(folder)
    validate_repo_id(repo_id)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such directory. Pass the one that `trainer.save_model` wrote.")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise ValueError(
            f"{folder}: holds no weights of a model ({', '.join(_WEIGHTS)}). Pass the directory that `trainer.save_model` wrote."
        )
    command = push_command(folder, repo_id, private, redistribution_permitted)
    with explained(folder, command):
        repo_id, is_private = _create(repo_id, "model", private, token)
        facts = facts_of(folder, repo_id)
        facts.base_on_hub = is_on_hub(facts) and _exists(facts.base_model, token)
    if facts.adapter and not facts.base_on_hub:
        logger.warning(
            "%s is an adapter of %s, which is no repository of the Hub: what is pushed loads only where that model is. Push "
            "the base as well and name it in adapter_config.json, or merge the adapter into it.",
            *(folder, public_name(facts.base_model) or "a model without a name"),
        )
    own = card_of_a_person(folder)
    text = str(make_model_card(facts)) if own is None else with_repo_id(own, repo_id)
    with staged(folder, left_out(folder, is_private, redistribution_permitted)) as stage:
        write_text(stage / CARD_FILE, without_private(text, [token]))
        with explained(folder, command):
            return _upload(stage, repo_id, "model", token, revision, commit_message, former_catalogue(stage))


def push_dataset(
    dataset: "str | Path | Dataset | DatasetDict",
    repo_id: str,
    *,
    private: bool = True,
    redistribution_permitted: bool = False,
    pseudonymise: bool = False,
    report: dict | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload dataset",
) -> CommitInfo:
    """
    Push a data set of multi-preference records, with a card that has its licence, recipe, counts and leak probe.

    Args:
        dataset (`str` or `Path` or [`~datasets.Dataset`] or [`~datasets.DatasetDict`]):
            The directory that [`prepare`] made, or records.
        repo_id (`str`):
            The repository, as `user/name`. It is made where it is missing.
        private (`bool`, *optional*, defaults to `True`):
            Whether a repository that is made is private. One that exists stays what it is, and must be private for
            `True`.
        redistribution_permitted (`bool`, *optional*, defaults to `False`):
            The statement that you may pass the data on. It is needed where the licence of the source forbids it, where
            nothing is known of the licence and the repository is public, and for data without a report.
        pseudonymise (`bool`, *optional*, defaults to `False`):
            Whether ids of users are replaced, by ones that nobody can turn back and that differ from push to push. Records
            of one user still have one id, and histories and times stay.
        report (`dict`, *optional*):
            The report of the preparation. By default `report.json` of the directory.
        revision (`str`, *optional*):
            The branch. By default the main one.
        token (`str`, *optional*):
            By default the one that is logged in with.
        commit_message (`str`, *optional*, defaults to `"Upload dataset"`):
            The message.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.

    Raises:
        ValueError: there are no records, no report, or the name of the repository is none.
        PermissionError: the licence forbids it. The message gives the reason.
        HubPushError: the Hub refused or could not be reached, also after the retries of `huggingface_hub`.

    Example:
        ```python
        from trl_sdpo import push_dataset

        push_dataset("data/goodbooks", "me/goodbooks-preferences")
        ```
    """
    validate_repo_id(repo_id)
    folder = Path(dataset) if isinstance(dataset, (str, Path)) else None
    report = _report_of(folder, report, redistribution_permitted)
    licence = find_licence([report.get("source"), report.get("source_name")] if report else [])
    reason = why_not_public(licence, (report or {}).get("source", "the data"), private, redistribution_permitted)
    if reason is not None:
        raise PermissionError(
            f"{reason} So it is not pushed. If you may redistribute it, state so: redistribution_permitted=True "
            "(--redistribution_permitted)."
        )
    command = push_command(folder, repo_id, private, redistribution_permitted, "dataset") if folder else None
    with staged(folder, NOT_PUSHED) if folder else _written(dataset) as stage:
        if pseudonymise:
            pseudonymise_users(stage)
        figure = "report.png" if (stage / "report.png").is_file() else None
        people = personal_columns(stage)
        card = make_dataset_card(
            repo_id, _count(stage), licence, report, figure, redistribution_permitted, people, pseudonymise
        )
        write_text(stage / CARD_FILE, without_private(str(card), [token]))
        with explained(folder, command):
            repo_id, is_private = _create(repo_id, "dataset", private, token)
            if private and not is_private:
                raise PermissionError(
                    f"{repo_id} exists and is public. Make it private in its settings, pass another name, or private=False "
                    "(--public)."
                )
            return _upload(stage, repo_id, "dataset", token, revision, commit_message, ["data/*"])


def _report_of(folder: Path | None, report: dict | None, redistribution_permitted: bool) -> dict | None:
    """The report of a data set, without which only who may redistribute it can push it."""
    if folder is not None:
        report = read_data_report(folder) if report is None else report
        if not any((folder / "data").glob("*.parquet")):
            raise ValueError(f"{folder}: holds no data/*.parquet. Pass the directory that `trl-sdpo prepare` made.")
    if report is None and not redistribution_permitted:
        raise ValueError(
            f"{folder or 'The data set'}: has no report.json, which names the source, so its licence, recipe, counts and leak "
            "probe are unknown. Make the data set with `trl-sdpo prepare` (`trl_sdpo.recsys.prepare`), pass `report`, or "
            "state that you may redistribute it: redistribution_permitted=True (--redistribution_permitted)."
        )
    return report


def _create(repo_id: str, repo_type: str, private: bool | None, token: str | None) -> tuple[str, bool]:
    """Make the repository where it is missing, and say whether it is private: one that exists stays what it is."""
    api = HfApi(token=token, library_name="trl_sdpo")
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    return repo_id, bool(api.repo_info(repo_id, repo_type=repo_type).private)


def _exists(repo_id: str, token: str | None) -> bool:
    return HfApi(token=token, library_name="trl_sdpo").repo_exists(repo_id)


@contextmanager
def _written(dataset: "Dataset | DatasetDict") -> Iterator[Path]:
    from datasets import Dataset

    from ..data_utils import plain_records

    splits = {"train": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    if not splits or not any(len(records) for records in splits.values()):
        raise ValueError("The data set holds no records. Pass at least one.")
    with tempfile.TemporaryDirectory() as stage:
        for split, records in splits.items():
            path = Path(stage) / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            # what a transform shows, not what it reads
            rendered = str(Path(stage) / "rendered.arrow")
            plain_records(records, cache_file_name=rendered).to_parquet(path)
            Path(rendered).unlink(missing_ok=True)
        yield Path(stage)


def _count(stage: Path) -> dict[str, int]:
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    order = {"train": 0, "validation": 1, "test": 2}
    for path in sorted((stage / "data").glob("*.parquet"), key=lambda path: (order.get(_split(path), 3), path.name)):
        counts[_split(path)] = counts.get(_split(path), 0) + pq.read_metadata(path).num_rows
    return counts


def _split(path: Path) -> str:
    return re.sub(r"-\d+-of-\d+$", "", path.stem)


def _upload(
    stage: Path,
    repo_id: str,
    repo_type: str,
    token: str | None,
    revision: str | None,
    commit_message: str,
    delete_patterns: list[str] | None = None,
) -> CommitInfo:
    return HfApi(token=token, library_name="trl_sdpo").upload_folder(
        repo_id=repo_id,
        repo_type=repo_type,
        folder_path=stage,
        commit_message=commit_message,
        revision=revision,
        delete_patterns=delete_patterns,
    )


def left_out(folder: Path, private: bool, redistribution_permitted: bool) -> list[str]:
    """
    What of the directory of a model is not pushed, with a warning if that is the catalogue.

    Args:
        folder (`Path`):
            The directory.
        private (`bool`):
            Whether the repository is private.
        redistribution_permitted (`bool`):
            Whether the user states that they may pass the titles on.

    Returns:
        `list[str]`: Patterns as `huggingface_hub` takes them.
    """
    catalogue = [name for name in _WITH_TITLES if (folder / name).is_file()]
    if not catalogue:
        return [*NOT_PUSHED]
    report, recommender = read_data_report(folder) or {}, read_json(folder / RECOMMENDER_FILE) or {}
    source = recommender.get("source") or report.get("source")
    licence = find_licence([source, report.get("source_name")])
    reason = why_not_public(licence, source or "its source", private, redistribution_permitted)
    if reason is None:
        return [*NOT_PUSHED]
    logger.warning(
        "%s stays on this machine, as it holds the titles of %s If you may redistribute them, state so: "
        "redistribution_permitted=True (--redistribution_permitted).",
        *(" and ".join(catalogue), reason),
    )
    return [*NOT_PUSHED, *catalogue]


def former_catalogue(stage: Path) -> list[str] | None:
    """What a repository must lose that gets a catalogue: one of an earlier push in the other form, and the trie of its titles."""
    if not any((stage / name).is_file() for name in CATALOGUE_FILES):
        return None
    return [name for name in _WITH_TITLES if not (stage / name).is_file()]


@contextmanager
def staged(folder: Path, ignore: Iterable[str]) -> Iterator[Path]:
    """As [`stage_folder`], for the time of a block."""
    stage = stage_folder(folder, ignore)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def stage_folder(folder: Path, ignore: Iterable[str]) -> Path:
    """
    Make a view of a directory that stays as it is, while an upload takes its time and training goes on: a file that is
    replaced or removed meanwhile is still there.

    Args:
        folder (`Path`):
            The directory.
        ignore (`Iterable[str]`):
            Patterns of what is not in the view.

    Returns:
        `Path`: A directory within the first with hard links, or copies where the file system has none; one for temporary
        files where the first may only be read. The caller removes it.
    """
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    try:
        stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=folder))
    except OSError:  # a directory that may only be read
        stage = Path(tempfile.mkdtemp(prefix=_STAGE))
    for path in filter_repo_objects(paths, ignore_patterns=[*ignore]):
        (stage / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((folder / path).resolve(), stage / path)
        except OSError:
            shutil.copy2(folder / path, stage / path)
    return stage


def remove_old_stages(folder: Path) -> None:
    """Remove the views that a run left in its directory which was killed in the middle of a push."""
    for stage in folder.glob(f"{_STAGE}*"):
        shutil.rmtree(stage, ignore_errors=True)


def push_command(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = True,
    redistribution_permitted: bool = False,
    repo_type: str | None = None,
) -> str:
    """The words that push a directory again."""
    words = ["trl-sdpo", "push", str(folder), repo_id]
    words += ["--type", repo_type] if repo_type else []
    words += [] if private else ["--public"]
    words += ["--redistribution_permitted"] if redistribution_permitted else []
    return shlex.join(words)


def try_again(folder: str | Path | None, command: str | None) -> str:
    """What to say after a push that failed."""
    if command is None:
        return "Nothing was lost: call push_dataset again."
    return f"Nothing on this machine was lost: all is in {folder}. To try again, run `{command}`."


@contextmanager
def explained(folder: str | Path | None, command: str | None) -> Iterator[None]:
    """Turn what went wrong with the Hub into a [`HubPushError`] that says what to run."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:  # of requests, of the Hub's answers and of the file system, in many classes
        raise HubPushError(f"The push failed: {str(error).rstrip('. ')}. {try_again(folder, command)}") from error
