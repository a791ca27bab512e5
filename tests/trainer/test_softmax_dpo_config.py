import dataclasses
import json
import logging

import pytest
import yaml
from transformers import HfArgumentParser
from trl import DPOConfig, TrlParser

from trl_sdpo import SoftmaxDPOConfig, to_softmax_dpo_config


@pytest.fixture
def config(tmp_path):
    def make(cls=SoftmaxDPOConfig, **kwargs):
        return cls(output_dir=str(tmp_path), use_cpu=True, **{"bf16": False, "report_to": "none", **kwargs})

    return make


class TestDefaults:
    def test_those_of_the_paper(self, config):
        args = config()
        assert args.beta == 1.0
        assert args.learning_rate == 1e-5
        assert args.loss_type == ["softmax"]
        assert args.num_negatives is None
        assert args.prefix_sharing == "auto"

    def test_everything_else_is_as_in_trl(self, config):
        ours, theirs = config().to_dict(), config(DPOConfig).to_dict()
        changed = {name for name in theirs if ours[name] != theirs[name]}
        assert changed == {"beta", "learning_rate", "loss_type"}
        assert set(ours) - set(theirs) == {
            "num_negatives",
            "prefix_sharing",
            "max_row_length",
            "max_tokens_per_pass",
            "redistribution_permitted",
            "boundary_negatives",
            "score_margin",
            "score_margin_scale",
            "score_temperature",
            "unrated_score",
        }


class TestValues:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [(True, "true"), (False, "false"), ("AUTO", "auto"), ("True", "true"), ("false", "false"), ("auto", "auto")],
    )
    def test_prefix_sharing(self, config, value, expected):
        assert config(prefix_sharing=value).prefix_sharing == expected

    @pytest.mark.parametrize("value", ["yes", 1, None, ""])
    def test_bad_prefix_sharing(self, config, value):
        with pytest.raises(ValueError, match="`prefix_sharing` must be 'auto', 'true' or 'false', got"):
            config(prefix_sharing=value)

    @pytest.mark.parametrize("value", [0, -3])
    def test_bad_num_negatives(self, config, value):
        with pytest.raises(ValueError, match=f"`num_negatives` must be at least 1, got {value}. Leave it out"):
            config(num_negatives=value)

    def test_checks_of_the_parent_are_kept(self, config):
        with pytest.raises(ValueError, match="loss_weights"):
            config(loss_type=["softmax", "sft"], loss_weights=[1.0])


class TestParsing:
    ARGUMENTS = [
        *("--output_dir", "somewhere", "--use_cpu", "--bf16", "false", "--num_negatives", "3"),
        *("--prefix_sharing", "false", "--loss_type", "softmax", "sft", "--loss_weights", "1", "0.1"),
    ]

    @pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
    def test_command_line(self, parser):
        if parser is TrlParser:
            (args,) = parser((SoftmaxDPOConfig,)).parse_args_and_config(self.ARGUMENTS)
        else:
            (args,) = parser((SoftmaxDPOConfig,)).parse_args_into_dataclasses(self.ARGUMENTS)
        assert args.num_negatives == 3
        assert args.prefix_sharing == "false"
        assert args.loss_type == ["softmax", "sft"]
        assert args.loss_weights == [1.0, 0.1]

    @pytest.mark.parametrize(("written", "expected"), [("false", "false"), ("true", "true"), ("auto", "auto")])
    def test_yaml_file(self, tmp_path, written, expected):
        """YAML reads a bare false as a boolean."""
        path = tmp_path / "config.yaml"
        path.write_text(
            f"output_dir: somewhere\nuse_cpu: true\nbf16: false\nprefix_sharing: {written}\nnum_negatives: 5\n"
            "loss_type: [softmax, sft]\nbeta: 0.5\n"
        )
        (args,) = TrlParser((SoftmaxDPOConfig,)).parse_args_and_config(["--config", str(path)])
        assert args.prefix_sharing == expected
        assert args.num_negatives == 5
        assert args.loss_type == ["softmax", "sft"]
        assert args.beta == 0.5

    def test_help_has_no_broken_format(self, capsys):
        with pytest.raises(SystemExit):
            HfArgumentParser((SoftmaxDPOConfig,)).parse_args(["--help"])
        assert "--prefix_sharing" in capsys.readouterr().out


class TestSerialisation:
    def test_round_trip(self, config):
        args = config(num_negatives=4, prefix_sharing=True, loss_type=["softmax", "sft"], loss_weights=[1.0, 0.2])
        values = args.to_dict()
        for dump, load in ((json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)):
            loaded = load(dump(values))
            assert loaded == values
            again = SoftmaxDPOConfig(**{k: v for k, v in loaded.items() if not k.endswith("_token")})
            assert again.to_dict() == values
        assert json.loads(args.to_json_string())["num_negatives"] == 4


class TestFromDPOConfig:
    VALUES = {
        "learning_rate": 3e-6,
        "beta": 0.3,
        "hub_token": "hf_made_up",
        "accelerator_config": {"split_batches": True, "even_batches": False},
        "report_to": ["tensorboard"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 5,
        "warmup_steps": 7,
        "lr_scheduler_type": "cosine",
        "optim": "adafactor",
        "eval_strategy": "steps",
        "eval_steps": 11,
        "save_strategy": "steps",
        "logging_steps": 0.5,
        "max_length": None,
        "precompute_ref_log_probs": True,
        "model_init_kwargs": {"dtype": "float32"},
        "seed": 5,
        "data_seed": 6,
        "gradient_checkpointing": False,
    }

    def test_values_are_kept(self, config):
        before = config(DPOConfig, **self.VALUES)
        after = to_softmax_dpo_config(before)
        assert isinstance(after, SoftmaxDPOConfig)
        values = after.to_dict()
        for name, value in before.to_dict().items():
            if name != "loss_type":
                assert values[name] == value, name
        # what to_dict hides, or turns into something else
        assert after.hub_token == "hf_made_up"
        assert after.pad_token is None
        assert after.accelerator_config == before.accelerator_config
        assert after.lr_scheduler_type == before.lr_scheduler_type
        assert after.eval_strategy == before.eval_strategy
        assert after.optim == before.optim
        # ours take their defaults
        assert after.num_negatives is None
        assert after.prefix_sharing == "auto"

    @pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
    def test_pad_token(self, config):
        assert to_softmax_dpo_config(config(DPOConfig, pad_token="<pad>")).pad_token == "<pad>"

    def test_sigmoid_becomes_softmax_with_one_line(self, config, caplog):
        with caplog.at_level(logging.INFO, logger="trl_sdpo"):
            after = to_softmax_dpo_config(config(DPOConfig, beta=0.3))
        assert after.loss_type == ["softmax"]
        assert len(caplog.records) == 1
        assert "its values are kept (beta=0.3), and `loss_type='sigmoid'` becomes 'softmax'" in caplog.text
        assert "\n" not in caplog.records[0].getMessage()

    @pytest.mark.parametrize("loss_type", [["ipo"], ["sigmoid", "sft"], ["sft"]])
    def test_other_losses_are_kept(self, config, loss_type, caplog):
        with caplog.at_level(logging.INFO, logger="trl_sdpo"):
            assert to_softmax_dpo_config(config(DPOConfig, loss_type=loss_type)).loss_type == loss_type
        assert not caplog.records

    def test_original_is_not_changed(self, config):
        before = config(DPOConfig)
        values = before.to_dict()
        to_softmax_dpo_config(before)
        assert before.to_dict() == values
        assert before.loss_type == ["sigmoid"]

    def test_own_config_is_returned(self, config):
        args = config(loss_type=["sigmoid"])
        assert to_softmax_dpo_config(args) is args
        assert args.loss_type == ["sigmoid"]


def test_a_subclass_with_fields_of_its_own_is_refused_by_name(tmp_path):
    @dataclasses.dataclass
    class TheirConfig(DPOConfig):
        temperature: float = 1.0

    with pytest.raises(
        ValueError, match=r"`TheirConfig` has fields that `SoftmaxDPOConfig` has not: \['temperature'\]"
    ):
        to_softmax_dpo_config(TheirConfig(str(tmp_path), bf16=False))
