"""Sweeps that stop their worst runs, beside the same sweeps without."""

import numpy as np
import pytest

from tests.experiments.conftest import ALONE

# 8 runs of 5 epochs, measured after each: rungs after 1 and 2 epochs, from which 4 and 2 go on; two diverge at once.
AXES = ["network.depth=2,5", "optimizer.learning_rate=0.01,0.1,0.3,1e9"]
SWEEP = ["-m", *AXES, "training.epochs=5", "network.width=8", "tracking.pictures=none", "tracking.models=none"]
# digits has 1437 training examples: 23 batches of 64.
STEPS = 23


def ended(lab, sweep):
    """Job -> its finished run in the sweep of that number."""
    parent = lab.runs("sweep")[sweep].info.run_id
    runs = [run for run in lab.runs() if run.data.tags["mlflow.parentRunId"] == parent and run.info.status == "FINISHED"]
    return {int(run.data.tags["job"]): run for run in runs}


def fates(runs):
    """Job -> what has come of it, and its bits."""
    tags = ("outcome", "rung", "stopped_step", "diverged_step", "trajectory")
    return {job: [run.data.tags.get(tag) for tag in tags] for job, run in runs.items()}


def losses(lab, run):
    """The training loss after each epoch, inf where there is none."""
    with np.load(lab.artifact(run, "history.npz"), allow_pickle=False) as history:
        assert history["evaluated"].tolist() == [STEPS * epoch for epoch in range(6)]
        return np.nan_to_num(history["measures/loss/train"], nan=np.inf, posinf=np.inf)


def test_the_best_go_on_with_their_very_bits_and_a_resumed_sweep_comes_to_the_same(lab):
    lab.run(*SWEEP, "hydra/launcher=basic")
    output = lab.run(*SWEEP, "sweep.halving=2", ALONE, "hydra.launcher.stack_size=3")
    assert "in the record already" not in output
    whole, halved = ended(lab, 0), ended(lab, 1)
    assert len(whole) == len(halved) == 8
    by_loss = [sorted(whole, key=lambda job, epoch=epoch: (losses(lab, whole[job])[epoch], job)) for epoch in (0, 1, 2)]
    first = by_loss[1][:4]
    second = [job for job in by_loss[2] if job in first][:2]
    for job, run in halved.items():
        tags, full = run.data.tags, whole[job]
        if job in second or full.data.tags["outcome"] == "diverged":
            assert tags["trajectory"] == full.data.tags["trajectory"]
            assert tags["outcome"] == full.data.tags["outcome"]
            assert lab.artifact(run, "history.npz").read_bytes() == lab.artifact(full, "history.npz").read_bytes()
            continue
        epochs = 2 if job in first else 1
        assert [tags["outcome"], tags["rung"], tags["stopped_step"]] == ["stopped", str(epochs), str(STEPS * epochs)]
        assert losses(lab, run)[: epochs + 1].tolist() == losses(lab, full)[: epochs + 1].tolist()
        assert "final/loss_train" not in run.data.metrics
        assert run.data.metrics["loss/train"] == losses(lab, full)[epochs]
    assert "2 trained, 2 diverged, 4 stopped" in output
    # 6 runs of 1 epoch, 4 of 2 and 2 of 5; two diverge, at whose last step the loss may be finite still.
    diverged = [job for job in halved if halved[job].data.tags["outcome"] == "diverged"]
    least = STEPS * (6 * 1 + 4 * 2 + 2 * 5) + sum(int(halved[job].data.tags["diverged_step"]) for job in diverged)
    share = float(output.partition("halving by 2: ")[2].partition("%")[0]) / 100
    assert least - 1 <= share * STEPS * 8 * 5 <= least + 3

    stopped = [next(job for job in halved if halved[job].data.tags.get("rung") == rung) for rung in "12"]
    for job in (diverged[0], *stopped, second[0]):
        lab.client().set_terminated(halved[job].info.run_id, "KILLED")
    output = lab.run(*SWEEP, "sweep.halving=2")
    assert "4 of 8 runs are in the record already" in output
    assert fates(ended(lab, 1)) == fates(halved)
    sweep = lab.runs("sweep")[1].info.run_id
    assert "8 of 8 runs are identical" in lab.run("--sweep", sweep, module="experiments.reproduce")
    compared = lab.run(lab.runs("sweep")[0].info.run_id, sweep, module="experiments.compare")
    stops = [f"identical until B is stopped at step {STEPS * epochs}" for epochs in (1, 2)]
    assert [compared.count(f"{told}\n") for told in (*stops, " identical")] == [2, 2, 4]


def test_runs_that_have_all_diverged_before_the_first_of_two_rungs_are_recorded(lab):
    rates = "optimizer.learning_rate=1e6,1e7,1e8,1e9"
    output = lab.run("-m", *SWEEP[4:], ALONE, "dataset=iris", "training.epochs=16", rates, "network.depth=3", "sweep.halving=2")
    assert "every run diverged (4 runs)" in output
    assert [run.data.tags["outcome"] for run in ended(lab, 0).values()] == ["diverged"] * 4


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (["sweep.halving=1"], "error: sweep.halving is 1.0, it must be finite and above 1"),
        (["sweep.halving=2,3"], "error: sweep.halving differs between job 0 and job 1: 2.0 and 3.0"),
        (["sweep.halving=100"], "error: sweep.halving is 100, but the sweep has 3 runs: it must be 3 at most"),
        (["sweep.halving=3", "training.epochs=2"], "error: sweep.halving is 3, but with training.epochs=2"),
        (["sweep.halving=3", "hydra/launcher=basic"], "error: sweep.halving is 3, but BasicLauncher trains jobs one by one"),
        (["sweep.halving=3", "hydra.sweeper.max_batch_size=2"], "error: hydra.sweeper.max_batch_size is 2, but sweep.halving"),
        (["sweep.halving=3", "experiment=linear_limit"], "error: sweep.halving is 3, but sweep.study linear_limit is about"),
    ],
)
def test_what_cannot_be_halved_is_refused_before_anything_is_made(lab, bad, line):
    output = lab.run("-m", "dataset=iris", "network.depth=1", "optimizer.learning_rate=0.1,0.2,0.3", *bad, status=1)
    assert line in output
    assert len(output.splitlines()) == 1
    assert list(lab.folder.iterdir()) == []


def test_one_run_is_not_halved(lab):
    output = lab.run("sweep.halving=3", status=1)
    assert output == "error: sweep.halving is 3, but without -m there is one run: it must be null\n"
    assert list(lab.folder.iterdir()) == []
