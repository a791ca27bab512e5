"""The tables of the report in Markdown."""

from trl_sdpo._markdown import markdown_table


# What the S-DPO paper (https://huggingface.co/papers/2406.09215) prints for MovieLens-100k in Tables 1 and 2: HR@1 and
# ValidRatio. The figures of the language models are all k of 95 records.
PAPER = {
    "GRU4Rec": (0.3750, 1.0),
    "Caser": (0.3861, 1.0),
    "SASRec": (0.3444, 1.0),
    "LLaMA2-7B, not tuned": (0.0421, 0.4421),
    "ChatRec": (0.2000, 0.9895),
    "MoRec": (0.2822, 1.0),
    "TALLRec": (0.3895, 0.9263),
    "LLaRA": (0.4737, 0.9684),
    "DPO, 1 negative": (0.4947, None),
    "DPO, 3 pairs": (0.4947, None),
    "S-DPO, K = 3": (0.5263, 0.9895),
}
TITLES = {
    "history": "Prompts without the list of candidates",
    "candidates": "Prompts with the list of candidates",
}


def markdown(content: dict) -> str:
    """All tables of results.json, one below the other."""
    parts = [section("Systems without a language model", baseline_table(content["baselines"]))]
    for style, results in content["styles"].items():
        parts.append(section(TITLES[style], systems_table(results["systems"])))
        parts.append(section(f"{TITLES[style]}: differences", differences_table(results["systems"])))
        parts.append(section(f"{TITLES[style]}: the search on validation records", search_table(results["search"])))
        parts.append(section(f"{TITLES[style]}: the curve of SFT", curve_table(results["curve"])))
        for name, rows in results["sweeps"].items():
            parts.append(section(f"Sweep of {name}", sweep_table(name, rows)))
        if results.get("sums"):
            parts.append(section(f"{TITLES[style]}: the sum with SASRec", sums_table(results["sums"])))
    parts.append(section("The figures of the paper, MovieLens-100k", paper_table()))
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, table: str) -> str:
    return f"### {title}\n\n{table}" if table else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    return "\n".join(markdown_table(header, rows))


def number(value: float | None) -> str:
    """`.512`, as the hit rates of this field are written."""
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def interval(ends: list[float]) -> str:
    return f"{number(ends[0])} to {number(ends[1])}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1).replace("-", "−")


def difference(one: dict) -> str:
    low, high = one["ci"]
    # what the number of draws can tell
    p = "p < .001" if one["p"] < 0.001 else f"p = {number(one['p'])}"
    return f"{signed(one['mean'])} ({signed(low)} to {signed(high)}), {p}"


def baseline_table(baselines: dict) -> str:
    header = ["system", "hr@1", "95% interval", "ndcg@10", "mrr", "n"]
    return table(header, [[name, *metrics(row), str(row["n"])] for name, row in baselines.items()])


def metrics(row: dict) -> list[str]:
    return [number(row["hr@1"]), interval(row["hr@1_ci"]), number(row["ndcg@10"]), number(row["mrr"])]


def systems_table(systems: dict) -> str:
    generates = any("generated_hr@1" in row for row in systems.values())
    header = ["system", "lr", "β", "hr@1", "95% interval", "ndcg@10", "mrr", "hr@1 by seed", "hr@1 by implicit reward"]
    header += ["hr@1, generated", "ValidRatio"] if generates else []
    rows = []
    for name, row in systems.items():
        rate, beta = row.get("learning_rate"), row.get("beta")
        cells = [name, "" if rate is None else f"{rate:g}", "" if beta is None else f"{beta:g}", *metrics(row)]
        seeds = ", ".join(number(one) for one in row["hr@1_seeds"]) if len(row["hr@1_seeds"]) > 1 else ""
        cells += [seeds, number(row.get("reward_hr@1"))]
        if generates:
            cells += [number(row.get("generated_hr@1")), number(row.get("generated_valid_ratio"))]
        rows.append(cells)
    return table(header, rows)


def differences_table(systems: dict) -> str:
    compared = dict.fromkeys(name for row in systems.values() for name in row["differences"])
    baselines = sorted(compared, key=lambda name: [*systems, *compared].index(name))
    rows = []
    for name, row in systems.items():
        found = row["differences"]
        rows.append([name, *(difference(found[one]) if one in found else "" for one in baselines)])
    return table(["hr@1 of", *(f"minus {name}" for name in baselines)], rows) if baselines else ""


def search_table(search: list[dict]) -> str:
    rows = []
    for row in search:
        beta = "" if row["beta"] is None else f"{row['beta']:g}"
        mrr = f"**{number(row['mrr'])}**" if row["chosen"] else number(row["mrr"])
        rows.append([row["system"], f"{row['learning_rate']:g}", beta, mrr, number(row["hr@1"]), str(row["n"])])
    return table(["system", "lr", "β", "mrr", "hr@1", "n"], rows)


def curve_table(curve: dict) -> str:
    rows = [[str(point["step"]), number(point["hr@1"]), number(point["mrr"])] for point in curve["curve"]]
    return table(["optimizer step", f"hr@1 (n = {curve['n']})", "mrr"], rows)


def sweep_table(name: str, sweep: list[dict]) -> str:
    header = [name, "hr@1", "95% interval", "ndcg@10", "mrr", "hr@1 by implicit reward", "hr@1 minus SFT"]
    rows = [
        [str(row["value"]), *metrics(row), number(row["reward_hr@1"]), difference(row["difference"])] for row in sweep
    ]
    return table(header, rows)


def sums_table(sums: list[dict]) -> str:
    header = ["SASRec and", "weight of the language model", "hr@1", "95% interval", "ndcg@10", "mrr", "minus SASRec"]
    rows = [
        [
            row["system"],
            f"{row['weight']:g} ({'fixed' if row['weights'] == 'equal' else 'chosen on validation'})",
            *metrics(row),
            difference(row["difference"]),
        ]
        for row in sums
    ]
    return table(header, rows)


def paper_table() -> str:
    rows = [[name, number(rate), number(valid)] for name, (rate, valid) in PAPER.items()]
    return table(["system", "HR@1", "ValidRatio"], rows)
