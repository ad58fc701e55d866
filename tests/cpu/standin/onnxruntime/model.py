"""Stands in for Triton's ONNX Runtime backend on a CPU: a Python-based backend over the model.onnx of a version.

It takes a config as it is: names, types and dims are held against the file, as the real backend does when it loads.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
        options.graph_optimization_level = LEVELS.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batched = config["max_batch_size"] > 0
        for kind, values in (("input", self.session.get_inputs()), ("output", self.session.get_outputs())):
            found = {value.name: [d if isinstance(d, int) else -1 for d in value.shape] for value in values}
            told = {entry["name"]: [-1] * batched + [int(d) for d in entry["dims"]] for entry in config[kind]}
            if found != told:
                raise triton.TritonModelException(f"{kind} of the config {told}, of the file {found}")
        self.outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests):
        """Run the requests of a batch as one batch, which is what dynamic batching is for."""
        images = [triton.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        results = self.session.run(self.outputs, {"images": np.concatenate(images)})
        ends = np.cumsum([len(part) for part in images])[:-1]
        parts = zip(*(np.split(result, ends) for result in results), strict=True)
        return [
            triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(self.outputs, part, strict=True)])
            for part in parts
        ]
