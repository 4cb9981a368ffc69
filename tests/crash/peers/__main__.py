"""Power cuts and kills, side by side: ``python -m tests.crash.peers``, or ``make crash-peers``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.crash.peers.campaign import MODELS, Tally, cut_power, kill
from tests.crash.peers.filesystem import why_not
from tests.crash.peers.judge import OUTCOMES
from tests.crash.peers.programs import PEERS, WORKLOADS

__all__ = ["main"]


def main() -> int:
    """Print a table, and an example of each thing that went wrong; 1 if it was pmarray's."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.peers", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0, help="at most, for all together")
    parser.add_argument("--kills", type=int, default=50, help="of each library and workload")
    parser.add_argument("--peer", choices=PEERS, action="append")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        parser.error(reason)
    names = arguments.peer or list(PEERS)
    share = 60 * arguments.minutes / len(names) / len(WORKLOADS) / (len(MODELS) + 1)
    print(f"Each cell: {' / '.join(OUTCOMES)}.\n")
    print("| | durable by | " + " | ".join(f"power, {name}" for name in MODELS) + " | killed |")
    print("|---|---|" + "---|" * (len(MODELS) + 1))
    examples = []
    for name in names:
        peer = PEERS[name]
        tallies = {what: Tally() for what in (*MODELS, "killed")}
        for workload in WORKLOADS:
            for what, model in MODELS.items():
                tallies[what] += cut_power(
                    name, workload, model, seed=arguments.seed, until=time.monotonic() + share
                )
            tallies["killed"] += kill(
                name,
                workload,
                seed=arguments.seed,
                kills=arguments.kills,
                until=time.monotonic() + share,
            )
        cells = [f"{name} {peer.version}", peer.call]
        for what, tally in tallies.items():
            cells.append(" / ".join(f"{tally.counts[o]:,}" for o in OUTCOMES))
            examples += [(name, f"{what}: {o}: {e}") for o, e in tally.examples.items()]
        print("| " + " | ".join(cells) + " |", flush=True)
    print("", *(f"{name}: {example}" for name, example in examples), sep="\n")
    return int(any(name == "pmarray" for name, _ in examples))


if __name__ == "__main__":
    sys.exit(main())
