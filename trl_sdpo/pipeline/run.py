"""A run in one process: records, supervised fine-tuning, alignment, evaluation."""

import copy
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from peft import PeftConfig
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, SFTConfig

from .. import __version__
from ..evaluation.comparison import evaluate_ranking
from ..evaluation.probing import probe_all
from ..evaluation.report import collect_results, write_report
from ..recommender.recommender import Recommender
from ..recsys.interactions.interactions import Interactions
from ..recsys.records.preparation import prepare
from ..recsys.records.recommender_files import load_recommender_files
from ..recsys.records.splits import SPLITS
from ..scoring.log_probs import implicit_rewards
from .datasets import load_records, select_split
from .digests import digest, digest_of_interactions, digest_of_model, digest_of_records, state_of_files
from .models import load_model, load_tokenizer
from .stage_records import completions_are_lines
from .state import BEGUN, DONE, NEW, STATE_FILE, StageState
from .trainers import make_sft_trainer, make_softmax_dpo_trainer
from .training import TrainedStage, run_stage


logger = logging.getLogger(__name__)

# Where a result goes, how it is shown, and what takes it on: no part of it
_NO_SETTINGS = ("output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "disable_tqdm", "hub_token")


class Run:
    """
    A run in one process, from interactions to an evaluated model. The command `trl-sdpo run` does the same from a file,
    each stage in a process of its own.

    Every stage is a directory of `output_dir` with its results and, in `_run.json`, the settings that they depend on. A
    second start with the same settings takes finished stages as they are, and goes on with training that broke off from
    its last checkpoint.

    Args:
        output_dir (`str` or `Path`):
            Where everything goes.
        resume (`bool`, *optional*, defaults to `True`):
            Whether what an earlier run left is taken up. If not, it is removed stage by stage.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights.

    Raises:
        FileExistsError: of every stage: its directory holds files of something else, or of other settings.
        ValueError: there are several GPUs in sight, over which [`~transformers.Trainer`] would spread each batch.

    Example:
        ```python
        from trl import SFTConfig
        from trl_sdpo import SoftmaxDPOConfig
        from trl_sdpo.pipeline import Run, machine_defaults, make_small_llama

        run = Run("outputs/mine")
        dataset = run.prepare("movielens-100k", seed=0, max_test_records=2000)
        base = make_small_llama(run.data, run.directory / "base")
        sft = run.sft(base, SFTConfig(learning_rate=2e-3, **machine_defaults()), dataset["train"])
        aligned = run.align(sft, SoftmaxDPOConfig(num_negatives=15, **machine_defaults()), dataset["train"])
        results = run.evaluate({"sft": sft, "s-dpo": aligned})
        ```
    """

    def __init__(self, output_dir: str | Path, *, resume: bool = True, dtype: str = "float32") -> None:
        if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
            raise ValueError(
                f"There are {torch.cuda.device_count()} GPUs, and this run is one process. Set CUDA_VISIBLE_DEVICES=0, or "
                "take several processes with `trl-sdpo run` and --num_processes."
            )
        self.directory = Path(output_dir).resolve()
        self.resume, self.dtype = resume, dtype

    @property
    def data(self) -> Path:
        """The directory of the data set."""
        return self.directory / "data"

    def prepare(self, source: str | Interactions, *, path: str | Path | None = None, **options: Any) -> DatasetDict:
        """
        Make the records, see [`prepare`].

        Args:
            source (`str` or [`Interactions`]):
                A name that [`load_source`] takes, or interactions.
            path (`str` or `Path`, *optional*):
                The files of the source. By default they are downloaded once and cached.
            **options:
                More arguments of [`prepare`], and fields of [`RecordConfig`].

        Returns:
            [`~datasets.DatasetDict`]: The splits.
        """
        digests = {name: digest(value) for name, value in options.items()}
        digests["source"] = digest(source) if isinstance(source, str) else digest_of_interactions(source)
        digests["path"] = digest(state_of_files(path))
        state = StageState(self.data, digests, {name: str(value) for name, value in options.items()})
        found = state.look()
        if found == DONE and self.resume:
            logger.info("%s: done before.", self.data)
        else:
            if found not in (NEW, BEGUN) and self.resume:
                raise FileExistsError(
                    f"{self.data}: holds {state.what_is_there()}. Pass another directory, or resume=False to begin anew."
                )
            ours = (self.data / STATE_FILE).is_file()
            report = prepare(source, self.data, path=path, overwrite=ours, **options)
            state.write(done=True)
            counts = ", ".join(f"{report[split]['records']:,} {split}" for split in SPLITS if split in report)
            logger.info("%s: %s records.", self.data, counts)
        return load_records(str(self.data))

    def sft(
        self,
        model: str | os.PathLike,
        args: SFTConfig,
        records: Dataset,
        *,
        name: str = "sft",
        peft_config: PeftConfig | None = None,
    ) -> TrainedStage:
        """
        Fine-tune a model on the chosen completions of records.

        Args:
            model (`str` or `os.PathLike`):
                Directory or Hub id of a model, of an adapter, which is trained further, or a stage before this one.
            args ([`~trl.SFTConfig`]):
                Configuration of the trainer; its `output_dir` is set here.
            records ([`~datasets.Dataset`]):
                What to train on, see [`make_sft_trainer`].
            name (`str`, *optional*, defaults to `"sft"`):
                The name of the stage, and of its directory.
            peft_config ([`~peft.PeftConfig`], *optional*):
                To train a new adapter.

        Returns:
            [`TrainedStage`]: The stage, which the next one takes as its model.
        """
        columns = ("prompt", "chosen", "prompt_ids", "chosen_ids", "input_ids", "completion_mask")
        return self._train(make_sft_trainer, model, args, records, columns, name, peft_config)

    def align(
        self,
        model: str | os.PathLike,
        args: DPOConfig,
        records: Dataset,
        *,
        name: str = "s-dpo",
        peft_config: PeftConfig | None = None,
    ) -> TrainedStage:
        """
        Align a model to what was chosen, with Softmax-DPO or another loss of [`SoftmaxDPOConfig`].

        Args:
            model (`str` or `os.PathLike`):
                Directory or Hub id of a model, of an adapter, which is trained further, or a stage before this one. As
                it is now, it is the reference.
            args ([`SoftmaxDPOConfig`]):
                Configuration of the trainer; its `output_dir` is set here.
            records ([`~datasets.Dataset`]):
                What to train on, see [`SoftmaxDPOTrainer`].
            name (`str`, *optional*, defaults to `"s-dpo"`), peft_config ([`~peft.PeftConfig`], *optional*):
                See [`Run.sft`].

        Returns:
            [`TrainedStage`]: The stage.
        """
        columns = ("prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids")
        columns += ("ranked", "chosen_score", "rejected_scores")
        return self._train(make_softmax_dpo_trainer, model, args, records, columns, name, peft_config)

    def _train(
        self,
        make_trainer: Callable[..., Trainer],
        model: str | os.PathLike,
        args: TrainingArguments,
        records: Dataset,
        columns: Sequence[str],
        name: str,
        peft_config: PeftConfig | None,
    ) -> TrainedStage:
        state = self._state(self.directory / name, model, args, digest_of_records(records, columns), peft_config)
        args = copy.copy(args)
        args.output_dir = str(state.directory)

        def make() -> Trainer:
            loaded = load_model(model, self.dtype, trainable=True)
            # a copy: PEFT writes the names of the layers into it
            config = copy.deepcopy(peft_config)
            return make_trainer(loaded, args, records, load_tokenizer(model), peft_config=config)

        append_eos = not completions_are_lines(records)
        dataset = self.data if self.data.is_dir() else None
        return run_stage(state, make, dataset=dataset, append_eos=append_eos, resume=self.resume)

    def _state(
        self,
        directory: Path,
        model: str | os.PathLike,
        args: TrainingArguments,
        records: str,
        peft_config: PeftConfig | None,
    ) -> StageState:
        settings = {key: value for key, value in args.to_dict().items() if key not in _NO_SETTINGS}
        digests = {key: digest(value) for key, value in settings.items()}
        digests |= {"model": digest_of_model(Path(model)), "records": records, "dtype": digest(self.dtype)}
        digests["peft_config"] = digest(None if peft_config is None else peft_config.to_dict())
        chosen = ("learning_rate", "num_train_epochs", "max_steps", "seed", "num_negatives", "beta", "loss_type")
        return StageState(directory, digests, {key: settings[key] for key in chosen if key in settings})

    def evaluate(
        self,
        models: Mapping[str, str | os.PathLike],
        *,
        split: str = "test",
        reference: str | None = None,
        seed: int = 0,
        batch_size: int = 16,
        settings: Mapping[str, Any] | None = None,
    ) -> dict:
        """
        Rank the candidates of held-out records by each model, and compare the models with each other, with popularity
        and with chance. The report, `report/results.html` with its figures, `.md` and `.json`, replaces an earlier one.

        Args:
            models (`Mapping[str, str | os.PathLike]`):
                Models, adapters or stages by the name that the report has for them.
            split (`str`, *optional*, defaults to `"test"`):
                The records.
            reference (`str`, *optional*):
                One of the names: the model before the alignment, against which the last one is also ranked by implicit
                reward.
            seed (`int`, *optional*, defaults to `0`):
                Seed of intervals and tests.
            batch_size (`int`, *optional*, defaults to `16`):
                Records in a batch.
            settings (`Mapping`, *optional*):
                What else the report is to say of the run.

        Returns:
            `dict`: What `results.json` holds, see [`collect_results`]; [`results_text`] makes tables of it.

        Raises:
            ValueError: there is no such split, or `reference` is none of the models.
        """
        if reference is not None and reference not in models:
            raise ValueError(
                f"reference={reference!r} is none of the models {list(models)}. Pass one of them, or None."
            )
        splits, files = load_records(str(self.data)), load_recommender_files(self.data)
        records = select_split(splits, split, "split", str(self.data))
        train = splits.get("train") if split != "train" else None
        scores = {}
        for name, model in models.items():
            own = load_recommender_files(model).config if Path(model).is_dir() else None
            loaded = load_model(model, self.dtype).eval(), load_tokenizer(model)
            recommender = Recommender(*loaded, own or files.config, files.catalogue, name=name)
            scores[name] = recommender.log_probs(records, batch_size, desc=f"Ranking, {name}")
        if reference is not None:
            last = list(models)[-1]
            scores[f"{last} (implicit reward)"] = implicit_rewards(scores[last], scores[reference])
        results = collect_results(
            [evaluate_ranking(scores, records, seed=seed, catalogue=files.catalogue, train=train)],
            dataset={
                "name": self.directory.name,
                "split": split,
                "records": len(records),
                "source": None if files.config is None else files.config.source,
            },
            settings={"seed": seed, **(settings or {}), **environment()},
            facts={name: _facts(model) for name, model in models.items()},
            **probe_all(splits, split, records, files.catalogue),
        )
        write_report(results, self.directory / "report")
        return results


def _facts(model: str | os.PathLike) -> dict[str, Any]:
    """What a report says of how a stage was trained."""
    if not isinstance(model, TrainedStage):
        return {}
    metrics = json.loads((model.directory / "train_results.json").read_text(encoding="utf-8"))
    return {name: metrics[name] for name in ("num_negatives", "beta") if name in metrics} | {"steps": model.steps}


def environment() -> dict[str, str]:
    """The machine and the versions that a result was measured with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    libraries = ("trl", "transformers", "peft", "torch", "datasets")
    return {"device": device, "python": platform.python_version(), "trl-sdpo": __version__} | {
        name: version(name) for name in libraries
    }
