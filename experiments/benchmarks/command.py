"""The command itself, process start included: beside the usual script, and with many runs."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks.sweep import DEPTHS, RATES, SWEEP_EPOCHS
from experiments.benchmarks.tables import alternate


def end_to_end() -> None:
    """The command itself into a new store, with and without tracking, beside the usual script, process start included."""
    rates = ",".join(f"{rate:.4g}" for rate in RATES)
    command = [sys.executable, "-m", "experiments.train", "-m", f"network.depth={','.join(map(str, DEPTHS))}"]
    runs = len(DEPTHS) * len(RATES)

    def ours(*more: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            uri = f"tracking.uri=sqlite:///{folder}/runs.db"
            subprocess.run(
                [*command, f"optimizer.learning_rate={rates}", uri, *more], cwd=folder, check=True, capture_output=True
            )

    def usual() -> None:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script.py"
            script.write_text(USUAL)
            # One rate of each depth: its time a run is what counts.
            axes = [f"depth={','.join(map(str, DEPTHS))}", f"rate={RATES[8]}", f"epochs={SWEEP_EPOCHS}"]
            environ = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
            subprocess.run([sys.executable, script, "-m", *axes], cwd=folder, env=environ, check=True, capture_output=True)

    contestants: dict[str, Callable[[], None]] = {
        "ours": ours,
        "plain": lambda: ours("tracking.pictures=none", "tracking.models=none"),
        "off": lambda: ours("tracking.enabled=false"),
        "usual": usual,
    }
    times = alternate(contestants, 1, 3, False)
    of_usual = times["usual"] / len(DEPTHS)
    print(f"\nend to end, {runs} runs of {SWEEP_EPOCHS} epochs into a new SQLite store, process start included")
    print(f"  ours                     {np.median(times['ours']) / runs:8.3f} s a run")
    print(
        f"  PyTorch + Hydra + MLflow {np.median(of_usual):8.3f} s a run   {np.median(of_usual * runs / times['ours']):.1f} x ours"
    )
    tracking, drawing = 1 - times["off"] / times["plain"], times["ours"] / times["plain"] - 1
    print(f"  tracking takes {100 * np.median(tracking):.0f} % of the sweep's time without its best run's pictures and model")
    print(f"  those add {100 * np.median(drawing):.0f} %")


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


def scale() -> None:
    """10 to 5,000 runs: seconds a run and the main process's peak memory."""
    print("\nmany runs (depth 2, width 16, 2 epochs of digits) into a new SQLite store")
    for runs in (10, 100, 1000, 5000):
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
