"""
Requests a second of `trl-sdpo serve` against a loop of single calls of the same recommender, in one run:
`python benchmarks/serve_speed.py`. A model of random weights and invented titles; all requests go to this machine.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_sdpo import Catalogue, Recommender, RecommenderConfig, save_recommender_files
from trl_sdpo.recsys import get_template


WORDS = ["River", "Hotel", "Train", "Summer", "Light", "Mile", "Winter", "Door", "Letter", "Garden", "Island", "Song"]


def make_model(folder: Path, items: int, layers: int, width: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(0)
    titles = sorted({f"{' '.join(rng.sample(WORDS, 3))} ({rng.randint(1930, 2020)})" for _ in range(2 * items)})[
        :items
    ]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [f" {title}" for title in titles],
        trainers.BpeTrainer(vocab_size=1000, special_tokens=["<end>", "<pad>"], initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    catalogue = Catalogue([str(number) for number in range(len(titles))], titles)
    save_recommender_files(folder, RecommenderConfig([get_template("watched")]), catalogue)


def wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            return
        except OSError:
            if process.poll() is not None:
                raise SystemExit("The server ended before it answered.") from None
            time.sleep(0.2)
    raise SystemExit("The server does not answer.")


def ask(address: str, history: list[str]) -> float:
    body = json.dumps({"history": history, "top_k": 10}).encode()
    request = urllib.request.Request(f"{address}/recommend", body, {"Content-Type": "application/json"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--items", type=int, default=1700)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        make_model(Path(folder), args.items, args.layers, args.width)
        recommender = Recommender.from_pretrained(folder, device="cpu")
        rng = random.Random(1)
        histories = [rng.sample(recommender.catalogue.titles, 10) for _ in range(args.requests)]
        recommender.recommend(histories[0])
        started = time.perf_counter()
        for history in histories:
            recommender.recommend(history, top_k=10)
        single = len(histories) / (time.perf_counter() - started)
        print(f"A loop of single calls: {single:.1f} requests/s")

        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        words = ["serve", "--model", folder, "--port", str(port), "--device", "cpu", "--timeout", "120"]
        process = subprocess.Popen([sys.executable, "-m", "trl_sdpo.cli", *words], env=os.environ)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process)
            ask(address, histories[0])
            for clients in args.clients:
                started = time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    times = sorted(pool.map(lambda history: ask(address, history), histories))
                rate = len(times) / (time.perf_counter() - started)
                p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
                print(
                    f"{clients:3} clients: {rate:.1f} requests/s, {rate / single:.2f} times the loop; "
                    f"p50 {statistics.median(times):.3f} s, p99 {p99:.3f} s"
                )
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
