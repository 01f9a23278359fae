"""Checkpoints: what YOLOv5 saves is read, and nothing that is written in one is ever run."""

import io
import pickle
import struct
import sys
import types
import zipfile

import pytest
import torch

from deployments.errors import ModelUnavailable
from deployments.segmenter.checkpoint import CheckpointRefused, read_checkpoint
from tests.support.networks.checkpoints import save_checkpoint, tiny_network


@pytest.mark.parametrize("half", [True, False])
def test_reads_what_yolov5_saves(tmp_path, half):
    network, architecture = tiny_network()
    checkpoint = read_checkpoint(
        save_checkpoint(tmp_path / "a.pt", network, architecture, half=half)
    )
    assert checkpoint.architecture == architecture
    assert checkpoint.names == [f"thing {i}" for i in range(7)]
    assert checkpoint.stride == [8, 16, 32]
    expected = torch.tensor(architecture["anchors"]).float().view(3, 2, 2)
    torch.testing.assert_close(checkpoint.anchors, expected)
    assert checkpoint.state.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert checkpoint.state[name].dtype == tensor.dtype
        torch.testing.assert_close(checkpoint.state[name], tensor, rtol=0, atol=0)


def test_names_may_be_a_dict(tmp_path):
    network, architecture = tiny_network(classes=2)
    path = save_checkpoint(tmp_path / "a.pt", network, architecture, names={0: "a", 1: "b"})
    assert read_checkpoint(path).names == ["a", "b"]


def test_the_averaged_model_is_preferred(tmp_path):
    averaged, architecture = tiny_network(seed=1)
    path = save_checkpoint(
        tmp_path / "a.pt", tiny_network(seed=2)[0], architecture, averaged=averaged
    )
    loaded = read_checkpoint(path).state["model.0.conv.weight"]
    torch.testing.assert_close(loaded, averaged.state_dict()["model.0.conv.weight"])


@pytest.mark.slow
def test_the_genuine_yolov5s():
    from deployments.compute.weights import yolov5_weights

    checkpoint = read_checkpoint(yolov5_weights("yolov5s"))
    assert checkpoint.names[0] == "person"
    assert len(checkpoint.names) == checkpoint.architecture["nc"] == 80
    assert checkpoint.stride == [8, 16, 32]
    assert checkpoint.anchors[0, 0].tolist() == [10, 13]
    assert checkpoint.state["model.0.conv.weight"].shape == (32, 3, 6, 6)


def write_archive(path, data, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, numbers in dict(storages).items():
            archive.writestr(f"archive/data/{key}", numbers)
    return path


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def global_name(module, name):
    """Opcodes that push a global by STACK_GLOBAL, which takes any text for a name."""
    push = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    return b"".join(push) + b"\x93"


def hostile_pickles(marker):
    import builtins
    import os
    import subprocess

    command = f"touch {marker}"
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    yield "os.system", pickle.dumps(Calls(os.system, command))
    yield "os.system, old protocol", pickle.dumps(Calls(os.system, command), protocol=0)
    yield "eval", pickle.dumps(Calls(builtins.eval, f"open({str(marker)!r}, 'w')"))
    yield "exec", pickle.dumps(Calls(builtins.exec, f"open({str(marker)!r}, 'w')"))
    yield "subprocess", pickle.dumps({"model": Calls(subprocess.Popen, ["touch", str(marker)])})
    yield "getattr", b"\x80\x04" + global_name("builtins", "getattr") + b"."
    yield "torch.load", pickle.dumps(Calls(torch.load, str(marker)))
    yield "open", pickle.dumps(Calls(io.open, str(marker), "w"))
    # Names with dots: an attribute of an attribute of an allowed module.
    for module, name in [
        ("models.common", "os.system"),
        ("models", "common.os.system"),
        ("torch.nn.modules.module", "torch.os.system"),
        ("torch", "os.system"),
        ("torch", "Size.__class__"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("collections", "_sys.modules"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.serialization", "load"),
        ("torch.hub", "load"),
        ("numpy", "load"),
        ("numpy.f2py.crackfortran", "_eval_length"),
        ("modelsx", "run"),
        ("utilsos", "system"),
    ]:
        call = b"\x80\x04" + global_name(module, name) + text + b"\x85R."
        yield f"{module}:{name}", call
    yield "instance of os", b"(S'" + command.encode() + b"'\nios\nsystem\n."
    yield "extension registry", b"\x80\x02\x82\x01."


@pytest.mark.parametrize("kind", [kind for kind, _ in hostile_pickles("marker")])
def test_hostile_pickles_are_refused_and_leave_no_trace(tmp_path, kind):
    marker = tmp_path / "marker"
    data = dict(hostile_pickles(marker))[kind]
    path = write_archive(tmp_path / "evil.pt", data)
    with pytest.raises(CheckpointRefused) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert not marker.exists()


def test_the_refusal_names_the_global(tmp_path):
    data = b"\x80\x04" + global_name("shutil", "rmtree") + b"."
    with pytest.raises(CheckpointRefused, match=r"shutil\.rmtree"):
        read_checkpoint(write_archive(tmp_path / "evil.pt", data))


def test_a_class_called_models_does_nothing(tmp_path):
    """`models.*` are stand-ins: an imported module of that name would run its code."""
    marker = tmp_path / "marker"
    fake = types.ModuleType("models.common")
    fake.run = lambda: marker.touch()
    sys.modules["models.common"] = fake
    try:
        data = b"\x80\x04" + global_name("models.common", "run") + b")R."
        with pytest.raises(CheckpointRefused, match="holds no YOLOv5 model"):
            read_checkpoint(write_archive(tmp_path / "evil.pt", data))
    finally:
        del sys.modules["models.common"]
    assert not marker.exists()


def test_state_can_be_set_only_on_stand_ins(tmp_path):
    """BUILD sets attributes: on an allowed function it would change the next reading too."""
    rebuild = global_name("torch._utils", "_rebuild_tensor_v2")
    build = b"\x80\x04" + rebuild + b"N}\x8c\x05_callK\x01s\x86b."
    with pytest.raises(CheckpointRefused):
        read_checkpoint(write_archive(tmp_path / "evil.pt", build))
    network, architecture = tiny_network()
    read_checkpoint(save_checkpoint(tmp_path / "good.pt", network, architecture))


def stored(length=4, size=(4,), stride=(1,), offset=0, key="0"):
    """Pickle a tensor as torch.save does."""
    number = lambda n: b"J" + struct.pack("<i", n)  # noqa: E731
    numbers = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"  # noqa: E731
    text = lambda t: b"\x8c" + bytes([len(t)]) + t.encode()  # noqa: E731
    storage = global_name("torch", "FloatStorage")
    pid = b"(" + text("storage") + storage + text(key) + text("cpu") + number(length) + b"tQ"
    rebuild = global_name("torch._utils", "_rebuild_tensor_v2")
    rest = number(offset) + numbers(size) + numbers(stride) + b"\x89N"
    return b"\x80\x04" + rebuild + b"(" + pid + rest + b"tR."


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ({"length": 5}, "does not have the 5 elements"),
        ({"length": 3}, "does not have the 3 elements"),
        ({"key": "1"}, "does not have"),
        ({"key": "../data.pkl"}, "does not have"),
        ({"size": (5,)}, "larger than its storage"),
        ({"offset": 1}, "larger than its storage"),
        ({"stride": (2,)}, "larger than its storage"),
        ({"size": (2**30,), "stride": (0,)}, "larger than its storage"),
        ({"offset": -1}, "size is invalid"),
        ({"size": (2, -2)}, "size is invalid"),
    ],
)
def test_a_tensor_must_agree_with_its_storage(tmp_path, tensor, reason):
    path = write_archive(tmp_path / "evil.pt", stored(**tensor), {"0": bytes(16)})
    with pytest.raises(CheckpointRefused, match=reason):
        read_checkpoint(path)


def test_a_zip_bomb_is_refused(tmp_path):
    zeros = {"0": bytes(50_000_000)}
    path = write_archive(tmp_path / "a.pt", stored(12_500_000), zeros, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointRefused, match="compressed"):
        read_checkpoint(path)


def test_a_pickle_bomb_is_refused(tmp_path):
    # One instruction that would let the memo grow to 64 GB.
    path = write_archive(tmp_path / "a.pt", b"\x80\x02Nr\xf0\xff\xff\xff.")
    with pytest.raises(CheckpointRefused, match="memo"):
        read_checkpoint(path)


def test_other_files_are_refused_with_a_reason(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": 1}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelUnavailable, match="save it again"):
        read_checkpoint(path)
    path.write_bytes(b"<html>Not found</html>")
    with pytest.raises(ModelUnavailable, match="not a PyTorch file"):
        read_checkpoint(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ModelUnavailable, match="holds no YOLOv5 model"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelUnavailable, match=r"not one written by torch\.save"):
        read_checkpoint(path)


def test_a_truncated_file_is_refused(tmp_path):
    network, architecture = tiny_network()
    path = save_checkpoint(tmp_path / "a.pt", network, architecture)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ModelUnavailable):
        read_checkpoint(path)
