"""The networks in OpenVINO: faster on most CPUs than in torch, and in int8 faster again.

An extra of `pyproject.toml`, so this module is imported only where the config asks for it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from deployments.compute.device import resolve_dtype
from deployments.compute.weights import default_cache
from deployments.errors import ModelUnavailable

# OpenVINO's converter and NNCF send Google Analytics what they are used for, and with what options.
# Both do without this package where it is missing; it is none of anyone's business.
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
    """Convert a network of torch.

    Args:
        network: float32, on the CPU; its input is float32 `[n, 3, h, w]`. Of several outputs the
            first one is kept.
        side: of a square picture that it takes, pixels.

    Returns:
        The same for any number of pictures, and for all sizes that the network takes.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer's, of each number and attribute of the network that is no tensor.
        warnings.simplefilter("ignore")
        model = ov.convert_model(
            network,
            example_input=torch.zeros(2, 3, side, side),
            input=ov.PartialShape([-1, 3, -1, -1]),
        )
    return ov.Model(model.outputs[:1], model.get_parameters())


def int8_file(digest: str) -> Path:
    """Return where scripts/quantize.py puts the int8 network made of weights with this SHA-256."""
    return default_cache() / "int8" / f"{digest}.xml"


def find_int8(name: str, digest: str) -> Path:
    """Return the file of a network in int8.

    Args:
        name: of the model, for people.
        digest: SHA-256 of its weights.

    Raises:
        ModelUnavailable: it hasn't been made on this machine.
    """
    file = int8_file(digest)
    if not file.is_file():
        raise ModelUnavailable(
            f"dtype: int8 needs a network that was calibrated on photos, and there is none of "
            f"{name} ({file}): make it with .venv/bin/python scripts/quantize.py PHOTOS, from a "
            "folder with a hundred photos like yours, or choose another dtype."
        )
    return file


def read_int8(name: str, digest: str) -> ov.Model:
    """Read a network in int8, see `find_int8`."""
    file = find_int8(name, digest)
    try:
        return ov.Core().read_model(file)
    except RuntimeError as error:
        raise ModelUnavailable(
            f"{file} can't be read ({error}): make it anew with scripts/quantize.py."
        ) from None


def write_int8(model: ov.Model, digest: str) -> Path:
    """Put a network in int8 where `find_int8` looks for it; returns its file."""
    file = int8_file(digest)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder) / file.name
        ov.save_model(model, part, compress_to_fp16=False)
        os.replace(part.with_suffix(".bin"), file.with_suffix(".bin"))
        os.replace(part, file)
    return file


class CompiledNetwork:
    """A network of OpenVINO on the CPU, called with pixels as torch's is.

    It computes with as many threads as torch has in the thread that makes it, but with no more than
    there are cores.

    Args:
        model: from float32 `[n, 3, h, w]`, as `convert` and `read_int8` return it.
        dtype: what it computes in; float32 where the CPU has no instructions for it. Of int8, what
            is in floating point goes on in bfloat16 or float32, as `auto` is.
        mean, std: of the channels of its input, of 1.
    """

    def __init__(
        self,
        model: ov.Model,
        dtype: torch.dtype,
        mean: Sequence[float] = (0, 0, 0),
        std: Sequence[float] = (1, 1, 1),
    ) -> None:
        if dtype == torch.int8:
            dtype = resolve_dtype("auto", torch.device("cpu"))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Each process would bind its threads to the first cores, all to the same ones
            # (openvinotoolkit/openvino#32444).
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        }
        compiled = ov.Core().compile_model(_of_pixels(model, mean, std), "CPU", options)
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Args:
            pixels: uint8 `[n, 3, h, w]` on the CPU, as channels_last wants it in memory.

        Returns:
            float32, the network's output.
        """
        with self._lock:
            result = self._request.infer(pixels.permute(0, 2, 3, 1).numpy(), share_inputs=True)
        return torch.from_numpy(result[0])


def _of_pixels(model: ov.Model, mean: Sequence[float], std: Sequence[float]) -> ov.Model:
    """Put before a network what makes its input of uint8 `[n, h, w, 3]`."""
    steps = PrePostProcessor(model)
    pixels = steps.input()
    pixels.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    pixels.model().set_layout(ov.Layout("NCHW"))
    levels = pixels.preprocess().convert_element_type(ov.Type.f32)
    levels.mean([255 * m for m in mean]).scale([255 * s for s in std])
    return steps.build()
