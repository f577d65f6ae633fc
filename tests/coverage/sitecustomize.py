"""Measures every Python process that finds this file, whatever its environment.

Builders and other children get an environment without anything of ours but PYTHONPATH, so
coverage's own way, a variable, would not reach them. `run.sh` puts a copy of this file on
PYTHONPATH, with the settings beside it.
"""

import os
from pathlib import Path

import coverage

os.environ["COVERAGE_PROCESS_START"] = str(Path(__file__).with_name("coveragerc"))
coverage.process_startup()
del os.environ["COVERAGE_PROCESS_START"]  # tests look at what their children inherit
