"""Devices and number formats by name."""

import warnings

import numpy as np
import pytest
import torch

from deployments.compute.device import download, pinned, resolve_device, resolve_dtype, upload


def test_cpu_and_auto():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:0:1", "mps", "cpu:0"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="device must be"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_missing_gpu_is_a_warning(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match=f"device '{name}'.*using the CPU"):
        assert resolve_device(name) == torch.device("cpu")


def test_a_gpu_that_is_there_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_device("auto") == torch.device("cuda")
        assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.warns(UserWarning, match="cuda:2"):
        assert resolve_device("cuda:2") == torch.device("cpu")


def test_number_formats():
    cpu = torch.device("cpu")
    assert resolve_dtype("float32", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype("float16", cpu) == torch.float16
    assert resolve_dtype("int8", cpu) == torch.int8
    with pytest.raises(ValueError, match="dtype must be"):
        resolve_dtype("int4", cpu)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "amx_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_is_what_the_cpu_computes_in(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", torch.device("cpu")) == dtype


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]
)
def test_auto_is_what_the_gpu_computes_in(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", torch.device("cuda")) == dtype


def test_on_a_cpu_nothing_is_copied():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    cpu = torch.device("cpu")
    assert pinned(array, cpu) is array
    tensor = upload(array, cpu)
    (back,) = download([tensor])
    array[1, 2] = 99
    assert tensor[1, 2] == back[1, 2] == 99


def test_what_goes_to_a_gpu_is_pinned_once(monkeypatch):
    """There is none here: another device stands for it, and a copy for pinned memory."""
    memory = []

    def pin(tensor):
        memory.append(tensor.clone())
        return memory[-1]

    def is_pinned(tensor):
        return any(tensor.data_ptr() == one.data_ptr() for one in memory)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)
    array, device = np.arange(6, dtype=np.uint8), torch.device("meta")
    there = upload(array, device)
    assert (there.device, there.shape, there.dtype) == (device, (6,), torch.uint8)
    assert len(memory) == 1
    before = pinned(array, device)
    np.testing.assert_array_equal(before, array)
    assert len(memory) == 2
    upload(before, device)
    assert len(memory) == 2


def test_download_takes_several():
    tensors = [torch.arange(n) for n in (3, 0, 2)]
    assert [array.tolist() for array in download(tensors)] == [[0, 1, 2], [], [0, 1]]
    assert download([]) == []
