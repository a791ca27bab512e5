"""
The reference of S-DPO: the policy exactly as it was passed in, whatever its history. Which of the ways to have it is
taken is decided before the trainer of TRL is built, and said in one log line.

    ref_model is given          that model, as it is; a path is loaded like the policy
    a path, all weights         loaded once more
    an instance, all weights    a frozen copy; none where its log-probabilities are computed ahead of training
    a new LoRA that adds 0      the policy with its adapters switched off
    every other adapter         the policy with the values that its trained parameters began with

The last one holds for whatever PEFT has, since only what is trained moves: initialisations that change the base,
biases of the base, tied weights, several adapters, prompts. It needs as much memory as a frozen copy of the adapter.
Sharded (FSDP, DeepSpeed), parameters cannot be exchanged: an adapter is copied by TRL where PEFT can hold two of it,
and the whole model elsewhere.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast, is_peft_model, parse_flag_from_env
from peft import LoraConfig, PeftConfig, PeftMixedModel, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file
from trl import DPOConfig
from trl.trainer.utils import create_model_from_path

from ..prefix_sharing.rows import sharing_tolerance


logger = get_logger(__name__)

# A LoRA that is initialised so adds 0, to weights that PEFT leaves as they are
NEUTRAL_INITS = (True, "gaussian")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    For a pass without dropout or noise, after which every module is in the mode that it was in. The 8-bit layers of
    bitsandbytes stay in it throughout: on a CPU they multiply in another way in evaluation mode (0.2 nats off), and
    nothing in them is random.
    """
    modules = [module for module in model.modules() if module.training]
    model.eval()
    for module in modules:
        module.training = type(module).__name__ == "Linear8bitLt"
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def _names_of_trained(policy: nn.Module) -> list[str]:
    return [name for name, param in policy.named_parameters() if param.requires_grad]


class InitialPolicy(nn.Module):
    """
    The policy as it was before training: the policy's own modules, in evaluation mode, with what is not trained in
    common, and the values that the trained parameters had when this was made.

    Args:
        policy (`nn.Module`):
            The policy, on its device, before its first step.
        adapters_add_nothing (`bool`, *optional*, defaults to `False`):
            Whether the policy is a [`~peft.PeftModel`] whose adapters change nothing yet. They are switched off then,
            and nothing is copied.
    """

    def __init__(self, policy: nn.Module, adapters_add_nothing: bool = False) -> None:
        super().__init__()
        self._policy = [policy]  # in a list, for it is no part: the parameters here are the frozen ones
        self.adapters_add_nothing = adapters_add_nothing
        self.names: list[str] = []
        self._trained = set(_names_of_trained(policy))
        self.frozen = nn.ParameterList()
        self._places: list[tuple[nn.Module, str, int]] = []
        if adapters_add_nothing:
            return
        numbers: dict[int, int] = {}
        for module_name, module in policy.named_modules():
            for name, param in module.named_parameters(recurse=False):
                if not param.requires_grad:
                    continue
                if id(param) not in numbers:  # tied ones stand in several places
                    numbers[id(param)] = len(numbers)
                    self.names.append(f"{module_name}.{name}".lstrip("."))
                    self.frozen.append(nn.Parameter(param.detach().clone(), requires_grad=False))
                self._places.append((module, name, numbers[id(param)]))

    @property
    def policy(self) -> nn.Module:
        """The policy that is trained."""
        return self._policy[0]

    def missing(self) -> list[str]:
        """Names of parameters that have become trainable since this was made, and would move what it gives."""
        return [name for name in _names_of_trained(self.policy) if name not in self._trained]

    def with_all_that_trains(self) -> "InitialPolicy":
        """The same, with the values that parameters have now which have become trainable."""
        initial = InitialPolicy(self.policy)
        values = self.values()
        for name, param in zip(initial.names, initial.frozen, strict=True):
            if name in values:
                param.data.copy_(values[name])
        return initial

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Within, the policy is what it was. Gradients of a pass before are not touched, as the parameters are others."""
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.policy))
            if self.adapters_add_nothing:
                stack.enter_context(self.policy.disable_adapter())
            trained = [getattr(module, name) for module, name, _ in self._places]
            try:
                for module, name, number in self._places:
                    setattr(module, name, self.frozen[number])
                yield self.policy
            finally:
                for (module, name, _), param in zip(self._places, trained, strict=True):
                    setattr(module, name, param)

    def forward(self, **inputs: Any) -> Any:
        """A pass of the initial policy."""
        with self.active() as policy:
            return policy(**inputs)

    def values(self) -> dict[str, torch.Tensor]:
        """The frozen values by the names of the policy's parameters."""
        return {name: param.data for name, param in zip(self.names, self.frozen, strict=True)}


# Passed to TRL as `ref_model`, so that it does not make an adapter "ref" of its own; see `SoftmaxDPOTrainer.ref_model`
LEFT_TO_US = object()


def is_sharded(args: DPOConfig) -> bool:
    """Whether FSDP or DeepSpeed will shard the models of a run, as far as it is known before the trainer is built."""
    return args.deepspeed_plugin is not None or bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def adds_nothing(peft_config: PeftConfig) -> bool:
    """Whether a new adapter changes neither what the model computes nor its base, now and in training."""
    return (
        type(peft_config) is LoraConfig
        and peft_config.init_lora_weights in NEUTRAL_INITS
        and peft_config.bias == "none"
        and not peft_config.use_dora  # nothing but for rounding
    )


def reference_in_words(given: bool, is_adapter: bool, adapter_adds_nothing: bool) -> str:
    """What the reference of a run is, for its card, which names no folder."""
    if given:
        return "the reference model of the run"
    if is_adapter:
        return "the base model" if adapter_adds_nothing else "the adapter as it was before training"
    return "the model as it was before training"


def choose_reference(
    model: str | PreTrainedModel | PeftModel,
    ref_model: str | PreTrainedModel | PeftModel | None,
    args: DPOConfig,
    peft_config: PeftConfig | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
) -> tuple[Any, str]:
    """
    Decide what the reference of a run is.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy as it is passed to the trainer.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            The reference that is asked for, if any.
        args ([`~trl.DPOConfig`]):
            Configuration of the run.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter that the trainer is to make.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            How a path is loaded.

    Returns:
        `tuple[Any, str]`: What to hand to [`~trl.DPOTrainer`] as `ref_model`, and a sentence for the log.

    Raises:
        `ValueError`: If the reference cannot be had. The message says why, and what to pass.
    """
    if isinstance(model, PeftMixedModel):
        raise ValueError(
            "`model` is a `PeftMixedModel`, adapters of several kinds at once, which TRL does not train. Merge all but "
            "the one to train into the base with `merge_and_unload`, save that, and pass a `PeftModel` on it."
        )
    if isinstance(ref_model, str):
        return load_like_policy(ref_model, model, args, quantization_config), f"the model of {ref_model}"
    if ref_model is not None:
        return _without_wrapper(ref_model), "the model passed as `ref_model`"
    if getattr(peft_config, "init_lora_weights", None) == "loftq" and not (
        torch.cuda.is_available() or torch.xpu.is_available()
    ):
        raise ValueError(
            "`init_lora_weights='loftq'` is computed by PEFT on a CUDA device or an XPU, and there is none. Make the adapter "
            "on a machine that has one, or use another initialisation, such as 'pissa'."
        )
    if peft_config is not None:
        return _of_new_adapter(model, args, peft_config, quantization_config)
    if isinstance(model, PeftModel):
        return _of_continued_adapter(model, args)
    if args.precompute_ref_log_probs and not is_sharded(args):
        return None, "the policy as it is now, whose log-probabilities are computed ahead of training"
    if isinstance(model, str):
        return None, f"{model}, loaded a second time"
    return frozen_copy(model), "a frozen copy of the model that was passed, of the same size in memory"


def _of_new_adapter(
    model: str | PreTrainedModel,
    args: DPOConfig,
    peft_config: PeftConfig,
    quantization_config: BitsAndBytesConfig | None,
) -> tuple[Any, str]:
    if adds_nothing(peft_config):
        return None, "the policy with its new adapter switched off, which adds nothing yet"
    if not is_sharded(args):
        return None, "the policy with a frozen copy of what its new adapter begins with"
    if isinstance(model, str):
        return load_like_policy(model, model, args, quantization_config), f"{model}, loaded a second time"
    return frozen_copy(model), "a frozen copy of the model that was passed, of the same size in memory"


def _of_continued_adapter(model: PeftModel, args: DPOConfig) -> tuple[Any, str]:
    if not is_sharded(args):
        return LEFT_TO_US, "the policy with a frozen copy of the adapter that it came with"
    # FSDP and DeepSpeed hold the parameters: TRL's way, where PEFT can copy the adapter and leaves the base as it is
    config = model.peft_config.get("default")
    alone = list(model.peft_config) == ["default"] and type(config) is LoraConfig
    if alone and config.init_lora_weights in (*NEUTRAL_INITS, False) and config.bias == "none":
        return None, 'a frozen copy of the adapter, named "ref"'
    return frozen_copy(
        model
    ).get_base_model(), "a frozen copy of the model that was passed, of the same size in memory"


def _without_wrapper(ref_model: nn.Module) -> nn.Module:
    """TRL gives its LM head to the model that it gets: that inside of PEFT, in whose modules the adapters are."""
    if not is_peft_model(ref_model):
        return ref_model
    if any(config.is_prompt_learning for config in ref_model.peft_config.values()):
        raise ValueError(
            "`ref_model` is a PEFT model with learned prompts, which stand outside of the model that is scored. Leave "
            "`ref_model` out to train against the policy as it is passed."
        )
    return ref_model.get_base_model()


def load_like_policy(
    path: str, model: str | PreTrainedModel, args: DPOConfig, quantization_config: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """
    Load a reference as TRL loads the policy.

    Args:
        path (`str`):
            Folder or name on the Hub, of a model or of an adapter.
        model (`str` or [`~transformers.PreTrainedModel`]):
            Policy; type and attention of an instance are taken over.
        args ([`~trl.DPOConfig`]):
            Configuration, of which `model_init_kwargs` and `trust_remote_code` are read.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            How it is quantised.

    Returns:
        [`~transformers.PreTrainedModel`]: The reference.

    Raises:
        `ValueError`: If there is no model. The message says what `ref_model` takes.
    """
    options = dict(args.model_init_kwargs or {})
    options.setdefault("trust_remote_code", args.trust_remote_code)
    if path != model:
        options.pop("revision", None)  # of the policy's own repository
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
        options["device_map"] = None  # as TRL: distributed training requires it
    if not isinstance(model, str):
        options.setdefault("dtype", model.dtype)
        options.setdefault("attn_implementation", model.config._attn_implementation)
    try:
        if find_adapter_config_file(path) is None:
            return create_model_from_path(path, **options)
        base = create_model_from_path(PeftConfig.from_pretrained(path).base_model_name_or_path, **options)
        return _without_wrapper(PeftModel.from_pretrained(base, path))
    except OSError as error:
        raise ValueError(
            f"`ref_model={path!r}` is not a model that can be loaded: {error} Pass a folder or the name of a model on the "
            "Hub, a model, or leave `ref_model` out to train against the policy as it is passed."
        ) from error


def frozen_copy(model: nn.Module) -> nn.Module:
    """
    A copy of a whole model that nothing moves.

    Args:
        model (`nn.Module`):
            Model, not sharded yet.

    Returns:
        `nn.Module`: The copy, in evaluation mode, without gradients.

    Raises:
        `ValueError`: If the weights are not here to be copied, but shards of them or none.
    """
    for name, param in model.named_parameters():
        if hasattr(param, "ds_id") or param.is_meta:
            raise ValueError(
                f"The reference is a copy of the model as it was passed, and the weights of `{name}` are not in this process to "
                "be copied. Save the model with `save_pretrained` and pass the folder as `model`, or pass `ref_model`."
            )
    reference = copy.deepcopy(model)
    for module in reference.modules():
        # a fused head or a cast that a trainer before has put around `forward` holds on to the model that was copied
        if not hasattr(module, "_hf_hook"):
            module.__dict__.pop("forward", None)
    return reference.requires_grad_(False).eval()


def share_from_first_process(model: nn.Module) -> None:
    """As DDP does with the policy, take the values of the first process for a frozen copy, in all processes."""
    for param in model.parameters():
        broadcast(param.data)


def check_own_weights(policy: nn.Module, ref_model: nn.Module) -> None:
    """
    Refuse a reference that would be trained.

    Args:
        policy (`nn.Module`):
            Policy.
        ref_model (`nn.Module`):
            The reference that was passed.

    Raises:
        `ValueError`: If a trained parameter of the policy is one of the reference.
    """
    own = {id(param) for param in ref_model.parameters()}
    for name, param in policy.named_parameters():
        if param.requires_grad and id(param) in own:
            raise ValueError(
                f"`ref_model` and `model` have `{name}` in common, so that training would move the reference as well. Leave "
                "`ref_model` out, which keeps the policy as it is passed, or load it separately."
            )


def check_start(
    policy: torch.Tensor,
    reference: torch.Tensor,
    exists: torch.Tensor,
    dtype: torch.dtype,
    gather: Any,
    precomputed: bool,
) -> None:
    """
    Refuse to train against another reference than the policy as it was passed in.

    Args:
        policy (`torch.Tensor` of shape `(B, C)`):
            Log-probabilities before the first step, without dropout, in nats.
        reference (`torch.Tensor` of shape `(B, C)`):
            Those of the reference.
        exists (`torch.Tensor` of shape `(B, C)`):
            Which completions there are.
        dtype (`torch.dtype`):
            Type that is computed in, for the tolerance, see [`sharing_tolerance`].
        gather (`Callable`):
            Gathers a tensor of shape `(1,)` from all processes, all of which come to the same answer.
        precomputed (`bool`):
            Whether those of the reference were computed ahead of training.

    Raises:
        `ValueError`: If they differ. The message names the difference and the likely causes.
    """
    atol, rtol = sharing_tolerance(dtype)
    policy, reference = policy.detach().float(), reference.detach().float()
    difference = (policy - reference).abs().masked_fill(~exists, 0.0)
    # a policy of NaN is an error of its own, which the loss raises
    excess = (difference - rtol * reference.abs() - atol).masked_fill(~exists | ~policy.isfinite(), -1.0)
    excess = excess.nan_to_num(nan=torch.inf)
    if gather(excess.max().reshape(1)).max() <= 0:
        return
    largest = gather(difference.nan_to_num(nan=torch.inf).max().reshape(1)).max().item()
    cause = (
        "the log-probabilities of the reference were computed ahead of training from other weights or in another precision"
        if precomputed
        else "the weights of the policy, or its adapters, were changed after the trainer was built (loaded, merged, "
        "resized, another adapter set active)"
    )
    raise ValueError(
        f"Policy and reference differ by {largest:.3g} nats on the first batch, where training begins: S-DPO begins at ln(1 + K), "
        f"with the policy as the reference. Likely causes: {cause}; or the model computes at random also in "
        "evaluation mode. Build the trainer from the model as it is to be trained; to train against another "
        "reference, pass it as `ref_model`."
    )
