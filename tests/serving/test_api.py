import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.prepared_data import TITLES
from trl_sdpo import Recommender
from trl_sdpo.recsys.metrics.fusion import COLD, EVENTS, Fusion
from trl_sdpo.serving.api import make_app


HISTORY = TITLES[:3]


def test_recommendations_are_those_of_the_recommender(client, recommender):
    found = client.post("/recommend", json={"history": HISTORY, "top_k": 4}).json()["recommendations"]
    expected = recommender.recommend(HISTORY, top_k=4)
    assert [item["title"] for item in found] == [item.title for item in expected]
    assert [item["item_id"] for item in found] == [item.item_id for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item.score for item in expected], abs=1e-4)


def test_scores_stand_in_the_order_of_the_candidates(client, recommender):
    body = {"history": [100, {"item_id": "101"}, {"title": TITLES[2]}], "candidates": [TITLES[9], 105, 109, 109]}
    found = client.post("/score", json=body).json()["scores"]
    (expected,) = recommender.score([["100", "101", "102"]], [["109", "105", "109", "109"]])
    assert [item["item_id"] for item in found] == ["109", "105", "109", "109"]
    assert [item["score"] for item in found] == pytest.approx(list(expected), abs=1e-4)


@pytest.mark.parametrize("score", ["likelihood", "pmi"])
def test_the_score_that_is_asked_for(client, recommender, score):
    (expected,) = recommender.score([["100", "101"]], [["109", "105"]], score=score)
    found = client.post("/score", json={"history": [100, 101], "candidates": [109, 105], "score": score}).json()
    assert [item["score"] for item in found["scores"]] == pytest.approx(list(expected), abs=1e-4)
    (expected,) = recommender.recommend_ids([["100", "101"]], top_k=3, score=score)
    found = client.post("/recommend", json={"history": [100, 101], "top_k": 3, "score": score}).json()
    assert [item["item_id"] for item in found["recommendations"]] == [item.item_id for item in expected]


def test_a_fusion_is_what_is_served(recommender, fused):
    with TestClient(make_app(fused, timeout=20)) as client:
        for asked, score in (({}, "fusion"), ({"score": "fusion"}, "fusion"), ({"score": "likelihood"}, "likelihood")):
            found = client.post("/recommend", json={"history": HISTORY, "top_k": 4, **asked}).json()
            expected = fused.recommend(HISTORY, top_k=4, score=score)
            assert [item["item_id"] for item in found["recommendations"]] == [item.item_id for item in expected]
            body = {"history": [100, 101], "candidates": [109, 105], **asked}
            found = client.post("/score", json=body).json()["scores"]
            (values,) = fused.score([["100", "101"]], [["109", "105"]], score=score)
            assert [item["score"] for item in found] == pytest.approx(list(values), abs=1e-4)


@pytest.fixture
def fused(recommender):
    """What is popular counts more than what the model says."""
    fusion = Fusion(("lm", EVENTS, COLD), (0.1, 2.0, -1.0), (0.0,) * 3, (0.0,) * 3, -1.0, 1)
    given = (recommender.model, recommender.processing_class, recommender.config, recommender.catalogue)
    return Recommender(*given, fusion=fusion)


def test_requests_that_come_together_get_their_own_answers(client, recommender):
    histories = [TITLES[number : number + 2 + number % 3] for number in range(24)]

    def ask(history):
        return client.post("/recommend", json={"history": history, "top_k": 3}).json()["recommendations"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, histories))
    for history, answer in zip(histories, answers, strict=True):
        assert [item["title"] for item in answer] == [item.title for item in recommender.recommend(history, top_k=3)]


def test_health(client):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["items"] == len(TITLES)


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        ("/recommend", {"history": []}, "history", "at least 1"),
        ("/recommend", {"history": [100], "score": "fusion"}, "score", "has no fusion"),
        ("/score", {"history": [100], "candidates": [101], "score": "reward"}, "score", "needs the model before"),
        ("/score", {"history": [100], "candidates": [101], "score": "best"}, "score", "likelihood"),
        ("/recommend", {"history": [100], "score": "pmi", "num_beams": 4}, "num_beams", "without beams"),
        ("/recommend", {"history": ["Red Rivver (1950)"]}, "history[0]", "no title"),
        ("/recommend", {"history": [100, 7]}, "history[1]", "7 is no id"),
        ("/recommend", {"history": [True]}, "history[0]", "valid"),
        ("/recommend", {"history": [None]}, "history[0]", "valid"),
        ("/recommend", {"history": [1.5]}, "history[0]", "valid"),
        ("/recommend", {"history": [{"item_id": "100", "title": "x"}]}, "history[0]", "either"),
        ("/recommend", {"history": HISTORY, "top_k": 0}, "top_k", "greater"),
        ("/recommend", {"history": HISTORY, "top_k": 101}, "top_k", "less"),
        ("/recommend", {"history": HISTORY, "num_beams": 1}, "num_beams", "greater"),
        ("/recommend", {"history": HISTORY, "path": "/etc/passwd"}, "path", "not permitted"),
        ("/recommend", {}, "history", "required"),
        ("/score", {"history": HISTORY}, "candidates", "required"),
        ("/score", {"history": HISTORY, "candidates": ["x" * 2000]}, "candidates[0]", "at most"),
    ],
)
def test_an_error_names_the_field(client, path, body, field, words):
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["field"] == field
    assert words in error["message"]


def is_an_error_without_a_trace(answer):
    error = answer.json()["error"]
    assert set(error) == {"field", "message"}
    assert 400 <= answer.status_code < 500, answer.text
    for leak in ("Traceback", 'File "', ".py", "site-packages", "line 1,"):
        assert leak not in answer.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
bad_bodies = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"history": json_values}, optional={"top_k": json_values, "candidates": json_values}).map(
        lambda value: json.dumps(value).encode()
    )
    | st.integers(300_000, 400_000).map(lambda size: b'{"history": ["' + b"x" * size + b'"]}')
    | st.sampled_from([b"[" * 100_000, b'{"history": ["\\ud800"]}', b'{"history": [1' + b"0" * 5_000 + b"]}", b""])
)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(["/recommend", "/score"]), body=bad_bodies)
def test_no_body_breaks_the_server_or_shows_what_is_inside(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 200:  # a number may be the id of an item by chance
        assert isinstance(json.loads(body)["history"], list)
    else:
        is_an_error_without_a_trace(answer)


def test_a_body_without_a_length_is_cut_off(client):
    answer = client.post("/recommend", content=(b"x" * 1000 for _ in range(1000)))
    assert answer.status_code == 413
    is_an_error_without_a_trace(answer)


@pytest.mark.parametrize(
    "path", ["/", "/recommend", "/../etc/passwd", "/static/../../setup.cfg", "/static/%2e%2e/a.py"]
)
def test_other_paths_are_not_found(client, path):
    is_an_error_without_a_trace(client.get(path))


def test_the_page_of_the_interface_needs_nothing_from_elsewhere(client):
    page = client.get("/docs").text
    assert "http://" not in page.replace("http://testserver", "")
    assert "https://" not in page
    assert client.get("/static/swagger-ui-bundle.js").status_code == 200
    assert set(client.get("/openapi.json").json()["paths"]) == {"/recommend", "/score", "/health"}


class Slow:
    """A recommender whose computation is held up, or fails."""

    def __init__(self, recommender, error=None):
        self.recommender, self.error, self.go, self.started = recommender, error, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self.recommender, name)

    def recommend_ids(self, *args, **kwargs):
        if self.error:
            raise self.error
        self.started.set()
        self.go.wait(10)
        return self.recommender.recommend_ids(*args, **kwargs)


def test_a_full_queue_and_a_slow_answer_are_said(recommender):
    slow = Slow(recommender)
    with TestClient(make_app(slow, max_waiting=1, timeout=1.0)) as client, ThreadPoolExecutor(3) as pool:
        ask = lambda: client.post("/recommend", json={"history": HISTORY})  # noqa: E731
        first = pool.submit(ask)
        slow.started.wait(10)
        others = [pool.submit(ask) for _ in range(2)]
        answers = [one.result(10) for one in others]
        assert sorted(answer.status_code for answer in answers) == [503, 504]
        assert first.result(10).status_code == 504
        slow.go.set()
        assert next(a for a in answers if a.status_code == 503).headers["Retry-After"] == "1"
        # those who gave up are passed over, and hold a place until then
        assert any(ask().status_code == 200 for _ in range(100))


def test_a_failure_inside_is_logged_and_not_shown(recommender, caplog):
    slow = Slow(recommender, RuntimeError("CUDA out of memory in /secret/path.py"))
    with TestClient(make_app(slow), raise_server_exceptions=False) as client:
        answer = client.post("/recommend", json={"history": HISTORY})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    number = answer.json()["error"]["message"].split()[-1].rstrip(".")
    assert number in caplog.text
    assert "CUDA out of memory" in caplog.text
