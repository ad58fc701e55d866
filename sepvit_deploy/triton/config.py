"""The configs of the models that a repository holds, as Triton's own records.

A fixed batch stands in the dims, and max_batch_size is 0 then: ``lead`` is that leading dimension, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from sepvit_deploy.contract import (
    CLASS,
    IMAGE,
    INPUT_SIZE,
    LABEL,
    MASK,
    PICTURE_SIZE,
    PIXELS,
    SCORE,
    classify_name,
    mask_name,
    preprocess_name,
    rank_name,
    segment_name,
)
from sepvit_deploy.errors import OptionError
from sepvit_deploy.triton.messages import Message, schema
from sepvit_deploy.triton.served import FILES, Served, Serving, limit

PLATFORMS = {"plan": "tensorrt_plan", "onnx": "onnxruntime_onnx"}
SIZES = (INPUT_SIZE, PICTURE_SIZE)
_GIVEN = "given"
"""What a segmentation model gives, in its ensemble."""
LABELS = "labels.txt"
WARMUP_PICTURE, WARMUP_IMAGES = "picture", "images"
"""Files in a model's folder warmup."""
QUEUED_BATCHES = 16
"""Whole batches that may wait for an instance. A longer queue only makes every answer late: the next is turned away."""
LONGEST_WAIT_US = 5_000_000
KEPT_VERSIONS = 2
"""Served at once: the one before answers until the new one is loaded, and a client may ask for it by number."""
PREPROCESSORS = 2
"""Instances of the preprocessing model, each a process: decoding a photograph takes longer than a GPU needs for it."""
GPU, CPU = "KIND_GPU", "KIND_CPU"
NO_OPTIMISATION = 2
"""Of a graph, as Triton's ONNX Runtime backend numbers the levels."""


def of_model(served: Served, serving: Serving) -> Message:
    """The model itself: images to logits, to masks, or to feature maps, on a GPU.

    Raises:
        OptionError: CUDA graphs are asked for, and several profiles share the batches, or images differ in size.
    """
    if serving.cuda_graphs and served.spec.any_size:
        raise OptionError(f"--cuda-graphs with {served.path}, which takes any size", expected="a plan of one size")
    config = _model(served, serving)
    config.platform = PLATFORMS[served.kind]
    config.default_model_filename = FILES[served.kind]
    group = config.instance_group.add(kind=GPU, count=serving.instances)
    most = config.max_batch_size
    if len(served.profiles) > 1:  # one is the server's default
        group.profile.extend(str(k) for k, profile in enumerate(served.profiles) if profile.minimum <= most)
    if serving.cuda_graphs and len(group.profile) > 1:
        # Triton captures each graph in each profile, and a batch that is not in all of them fails in some.
        told = ", ".join(
            f"{served.profiles[int(k)].minimum} to {served.profiles[int(k)].maximum}" for k in group.profile
        )
        raise OptionError(
            f"--cuda-graphs with {served.path}, whose batches are in several profiles: {told}",
            expected="one profile, for Triton captures every graph in each",
            hint=f"build it again with --profile 1,{min(8, most)},{most}, or leave --cuda-graphs out",
        )
    if served.kind == "onnx":  # FP32 is FP32: TF32 keeps 10 bits of a product's factors
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(
            name="cuda", parameters={"use_tf32": "0"}
        )
    if serving.cuda_graphs:
        config.optimization.cuda.graphs = True
        for batch in usual_batches(most):
            spec = config.optimization.cuda.graph_spec.add(batch_size=batch)
            spec.input[served.spec.input_name].dim.extend(config.input[0].dims)
    return config


def of_model_on_cpu(served: Served, serving: Serving) -> Message:
    """The same model where there is no GPU: its ONNX file in ONNX Runtime, one instance, which takes every core."""
    config = _model(served, serving)
    config.platform = PLATFORMS["onnx"]
    config.default_model_filename = FILES["onnx"]
    config.instance_group.add(kind=CPU, count=1)
    if served.signed_int8:
        # None: ONNX Runtime puts kernels of its own in place of Q/DQ pairs, and those saturate on some CPUs. The option
        # that leaves the pairs alone cannot be said here; without it a lower level moves them, and rounds once more.
        config.optimization.graph.level = NO_OPTIMISATION
    return config


def _model(served: Served, serving: Serving) -> Message:
    """What does not depend on where it runs."""
    types = schema()
    config = types.ModelConfig(name=served.name, max_batch_size=limit(served, serving.max_batch))
    lead = _lead(served)
    image = config.input.add(name=served.spec.input_name, data_type=types.TYPE_FP32)
    image.dims.extend([*lead, 3, *served.sides])
    for name, dims in served.outputs.items():
        output = config.output.add(name=name, data_type=_type(name), dims=[*lead, *dims])
        if served.classifies:
            output.label_filename = LABELS
    config.version_policy.latest.num_versions = KEPT_VERSIONS
    _queue(config, serving.queue_delay_us, serving.instances)
    for batch in sorted({1, config.max_batch_size or 1}):
        often = "once" if batch == 1 else f"{batch} times"
        warmup = config.model_warmup.add(name=f"a photograph, {often}", batch_size=batch)
        _file(warmup, image, WARMUP_IMAGES, [*lead, 3, *served.spec.size])
    return config


def of_preprocess(served: Served, serving: Serving) -> Message:
    """Pictures to images, in Python on a CPU."""
    types = schema()
    config = _python_model(preprocess_name(served.name), served, serving, PREPROCESSORS)
    lead = _lead(served)
    image = config.input.add(name=IMAGE, data_type=types.TYPE_STRING, dims=[*lead, 1], optional=True)
    # Pictures of several sizes in one batch: the Python backend gets each request by itself.
    pixels = config.input.add(name=PIXELS, data_type=types.TYPE_UINT8, dims=[*lead, -1, -1, 3], optional=True)
    pixels.allow_ragged_batch = not lead
    config.output.add(name=served.spec.input_name, data_type=types.TYPE_FP32, dims=[*lead, 3, *served.sides])
    for name in SIZES if served.segments else ():
        config.output.add(name=name, data_type=types.TYPE_INT64, dims=[*lead, 2])
    _file(config.model_warmup.add(name="a photograph", batch_size=1), image, WARMUP_PICTURE)
    return config


def of_rank(served: Served, serving: Serving) -> Message:
    """Logits to the best classes, in Python on a CPU."""
    config = _python_model(rank_name(served.name), served, serving, 1)
    logits = {name: [*_lead(served), *dims] for name, dims in served.outputs.items()}
    for name, dims in logits.items():
        config.input.add(name=name, data_type=schema().TYPE_FP32, dims=dims)
    config.output.extend(_ranked(served))
    return config


def of_mask(served: Served, serving: Serving) -> Message:
    """What a segmentation model gives to a PNG for each picture, in Python on a CPU."""
    types = schema()
    config = _python_model(mask_name(served.name), served, serving, PREPROCESSORS)
    lead = _lead(served)
    for name, dims in served.outputs.items():
        # Of several sizes in one batch: the Python backend gets each request by itself.
        given = config.input.add(name=name, data_type=_type(name), dims=[*lead, *dims])
        given.allow_ragged_batch = served.spec.any_size and not lead
    for name in SIZES:
        config.input.add(name=name, data_type=types.TYPE_INT64, dims=[*lead, 2])
    config.output.add(name=MASK, data_type=types.TYPE_STRING, dims=[*lead, 1])
    return config


def of_segment(served: Served, serving: Serving) -> Message:
    """An ensemble as `of_ensemble`: bytes in, a mask of the picture's own size out, whichever size that is."""
    types = schema()
    name = segment_name(served.name)
    config = types.ModelConfig(name=name, platform="ensemble", max_batch_size=limit(served, serving.max_batch))
    config.input.add(name=IMAGE, data_type=types.TYPE_STRING, dims=[*_lead(served), 1])
    config.output.add(name=MASK, data_type=types.TYPE_STRING, dims=[*_lead(served), 1])
    config.version_policy.latest.num_versions = 1
    images, (given,), sizes = served.spec.input_name, served.outputs, {each: each for each in SIZES}
    _step(config, preprocess_name(served.name), {IMAGE: IMAGE}, {images: images} | sizes)
    _step(config, served.name, {images: images}, {given: _GIVEN})  # which may be called a mask itself
    _step(config, mask_name(served.name), {given: _GIVEN} | sizes, {MASK: MASK})
    return config


def of_ensemble(served: Served, serving: Serving) -> Message:
    """The three of them: bytes in, classes out. It has no queue of its own; each step has."""
    types = schema()
    name = classify_name(served.name)
    config = types.ModelConfig(name=name, platform="ensemble", max_batch_size=limit(served, serving.max_batch))
    config.input.add(name=IMAGE, data_type=types.TYPE_STRING, dims=[*_lead(served), 1])
    config.output.extend(_ranked(served))
    config.version_policy.latest.num_versions = 1
    images, (logits,) = served.spec.input_name, served.outputs
    _step(config, preprocess_name(served.name), {IMAGE: IMAGE}, {images: images})
    _step(config, served.name, {images: images}, {logits: logits})
    _step(config, rank_name(served.name), {logits: logits}, {each: each for each in (CLASS, LABEL, SCORE)})
    return config


def usual_batches(most: int) -> list[int]:
    """Powers of two up to the limit, and the limit: what a queue fills up to most often."""
    powers = [2**k for k in range(most.bit_length()) if 2**k <= most]
    return sorted({*powers, most} - {0})


def _lead(served: Served) -> list[int]:
    return [] if served.batch is None else [served.batch]


def _ranked(served: Served) -> Iterable[Message]:
    types = schema()
    dims = [*_lead(served), served.top]
    for name, kind in ((CLASS, types.TYPE_INT64), (LABEL, types.TYPE_STRING), (SCORE, types.TYPE_FP32)):
        yield types.ModelOutput(name=name, data_type=kind, dims=dims)


def _python_model(name: str, served: Served, serving: Serving, count: int) -> Message:
    config = schema().ModelConfig(name=name, backend="python", max_batch_size=limit(served, serving.max_batch))
    config.default_model_filename = "model.py"
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=CPU, count=count)
    _queue(config, 0, count)  # what has come together while it was busy is a batch; waiting for more gains nothing
    return config


def _queue(config: Message, delay_us: int, instances: int) -> None:
    """A queue that has an end: who comes too late, or waits too long, is answered UNAVAILABLE."""
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = delay_us
    policy = batching.default_queue_policy
    policy.max_queue_size = QUEUED_BATCHES * max(1, config.max_batch_size) * instances
    policy.default_timeout_microseconds = LONGEST_WAIT_US
    policy.timeout_action = schema().ModelQueuePolicy.REJECT
    policy.allow_timeout_override = True  # a client may give up sooner


def _type(output: str) -> int:
    """Of what a model itself gives."""
    return int(schema().TYPE_UINT8 if output == MASK else schema().TYPE_FP32)


def _file(warmup: Message, tensor: Message, name: str, dims: Iterable[int] | None = None) -> None:
    source = warmup.inputs[tensor.name]
    source.data_type = tensor.data_type
    source.dims.extend(tensor.dims if dims is None else dims)
    source.input_data_file = name


def _step(config: Message, model: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    step.input_map.update(inputs)
    step.output_map.update(outputs)
