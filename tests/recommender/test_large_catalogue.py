"""A recommender of a catalogue on disk is that of one in memory, and makes its trie once."""

import dataclasses
import logging

import pytest

from helpers.prepared_data import Prepared
from trl_sdpo import Recommender, load_recommender_files, save_recommender_files
from trl_sdpo.recsys import PromptTemplate
from trl_sdpo.recsys.records.catalogue import files
from trl_sdpo.recsys.records.catalogue.columns import ParquetColumn
from trl_sdpo.scoring.title_trie import TitleTrie


ATTRIBUTES = PromptTemplate(
    "mine",
    "history",
    "Seen: {history}. Next:",
    item_format="{title}[ ({year})]",
    completion_format="[{year}: ]{title}",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory)


@pytest.fixture
def models(prepared, llama, tokenizer, tmp_path, monkeypatch):
    """The same model beside a catalogue in memory and beside one on disk."""

    def make(template=None, **changes):
        source, _ = prepared()
        found = load_recommender_files(source)
        years = [1950 + number if number % 3 else None for number in range(len(found.catalogue))]
        catalogue = dataclasses.replace(found.catalogue, attributes={"year": years})
        config = dataclasses.replace(found.config, **changes, templates=[template or found.config.templates[0]])
        for name, most in (("memory", 10**6), ("disk", 2)):
            monkeypatch.setattr(files, "PARQUET_FROM", most)
            llama().save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
            save_recommender_files(tmp_path / name, config, catalogue)
        return tmp_path / "memory", tmp_path / "disk"

    return make


@pytest.mark.parametrize(
    ("template", "changes"),
    [(None, {}), (None, {"max_length": 40}), (ATTRIBUTES, {}), (None, {"conversational": True, "max_length": 60})],
)
def test_the_same_items_and_scores(models, template, changes):
    memory, disk = (Recommender.from_pretrained(path, device="cpu") for path in models(template, **changes))
    titles = memory.catalogue.titles
    assert isinstance(disk.catalogue.titles, ParquetColumn)
    history = [titles[3], titles[8].upper(), int(memory.catalogue.item_ids[5]), *titles[10:16]]
    assert disk.recommend(history, num_beams=30) == memory.recommend(history, num_beams=30)
    assert disk.recommend(history, titles[:5]) == memory.recommend(history, titles[:5])
    ids = [memory.catalogue.item_ids[2:6]], [memory.catalogue.item_ids[7:12]]
    assert disk.score(*ids)[0].tolist() == memory.score(*ids)[0].tolist()
    assert disk.score_parts(*ids)[0].tolist() == memory.score_parts(*ids)[0].tolist()
    for wrong in ("River Hotle (1950)", 7):
        with pytest.raises(ValueError, match="history: ") as expected:
            memory.recommend([wrong])
        with pytest.raises(ValueError, match="history: ") as error:
            disk.recommend([wrong])
        assert str(error.value) == str(expected.value)


def test_the_trie_is_made_once(models, monkeypatch, caplog):
    _, path = models()
    made = []
    original = TitleTrie.from_titles.__func__

    def count(cls, *args):
        made.append(args)
        return original(cls, *args)

    monkeypatch.setattr(TitleTrie, "from_titles", classmethod(count))

    def recommend():
        recommender = Recommender.from_pretrained(path, device="cpu")
        return recommender.recommend(recommender.catalogue.titles[:3], num_beams=30)

    first = recommend()
    assert (path / "title_trie.safetensors").is_file()
    assert recommend() == first
    assert len(made) == 1
    # another catalogue, template or tokenizer has another trie
    found = load_recommender_files(path)
    fewer = [column[:-1] for column in (found.catalogue.item_ids, found.catalogue.titles)]
    save_recommender_files(path, found.config, type(found.catalogue)(*fewer))
    assert found.catalogue.titles[-1] not in [item.title for item in recommend()]
    assert len(made) == 2
    template = dataclasses.replace(found.config.templates[0], completion_suffix=".")
    save_recommender_files(path, dataclasses.replace(found.config, templates=[template]))
    recommend()
    assert len(made) == 3
    # one that is damaged or cannot be kept
    (path / "title_trie.safetensors").write_bytes(b"no trie")
    monkeypatch.setattr(TitleTrie, "save", lambda *args: (_ for _ in ()).throw(OSError("Read-only file system")))
    monkeypatch.setattr(logging.getLogger("trl_sdpo"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        recommend()
    assert len(made) == 4
    assert "title_trie.safetensors: is damaged" in caplog.text
    assert "cannot be kept there (Read-only file system)" in caplog.text
