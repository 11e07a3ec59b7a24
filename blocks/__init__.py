"""The engine: a network built from the lecture's blocks, in NumPy. It may not import `experiments`, Hydra or MLflow.

The lecture's nouns are files at this folder's top; `tape` records and replays them, `measure` has the instruments.
"""

from blocks import losses
from blocks.activations import ACTIVATIONS, Activation
from blocks.block import Block, Cache
from blocks.history import History
from blocks.initializers import INITIALIZERS
from blocks.losses import LOSSES, Loss
from blocks.machine import Machine
from blocks.measure.gradient_check import check_block, check_network
from blocks.measure.instruments import INSTRUMENTS, Instrument
from blocks.network import KINDS, Network
from blocks.normalized import BatchNormalized, Normalized
from blocks.optimizers import OPTIMIZERS, Adam, GradientDescent, Momentum, Nesterov, Optimizer, RMSProp
from blocks.parametrizations import PARAMETRIZATIONS, rate_factors
from blocks.residual import Residual
from blocks.schedules import SCHEDULES
from blocks.training import reshuffled, train

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "INSTRUMENTS",
    "KINDS",
    "LOSSES",
    "OPTIMIZERS",
    "PARAMETRIZATIONS",
    "SCHEDULES",
    "Activation",
    "Adam",
    "BatchNormalized",
    "Block",
    "Cache",
    "GradientDescent",
    "History",
    "Instrument",
    "Loss",
    "Machine",
    "Momentum",
    "Nesterov",
    "Network",
    "Normalized",
    "Optimizer",
    "RMSProp",
    "Residual",
    "check_block",
    "check_network",
    "losses",
    "rate_factors",
    "reshuffled",
    "train",
]
