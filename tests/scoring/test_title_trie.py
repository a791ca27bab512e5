import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from helpers.synchronisations import waiting
from trl_sdpo.scoring.catalogue_search import EndOfTitleCriteria, TrieLogitsProcessor
from trl_sdpo.scoring.title_trie import TitleTrie


END = 1


def random_paths(seed, num=200, vocab_size=7, longest=5):
    """Many beginnings in common, many titles within others, and some twice."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, vocab_size, size=rng.integers(1, longest)).tolist(), END] for _ in range(num)]


def beginnings(paths):
    return {tuple(path[:length]) for path in paths for length in range(len(path) + 1)}


def allowed_after(paths, beginning):
    length = len(beginning)
    return sorted({path[length] for path in paths if len(path) > length and tuple(path[:length]) == beginning})


@pytest.mark.parametrize("seed", range(5))
def test_walks_and_edges_are_those_of_the_titles(seed):
    paths = random_paths(seed)
    trie = TitleTrie(paths)
    assert trie.num_nodes == len(beginnings(paths))
    for beginning in beginnings(paths):
        node = trie.walk(torch.tensor([beginning], dtype=torch.long))
        assert trie.tokens_after(node) == allowed_after(paths, beginning)
        assert trie.is_leaf(node).item() == (list(beginning) in paths)
        expected = paths.index(list(beginning)) if list(beginning) in paths else None
        assert trie.title_at(node.item()) == expected


def test_rows_do_not_mix():
    paths = random_paths(0)
    trie = TitleTrie(paths)
    some = [beginning for beginning in sorted(beginnings(paths)) if len(beginning) == 2]
    nodes = trie.walk(torch.tensor([*some, (0, 0)]))
    assert nodes[-1] == -1
    rows, tokens, children = trie.edges(nodes)
    for row, beginning in enumerate(some):
        assert tokens[rows == row].tolist() == allowed_after(paths, beginning)
        ends = [trie.walk(torch.tensor([[*beginning, token]])).item() for token in tokens[rows == row].tolist()]
        assert children[rows == row].tolist() == ends
    assert (rows < len(some)).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1_000),
    num=st.integers(1, 40),
    num_beams=st.integers(1, 4),
    written=st.integers(0, 6),
    excluding=st.booleans(),
    data=st.data(),
)
def test_logits_of_what_goes_on_to_a_title_alone(seed, num, num_beams, written, excluding, data):
    """By looking through all titles; also for beams that have ended, and for tokens that no title has."""
    paths = random_paths(seed, num)
    trie, prompts = TitleTrie(paths), 2
    rng = np.random.default_rng(seed)
    excluded = [rng.permutation(num)[: num // 3].tolist() if excluding else [] for _ in range(prompts)]
    # all that share the tokens of one that is left out are left out
    left = [[path for path in paths if path not in [paths[title] for title in out]] for out in excluded]
    rows = []
    for _ in range(prompts * num_beams):
        path = paths[rng.integers(num)][:written] if data.draw(st.booleans()) else []
        rows.append([*path, *rng.integers(0, 8, size=written - len(path)).tolist()])
    prompt = torch.full((len(rows), 3), 5)
    input_ids = torch.cat([prompt, torch.tensor(rows, dtype=torch.long).view(len(rows), written)], dim=1)
    scores = torch.randn(len(rows), 9, generator=torch.Generator().manual_seed(seed))
    closed = [trie.closed_nodes(titles) for titles in excluded] if excluding else None
    processor = TrieLogitsProcessor(trie, 3, num_beams, closed)
    with waiting() as found:
        logits = processor(input_ids, scores)
        EndOfTitleCriteria(trie, 3)(input_ids, scores)
    assert not found
    for row, beginning in enumerate(rows):
        tokens = allowed_after(left[row // num_beams], tuple(beginning))
        expected = torch.full((9,), -torch.inf)
        expected[tokens] = scores[row, tokens]
        assert torch.equal(logits[row], expected)


def test_tokens_that_no_title_has_lead_nowhere():
    trie = TitleTrie([[3, 5, END], [4, END]])
    # 6 tokens fit into a key: 1 + 6 * node of one node is 7 of the node before
    tokens = torch.tensor([[3, 6], [3, 7], [3, -1], [3, 11], [-1, 3], [99, 3], [4, 5], [2, 2]])
    assert trie.walk(tokens).tolist() == [-1] * len(tokens)
    assert not trie.is_leaf(trie.walk(tokens)).any()
    assert trie.walk(torch.empty((2, 0), dtype=torch.long)).tolist() == [0, 0]


def test_same_titles():
    trie = TitleTrie([[3, END], [4, END], [3, END], [3, 4, END]])
    assert [trie.same_titles(title) for title in range(4)] == [[0, 2], [1], [0, 2], [3]]
    assert trie.title_at(trie.walk(torch.tensor([[3, END]])).item()) == 0


@pytest.mark.parametrize("seed", range(5))
def test_closed_nodes_are_those_with_nothing_left(seed):
    paths = random_paths(seed, num=40)
    trie = TitleTrie(paths)
    excluded = np.random.default_rng(seed).choice(len(paths), size=25, replace=False)
    gone = [paths[title] for title in excluded]
    left = beginnings([path for path in paths if path not in gone])
    expected = sorted(
        trie.walk(torch.tensor([beginning], dtype=torch.long)).item() for beginning in beginnings(gone) - left
    )
    assert trie.closed_nodes(excluded).tolist() == expected
    assert trie.closed_nodes([]).tolist() == []
    assert trie.closed_nodes(range(len(paths))).tolist() == list(range(1, trie.num_nodes))  # all but the root


class TestFromTitles:
    TITLES = ("Red River (1948)", "Red", "Red River", "Blue Hotel", "Red")

    def test_tokens_are_those_of_a_record(self, tokenizer):
        prompt = "Watched: A Quiet Place (1965). Next:"
        trie = TitleTrie.from_titles(self.TITLES, tokenizer, prompt)
        prompt_ids = tokenizer(prompt)["input_ids"]
        for title in self.TITLES:
            ids = tokenizer(f"{prompt} {title}{tokenizer.eos_token}")["input_ids"]
            assert ids[: len(prompt_ids)] == prompt_ids
            node = trie.walk(torch.tensor([ids[len(prompt_ids) :]])).item()
            assert self.TITLES[trie.title_at(node)] == title
        assert trie.same_titles(4) == [1, 4]
        assert trie.prompt_ids([prompt, prompt_ids], tokenizer) == [prompt_ids, prompt_ids]

    def test_a_suffix_in_place_of_the_end_token(self, tokenizer):
        trie = TitleTrie.from_titles(self.TITLES, tokenizer, "Films:\n", "", "\n", append_eos=False)
        ids = tokenizer("Red River\n")["input_ids"]
        assert trie.title_at(trie.walk(torch.tensor([ids])).item()) == 2

    def test_without_an_end_titles_that_begin_others_are_refused(self, tokenizer):
        with pytest.raises(ValueError, match=r"Title 1, 'Red': its tokens are the beginning of another title's"):
            TitleTrie.from_titles(self.TITLES, tokenizer, "Next:", append_eos=False)

    def test_messages(self, tokenizer):
        prompt = [{"role": "user", "content": "What next?"}]
        trie = TitleTrie.from_titles(self.TITLES, tokenizer, prompt)
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        (ids,) = trie.prompt_ids([prompt], tokenizer)
        assert tokenizer.decode(ids) == asked
        ends = tokenizer("Red River<|im_end|>\n")["input_ids"]
        assert trie.title_at(trie.walk(torch.tensor([ends])).item()) == 2

    def test_prompts_that_end_within_a_token(self, tokenizer):
        with pytest.raises(ValueError, match="Row 0: the prompt does not end where a token ends"):
            TitleTrie.from_titles(self.TITLES, tokenizer, "Next: ", "")
        trie = TitleTrie.from_titles(self.TITLES, tokenizer, "Films:\n", "")
        with pytest.raises(ValueError, match="Row 1: the prompt does not end where a token ends"):
            trie.prompt_ids(["Films:\n", "Films: "], tokenizer)

    def test_a_prompt_after_which_titles_have_other_tokens(self, tokenizer):
        """A tokenizer that marks beginnings of texts, as SentencePiece does."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "ab": 2, ">": 3, "<e>": 4, "?": 5}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.Split(">", "isolated")
        words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", pad_token="?")
        trie = TitleTrie.from_titles(["a", "b"], words, "a>", "", "")
        assert trie.prompt_ids(["b>"], words) == [[1, 3]]
        trie.example = ("a", [1, 4], "<e>")
        with pytest.raises(
            ValueError, match=r"Row 0: after the prompt 'b>' the completion 'a' is the tokens \[0, 4\]"
        ):
            trie.prompt_ids(["b>"], words)


def test_errors(tokenizer):
    with pytest.raises(ValueError, match="There are no titles"):
        TitleTrie([])
    with pytest.raises(ValueError, match="Title 1: no tokens"):
        TitleTrie([[1], []])
    with pytest.raises(ValueError, match="Title 0: its tokens are the beginning"):
        TitleTrie([[3], [3, 4]])
    with pytest.raises(ValueError, match="Title 1: ' ' is no text"):
        TitleTrie.from_titles(["Heat", " "], tokenizer, "Next:")
    with pytest.raises(ValueError, match="Title 0: None is no text"):
        TitleTrie.from_titles([None], tokenizer, "Next:")
    with pytest.raises(ValueError, match=r"The prompt \[4, 5\] is no text and no messages"):
        TitleTrie.from_titles(["Heat"], tokenizer, [4, 5])
    with pytest.raises(ValueError, match="Row 0: the trie was made of tokens"):
        TitleTrie([[3]]).prompt_ids(["Next:"], tokenizer)
    with pytest.raises(ValueError, match=r"no title 2 to exclude: titles count from 0 to 1"):
        TitleTrie([[3], [4]]).closed_nodes([2, 0])
    with pytest.raises(ValueError, match=r"no title -1 to exclude"):
        TitleTrie([[3], [4]]).closed_nodes([-1])


@pytest.mark.parametrize("seed", range(3))
def test_a_trie_that_is_kept_is_the_same(tmp_path, seed):
    trie = TitleTrie(random_paths(seed))
    trie.save(tmp_path / "trie.safetensors", "these titles")
    assert TitleTrie.load(tmp_path / "trie.safetensors", "other titles") is None
    kept = TitleTrie.load(tmp_path / "trie.safetensors", "these titles")
    assert kept.paths() == trie.paths() == random_paths(seed)
    assert kept.distinct_titles().tolist() == trie.distinct_titles().tolist()
    assert kept.closed_nodes([3, 9, 20]).tolist() == trie.closed_nodes([3, 9, 20]).tolist()
    nodes = torch.arange(trie.num_nodes)
    for ours, theirs in zip(kept.edges(nodes), trie.edges(nodes), strict=True):
        assert ours.tolist() == theirs.tolist()
    assert kept.is_leaf(nodes).tolist() == trie.is_leaf(nodes).tolist()
    assert (kept.num_nodes, kept.depth, kept.example) == (trie.num_nodes, trie.depth, None)


def test_many_titles_have_the_tokens_of_few(tokenizer, monkeypatch):
    """In parts, each completion once; and wholly where the prompt merges with some of them."""
    titles = [f"Film {number} ({1950 + number})" for number in range(40)]
    for prompt, prefix in (("Next:", " "), ([{"role": "user", "content": "Next?"}], " "), ("Next:\n", "")):
        whole = TitleTrie.from_titles(titles, tokenizer, prompt, prefix)
        monkeypatch.setattr("trl_sdpo.scoring.title_tokens._AT_ONCE", 7)
        assert TitleTrie.from_titles(titles, tokenizer, prompt, prefix).paths() == whole.paths()
        monkeypatch.undo()
