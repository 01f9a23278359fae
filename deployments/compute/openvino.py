"""Run networks with OpenVINO: on most CPUs it is faster than torch, and int8 is faster again.

OpenVINO is an optional extra, so this module is imported only if the config asks for it.
"""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from deployments.compute.device import resolve_dtype
from deployments.compute.weights import default_cache
from deployments.errors import ModelUnavailable

# OpenVINO's converter and NNCF report their use and options to Google Analytics. This makes the
# package that sends the reports unavailable; both work without it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python allows it

try:
    import openvino as ov
    from openvino.preprocess import PrePostProcessor
except ImportError as error:
    raise ModelUnavailable(
        f"backend: openvino needs the package openvino ({error}): install it with "
        ".venv/bin/pip install -e '.[openvino]', or set backend: torch."
    ) from None

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def convert(network: nn.Module, side: int) -> ov.Model:
    """Convert a torch network to OpenVINO.

    Args:
        network: float32, on the CPU; its input is float32 `[n, 3, h, w]`. If it has several
            outputs, the first one is kept.
        side: side of a square image that the network accepts, pixels.

    Returns:
        The network for any number of images, in all sizes that it accepts.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns about each number and attribute of the network that is not a tensor.
        warnings.simplefilter("ignore")
        model = ov.convert_model(
            network,
            example_input=torch.zeros(2, 3, side, side),
            input=ov.PartialShape([-1, 3, -1, -1]),
        )
    return ov.Model(model.outputs[:1], model.get_parameters())


def int8_file(digest: str) -> Path:
    """Return the file of the int8 network that is made from weights with this SHA-256."""
    return default_cache() / "int8" / f"{digest}.xml"


def find_int8(name: str, digest: str) -> Path:
    """Return the file of an int8 network, which must exist.

    Args:
        name: the model's name, for messages.
        digest: SHA-256 of the model's weights.

    Raises:
        ModelUnavailable: it hasn't been made on this machine.
    """
    file = int8_file(digest)
    if not file.is_file():
        raise ModelUnavailable(
            "dtype: int8 needs a network that was calibrated on photos, but there is none for "
            f"{name} ({file}): make it with .venv/bin/python scripts/quantize.py PHOTOS, where "
            "PHOTOS is a folder of about a hundred photos like yours, or choose another dtype."
        )
    return file


def read_int8(name: str, digest: str) -> ov.Model:
    """Read an int8 network; see `find_int8`."""
    file = find_int8(name, digest)
    try:
        return ov.Core().read_model(file)
    except RuntimeError as error:
        raise ModelUnavailable(
            f"{file} can't be read ({error}): make it again with scripts/quantize.py."
        ) from None


def write_int8(model: ov.Model, digest: str) -> Path:
    """Write an int8 network where `find_int8` looks for it, and return its file."""
    file = int8_file(digest)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder) / file.name
        ov.save_model(model, part, compress_to_fp16=False)
        os.replace(part.with_suffix(".bin"), file.with_suffix(".bin"))
        os.replace(part, file)
    return file


class CompiledNetwork:
    """An OpenVINO network on the CPU, which is called with pixels like torch's.

    It computes with as many threads as torch has in the thread that creates it, but at most with
    one for each core. The passes at the same time share them; one more waits for its turn.

    Args:
        model: takes float32 `[n, 3, h, w]`, as `convert` and `read_int8` return it.
        dtype: the number format; float32 if the CPU has no instructions for it. For int8, the
            layers in floating point compute in the format of `auto`.
        passes: how many passes run at the same time.
        mean, std: mean and standard deviation of each input channel, on a scale from 0 to 1.

    Attributes:
        compiled: OpenVINO's network, which knows how it is run.
    """

    def __init__(
        self,
        model: ov.Model,
        dtype: torch.dtype,
        passes: int = 1,
        mean: Sequence[float] = (0, 0, 0),
        std: Sequence[float] = (1, 1, 1),
    ) -> None:
        if dtype == torch.int8:
            dtype = resolve_dtype("auto", torch.device("cpu"))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": passes,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Otherwise every process would bind its threads to the same first cores
            # (openvinotoolkit/openvino#32444).
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        }
        model = _with_pixel_input(model, mean, std)
        self.compiled = ov.Core().compile_model(model, "CPU", options)
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(passes):
            self._idle.put(self.compiled.create_infer_request())

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Args:
            pixels: uint8 `[n, 3, h, w]` on the CPU, in the memory layout channels_last.

        Returns:
            float32, the network's output.
        """
        request = self._idle.get()
        try:
            result = request.infer(pixels.permute(0, 2, 3, 1).numpy(), share_inputs=True)
            return torch.from_numpy(result[0])
        finally:
            self._idle.put(request)


def _with_pixel_input(model: ov.Model, mean: Sequence[float], std: Sequence[float]) -> ov.Model:
    """Return a network that takes uint8 `[n, h, w, 3]` and normalises it first."""
    steps = PrePostProcessor(model)
    pixels = steps.input()
    pixels.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    pixels.model().set_layout(ov.Layout("NCHW"))
    levels = pixels.preprocess().convert_element_type(ov.Type.f32)
    levels.mean([255 * m for m in mean]).scale([255 * s for s in std])
    return steps.build()
