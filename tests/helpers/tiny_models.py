"""Models, adapters and tokenizers of a few thousand weights, built here: no test asks the network."""

import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    C3AConfig,
    CPTConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    OSFConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
    WaveFTConfig,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


TITLES = [
    "Red River (1948)",
    "Blue Hotel (1984)",
    "Night Train to Lisbon (1991)",
    "The Long Summer (1977)",
    "A Quiet Place (1965)",
    "Winter Light (1962)",
    "Seven Doors (1999)",
    "The Last Mile (1959)",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on a few made-up titles."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([f" {title}" for title in TITLES], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )


def build_llama(vocab_size: int, seed: int = 0, **config) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # weights of the usual 0.02 give a model that is all but uniform; larger ones tell wrong masks apart
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**defaults, **config}))


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(
        **{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"], "r": 2, **kwargs}
    )


def moved(model, by=0.1):
    """The model after a stage of training that moved what is trainable."""
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        if param.requires_grad and param.is_floating_point():
            param.data += by * torch.randn(param.shape, generator=generator).to(param)
    return model


def other(config_cls, **kwargs):
    """An adapter of another kind, on the layers of [`lora`]."""
    return lambda: config_cls(
        **{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"], **kwargs}
    )


# Adapters of every kind, as they are new: names for what is compared, and what makes the configuration
NEW_ADAPTERS = {
    "lora": lora,
    "gaussian": lambda: lora(init_lora_weights="gaussian"),
    "random": lambda: lora(init_lora_weights=False),
    "orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "mica": lambda: lora(init_lora_weights="mica"),
    "eva": lambda: lora(init_lora_weights="eva"),
    "dora": lambda: lora(use_dora=True),
    "rslora": lambda: lora(use_rslora=True, rank_pattern={"v_proj": 4}, alpha_pattern={"v_proj": 16}),
    "bias_all": lambda: lora(bias="all"),
    "bias_lora_only": lambda: lora(bias="lora_only"),
    "lora_bias": lambda: lora(lora_bias=True),
    "dropout": lambda: lora(lora_dropout=0.02),
    "modules_to_save": lambda: lora(modules_to_save=["embed_tokens"]),
    "trainable_tokens": lambda: lora(trainable_token_indices=list(range(60))),
    "ia3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "vera": lambda: VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"], r=4),
    "adalora": lambda: AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=20, tinit=1, tfinal=2
    ),
    "prompt_tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix_tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "layer_replication": lambda: lora(layer_replication=[[0, 2], [0, 2]]),
    "rslora_dora": lambda: lora(use_dora=True, use_rslora=True, r=4, lora_alpha=8),
    "embeddings": lambda: lora(target_modules=["embed_tokens", "q_proj"]),
    "modules_to_save_norm": lambda: lora(modules_to_save=["norm"]),
    "modules_to_save_head": lambda: lora(modules_to_save=["lm_head"]),
    "target_parameters": lambda: lora(target_modules=[], target_parameters=["q_proj.weight", "down_proj.weight"]),
    "tokens_alone": lambda: TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=list(range(60))),
    "loha": other(LoHaConfig, r=2),
    "lokr": other(LoKrConfig, r=2),
    "oft": other(OFTConfig, oft_block_size=4),
    "boft": other(BOFTConfig, boft_block_size=4),
    "hra": other(HRAConfig, r=2),
    "miss": other(MissConfig, r=2),
    "delora": other(DeloraConfig, r=2),
    "gralora": other(GraloraConfig, r=4),
    "shira": other(ShiraConfig, r=2),
    "road": other(RoadConfig, group_size=8),
    "c3a": other(C3AConfig, block_size=4),
    "fourierft": other(FourierFTConfig, n_frequency=10),
    "waveft": other(WaveFTConfig, n_frequency=10),
    "vblora": other(VBLoRAConfig, r=2, num_vectors=8, vector_length=4, topk=2),
    "randlora": other(RandLoraConfig, target_modules=["q_proj", "v_proj"], r=2),
    "osf": other(OSFConfig),
    "ln_tuning": other(LNTuningConfig, target_modules=["input_layernorm"]),
    "p_tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "cpt": lambda: CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 6, 7], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
}
