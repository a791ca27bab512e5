"""The recipe of the published records: on made-up files, and with `-m real_data` on the publishers', where TRL_SDPO_DATA says."""

import json
import os
import random
from pathlib import Path

import pytest

from trl_sdpo.recsys import build_preference_dataset, leak_probe, load_source, recipe_options
from trl_sdpo.recsys.records.config import recipe_loader_options


REAL = os.environ.get("TRL_SDPO_DATA")
needs_real_files = pytest.mark.skipif(not REAL, reason="TRL_SDPO_DATA does not say where the publishers' files are")
# The published json writes three names in another way than artists.dat.
RENAMED = {
    '"Weird Al" Yankovic': "Weird Al Yankovic",
    "+44": "Plus 44",
    "Florence + the Machine": "Florence and the Machine",
}


@pytest.fixture
def lastfm_files(tmp_path):
    """60 users with some of 40 artists each, in the format of HetRec 2011: sorted by user and artist, with repeats."""
    generator = random.Random(0)
    lines = ["userID\tartistID\ttagID\tday\tmonth\tyear"]
    for user in range(1, 61):
        for artist in sorted(generator.sample(range(1, 41), generator.choice([3, 12, 15]))):
            for tag in range(generator.choice([1, 1, 2])):
                lines.append(
                    f"{user}\t{artist}\t{tag + 1}\t1\t{generator.randint(1, 12)}\t{2000 + generator.randint(2, 10)}"
                )
    # one artist of two users, one without a name
    lines += ["61\t41\t1\t1\t1\t2009", "62\t41\t1\t1\t1\t2009", "62\t99\t1\t1\t1\t2009"]
    (tmp_path / "user_taggedartists.dat").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    artists = [
        "id\tname\turl\tpictureURL",
        *(f"{number}\tArtist {number}\thttp://x\thttp://y" for number in range(1, 42)),
    ]
    (tmp_path / "artists.dat").write_text("\n".join(artists) + "\n")
    return tmp_path


def publish(lines):
    """The steps of the published code on rows of (user, artist, date), without any of this package's."""
    first = {}
    for user, artist, date in lines:
        first.setdefault((user, artist), date)
    by_artist = [artist for _, artist in first]
    pairs = [pair for pair in first if by_artist.count(pair[1]) >= 4]
    users = [user for user, _ in pairs]
    pairs = [pair for pair in pairs if users.count(pair[0]) >= 4]
    numbers = {artist: number for number, artist in enumerate(dict.fromkeys(artist for _, artist in pairs))}
    artists = list(numbers)
    sequences = {}
    for user, artist in pairs:
        sequences.setdefault(user, []).append(numbers[artist])
    order = sorted(sequences, key=lambda user: (min(first[pair] for pair in pairs if pair[0] == user), user))
    test = order[round(0.8 * len(order)) + round(0.1 * len(order)) :]
    records = []
    for user in sorted(test):
        for position in range(3, len(sequences[user])):
            history, target = sequences[user][max(0, position - 10) : position], sequences[user][position]
            random.seed(target)
            others = [item for item in range(len(artists)) if item != target and item not in history]
            shown = [*random.sample(others, 19), target]
            random.seed(target)
            random.shuffle(shown)
            records.append(
                ([artists[item] for item in history], artists[target], [f"Artist {artists[item]}" for item in shown])
            )
    return records


def test_lastfm_records_are_those_of_the_published_steps(lastfm_files):
    lines = (lastfm_files / "user_taggedartists.dat").read_text().splitlines()[1:]
    rows = [tuple(map(int, line.split("\t"))) for line in lines]
    expected = publish([(user, artist, (y, m, d)) for user, artist, _, d, m, y in rows if artist != 99])
    dataset, report = build_preference_dataset(
        load_source("lastfm", lastfm_files), seed=0, **recipe_options("s-dpo", "lastfm")
    )
    ours = [(row["history_item_ids"], row["item_id"], row["candidates"]) for row in dataset["test"]]
    assert len(expected) > 30
    assert ours == expected
    assert report["leaks"]["users_in_train_and_evaluation"] == 0
    for record in dataset["test"]:
        assert record["prompt"].startswith("This user has heard these artists, oldest first:\nArtist")
        assert sorted([record["chosen"], *record["rejected"]]) == sorted(f" {title}" for title in record["candidates"])


def test_what_a_recipe_is_not_known_for_is_an_error():
    with pytest.raises(ValueError, match=r"recipe 'sdpo' is none of \('default', 's-dpo'\)"):
        recipe_options("sdpo", "lastfm")
    with pytest.raises(ValueError, match=r"known for \['lastfm', 'movielens'\], not for 'goodreads-poetry'"):
        recipe_options("s-dpo", "goodreads-poetry")


def test_the_words_go_with_the_source():
    assert recipe_options("default", "goodreads-poetry") == {"domain": "books"}
    assert recipe_options("default", "table") == {"domain": "items"}


def test_drawing_by_the_target_has_no_pool_and_no_other_strategy():
    interactions = None
    for options in ({"pool_size": 40}, {"negatives": "hard"}):
        with pytest.raises(ValueError, match="candidate_seed='target' draws uniformly and has no pool"):
            build_preference_dataset(interactions, seed=0, candidate_seed="target", **options)


@pytest.mark.real_data
@needs_real_files
@pytest.mark.parametrize(("split", "file", "count"), [("validation", "val", 2767), ("test", "test", 2495)])
def test_lastfm_records_are_the_published_ones(tmp_path, split, file, count):
    for name in ("artists.dat", "user_taggedartists.dat"):
        (tmp_path / name).symlink_to(Path(REAL) / "hetrec2011-lastfm-2k" / name)
    interactions = load_source("lastfm", tmp_path)
    dataset, report = build_preference_dataset(interactions, seed=0, **recipe_options("s-dpo", "lastfm"))
    kept = report["events"] - report["events_repeated"] - report["events_below_min_interactions"]
    assert (report["users"], report["items"], kept) == (1220, 4606, 56794)
    assert [report[name]["users"] for name in ("train", "validation", "test")] == [976, 122, 122]
    published = json.loads((Path(REAL) / "lastfm-sdpo-json" / f"lastfm-{file}.json").read_text(encoding="utf-8"))
    assert len(dataset[split]) == len(published) == count
    titles = dict(interactions.items.rows())
    for ours, theirs in zip(dataset[split], published, strict=True):
        history = [RENAMED.get(titles[item], titles[item]) for item in ours["history_item_ids"]]
        assert history == theirs["historyList"].split("::")
        assert RENAMED.get(titles[ours["item_id"]], titles[ours["item_id"]]) == theirs["trueSelection"]
        assert [RENAMED.get(title, title) for title in ours["candidates"]] == theirs["itemList"]
    if split == "test":
        assert 0.5 < leak_probe(dataset["test"], dataset["validation"]).hr_at_1 < 0.6


@pytest.mark.real_data
@needs_real_files
def test_movielens_counts_are_the_published_ones():
    source = "movielens-100k"
    interactions = load_source(source, Path(REAL) / "ml-100k", **recipe_loader_options("s-dpo", source))
    dataset, report = build_preference_dataset(interactions, seed=0, **recipe_options("s-dpo", source))
    kept = report["events"] - report["events_below_min_rating"]
    assert (kept, report["users"], report["items"]) == (82520, 943, 1574)
    assert [report[name]["users"] for name in ("train", "validation", "test")] == [754, 94, 95]
    assert [len(dataset[name]) for name in ("validation", "test")] == [94, 95]


@pytest.mark.real_data
@needs_real_files
def test_the_default_recipe_stays_below_popularity():
    interactions = load_source("movielens-100k", Path(REAL) / "ml-100k")
    dataset, _ = build_preference_dataset(interactions, seed=0, max_test_records=2000)
    probe = leak_probe(dataset["test"], dataset["train"])
    assert probe.ci[1] < probe.popularity
    assert probe.hr_at_1 < 0.05
