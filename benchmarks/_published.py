"""Figures of the paper, as data: they are compared with ours as ratios, never as times.

Andrew Wood, Moshik Hershcovitch, Daniel Waddington, Sarel Cohen and Peter Chin, *Non-Volatile
Memory Accelerated Posterior Estimation*, https://arxiv.org/abs/2202.10522: Table I, and the numbers
behind Figures 1 to 3 as the plotting script published with the authors' code has them. Each is a
mean of three runs on two Xeon 6248, 384 GB of DRAM, 1.5 TB of Optane and a Tesla M60.
"""

from __future__ import annotations

__all__ = ["DRAM", "EPOCHS", "EPOCH_SECONDS", "MACHINE_BYTES", "SIZE_GB", "STEPS", "TOTAL_SECONDS"]

EPOCHS = (1, 25, 50, 75)
"""The four lengths of training."""
STEPS = 600
"""Minibatches of an epoch, of 100 images each; an iterate is collected after each."""
SIZE_GB = (6.28, 156.33, 312.62, 468.92)
"""Table I: the deviation matrix at each length."""
MACHINE_BYTES = 384e9
"""DRAM of their machine."""

DRAM = "DRAM, with Memory mode beyond it"
"""What the others are compared with."""

TOTAL_SECONDS = {
    DRAM: (48.3, 1287, 2742, 4547),
    "persistent memory, FS-DAX": (157.6, 4174, 8684, 12702),
    "persistent memory, Dev-DAX": (155.1, 4127, 8334, 12585),
    "row-major memory map": (75.8, 4985, 17129, 37927),
}
"""Figure 1: a whole run."""

EPOCH_SECONDS = {
    DRAM: ((41.7, 0.7), (48.1, 3.0), (50.8, 13.4), (56.2, 38.3)),
    "persistent memory, FS-DAX": ((147.7, 0.9), (162.4, 0.3), (169.0, 0.8), (164.8, 0.3)),
    "persistent memory, Dev-DAX": ((149.3, 0.7), (162.2, 0.8), (163.8, 0.3), (165.0, 0.3)),
    "row-major memory map": ((69.0, 7.6), (198.3, 12.1), (342.3, 38.4), (505.5, 37.2)),
}
"""Figures 2 and 3: an epoch, mean and standard deviation."""
