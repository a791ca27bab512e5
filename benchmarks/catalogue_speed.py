"""
What the constraint to a catalogue costs: `search_catalogue` against the unconstrained beam search of transformers.

    python benchmarks/catalogue_speed.py                                            # a small Llama, about a minute
    python benchmarks/catalogue_speed.py --model HuggingFaceTB/SmolLM2-135M-Instruct --prompts 8 --rounds 3

10,000 made-up titles, prompts of ten of them, 10 beams. The systems take turns on the same prompts, and each takes the
same number of steps: as many as the longest title has tokens. What they find does not matter here, so the small Llama
is untrained; the less a model costs, the more the constraint shows.

- `constrained`: `search_catalogue`, its trie made before;
- `unconstrained`: `generate` with the same beams, steps and cache of the prompts, so that the ratio is that of the
  constraint alone;
- `unconstrained, prompts 10 times`: `generate` as it is called by itself, which computes a prompt once for each beam;
- `prefix_allowed_tokens_fn`: `generate` with transformers' own constraint, a Python function called for every beam.
"""

import argparse
import itertools
import statistics
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trl_sdpo.pipeline import build_small_llama, resolve_model, train_title_tokenizer
from trl_sdpo.recsys import get_template
from trl_sdpo.scoring.catalogue_search import _prompt_cache, search_catalogue
from trl_sdpo.scoring.generation import generating, left_padded
from trl_sdpo.scoring.title_trie import TitleTrie


WORDS = """
    Quiet Red Last Long Broken Silent Golden Lost Secret Winter Distant Hidden Second Blue Empty Burning
    River Hotel Train Summer Door Garden Letter Night Island Witness Song Mirror Harbor Stranger Road Daughter
    Lisbon Oslo Kyoto Quito Dublin Cairo Turin Havana Riga Lagos Hanoi Bern Malmo Tunis Perth Graz
"""
FORMS = ("The {0} {1}", "{1} of {2}", "{0} {1} in {2}", "The {1}", "{0} {1}s", "A {0} {1}, Part II")


def made_up_titles(number: int, seed: int) -> list[str]:
    """Distinct titles with years, of words that recur as they do in a catalogue."""
    adjectives, nouns, places = (line.split() for line in WORDS.strip().splitlines())
    combinations = itertools.product(FORMS, adjectives, nouns, places, range(1950, 2010, 3))
    titles = sorted({f"{form.format(*words)} ({year})" for form, *words, year in combinations})
    return np.random.default_rng(seed).choice(titles, size=number, replace=False).tolist()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or path; without, an untrained Llama of 3 million parameters")
    parser.add_argument("--titles", type=int, default=10_000)
    parser.add_argument("--beams", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="how often each system is timed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of titles, prompts and weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-python", action="store_true", help="leave prefix_allowed_tokens_fn out")
    return parser.parse_args()


class Systems:
    """The systems on the prompts; each is a method without arguments."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        template = get_template("watched")
        self.titles = made_up_titles(args.titles, args.seed)
        histories = np.random.default_rng(args.seed + 1).choice(self.titles, size=(args.prompts, 10))
        self.prompts = [template.render(history.tolist()) for history in histories]
        if args.model is None:
            self.tokenizer = train_title_tokenizer(self.titles, ["This user has watched", ". Next:"], 4096)
            self.model = build_small_llama(self.tokenizer, seed=args.seed).to(args.device)
        else:
            path = resolve_model(args.model)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModelForCausalLM.from_pretrained(path).to(args.device)
        start = time.perf_counter()
        self.trie = TitleTrie.from_titles(self.titles, self.tokenizer, self.prompts[0])
        self.seconds_of_trie = time.perf_counter() - start
        self.tree = self._python_tree()

    def _python_tree(self) -> dict:
        tree = {}
        prompt_length = len(self.tokenizer(self.prompts[0])["input_ids"])
        texts = [f"{self.prompts[0]} {title}{self.tokenizer.eos_token}" for title in self.titles]
        for ids in self.tokenizer(texts)["input_ids"]:
            node = tree
            for token in ids[prompt_length:]:
                node = node.setdefault(token, {})
        return tree

    def constrained(self) -> None:
        search_catalogue(
            self.model,
            self.prompts,
            self.tokenizer,
            self.trie,
            num_beams=self.args.beams,
            top_k=self.args.beams,
            batch_size=self.args.batch_size,
        )

    def unconstrained(self) -> None:
        self._generate(shared_prompts=True)

    def unconstrained_by_itself(self) -> None:
        self._generate(shared_prompts=False)

    def python_constraint(self) -> None:
        self._generate(shared_prompts=True, python=True)

    def _generate(self, shared_prompts: bool, python: bool = False) -> None:
        args = self.args
        prompt_ids = self.trie.prompt_ids(self.prompts, self.tokenizer)
        config = GenerationConfig(
            do_sample=False,
            num_beams=args.beams,
            num_return_sequences=args.beams,
            max_new_tokens=self.trie.depth,
            length_penalty=0.0,
            # without an end the search takes every step
            eos_token_id=None,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
        )
        order = np.argsort([-len(ids) for ids in prompt_ids], kind="stable")
        with generating(self.model):
            for start in range(0, len(order), args.batch_size):
                some = [prompt_ids[index] for index in order[start : start + args.batch_size]]
                batch = left_padded(some, self.tokenizer, self.model.device)
                cache = _prompt_cache(self.model, batch, args.beams) if shared_prompts else {}
                allowed = self._allowed(batch["input_ids"].size(1)) if python else None
                self.model.generate(**batch, **cache, generation_config=config, prefix_allowed_tokens_fn=allowed)

    def _allowed(self, prompt_length: int):
        def allowed_tokens(batch_id, input_ids):
            node = self.tree
            for token in input_ids[prompt_length:].tolist():
                node = node.get(token, {})
            return list(node) or [self.tokenizer.pad_token_id]

        return allowed_tokens


def count_steps(systems: Systems, run) -> int:
    """Forward passes of the backbone for the first batch, without that of the prompts."""
    calls = []
    handle = systems.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    batches = -(-systems.args.prompts // systems.args.batch_size)
    return len(calls) // batches - 1


def main() -> None:
    args = parse_arguments()
    systems = Systems(args)
    runs = {
        "constrained": systems.constrained,
        "unconstrained": systems.unconstrained,
        f"unconstrained, prompts {args.beams} times": systems.unconstrained_by_itself,
        "prefix_allowed_tokens_fn": systems.python_constraint,
    }
    if args.skip_python:
        del runs["prefix_allowed_tokens_fn"]
    seconds = {name: [] for name in runs}
    steps = {name: count_steps(systems, run) for name, run in runs.items() if name in ("constrained", "unconstrained")}
    for _ in range(args.rounds):
        for name, run in runs.items():
            if args.device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    model = args.model or "an untrained Llama"
    print(
        f"\n{model}, {systems.model.num_parameters() / 1e6:.1f} million parameters, vocabulary {len(systems.tokenizer)}, "
        f"{args.device}, {torch.get_num_threads()} threads, seed {args.seed}\n{args.titles} titles of at most "
        f"{systems.trie.depth} tokens, trie of {systems.trie.num_nodes} nodes made in {systems.seconds_of_trie:.2f} s; "
        f"{args.prompts} prompts, {args.beams} beams, batches of {args.batch_size}; steps: {steps}\n"
    )
    best = min(seconds["unconstrained"])
    print(f"{'':34}{'median s':>10}{'least s':>10}{'ratio of medians':>18}{'of least':>10}")
    for name, values in seconds.items():
        ratio = statistics.median(values) / statistics.median(seconds["unconstrained"])
        print(f"{name:34}{statistics.median(values):10.3f}{min(values):10.3f}{ratio:18.2f}{min(values) / best:10.2f}")


if __name__ == "__main__":
    main()
