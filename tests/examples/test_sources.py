"""The examples that differ from MovieLens in their source alone, on made-up files in the publishers' formats."""

import dataclasses
import gzip
import json
import random
from datetime import UTC, datetime, timedelta

import goodreads
import lastfm
import pytest
import recommendation


TINY = {
    "model": "small-llama",
    "hidden_size": 64,
    "num_layers": 1,
    "vocab_size": 500,
    "sft_epochs": 1,
    "dpo_records": 16,
    "dpo_batch_size": 16,
    "num_negatives": 3,
    "eval_records": 10,
    "lora_r": 2,
    "more_sft": False,
}
FIRST = datetime(2010, 1, 1, tzinfo=UTC)


def visits(seed, users=24, items=60, events=14):
    """Users who come one after the other, so that every part of a split by time has users with a history."""
    generator = random.Random(seed)
    for user in range(1, users + 1):
        for step, item in enumerate(generator.sample(range(1, items + 1), events)):
            yield user, item, FIRST + timedelta(days=31 * user + step)


@pytest.fixture
def lastfm_files(tmp_path):
    lines = ["userID\tartistID\ttagID\tday\tmonth\tyear"]
    lines += [f"{user}\t{item}\t1\t{time.day}\t{time.month}\t{time.year}" for user, item, time in visits(0)]
    (tmp_path / "user_taggedartists.dat").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    artists = [f"{number}\tThe Band {number}\thttp://x\thttp://y" for number in range(1, 61)]
    (tmp_path / "artists.dat").write_text("\n".join(["id\tname\turl\tpictureURL", *artists]) + "\n")
    return tmp_path


@pytest.fixture
def goodreads_files(tmp_path):
    shelves = [
        {
            "user_id": f"{user:032x}",
            "book_id": str(item),
            "review_id": f"{user:016x}{item:016x}",
            "is_read": True,
            "rating": item % 6,
            "review_text_incomplete": "",
            "date_added": time.strftime("%a %b %d %H:%M:%S %z %Y"),
            "date_updated": time.strftime("%a %b %d %H:%M:%S %z %Y"),
            "read_at": time.strftime("%a %b %d %H:%M:%S %z %Y") if item % 2 else "",
            "started_at": "",
        }
        for user, item, time in visits(1)
    ]
    books = [
        {
            "book_id": str(item),
            "work_id": str(item),
            "title": f"Poems, Vol. {item}",
            "title_without_series": f"Poems, Vol. {item}",
        }
        for item in range(1, 61)
    ]
    for name, rows in (("interactions", shelves), ("books", books)):
        with gzip.open(tmp_path / f"goodreads_{name}_poetry.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path


def check_results(output_dir, title):
    results = json.loads((output_dir / "results.json").read_text())
    stages = ["chance", "popularity", "base", "sft", "s-dpo", "s-dpo (implicit reward)"]
    assert list(results["stages"]) == stages
    assert {stage["n"] for name, stage in results["stages"].items()} == {10}
    assert (output_dir / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (output_dir / "s-dpo" / "adapter_config.json").is_file()
    return results


def test_lastfm(lastfm_files, tmp_path, capsys):
    args = lastfm.LastFMArguments(**TINY, data=str(lastfm_files), output_dir=str(tmp_path / "run"))
    recommendation.main(args, lastfm.LASTFM)
    check_results(tmp_path / "run", "Last.fm")
    assert "Last.fm (HetRec 2011), small-llama" in capsys.readouterr().out


def test_goodreads(goodreads_files, tmp_path, capsys):
    args = goodreads.GoodreadsArguments(**TINY, data=str(goodreads_files), output_dir=str(tmp_path / "run"))
    source = dataclasses.replace(goodreads.goodreads(args.genre), min_interactions=2)
    recommendation.main(args, source)
    results = check_results(tmp_path / "run", "Goodreads, poetry")
    assert results["data"]["events_below_min_interactions"] < results["data"]["events"] == 24 * 14
    assert "Goodreads, poetry, small-llama" in capsys.readouterr().out
