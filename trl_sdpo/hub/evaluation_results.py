"""The ranking metrics of a run, with intervals, in a model card."""

import math
import re
from dataclasses import dataclass, field

from huggingface_hub import EvalResult

from .card_parts import public_name, table


_METRIC = re.compile(r"eval_(?:(?P<dataset>.+?)_)??(?P<metric>(?:reward_)?(?:hr@\d+|ndcg@\d+|mrr)|rewards/accuracies)")


@dataclass
class Evaluation:
    """
    The metrics of a data set.

    Args:
        dataset (`str` or `None`):
            The name of the evaluation data set; `None` if there is only one.
        metrics (`dict[str, float]`):
            By name: `hr@k`, `ndcg@k`, `mrr`, `reward_hr@k`, ..., `rewards/accuracies`.
        num_records (`int` or `None`):
            How many records they are means of; `None` if it is not known, which leaves intervals out.
        step (`int`):
            After which step of training.
        num_candidates (`tuple[int, int]` or `None`):
            The smallest and the largest number of candidates of a record.
        num_users (`int` or `None`):
            Of how many users the records are, where intervals are over these.
        intervals (`dict[str, tuple[float, float]]`):
            95% intervals over users by metric, as a report has them. A metric without one has an interval over records.
    """

    dataset: str | None
    metrics: dict[str, float]
    num_records: int | None
    step: int
    num_candidates: tuple[int, int] | None = None
    num_users: int | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95% interval of a metric: over users where it is known, and then of no metric over records."""
        if self.intervals:
            return self.intervals.get(metric)
        return wilson_interval(self.metrics[metric], self.num_records)


def describe_evaluations(evaluations: list[Evaluation]) -> str:
    """The evaluations as a section of a card in Markdown."""
    if not evaluations:
        return "No evaluation is recorded."
    parts = []
    for one in evaluations:
        sizes, n = one.num_candidates, one.num_records
        sampled = (
            f"{_span(sizes)} candidates of each record, *sampled* metrics"
            if sizes
            else "the completions of each record"
        )
        where = f"`{public_name(one.dataset)}`. " if one.dataset else ""
        count = "" if n is None else f", n = {n:,}"
        count += "" if one.num_users is None else f" of {one.num_users:,} users"
        when = f"After step {one.step:,}" if one.step else "After training"
        parts.append(f"{where}{when}, over {sampled}{count}.")
        rows = [_row(one, name, value) for name, value in _telling(one).items()]
        parts.append(table(["metric", "value", "95% interval", "chance"], rows))
    if any(one.intervals for one in evaluations):
        parts.append("Intervals are over users, whose records are not independent of each other.")
    if any(one.num_records and not one.intervals for one in evaluations):
        parts.append(
            "Intervals are Wilson's, from the number of records, which they treat as independent. Those of ndcg and mrr are "
            "wider than need be: a mean of values between 0 and 1 varies no more than a share does."
        )
    if any(one.num_candidates for one in evaluations):
        parts.append(
            "`hr@k`, `ndcg@k` and `mrr` rank by likelihood, `reward_*` by implicit reward. Sampled metrics need not order models "
            "as a ranking of all items does ([Krichene and Rendle, 2020](https://doi.org/10.1145/3394486.3403226))."
        )
    return "\n\n".join(parts)


def _row(evaluation: Evaluation, metric: str, value: float) -> tuple[str, ...]:
    interval, chance = evaluation.interval(metric), _chance(metric, evaluation.num_candidates)
    bounds = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    return metric, f"{value:.4f}", bounds, f"{chance:.3f}" if chance else ""


def _telling(evaluation: Evaluation) -> dict[str, float]:
    """The metrics without hr@k of lists of k candidates or fewer, which is 1 for every model."""
    sizes = evaluation.num_candidates
    trivial = [name for name in evaluation.metrics if sizes and _chance(name, (sizes[1], sizes[1])) == 1]
    return {name: value for name, value in evaluation.metrics.items() if name not in trivial}


def _span(sizes: tuple[int, int]) -> str:
    return f"the {sizes[0]}" if sizes[0] == sizes[1] else f"the {sizes[0]} to {sizes[1]}"


def _chance(metric: str, sizes: tuple[int, int] | None) -> float | None:
    k = re.fullmatch(r"(?:reward_)?hr@(\d+)", metric)
    if sizes is None or sizes[0] != sizes[1]:
        return None
    if metric == "rewards/accuracies":
        return 1 / sizes[0]
    return min(1.0, int(k[1]) / sizes[0]) if k else None


def wilson_interval(share: float, n: int | None, z: float = 1.959964) -> tuple[float, float] | None:
    """
    The interval of a share by Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Args:
        share (`float`):
            Between 0 and 1. For a mean of values between 0 and 1, whose variance is at most that of a share, the
            interval is wide enough.
        n (`int` or `None`):
            Of how many records.
        z (`float`, *optional*, defaults to `1.959964`):
            The quantile of the normal distribution, by default for 95%.

    Returns:
        `tuple[float, float]` or `None`: The bounds, `None` without records.

    Example:
        ```python
        >>> [round(bound, 4) for bound in wilson_interval(0.5, 100)]
        [0.4038, 0.5962]

        ```
    """
    if not n:
        return None
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def to_eval_results(evaluation: Evaluation, source: str) -> list[EvalResult]:
    """The evaluation for the `model-index` metadata of a card; `source` is what the data are called."""
    name = public_name(evaluation.dataset) or source
    results = []
    for metric, value in _telling(evaluation).items():
        interval = evaluation.interval(metric)
        bounds = (
            f" (95% interval {interval[0]:.4f} to {interval[1]:.4f}, n = {evaluation.num_records:,})"
            if interval
            else ""
        )
        arguments = (
            {"n": evaluation.num_records, "interval": [round(bound, 6) for bound in interval]} if interval else None
        )
        if arguments:
            arguments |= {"confidence": 0.95, "method": "over users" if evaluation.intervals else "wilson"}
        results.append(
            EvalResult(
                task_type="text-ranking" if evaluation.num_candidates else "text-generation",
                task_name="Recommendation over sampled candidates" if evaluation.num_candidates else "Preferences",
                dataset_type=re.sub(r"[^\w./-]+", "-", source),
                dataset_name=name,
                # results of one type and configuration would be taken for those of one data set
                dataset_config=public_name(evaluation.dataset),
                metric_type=metric,
                metric_value=round(value, 6),
                metric_name=f"{metric}{bounds}",
                metric_args=arguments,
            )
        )
    return results


def read_evaluations(log_history: list[dict], step: int | None = None) -> list[Evaluation]:
    """
    Find the metrics of ranking in what a `Trainer` logged.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`.
        step (`int`, *optional*):
            The step that they are asked of. By default the last one with an evaluation.

    Returns:
        `list[Evaluation]`: One for each evaluation data set, with the number of records where it is logged beside them, as
        [`RankingCallback`] does, and what else the file of a report's metrics says.
    """
    found: dict[int, dict[str | None, dict[str, float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            if (match := _METRIC.fullmatch(key)) and isinstance(value, (int, float)) and math.isfinite(value):
                datasets = found.setdefault(entry.get("step", 0), {})
                datasets.setdefault(match["dataset"], {})[match["metric"]] = float(value)
    if not found:
        return []
    step = max(found) if step not in found else step
    sizes = {key: value for entry in log_history if entry.get("step", 0) == step for key, value in entry.items()}
    evaluations = []
    for name, metrics in found[step].items():
        prefix = "eval_" if name is None else f"eval_{name}_"
        intervals = {one: tuple(ci) for one in metrics if (ci := sizes.get(f"{prefix}{one}_ci"))}
        spans = sizes.get(f"{prefix}candidates")
        evaluations.append(
            Evaluation(
                name,
                metrics,
                sizes.get(f"{prefix}n"),
                step,
                num_candidates=tuple(spans) if spans else None,
                num_users=sizes.get(f"{prefix}users"),
                intervals=intervals,
            )
        )
    return evaluations
