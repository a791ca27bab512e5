import json
import subprocess
import sys

import pytest
from peft import LoraConfig, get_peft_model

from helpers.prepared_data import TITLES, Prepared
from helpers.tiny_models import build_llama, build_tokenizer
from trl_sdpo import Recommender, load_recommender_files
from trl_sdpo.recommender.export import export_recommender


# With torch and transformers alone: the package cannot be imported there
SCRIPT = """
import json, sys
sys.modules["trl_sdpo"] = sys.modules["peft"] = None
sys.path.insert(0, sys.argv[1])
from title_processor import TitleProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True, padding_side="left")
processor = TitleProcessor.from_folder(sys.argv[1], batch["input_ids"].shape[1])
output = model.generate(
    **batch, logits_processor=[processor], max_new_tokens=processor.max_new_tokens, num_beams=30, num_return_sequences=5,
    length_penalty=0.0, do_sample=False, return_dict_in_generate=True, output_scores=True,
)
texts = tokenizer.batch_decode(output.sequences[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps([[text.strip(), score] for text, score in zip(texts, output.sequences_scores.tolist())]))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory)


def make(prepared, template, adapter):
    folder, _ = prepared(template)
    files, tokenizer, model = load_recommender_files(folder), build_tokenizer(), None
    model = build_llama(len(tokenizer))
    if adapter:
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        )
    return Recommender(model, tokenizer, files.config, files.catalogue)


@pytest.mark.parametrize(("template", "adapter"), [("watched", True), ("lines", False)])
def test_generate_alone_gives_the_lists_of_the_recommender(prepared, tmp_path, template, adapter):
    recommender = make(prepared, template, adapter)
    export_recommender(recommender, tmp_path)
    histories = [TITLES[:3], TITLES[7:8]]
    expected = recommender.recommend(histories, top_k=5, num_beams=30, exclude_history=False)
    prompts = recommender._ranker.prompts.make(histories, None, recommender.catalogue.titles)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(prompts)], capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert [title for title, _ in found] == [item.title for items in expected for item in items]
    assert [score for _, score in found] == pytest.approx(
        [item.score for items in expected for item in items], abs=1e-3
    )


def test_the_recommender_is_left_as_it_was(prepared, tmp_path):
    recommender = make(prepared, "watched", adapter=True)
    before = recommender.recommend(TITLES[:2], top_k=3)
    export_recommender(recommender, tmp_path)
    assert recommender.recommend(TITLES[:2], top_k=3) == before
    again = Recommender.from_pretrained(tmp_path, device="cpu").recommend(TITLES[:2], top_k=3)
    assert [item.title for item in again] == [item.title for item in before]
    assert [item.score for item in again] == pytest.approx([item.score for item in before], abs=1e-4)


def test_without_a_catalogue_it_is_refused(prepared, tmp_path):
    recommender = make(prepared, "watched", adapter=False)
    with pytest.raises(ValueError, match=r"has no catalogue\.json"):
        export_recommender(Recommender(recommender.model, recommender.processing_class, recommender.config), tmp_path)
