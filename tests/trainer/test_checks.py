import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification, ProcessorMixin, T5Config, T5ForConditionalGeneration

from trl_sdpo import SoftmaxDPOConfig
from trl_sdpo.losses.loss_types import MULTI_PREFERENCE_LOSS_TYPES
from trl_sdpo.trainer.checks import check_multi_preference_options, check_preference_options


@pytest.fixture
def config(tmp_path):
    def make(**kwargs):
        return SoftmaxDPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **kwargs)

    return make


@pytest.fixture
def encoder_decoder(tokenizer):
    return T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )


class TestModels:
    @pytest.mark.parametrize("kind", ["instance", "path", "peft"])
    def test_encoder_decoder(self, encoder_decoder, records, make_trainer, tmp_path, kind):
        model = encoder_decoder
        if kind == "path":
            encoder_decoder.save_pretrained(tmp_path / "model")
            model = str(tmp_path / "model")
        elif kind == "peft":
            model = get_peft_model(encoder_decoder, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"]))
        with pytest.raises(ValueError, match=r"is an encoder-decoder model: .* Use a causal language model"):
            make_trainer(model, records(4))

    def test_no_lm_head(self, llama, records, make_trainer):
        for model in (llama().model, LlamaForSequenceClassification(llama().config)):
            with pytest.raises(ValueError, match=f"{type(model).__name__} has no LM head.*`AutoModelForCausalLM`"):
                make_trainer(model, records(4))

    @pytest.mark.parametrize("kind", ["switched off", "merged", "frozen", "tuples", "DataParallel", "compiled"])
    def test_that_cannot_train(self, llama, records, make_trainer, kind):
        """Training would change nothing, or end in an error of another library."""
        adapted = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
        model, says = {
            "switched off": (adapted, r"adapter of the model is switched off.*enable_adapter_layers"),
            "merged": (adapted, r"adapter of the model is merged into its base.*unmerge_adapter"),
            "frozen": (adapted, r"has no trainable parameter.*`model\.requires_grad_\(True\)`"),
            "tuples": (llama(), r"returns tuples.*`model\.config\.return_dict = True`"),
            "DataParallel": (torch.nn.DataParallel(llama()), r"wrapped in `DataParallel`.*`model\.module`"),
            "compiled": (torch.compile(llama(), backend="eager"), r"wrapped in `OptimizedModule`.*`model\._orig_mod`"),
        }[kind]
        if kind == "switched off":
            model.base_model.disable_adapter_layers()
        elif kind == "merged":
            model.merge_adapter()
        elif kind == "frozen":
            model = model.merge_and_unload()
        elif kind == "tuples":
            model.config.return_dict = False
        with pytest.raises(ValueError, match=says):
            make_trainer(model, records(4), ref_model=None)

    @pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
    def test_beta_of_which_nothing_is_learned(self, llama, records, make_trainer, beta):
        with pytest.raises(ValueError, match=f"`beta={beta}` must be above 0"):
            make_trainer(llama(), records(4), args={"beta": beta})
        make_trainer(llama(), records(4), args={"beta": beta, "loss_type": "sft"})


class TestImages:
    @pytest.mark.parametrize("column", ["image", "images"])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_training(self, llama, records, make_trainer, column, streaming):
        dataset = Dataset.from_list([{**row, column: [0, 1]} for row in records(4)])
        if streaming:
            # a map without known features leaves the columns of a stream unknown
            dataset = dataset.to_iterable_dataset().map(lambda row: row)
        with pytest.raises(ValueError, match=f"The train dataset has a column `{column}`: images are not supported"):
            make_trainer(llama(), dataset)

    @pytest.mark.parametrize("named", [False, True])
    def test_evaluation(self, llama, records, make_trainer, named):
        dataset = Dataset.from_list([{**row, "images": [0]} for row in records(4)])
        eval_dataset = {"clean": Dataset.from_list(records(4)), "seen": dataset} if named else dataset
        name = "seen" if named else "eval"
        with pytest.raises(ValueError, match=f"The {name} dataset has a column `images`.*to_preference_pairs"):
            make_trainer(llama(), records(4), eval_dataset=eval_dataset)


class TestMultiPreferenceOptions:
    @pytest.mark.parametrize(
        "options",
        [
            *({"loss_type": [name]} for name in MULTI_PREFERENCE_LOSS_TYPES),
            {"loss_type": ["softmax", "mppo", "hinge", "sft"]},
            {"loss_type": ["sigmoid", "ipo", "sft"], "f_divergence_type": "js_divergence"},
            {"loss_type": ["nca_pair", "sft"], "ld_alpha": 0.0},
            {"loss_type": ["apo_zero", "hinge"], "use_weighting": True},
            {"loss_type": ["softmax", "robust"], "label_smoothing": 0.4},
        ],
    )
    def test_what_is_defined(self, config, options):
        assert check_multi_preference_options(config(**options)) is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"loss_type": ["softmax", "aot", "aot_unpaired"]},
                r"`loss_type=\['aot', 'aot_unpaired'\]` is not defined .* sorts .* Use `to_preference_pairs`",
            ),
            ({"loss_type": ["softmax", "kto"]}, r"`loss_type=\['kto'\]` is not defined .*, only \['softmax', "),
            (
                {"f_divergence_type": "js_divergence", "loss_type": ["sigmoid", "softmax"]},
                r"`f_divergence_type='js_divergence'` is not defined for `loss_type=\['softmax'\]`.*use \['sigmoid'",
            ),
            (
                {"f_divergence_type": "forward_kl", "loss_type": ["apo_zero"]},
                r"`f_divergence_type='forward_kl'` is not defined for `loss_type=\['apo_zero'\]`.* reverse KL",
            ),
            ({"ld_alpha": 0.0}, r"`ld_alpha=0.0` is not defined for `loss_type=\['softmax'\]`.*use \['sigmoid'"),
            ({"ld_alpha": 1.5, "loss_type": ["ipo"]}, r"`ld_alpha` must be in \[0.0, 1.0\], got 1.5"),
            (
                {"ld_alpha": 0.5, "loss_type": ["ipo"], "precompute_ref_log_probs": True},
                "`ld_alpha=0.5` cannot be used with .* Set `precompute_ref_log_probs=False`",
            ),
            (
                {"use_weighting": True, "loss_type": ["dmpo", "sigmoid", "sft"]},
                r"`use_weighting=True` is not defined for `loss_type=\['dmpo', 'sft'\]`.*use \['sigmoid'",
            ),
            (
                {"label_smoothing": 0.1, "loss_type": ["sigmoid"]},
                r"`label_smoothing=0.1` changes nothing in `loss_type=\['sigmoid'\]`.* or use 'robust'",
            ),
            (
                {"label_smoothing": 0.5, "loss_type": ["robust"]},
                r"`label_smoothing` must be in \[0.0, 0.5\) for the 'robust' loss, got 0.5",
            ),
            (
                {"label_smoothing": 1.0, "loss_type": ["exo_pair"]},
                r"`label_smoothing` must be in \(0.0, 1.0\) for the 'exo_pair' loss, got 1.0",
            ),
            ({"truncation_mode": "keep_end"}, "`truncation_mode='keep_end'` does not apply .* shorten the prompts"),
            ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1` smooths .* `loss_type='robust'`"),
            (
                {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
                r"`activation_checkpointing_kwargs` with \['every_n_layers'\] is not supported.*Leave them out",
            ),
            ({"fp16": True}, "`fp16=True` has no effect on a CPU.* Use `bf16=True`"),
            (
                {"parallelism_config": ParallelismConfig(cp_size=2)},
                "`parallelism_config` with cp_size=2 is not .*`fsdp`",
            ),
            (
                {"parallelism_config": ParallelismConfig(sp_size=4)},
                "`parallelism_config` with sp_size=4 is not .*`fsdp`",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
    def test_what_is_not(self, config, options, message):
        with pytest.raises(ValueError, match=message):
            check_multi_preference_options(config(**options))

    @pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"dp_replicate_size": 2, "dp_shard_size": 2}])
    def test_parallelism_that_leaves_rows_whole(self, config, sizes):
        assert check_multi_preference_options(config(parallelism_config=ParallelismConfig(**sizes))) is None

    def test_parallelism_of_accelerate_launch(self, config, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
        assert check_multi_preference_options(config()) is None
        monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "8")
        with pytest.raises(ValueError, match="`parallelism_config` with cp_size=8 is not supported"):
            check_multi_preference_options(config())

    def test_losses_are_checked_by_the_names_that_are_given(self, config):
        args = config(loss_type=["sigmoid"], f_divergence_type="js_divergence")
        with pytest.raises(ValueError, match=r"is not defined for `loss_type=\['softmax'\]`"):
            check_multi_preference_options(args, ["softmax"])


def test_preference_data_take_every_loss_but_those_that_trl_has_not():
    assert check_preference_options(["softmax", "infonca", "nca", "dmpo", "aot", "sigmoid"]) is None
    with pytest.raises(ValueError, match=r"`loss_type=\['mppo'\]` is not a loss of TRL"):
        check_preference_options(["sigmoid", "mppo"])


def test_processor(llama, records, make_trainer, tokenizer):
    class TextProcessor(ProcessorMixin):
        def __init__(self, tokenizer, chat_template=None):
            super().__init__(tokenizer, chat_template=chat_template)

    with pytest.raises(ValueError, match=r"are supported for text models only. Pass a tokenizer"):
        make_trainer(llama(), records(4), processing_class=TextProcessor(tokenizer))
