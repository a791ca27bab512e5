"""One process and two come to the same losses, metrics, weights and drawn negatives."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from helpers import two_processes
from helpers.closeness import assert_same_scores, assert_same_weights
from trl_sdpo import DataCollatorForMultiPreference
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.trainer.checkpoints import check_stream
from trl_sdpo.trainer.metrics import num_before_padding


def run_two_processes(folder):
    for name, num in (("train", 8), ("test", 7)):
        rows = two_processes.make_records(num)
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, two_processes.__file__, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout[-5000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_two_processes(folder)
    return folder


@pytest.fixture
def one_and_two(folder, tmp_path):
    """What one process comes to, and what each of two does."""

    def outcomes(scenario):
        (tmp_path / "train.jsonl").write_text((folder / "train.jsonl").read_text())
        (tmp_path / "test.jsonl").write_text((folder / "test.jsonl").read_text())
        one = scenario(str(tmp_path / "one"))
        two = [torch.load(folder / f"{scenario.__name__}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        return one, two

    return outcomes


def assert_same_trajectory(one, two):
    for rank in (0, 1):
        assert len(one["logs"]) == len(two[rank]["logs"]) > 0
        for left, right in zip(one["logs"], two[rank]["logs"], strict=True):
            assert left.keys() == right.keys()
            for name, value in left.items():
                assert right[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (left["step"], name)
        assert one["weights"].keys() == two[rank]["weights"].keys()
        way = sum(entry.get("learning_rate", 0) for entry in one["logs"])
        assert_same_weights(two[rank]["weights"], one["weights"], way)


def assert_same_records(one, two):
    """Each step sees the same records with the same negatives, half of them on each process."""
    assert len(one["seen"]) == len(two[0]["seen"]) == len(two[1]["seen"]) > 0
    for whole, first, second in zip(one["seen"], two[0]["seen"], two[1]["seen"], strict=True):
        assert len(first) == len(second) == len(whole) // 2
        assert {**first, **second} == whole


def test_full_fine_tuning_with_drawn_negatives(one_and_two):
    one, two = one_and_two(two_processes.full)
    assert_same_trajectory(one, two)
    assert_same_records(one, two)


def test_continued_adapter_with_accumulation(one_and_two):
    one, two = one_and_two(two_processes.continued_adapter)
    assert_same_trajectory(one, two)


def test_padded_rows_in_passes(one_and_two):
    """As many on both processes, which would wait for each other else."""
    one, two = one_and_two(two_processes.padded_passes)
    assert_same_trajectory(one, two)


def test_evaluation_counts_each_record_once(one_and_two):
    one, two = one_and_two(two_processes.uneven_evaluation)
    names = {name for logs in one["logs"] for name in logs}
    assert {"eval_seven_loss", "eval_seven_hr@1", "eval_five_reward_ndcg@10", "eval_five_rewards/margins"} <= names
    assert_same_trajectory(one, two)


@pytest.mark.parametrize(
    ("record_ids", "first_record_ids", "expected"),
    [
        ([7, 8, 1, 2], [1, 2, 3, 4], 2),
        ([7, 8, 9, 6], [1, 2, 3, 4], 4),
        ([7, 1, 2, 3], [1, 2, 3, 4], 1),
        # the only batch, filled up with itself
        ([1, 2, 3, 1], [1, 2, 3, 1], 3),
        ([1, 1, 1, 1], [1, 1, 1, 1], 1),
        ([1, 2, 3, 4], [1, 2, 3, 4], 4),
        ([5, 6, 7, 2], [1, 2, 3, 4], 4),
    ],
)
def test_padding_of_a_stream(record_ids, first_record_ids, expected):
    assert num_before_padding(record_ids, first_record_ids) == expected


def test_evaluation_of_streams_counts_each_record_once(one_and_two):
    one, two = one_and_two(two_processes.uneven_evaluation_of_streams)
    names = {name for logs in one["logs"] for name in logs}
    assert {"eval_of_1_loss", "eval_of_7_hr@1", "eval_of_8_mrr", "late_rewards/margins"} <= names
    assert_same_trajectory(one, two)


def test_stream(one_and_two):
    one, two = one_and_two(two_processes.stream)
    assert_same_trajectory(one, two)
    assert_same_records(one, two)


def test_each_process_reads_its_own_shards(one_and_two, folder, tokenizer):
    """Of a stream of unlike shards: none is read by both, negatives are those of the pass, and a run resumes bit by bit."""
    one, two = one_and_two(two_processes.sharded_stream)
    own = ({0, 2}, {1, 3})
    records = two_processes.make_records(sum(two_processes.SHARD_SIZES))
    tokens = [tokenize_multi_preference(row, 0, tokenizer, tokenizer.eos_token, stream=True) for row in records]
    places = {row["record_id"]: place for place, row in enumerate(tokens)}
    for rank in (0, 1):
        assert two[rank]["same_as_whole"]
        # the first record of all tells the format
        assert {*two[rank]["read"]} - own[rank] <= {0}
        starts = [sum(two_processes.SHARD_SIZES[:number]) for number in range(4)]
        expected = {starts[number] + row for number in own[rank] for row in range(two_processes.SHARD_SIZES[number])}
        seen = [(places[record_id], row) for step in two[rank]["seen"] for record_id, row in step.items()]
        assert len(seen) == 6 * 2 * 2
        for number in range(len(seen) // len(expected)):
            part = seen[number * len(expected) : (number + 1) * len(expected)]
            assert {place for place, _ in part} == expected
            collator = DataCollatorForMultiPreference(tokenizer.pad_token_id, num_negatives=2, seed=42)
            collator.epoch.fill_(number)
            for place, row in part:
                assert tuple(collator([tokens[place]])["input_ids"][0].tolist()[: len(row)]) == row
    # losses and metrics are of both, and an evaluation of each record once
    assert two[0]["logs"] == two[1]["logs"]
    assert "eval_hr@1" in two[0]["logs"][-1]
    assert one["same_as_whole"]


def test_a_stream_of_own_shards_is_not_resumed_by_others(one_and_two, folder, tmp_path):
    checkpoint = folder / "sharded_stream" / "checkpoint-4"
    assert json.loads((checkpoint / "stream.json").read_text()) == {
        "own_shards": True, "processes": 2, "shards": 4, "workers": 0
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"own shards: True then, False now, processes: 2 then, 1 now\): each process reads"
    ):
        check_stream(checkpoint, {"own_shards": False, "processes": 1, "shards": 4, "workers": 0})
    with pytest.raises(ValueError, match=r"shards: 4 then, 8 now"):
        check_stream(checkpoint, {"own_shards": True, "processes": 2, "shards": 8, "workers": 0})
    check_stream(checkpoint, {"own_shards": True, "processes": 2, "shards": 4, "workers": 0})
    with pytest.raises(ValueError, match="processes: unknown then, 2 now"):
        check_stream(tmp_path, {"own_shards": True, "processes": 2, "shards": 4, "workers": 0})
    check_stream(tmp_path, {"own_shards": False, "processes": 2, "shards": 1, "workers": 0})
    dataset = Dataset.from_list(two_processes.make_records(8)).to_iterable_dataset(num_shards=4)
    trainer = two_processes.make_trainer(tmp_path, dataset, args={"max_steps": 6})
    with pytest.raises(ValueError, match=r"Can't resume from .* at its place in the stream"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.args.ignore_data_skip = True
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 6


def test_precomputed_reference_in_memory(one_and_two):
    """What the first process computes, the other finds, of data that lie on no disk."""
    one, two = one_and_two(two_processes.precomputed_reference_in_memory)
    assert_same_trajectory(one, two)


def test_loss_that_is_not_finite_on_one_process(one_and_two):
    """All processes end: one alone would leave the others waiting for its gradients."""
    one, two = one_and_two(two_processes.loss_that_is_not_finite)
    assert "The loss is" in one["error"]
    assert two[0]["error"] == "The loss of another process is not finite at step 0. Its error names the records."
    assert "The loss is" in two[1]["error"]


def test_precomputed_reference(one_and_two):
    one, two = one_and_two(two_processes.precomputed_reference)
    assert_same_trajectory(one, two)
    assert_same_records(one, two)


def test_resuming_in_a_later_pass_of_a_stream(one_and_two):
    one, two = one_and_two(two_processes.resumed_stream)
    assert one["same_as_whole"]
    assert two[0]["same_as_whole"]
    assert two[1]["same_as_whole"]
    assert_same_trajectory(one, two)
    assert_same_records(one, two)


def test_resuming_after_a_half_written_checkpoint(one_and_two):
    one, two = one_and_two(two_processes.resumed)
    assert one["same_as_whole"]
    assert two[0]["same_as_whole"]
    assert two[1]["same_as_whole"]
    assert len(two[0]["seen"]) == 2
    assert_same_trajectory(one, two)


def test_samples_are_shared_out(one_and_two):
    one, two = one_and_two(two_processes.sampled_ranking)
    measured = [entry for entry in one["logs"] if "eval_ranking_of_7_mrr" in entry]
    assert [entry["step"] for entry in measured] == [0, 2, 4]
    names = {name for logs in one["logs"] for name in logs}
    assert {"eval_ranking_of_1_hr@1", "eval_generation_of_5_valid_ratio", "eval_generation_of_5_n"} <= names
    assert_same_trajectory(one, two)
    assert_same_records(one, two)


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("kind", ["sharded_forward", "tensor_parallel_forward"])
def test_forward_of_split_parameters(one_and_two, kind, layout):
    one, two = one_and_two(getattr(two_processes, kind))
    assert one["split"] == []
    for rank in (0, 1):
        # of FSDP2 all; of tensor parallelism all but the norms
        whole = [name for name in one[layout] if name not in two[rank]["split"] and "norm" not in name]
        assert whole == ["log_probs"]
        assert one[layout].keys() == two[rank][layout].keys()
        for name, expected in one[layout].items():
            assert_same_scores(two[rank][layout][name], expected, times=10)
