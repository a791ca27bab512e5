import pytest
from fastapi.testclient import TestClient

from helpers.prepared_data import Prepared
from helpers.tiny_models import build_llama, build_tokenizer
from trl_sdpo import Recommender, load_recommender_files
from trl_sdpo.serving.api import make_app


@pytest.fixture(scope="package")
def prepared_folder(tmp_path_factory):
    return Prepared(tmp_path_factory)()[0]


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory, prepared_folder):
    """A saved model of random weights, with what a recommender needs beside it."""
    from trl_sdpo import copy_recommender_files

    folder, tokenizer = tmp_path_factory.mktemp("model"), build_tokenizer()
    build_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    copy_recommender_files(prepared_folder, folder)
    return folder


@pytest.fixture(scope="package")
def recommender(prepared_folder):
    files, tokenizer = load_recommender_files(prepared_folder), build_tokenizer()
    return Recommender(build_llama(len(tokenizer)), tokenizer, files.config, files.catalogue)


@pytest.fixture(scope="package")
def client(recommender):
    with TestClient(make_app(recommender, timeout=20), raise_server_exceptions=False) as client:
        yield client
