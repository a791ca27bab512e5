"""Records of S-DPO's json hold what was written into it, or are refused by record."""

import json

import pytest
from hypothesis import strategies as st

from trl_sdpo.recsys import PromptTemplate, load_sdpo_json

from .. import independent


TEMPLATE = PromptTemplate("bare", "candidates", "{history}\x1f{num_candidates}: {candidates}\n->", "\x1e", "\x1d")
PIECES = st.sampled_from(["a", "B", "é", ":", "::", " ", '"', "\u2028", "\x85", "7", "\U0001f600", "\\", "\t"])
TITLE = st.lists(PIECES, min_size=1, max_size=4).map("".join)


def same(title):
    return " ".join(title.split())


class TestSdpoJson:
    inputs = 10_000

    def test_records(self, tmp_path, holds):
        """Histories in one text, as published with S-DPO, or in lists, as with DynamicPO and RecPO."""
        path = tmp_path / "records.json"

        def check(drawn, as_text, indent, ascii_only, encoding):
            rows = [
                {
                    "historyList": "::".join(history) if as_text else history,
                    "itemList": candidates,
                    "trueSelection": candidates[place % len(candidates)],
                }
                for history, candidates, place in drawn
            ]
            path.write_bytes(json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode(encoding))
            if any(bad(history, candidates, as_text, drawn) for history, candidates, _ in drawn):
                with pytest.raises(ValueError, match=r"record [0-9]+: "):
                    load_sdpo_json(path, template=TEMPLATE)
                return
            found = load_sdpo_json(path, template=TEMPLATE)
            assert len(found) == len(rows)
            for record, (history, candidates, place) in zip(found, drawn, strict=True):
                target = candidates[place % len(candidates)]
                assert record["candidates"] == candidates
                assert record["chosen"] == TEMPLATE.complete(target)
                assert record["rejected"] == [TEMPLATE.complete(one) for one in candidates if one != target]
                assert record["prompt"] == TEMPLATE.render(history, candidates)

        def bad(history, candidates, as_text, drawn):
            titles = {title for _, each, _ in drawn for title in each}
            if len({same(one) for one in candidates}) < len(candidates) or len(candidates) < 2:
                return True
            if any(not one.strip(independent.WHITE + "\x1c\x1d\x1e\x1f") for one in [*history, *candidates]):
                return True
            return as_text and (
                ":::" in "::".join(history) or any("::" in t and t in "::".join(history) for t in titles)
            )

        # what nobody can see is left out: a history with a title that has the separator in it and is in no list
        plain = TITLE.filter(lambda title: "::" not in title)
        row = st.tuples(
            st.lists(plain, min_size=1, max_size=4), st.lists(TITLE, min_size=1, max_size=4), st.integers(0, 9)
        )
        holds(
            check,
            st.lists(row, min_size=1, max_size=3),
            st.booleans(),
            st.sampled_from([None, 4]),
            st.booleans(),
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        )
