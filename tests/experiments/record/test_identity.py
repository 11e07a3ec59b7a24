import copy
import hashlib
import json
import struct
from dataclasses import asdict

import numpy as np
import pytest

from experiments.record.identity import fingerprint, sweep_fingerprint, trajectory_hash
from experiments.run.composition import parse_config
from experiments.run.stack import train_stack


@pytest.fixture
def config(composed):
    return parse_config(composed())


def test_a_fingerprint_is_of_what_is_trained_and_of_nothing_around_it(config, composed):
    same = ["tracking.uri=sqlite:///elsewhere.db", "tracking.points=5", "sweep.resume=false"]
    assert fingerprint(parse_config(composed(*same)), "d") == fingerprint(config, "d")
    others = ["seed=1", "dtype=float64", "optimizer.learning_rate=0.10000000000000002", "dataset.seed=1", "network.gain=2"]
    prints = {fingerprint(parse_config(composed(other)), "d") for other in others} | {fingerprint(config, "d")}
    assert len(prints) == len(others) + 1
    assert fingerprint(config, "e") != fingerprint(config, "d")
    assert fingerprint(config, "d", package="0.0.0") != fingerprint(config, "d")


def test_a_plain_network_of_a_native_run_has_the_fingerprint_it_had_before_later_keys(config, composed):
    before = {key: value for key, value in asdict(config).items() if key not in ("tracking", "sweep")}
    del before["network"]["kind"], before["network"]["parametrization"], before["network"]["gamma"]
    del before["optimizer"]["block_rates"], before["optimizer"]["warmup"], before["instruments"], before["machine"]
    content = json.dumps([before, "d", "1"], sort_keys=True).encode()
    native = parse_config(composed("machine=native"))
    assert fingerprint(native, "d", package="1") == hashlib.sha256(content).hexdigest()
    for other in (config, parse_config(composed("machine=native", "network.kind=residual"))):
        assert fingerprint(other, "d", package="1") != fingerprint(native, "d", package="1")


def test_a_run_with_instruments_has_the_fingerprint_it_had_before_there_were_more_of_them(composed):
    config = parse_config(composed("instruments.saturated=1"))
    before = {key: value for key, value in asdict(config).items() if key not in ("tracking", "sweep")}
    del before["network"]["kind"], before["network"]["parametrization"], before["network"]["gamma"]
    del before["optimizer"]["block_rates"], before["optimizer"]["warmup"]
    for later in ("signals", "parameters", "singular_value", "preconditioned_sharpness", "noise_scale"):
        del before["instruments"][later]
    content = json.dumps([before, "d", "1"], sort_keys=True).encode()
    assert fingerprint(config, "d", package="1") == hashlib.sha256(content).hexdigest()
    more = parse_config(composed("instruments.saturated=1", "instruments.signals=log"))
    assert fingerprint(more, "d", package="1") != fingerprint(config, "d", package="1")


def test_a_sweep_s_fingerprint_knows_the_order_of_its_runs():
    assert sweep_fingerprint(["a", "b"]) == sweep_fingerprint(["a", "b"])
    assert len({sweep_fingerprint(runs) for runs in (["a", "b"], ["b", "a"], ["a"], ["ab"])}) == 4


def test_the_trajectory_hash_is_over_the_documented_bytes(composed):
    (run,) = train_stack([parse_config(composed("training.epochs=1", "network.depth=2", "network.width=3"))])
    history = run.history
    content = b""
    for values in (history.loss, history.grad_norm, history.grad_norm_b, run.parameters):
        content += str(values.shape).encode()
        content += b"".join(struct.pack("<f", value) for value in values.ravel().tolist())
    assert trajectory_hash(history, run.parameters) == hashlib.sha256(content).hexdigest()


def test_the_trajectory_hash_sees_the_last_bit_of_everything_and_no_nan_s_payload(composed):
    (run,) = train_stack([parse_config(composed("training.epochs=1", "network.depth=2", "network.width=3", "dtype=float64"))])
    whole = trajectory_hash(run.history, run.parameters)
    for name in ("loss", "grad_norm", "grad_norm_b"):
        history = copy.deepcopy(run.history)
        values = getattr(history, name)
        values.flat[-1] = np.nextafter(values.flat[-1], np.inf)
        assert trajectory_hash(history, run.parameters) != whole
    parameters = run.parameters.copy()
    parameters[0] = np.nextafter(parameters[0], 0)
    assert trajectory_hash(run.history, parameters) != whole
    hashes = set()
    for bits in (0x7FF8000000000000, 0xFFF8000000000001):
        history = copy.deepcopy(run.history)
        history.loss.view(np.uint64)[-1] = bits
        hashes.add(trajectory_hash(history, run.parameters))
    assert len(hashes) == 1
