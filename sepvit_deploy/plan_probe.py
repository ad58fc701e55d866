"""The child of `plans.probe`: deserialises a plan that nothing is known of, and says whether that went well.

standard input     one line of JSON (builder, bytes), then the plan
standard output    one line of JSON: loads, reason
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from sepvit_deploy import builders
from sepvit_deploy.errors import SepvitError


def main() -> None:
    """Be the child; the process ends here, for tearing the native libraries down proves nothing."""
    header = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(header["bytes"])
    answer = os.dup(1)
    os.dup2(2, 1)  # what native libraries print goes to standard error
    try:
        reason = _refusal(builders.load(header["builder"]), content)
    except SepvitError as error:
        reason = str(error)
    os.write(answer, json.dumps({"loads": not reason, "reason": reason}).encode() + b"\n")
    os._exit(0)


def _refusal(trt: Any, content: bytes) -> str:
    """Why a plan does not load; empty where it does."""
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))

    runtime = trt.Runtime(Log())
    runtime.engine_host_code_allowed = True  # it is trusted, and may be version-compatible: nothing is known of it
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None or engine.create_execution_context() is None:
        return errors[0] if errors else "the runtime refuses it and does not say why"
    return ""


if __name__ == "__main__":
    main()
