"""What is served of a fit is what the fit gives of the parts."""

import numpy as np
import polars as pl
import pytest

from helpers.prepared_data import Prepared
from trl_sdpo import Recommender, copy_recommender_files, load_recommender_files
from trl_sdpo.evaluation.fusion import cold_features
from trl_sdpo.recommender.scores import save_fusion
from trl_sdpo.recsys import Fusion, content_scorer, events_of_records, fit_fusion, popularity_scorer, score_records
from trl_sdpo.recsys.baselines.saved import load_scorer
from trl_sdpo.recsys.baselines.sequential import train_sasrec
from trl_sdpo.scoring.log_probs import completion_log_probs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory)()


@pytest.fixture(scope="module")
def parts(prepared):
    """A model of ids, a content baseline, and records to fit on and to serve."""
    folder, dataset = prepared
    catalogue, events = load_recommender_files(folder).catalogue, events_of_records(dataset["train"])
    generator = np.random.default_rng(0)
    vectors = {item: generator.normal(size=4) for item in catalogue.item_ids}
    items = pl.DataFrame({"item_id": list(catalogue.item_ids), "title": list(catalogue.titles)})
    sasrec = train_sasrec(events, seed=0, hidden_size=8, num_epochs=1, max_length=6, item_embeddings=vectors)
    content = content_scorer(events, items, vectors=vectors)
    return {"sasrec": sasrec, "content": content}, dataset["test"].select(range(4))


def ids_of(records):
    rows = zip(records["item_id"], records["rejected_item_ids"], strict=True)
    return [list(map(str, row)) for row in records["history_item_ids"]], [[str(t), *map(str, r)] for t, r in rows]


@pytest.fixture
def served(prepared, parts, llama, tokenizer):
    """A recommender with a fusion, and what the fit itself gives."""
    (folder, _), (scorers, records) = prepared, parts
    files, model = load_recommender_files(folder), llama().eval()
    plain = Recommender(model, tokenizer, files.config, files.catalogue)
    known = {"s-dpo": completion_log_probs(model, plain.tokenize(records), tokenizer, desc=None)}
    known |= {name: score_records(scorer, records, desc=None) for name, scorer in scorers.items()}
    known |= cold_features(records, files.catalogue)
    fusion = fit_fusion(known)
    return Recommender(model, tokenizer, files.config, files.catalogue, fusion=fusion, scorers=scorers), known


def test_scores_are_those_of_the_fit(served, parts):
    recommender, known = served
    histories, candidates = ids_of(parts[1])
    expected = recommender.fusion.scores(known)
    for found, values in zip(recommender.score(histories, candidates), expected, strict=True):
        np.testing.assert_allclose(found, values, atol=1e-4)
    for row, items, values in zip(
        recommender.recommend_ids(histories, candidates, top_k=3), candidates, expected, strict=True
    ):
        assert [one.item_id for one in row] == [items[place] for place in np.argsort(-values, kind="stable")[:3]]
    # and what is asked for is what one gets
    likelihood = recommender.score(histories, candidates, score="likelihood")
    np.testing.assert_allclose(likelihood[0], known["s-dpo"][0], atol=1e-4)


def test_lists_of_the_catalogue_are_of_all_its_scores(served, parts):
    recommender, _ = served
    histories, _ = ids_of(parts[1])
    items = list(recommender.catalogue.item_ids)
    for history, row in zip(histories, recommender.recommend_ids(histories, top_k=4, batch_size=3), strict=True):
        (scores,) = recommender.score([history], [items])
        left = {item: value for item, value in zip(items, scores, strict=True) if item not in history}
        best = sorted(left, key=lambda item: -left[item])[:4]
        assert [one.item_id for one in row] == best
        np.testing.assert_allclose([one.score for one in row], [left[item] for item in best], atol=1e-4)


def test_saved_and_loaded(served, parts, prepared, tmp_path):
    recommender, _ = served
    recommender.model.save_pretrained(tmp_path)
    recommender.processing_class.save_pretrained(tmp_path)
    copy_recommender_files(prepared[0], tmp_path)
    save_fusion(tmp_path, recommender.fusion, parts[0])
    loaded = Recommender.from_pretrained(tmp_path, device="cpu")
    assert loaded.fusion == recommender.fusion
    histories, candidates = ids_of(parts[1])
    for ours, theirs in zip(
        loaded.score(histories, candidates), recommender.score(histories, candidates), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    (tmp_path / "fusion-0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"fusion-0.safetensors, which its fusion_scorers.json names, is missing"):
        Recommender.from_pretrained(tmp_path, device="cpu")


def test_what_has_no_form_on_disk(parts, tmp_path):
    fusion = Fusion(("lm", "popularity"), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), -1.0, 1)
    scorer = popularity_scorer(events_of_records(parts[1]))
    with pytest.raises(ValueError, match="a scorer of type function has no form on disk"):
        save_fusion(tmp_path, fusion, {"popularity": scorer})
    (tmp_path / "scorer").write_text("nothing")
    with pytest.raises(ValueError, match="no scorer"):
        load_scorer(tmp_path / "scorer")


def test_what_a_fusion_needs(served, parts, prepared):
    recommender, _ = served
    given = (recommender.model, recommender.processing_class, recommender.config)
    with pytest.raises(ValueError, match=r"\['s-dpo', 'content'\] of its features.*Pass a scorer for each"):
        Recommender(*given, recommender.catalogue, fusion=recommender.fusion, scorers={"sasrec": parts[0]["sasrec"]})
    with pytest.raises(ValueError, match="needs a catalogue with train_counts"):
        Recommender(*given, fusion=recommender.fusion, scorers=parts[0])
    plain = Recommender(*given, recommender.catalogue)
    with pytest.raises(ValueError, match="score='fusion': this recommender has no fusion"):
        plain.recommend(list(recommender.catalogue.titles[:2]), score="fusion")
    titles = list(recommender.catalogue.titles[:2])
    with pytest.raises(ValueError, match="'Unheard of' is not in the catalogue, so a fusion has no score of it"):
        recommender.recommend(titles, candidates=["Unheard of", titles[0]], unknown_titles="keep")


def test_attributes_and_title_are_weighed_apart(served, parts):
    """With weights of 1 the parts are the likelihood; with others they are what `score_parts` says."""
    recommender, _ = served
    histories, candidates = ids_of(parts[1])
    given = (recommender.model, recommender.processing_class, recommender.config, recommender.catalogue)

    def fused(*weights):
        return Recommender(*given, fusion=Fusion(("attributes", "title"), weights, (0.0,) * 2, (0.0,) * 2, -1.0, 1))

    likelihood = recommender.score(histories, candidates, score="likelihood")
    scored = recommender.score_parts(histories, candidates)
    for found, expected in zip(fused(1.0, 1.0).score(histories, candidates), likelihood, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    for found, row in zip(fused(0.5, 2.0).score(histories, candidates), scored, strict=True):
        np.testing.assert_allclose(found, row @ [0.5, 2.0], atol=1e-4)
    with pytest.raises(ValueError, match="weighs attributes and title apart, which are scored of candidates"):
        fused(1.0, 1.0).recommend_ids(histories, top_k=2)
