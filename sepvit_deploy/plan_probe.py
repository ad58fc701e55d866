"""The child of `plans.probe`: deserialises a plan that nothing is known of, and says whether that went well.

standard input     one line of JSON (builder, bytes), then the plan
standard output    one line of JSON: loads, reason
"""

from __future__ import annotations

import json
import os
import sys

from sepvit_deploy.errors import SepvitError
from sepvit_deploy.runners.tensorrt_engine import LoadedEngine

DEFAULT_STREAM = 0


def main() -> None:
    """Be the child; the process ends here, for tearing the native libraries down proves nothing."""
    header = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(header["bytes"])
    answer = os.dup(1)
    os.dup2(2, 1)  # what native libraries print goes to standard error
    reason = ""
    try:
        # It is trusted, and may be version-compatible: nothing is known of it.
        engine = LoadedEngine(content, name="the plan", builder=header["builder"], version_compatible=True)
        least, _, _ = engine.profiles[0].shapes(engine.shape)
        engine.context(0, least, DEFAULT_STREAM)
    except SepvitError as error:
        reason = str(error)
    os.write(answer, json.dumps({"loads": not reason, "reason": reason}).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
