"""The command itself, process start included: beside the usual script, and with many runs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.stages import IMPORTS, NEW_STORE
from tests.benchmarks.sweep import DEPTHS, RATES, SWEEP_EPOCHS, ours_sweep
from tests.benchmarks.tables import alternate, table

RUNS = len(DEPTHS) * len(RATES)
ROUNDS = 3


def command() -> None:
    """The command into a new store, process start included, beside its training alone and the usual script; its stages."""
    contestants: dict[str, Callable[[], None]] = {
        "tracked": lambda: _ours("experiments.train"),
        "tracked, no pictures, no model": lambda: _ours("experiments.train", *PLAIN),
        "untracked": lambda: _ours("experiments.train", "tracking.enabled=false"),
        "training alone, the whole sets measured": lambda: ours_sweep(EVALUATIONS),
        "training alone": ours_sweep,
        "PyTorch + Hydra + MLflow": _usual,
    }
    times = alternate(contestants, 1, ROUNDS, warm_up=False)
    # One rate of each depth: its time a run is what counts.
    times["PyTorch + Hydra + MLflow"] *= RUNS / len(DEPTHS)
    table(f"{RUNS} runs of {SWEEP_EPOCHS} epochs, a new SQLite store, process start included", times, "s ", 1)
    tracked, untracked = _stages(*PLAIN), _stages("tracking.enabled=false")
    for clock, what in enumerate(("seconds", "processor seconds of the main process")):
        with_record, without_record = (
            sum(stage[clock] for name, stage in stages.items() if name not in (IMPORTS, NEW_STORE))
            for stages in (tracked, untracked)
        )
        print(f"  {what} after imports and a new store's tables: tracked {with_record:.1f}, untracked {without_record:.1f}")
    print(f"\n  {'the main process of a tracked sweep':<42}{'s':>8}{'of the processor':>20}")
    for name, (seconds, processor) in sorted(_stages().items(), key=lambda stage: -stage[1][0]):
        print(f"  {name:<42}{seconds:8.2f}{processor:20.2f}")


PLAIN = ("tracking.pictures=none", "tracking.models=none")
EVALUATIONS = 10


def time_command(checkout: Path) -> float:
    """Return the seconds of the tracked sweep, end to end, by the code of that checkout and what is installed here."""
    start = time.perf_counter()
    _ours("experiments.train", PYTHONPATH=os.pathsep.join(map(str, (checkout, checkout / "experiments/plugins"))))
    return time.perf_counter() - start


def _ours(module: str, *arguments: str, **environ: str) -> None:
    """The sweep by that module, in a folder of its own. environ: environment variables."""
    axes = [f"network.depth={','.join(map(str, DEPTHS))}", f"optimizer.learning_rate={','.join(f'{rate:.4g}' for rate in RATES)}"]
    module, *first = module.split()
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", module, *first, "-m", *axes, f"tracking.uri=sqlite:///{folder}/runs.db", *arguments]
        subprocess.run([sys.executable, *words], cwd=folder, env=os.environ | environ, check=True, capture_output=True)


def _stages(*arguments: str) -> dict[str, list[float]]:
    """Where the main process's time goes, see `benchmarks.stages`."""
    with tempfile.NamedTemporaryFile() as file:
        _ours(f"tests.benchmarks.stages {file.name}", *arguments)
        return json.loads(Path(file.name).read_text())


def _usual() -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(USUAL)
        axes = [f"depth={','.join(map(str, DEPTHS))}", f"rate={RATES[8]}", f"epochs={SWEEP_EPOCHS}"]
        environ = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
        subprocess.run([sys.executable, script, "-m", *axes], cwd=folder, env=environ, check=True, capture_output=True)


# What a reader of the three tutorials writes.
USUAL = """
import hydra, mlflow, torch
from hydra.core.config_store import ConfigStore
from dataclasses import dataclass
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

@dataclass
class Config:
    depth: int = 3
    width: int = 64
    rate: float = 0.1
    epochs: int = 20
    batch_size: int = 64

ConfigStore.instance().store(name="config", node=Config)

@hydra.main(version_base=None, config_name="config")
def main(cfg):
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    scaler = StandardScaler().fit(X)
    X, X_test = (torch.tensor(scaler.transform(part), dtype=torch.float32) for part in (X, X_test))
    y, y_test = torch.tensor(y), torch.tensor(y_test)
    loader = DataLoader(TensorDataset(X, y), batch_size=cfg.batch_size, shuffle=True)
    layers = [nn.Linear(64, cfg.width), nn.ReLU()]
    for _ in range(cfg.depth - 2):
        layers += [nn.Linear(cfg.width, cfg.width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(cfg.width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.rate)
    criterion = nn.CrossEntropyLoss()
    with mlflow.start_run():
        mlflow.log_params({"depth": cfg.depth, "width": cfg.width, "rate": cfg.rate})
        for epoch in range(cfg.epochs):
            total = 0.0
            for X_batch, y_batch in loader:
                optimizer.zero_grad()
                loss = criterion(model(X_batch), y_batch)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(X_batch)
            norms = {f"grad_norm/{name}": p.grad.norm().item() for name, p in model.named_parameters()}
            with torch.no_grad():
                logits = model(X_test)
                validation = criterion(logits, y_test).item()
                accuracy = (logits.argmax(1) == y_test).float().mean().item()
            metrics = {"loss/train": total / len(X), "loss/validation": validation, "accuracy/validation": accuracy}
            mlflow.log_metrics({**metrics, **norms}, step=epoch)

main()
"""

# 10,000 take a quarter of an hour: SCALES=10,1000,10000 asks for them, too.
SCALES = [int(runs) for runs in os.environ.get("SCALES", "10,1000").split(",")]


def scale() -> None:
    """SCALES runs: seconds a run and the main process's peak memory."""
    print("\nmany runs (depth 2, width 16, 2 epochs of digits) into a new SQLite store")
    for runs in SCALES:
        with tempfile.TemporaryDirectory() as folder:
            rates = ",".join(f"{rate:.6g}" for rate in np.geomspace(1e-3, 1, runs))
            few = ["network.depth=2", "network.width=16", "training.epochs=2", f"tracking.uri=sqlite:///{folder}/runs.db"]
            command = [sys.executable, "-m", "experiments.train", "-m", f"optimizer.learning_rate={rates}", *few]
            start = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            assert os.waitstatus_to_exitcode(status) == 0
            print(f"  {runs:5d} runs  {seconds:7.1f} s  {seconds / runs:.4f} s a run  {usage.ru_maxrss / 1024:.0f} MiB")
