"""Measures everything: `python -m benchmarks.run`.

The parts, each a command of its own too (`python -m benchmarks.PART`): `throughput`, the gateway
beside its floors; `durable_steps`, the engine beside another library; `recovery`, the start after
a kill with 100,000 operations pending; `sleepers`, a million suspended operations; `deliveries`,
the delivery service beside a bare client, among sick destinations and on a large backlog. Exit code
1 where something is not as required, 2 where a server does not start.
"""

import sys

from benchmarks import deliveries, durable_steps, recovery, sleepers, throughput
from benchmarks.parts import main

PARTS = (throughput.PART, durable_steps.PART, recovery.PART, sleepers.PART, deliveries.PART)

if __name__ == "__main__":
    sys.exit(main(PARTS, prog="python -m benchmarks.run"))
