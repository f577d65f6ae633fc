"""Which installed runtime loads which plan: python try_runtimes.py PLANS [MODULE …]

Each pair in a process of its own, for a refusal can be a crash.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, importlib
trt = importlib.import_module(sys.argv[1])
logger = trt.Logger(trt.Logger.ERROR)
runtime = trt.Runtime(logger)
runtime.engine_host_code_allowed = sys.argv[3] == "1"
engine = runtime.deserialize_cuda_engine(open(sys.argv[2], "rb").read())
context = engine and engine.create_execution_context()
print(trt.__version__, "LOADS" if context else "refuses")
"""


def main(plans: Path, modules: list[str]) -> None:
    for module in modules:
        for plan in sorted(plans.glob("*.plan")):
            for host_code in ("0", "1"):
                found = subprocess.run(
                    [sys.executable, "-c", SCRIPT, module, str(plan), host_code],
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
                said = (found.stdout + found.stderr).strip().splitlines()
                last = " | ".join(said[-2:])[-300:]
                print(f"{module} {plan.name} host_code={host_code} rc={found.returncode}: {last}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
