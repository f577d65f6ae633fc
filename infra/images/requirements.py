"""Prints the requirements of the package and of the extras named, a line each.

    python requirements.py farm gpu

So that images install what is locked in a layer that our own code does not invalidate.
"""

import sys
import tomllib

with open("pyproject.toml", "rb") as stream:
    project = tomllib.load(stream)["project"]
lines = list(project["dependencies"])
for extra in sys.argv[1:]:
    lines += project["optional-dependencies"][extra]
print("\n".join(lines))
