"""Open artefacts in a runtime, one after the other: `python -m tests.decoys.open_all RUNTIME ...`.

The arguments are the format, the runtime's name and the paths. What became of each is printed as a
JSON object: "" for one that ran, or why it was refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cgconvert.errors import CgconvertError
from cgconvert.runtimes import open_runtime


def main(format_name: str, runtime: str, *paths: str) -> None:
    outcomes = {}
    for path in paths:
        try:
            opened = open_runtime(format_name, Path(path), "cpu", name=runtime, threads=1)
            try:
                opened.feed(opened.tokenize("def sel(se):")[:8])
            finally:
                opened.close()
            outcomes[path] = ""
        except CgconvertError as error:
            outcomes[path] = str(error)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
