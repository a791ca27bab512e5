"""Which records scores are of: users, places and candidates, which travel with the scores and are compared."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..interactions.interactions import ITEM_ID, USER_ID


POSITION, CANDIDATES = "position", "candidates"
REJECTED = "rejected_item_ids"
_SHOWN = {USER_ID: "of user {}", POSITION: "at position {}", CANDIDATES: "of candidates with the digest {}"}


def record_identity(records: Any) -> dict[str, list]:
    """
    What makes a record another one.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            Multi-preference records.

    Returns:
        `dict[str, list]`: As far as the records have them, the `user_id` as text, the `position` of the target among
        the user's events, and a digest of the `candidates`, the target first: of their item ids, or where there are
        none of the texts.

    Example:
        ```python
        >>> identity = record_identity({"user_id": [7], "item_id": [1], "rejected_item_ids": [[2, 3]]})
        >>> identity["user_id"], identity["candidates"][0] == record_identity(
        ...     {"item_id": ["1"], "rejected_item_ids": [["2", "3"]]}
        ... )["candidates"][0]
        (['7'], True)

        ```
    """
    columns = set(getattr(records, "column_names", records))
    identity: dict[str, list] = {}
    if USER_ID in columns:
        identity[USER_ID] = [None if user is None else str(user) for user in records[USER_ID]]
    if POSITION in columns:
        identity[POSITION] = [None if place is None else int(place) for place in records[POSITION]]
    for first, others, text in ((ITEM_ID, REJECTED, str), ("chosen", "rejected", _whole), ("chosen_ids", "rejected_ids", _whole)):  # fmt: skip
        if {first, others} <= columns:
            pairs = zip(records[first], records[others], strict=True)
            identity[CANDIDATES] = [_digest([text(one) for one in (target, *rest)]) for target, rest in pairs]
            break
    return identity


def _whole(completion: Any) -> str:
    """All of a completion, be it a text, messages or tokens."""
    return completion.strip() if isinstance(completion, str) else json.dumps(completion, sort_keys=True)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).hexdigest()


def check_same_records(theirs: Mapping[str, Sequence], ours: Mapping[str, Sequence], where: str) -> list[str]:
    """
    Compare the records that something was computed of with those at hand.

    Args:
        theirs (`Mapping[str, Sequence]`), ours (`Mapping[str, Sequence]`):
            Of [`record_identity`]. What only one of them has is not compared.
        where (`str`):
            What `theirs` belongs to, for the message.

    Returns:
        `list[str]`: The names of what was compared.

    Raises:
        ValueError: a record differs. The message names it, and what differs.
    """
    compared = [name for name in _SHOWN if name in theirs and name in ours]
    for row in range(min((len(ours[name]) for name in compared), default=0)):
        for name in compared:
            if theirs[name][row] != ours[name][row]:
                there, here = (_SHOWN[name].format(one[name][row]) for one in (theirs, ours))
                raise ValueError(
                    f"{where}: record {row} was {there}, where the records at hand have one {here}. These are other "
                    "records, or in another order: score these."
                )
    return compared
