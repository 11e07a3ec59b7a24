"""Instruments by the command: what a real sweep records of them."""

import numpy as np
import pytest

from blocks.history import History
from blocks.measure.signals import NUMBERS
from experiments.record.identity import fingerprint
from experiments.run.composition import parse_config
from experiments.run.trust import from_record

NOTEBOOK = """
from experiments import results
from experiments.pictures import signals
frame, (history, *others) = results.load()
signals.distribution(history, "a").savefig("activations.png")
signals.ridge(history).savefig("pre_activations.png")
"""
ASKED = ["instruments.sharpness=2", "instruments.update_ratio=log", "instruments.saturated=1", "instruments.example_norm=log"]
ASKED += ["instruments.signals=log", "instruments.parameters=log"]
SMALL = ["dataset=iris", "network.depth=3", "training.epochs=4", "training.batch_size=30", "network.width=8"]


@pytest.mark.slow
def test_a_sweep_records_what_its_instruments_measure(lab):
    rates = ["0.01", "0.1"]
    lab.run("-m", *SMALL, *ASKED, f"optimizer.learning_rate={','.join(rates)}")
    runs = lab.runs()
    assert len(runs) == 2
    for run in runs:
        history = History.load(lab.artifact(run, "history.npz"))
        names = {
            "sharpness": ["sharpness/lambda_01"],
            "update_ratio": [f"update_ratio/W_0{block}" for block in (1, 2, 3)],
            "saturated": ["saturated/a_01", "saturated/a_02"],
            "example_norm": [f"example_norm/W_0{block}" for block in (1, 2, 3)],
        }
        for name, keys in names.items():
            quantity = history.quantities[name]
            for index, key in enumerate(keys):
                points = lab.client().get_metric_history(run.info.run_id, key)
                assert [point.step for point in points] == quantity.at.tolist()
                np.testing.assert_array_equal([point.value for point in points], quantity.values[:, index])
        signals = history.quantities["signals"]
        points = lab.client().get_metric_history(run.info.run_id, "signals/update_data_03")
        assert [point.step for point in points] == signals.at.tolist()
        np.testing.assert_array_equal([point.value for point in points], signals.values[:, NUMBERS.index("update_data"), 2])
        assert not [key for key in run.data.metrics if key.startswith("parameters")]
        theta = history.quantities["parameters"].values
        final = np.load(lab.artifact(run, "parameters.npy"))
        assert theta.shape == (len(signals.at), len(final))
        assert theta.dtype == final.dtype
    # What a notebook draws of the newest sweep.
    (lab.folder / "notebook.py").write_text(NOTEBOOK)
    lab.run(module="notebook")
    assert all((lab.folder / f"{name}.png").stat().st_size > 1000 for name in ("activations", "pre_activations"))
    # A run alone writes the very file.
    lab.run(*SMALL, *ASKED, "optimizer.learning_rate=0.1", "sweep.resume=false")
    alone = lab.runs()[-1]
    together = next(run for run in runs if run.data.params["optimizer.learning_rate"] == "0.1")
    assert lab.artifact(alone, "history.npz").read_bytes() == lab.artifact(together, "history.npz").read_bytes()
    assert "identical" in lab.run(together.info.run_id, module="experiments.reproduce")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("instruments.sharpness=0", "instruments.sharpness is '0', it must be a whole number of at least 1"),
        ("instruments.sharpness=often", "instruments.sharpness is 'often', it must be a whole number of at least 1"),
        ("instruments.examples=100000", "instruments.examples is 100000, it must be null or 1 to 120"),
        ("instruments.eigenvalues=0", "instruments.eigenvalues is 0, it must be a whole number of at least 1"),
        ("instruments.foo=1", "foo"),
    ],
)
def test_bad_input_is_a_line_and_makes_no_run(lab, override, message):
    output = lab.run(*SMALL, override, status=1)
    assert message in output
    assert "Traceback" not in output
    assert not (lab.folder / "runs.db").exists()


def test_a_record_from_before_the_instruments_keeps_its_fingerprint(composed):
    from dataclasses import asdict

    config = parse_config(composed(*SMALL))
    older = asdict(config)
    del older["instruments"]
    del older["network"]["kind"]
    assert fingerprint(from_record(older), "digest", "0.1") == fingerprint(config, "digest", "0.1")
    watched = parse_config(composed(*SMALL, "instruments.sharpness=2"))
    assert fingerprint(watched, "digest", "0.1") != fingerprint(config, "digest", "0.1")
