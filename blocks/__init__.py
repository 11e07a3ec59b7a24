"""The engine: a network built from the lecture's blocks, in NumPy."""

from blocks import losses
from blocks.activations import ACTIVATIONS, Activation
from blocks.block import Block, Cache
from blocks.gradient_check import check_block, check_network
from blocks.history import History
from blocks.initializers import INITIALIZERS
from blocks.instruments import INSTRUMENTS, Instrument
from blocks.losses import LOSSES, Loss
from blocks.machine import Machine
from blocks.network import KINDS, Network
from blocks.normalized import Normalized
from blocks.optimizers import OPTIMIZERS, Adam, GradientDescent, Momentum, Nesterov, Optimizer
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
    "SCHEDULES",
    "Activation",
    "Adam",
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
    "Residual",
    "check_block",
    "check_network",
    "losses",
    "reshuffled",
    "train",
]
