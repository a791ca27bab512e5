"""What records tell of the people in them, and ids that cannot be turned back."""

import hashlib
import hmac
import secrets
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import writing


# What tells of a person, as `prepare` calls it
PERSONAL = {
    "user_id": "who it was",
    "timestamp": "when",
    "history_item_ids": "what they had chosen before",
    "consumed_item_ids": "all that they had chosen before",
    "chosen_score": "how they rated it",
    "prompt": "what they had chosen before, in words",
}
_USER = "user_id"


def personal_columns(folder: Path) -> list[str]:
    """The columns of a data set that tell of people, in the order of `PERSONAL`."""
    names: set[str] = set()
    for path in (folder / "data").glob("*.parquet"):
        names |= set(pq.read_schema(path).names)
    return [name for name in PERSONAL if name in names]


def pseudonymise_users(folder: Path) -> None:
    """
    Replace the ids of users in all files of a data set by the first 16 hexadecimal digits of an HMAC-SHA256 under a key that
    is made here and kept nowhere. Files are replaced, not written into, so hard links to them keep what they had.

    Args:
        folder (`Path`):
            With `data/*.parquet`.

    Raises:
        ValueError: no file has a column `user_id`.
    """
    key, found = secrets.token_bytes(32), False
    for path in sorted((folder / "data").glob("*.parquet")):
        source = pq.ParquetFile(path)
        if _USER not in source.schema_arrow.names:
            continue
        found = True
        place = source.schema_arrow.get_field_index(_USER)
        schema = source.schema_arrow.set(place, pa.field(_USER, pa.string())).remove_metadata()
        with writing(path) as new, pq.ParquetWriter(new, schema) as writer:
            for number in range(source.num_row_groups):
                table = source.read_row_group(number)
                names = [_pseudonym(key, value) for value in table[_USER].to_pylist()]
                table = table.set_column(place, pa.field(_USER, pa.string()), pa.array(names, pa.string()))
                writer.write_table(table.cast(schema))
    if not found:
        raise ValueError(
            f"{folder.name}: no column '{_USER}', so there is nothing to pseudonymise. Leave the option out."
        )


def _pseudonym(key: bytes, value: object) -> str | None:
    return None if value is None else hmac.new(key, str(value).encode(), hashlib.sha256).hexdigest()[:16]
