"""The settings, and what the two configs say of them."""

import math
import re
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from ray.serve._private import constants
from ray.serve.schema import ServeDeploySchema

from deployments.compute.device import DTYPES, resolve_device
from deployments.encoder.deployment import QueryEncoderDeployment
from deployments.errors import StartupError
from deployments.flows import ON_THE_WAY
from deployments.limits import ImageLimits
from deployments.photo_encoder.deployment import PhotoEncoderDeployment
from deployments.ranker import AGGREGATIONS
from deployments.settings import EncoderSettings, SegmenterSettings, Settings, display_name
from deployments.startup import check_messages
from tests.support.paths import ROOT

CONFIGS = [ROOT / "serve_config.yaml", ROOT / "serve_config.gpu.yaml"]
DEPLOYMENTS = [
    "Ingress",
    "PhotoEncoder",
    "QueryEncoder",
    "ChunkIndex",
    "Verifier",
    "Store",
]

# Where serve_config.yaml doesn't give what a key left out means, and says so beside it.
OTHER_DEFAULTS = {
    "encoder.pretrained_model_name_or_path": "if this key is",
}


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def config(request):
    return yaml.safe_load(request.param.read_text())


def application(config):
    (application,) = config["applications"]
    return application


def options(section, prefix=""):
    """Path and value of each option in a section and those below it."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def written(args, prefix=""):
    """The same, of what stands in a config."""
    for name, value in args.items():
        if isinstance(value, dict):
            yield from written(value, f"{prefix}{name}.")
        else:  # YAML has no tuples
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def refusal(args):
    with pytest.raises(StartupError) as caught:
        Settings.parse(args, ROOT)
    return str(caught.value)


# The configs


def test_the_config_has_every_option_and_no_other():
    args = application(yaml.safe_load(CONFIGS[0].read_text()))["args"]
    assert set(dict(written(args))) == set(dict(options(Settings())))


def test_every_option_of_a_config_is_accepted(config):
    args = application(config)["args"]
    settings = dict(options(Settings.parse(args, ROOT)))
    for path, value in written(args):
        if not path.endswith(("path", "name_or_path")):
            assert settings[path] == value


def test_a_key_left_out_has_the_value_given_in_the_config():
    text = CONFIGS[0].read_text()
    defaults = dict(options(Settings()))
    for path, value in written(application(yaml.safe_load(text))["args"]):
        if path in OTHER_DEFAULTS:
            assert defaults[path] != value
            assert OTHER_DEFAULTS[path] in text
            assert str(defaults[path]) in text
        else:
            assert defaults[path] == value, path


def test_rays_own_keys_are_keys_of_ray(config):
    ServeDeploySchema.model_validate(config)


def test_every_deployment_has_its_entry_and_no_other_has(config):
    assert [entry["name"] for entry in application(config)["deployments"]] == DEPLOYMENTS


def test_only_this_machine_reaches_it_by_default(config):
    assert config["http_options"]["host"] == "127.0.0.1"


def test_deployments_may_send_each_other_the_largest_image(config, monkeypatch):
    environment = application(config)["runtime_env"]["env_vars"]
    for name, value in environment.items():
        monkeypatch.setattr(constants, name, int(value))
    check_messages(Settings.parse(application(config)["args"], ROOT).limits.max_image_bytes)


def test_a_config_by_which_they_may_not_is_refused(monkeypatch):
    monkeypatch.setattr(constants, "RAY_SERVE_USE_GRPC_BY_DEFAULT", True)
    monkeypatch.setattr(constants, "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", 4 * 2**20)
    with pytest.raises(StartupError, match="RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"):
        check_messages(32 * 2**20)
    monkeypatch.setattr(constants, "RAY_SERVE_USE_GRPC_BY_DEFAULT", False)
    check_messages(32 * 2**20)


def test_the_service_gives_up_before_the_proxy_does(config):
    limits = Settings.parse(application(config)["args"], ROOT).limits
    assert limits.timeout_s < config["http_options"]["request_timeout_s"]


def test_a_photo_encoder_takes_as_many_photos_as_make_a_batch(config):
    (entry,) = [d for d in application(config)["deployments"] if d["name"] == "PhotoEncoder"]
    batch_size = Settings.parse(application(config)["args"], ROOT).segmenter.batch_size
    assert entry["max_ongoing_requests"] >= batch_size


def test_a_photo_encoder_takes_all_photos_that_one_ingress_has_on_their_way():
    config = yaml.safe_load(CONFIGS[0].read_text())
    (entry,) = [d for d in application(config)["deployments"] if d["name"] == "PhotoEncoder"]
    assert entry["max_ongoing_requests"] == ON_THE_WAY
    assert PhotoEncoderDeployment.max_ongoing_requests == ON_THE_WAY


def test_the_store_is_never_doubled(config):
    (entry,) = [d for d in application(config)["deployments"] if d["name"] == "Store"]
    assert entry["num_replicas"] == 1
    assert "autoscaling_config" not in entry


def test_the_shares_of_one_gpu_are_no_more_than_the_gpu():
    shares = 0.0
    for entry in application(yaml.safe_load(CONFIGS[1].read_text()))["deployments"]:
        replicas = entry.get("autoscaling_config", {}).get("max_replicas")
        replicas = entry["num_replicas"] if replicas is None else replicas
        shares += replicas * entry.get("ray_actor_options", {}).get("num_gpus", 0)
    assert 0 < shares <= 1


def test_snapshots_of_the_index_lie_in_the_store_unless_it_is_said_where():
    args = {"store": {"path": "photos"}}
    assert Settings.parse(args, ROOT).chunk_index.path == str(ROOT / "photos" / "index")
    args["chunk_index"] = {"path": "fast/disk"}
    assert Settings.parse(args, ROOT).chunk_index.path == str(ROOT / "fast" / "disk")


# What the config's comments say


def comments(text):
    """Return the comment of each option of serve_config.yaml, with those above a group's first."""
    found, section, key = {}, None, None
    for line in text[text.index("    args:\n") :].splitlines()[1:]:
        if re.match(r"    #|      \w+:\s*(#.*)?$", line):  # the next section
            section, key = line.split(":")[0].strip(), None
        elif option := re.match(r"      (\w+): .*?(?:#(.*))?$", line):  # of no section
            key = option[1]
            found[key] = option[2] or ""
        elif option := re.match(r"        (\w+):.*?(?:#(.*))?$", line):
            key = f"{section}.{option[1]}"
            found[key] = option[2] or ""
        elif key and (more := re.match(r"\s+#(.*)", line)):
            found[key] += more[1]
    return found


COMMENTS = comments(CONFIGS[0].read_text())


def field_of(path):
    """Return pydantic's description of an option."""
    section, _, name = path.rpartition(".")
    return type(getattr(Settings(), section) if section else Settings()).model_fields[name]


def limits_of(field):
    """Return the numbers that bound an option, whichever part of its type they are of."""
    bounds = [*field.metadata]
    for part in get_args(field.annotation):
        bounds += getattr(part, "__metadata__", ())
        for inner in get_args(part):
            bounds += getattr(inner, "__metadata__", ())
    for bound in bounds:
        for part in (bound, *getattr(bound, "metadata", ())):
            for name in ("ge", "gt", "le", "multiple_of", "max_length"):
                if (number := getattr(part, name, None)) is not None:
                    yield number


@pytest.mark.parametrize("path", [path for path, _ in options(Settings())])
def test_the_comment_of_an_option_has_its_range_and_its_choices(path):
    """Ranges stand in settings.py; people read them in the config."""
    field = field_of(path)
    comment = COMMENTS[path]
    numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", comment)}
    if "as above" in comment:
        return
    assert numbers >= {float(number) for number in limits_of(field)}, comment
    for choice in get_args(field.annotation):
        if isinstance(choice, str | bool):
            assert re.search(rf"\b{str(choice).lower()}\b", comment), choice


def test_some_options_have_ranges():
    """Else the test above would say nothing."""
    fields = type(Settings().segmenter).model_fields
    assert sorted(limits_of(fields["image_size"])) == [32, 32, 4096]
    assert sorted(limits_of(fields["tiles"])) == [2, 4, 16]
    assert list(limits_of(fields["threads"])) == [1]


# Defaults and choices stand in two places each


def test_default_limits_are_those_of_the_decoder():
    assert Settings().limits.image == ImageLimits()


def choices(section, name):
    return set(get_args(type(getattr(Settings(), section)).model_fields[name].annotation))


def test_the_choices_are_those_of_the_implementations():
    assert choices("ranker", "aggregation") == set(AGGREGATIONS)
    assert choices("chunk_index", "dtype") == set(DTYPES)
    for section in ("segmenter", "encoder"):
        assert choices(section, "dtype") == {"auto", "int8", *DTYPES}


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "gpu", "cuda:", ""])
@pytest.mark.filterwarnings("ignore:device")
def test_devices_are_those_that_can_be_resolved(name):
    try:
        resolve_device(name)
    except ValueError:
        assert "device" in refusal({"segmenter": {"device": name}})
    else:
        assert Settings.parse({"segmenter": {"device": name}}, ROOT).segmenter.device == name


def test_a_replica_of_the_query_encoder_takes_more_than_one_batch():
    """Of requests with one crop each, as queries are."""
    assert QueryEncoderDeployment.max_ongoing_requests > Settings().encoder.batch_size


# What is refused


@pytest.mark.parametrize(
    ("args", "key", "known"),
    [
        ({"segmentr": {}}, "segmentr", list(Settings.model_fields)),
        ({"segmenter": {"conf": 0.5}}, "segmenter.conf", ["confidence_threshold", "threads"]),
        ({"encoder": {"model_name_or_path": "x"}}, "encoder.model_name_or_path", ["batch_size"]),
        (
            {"chunk_index": {"threads": 1}},
            "chunk_index.threads",
            ["engine, device, dtype, expansion, path"],
        ),
        ({"ranker": {"limit": 1}}, "ranker.limit", ["aggregation"]),
        ({"store": {"size": 1}}, "store.size", ["path, max_bytes"]),
        ({"verifier": {"on": 1}}, "verifier.on", ["enabled, candidates"]),
        ({"limits": {"bytes": 1}}, "limits.bytes", ["max_image_bytes", "timeout_s"]),
    ],
)
def test_an_unknown_key_is_named_with_those_there_are(args, key, known):
    message = refusal(args)
    assert message.startswith("serve_config.yaml, args: ")
    assert f"{key} is not an option (there are: " in message
    for name in known:
        assert name in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("segmenter.model_name_or_path", 5),
        ("segmenter.confidence_threshold", 1.5),
        ("segmenter.confidence_threshold", -0.1),
        ("segmenter.confidence_threshold", math.nan),
        ("segmenter.iou_threshold", "much"),
        ("segmenter.image_size", 650),
        ("segmenter.image_size", 0),
        ("segmenter.image_size", 8192),
        ("segmenter.tiles", 3),
        ("segmenter.tiles", [2, 2]),
        ("segmenter.tiles", [2, 3, 4, 5, 6]),
        ("segmenter.max_tiles", 0),
        ("segmenter.max_tiles", 1025),
        ("segmenter.tile_overlap", -0.01),
        ("segmenter.tile_overlap", 0.76),
        ("segmenter.min_tile_contrast", -1),
        ("segmenter.min_tile_contrast", math.nan),
        ("segmenter.batch_size", 0),
        ("segmenter.batch_size", 2.5),
        ("segmenter.batch_wait_ms", -1),
        ("segmenter.backend", "tensorrt"),
        ("segmenter.device", "gpu"),
        ("segmenter.dtype", "int4"),
        ("segmenter.threads", 0),
        ("encoder.pretrained_model_name_or_path", None),
        ("encoder.batch_size", None),
        ("encoder.batch_wait_ms", "soon"),
        ("encoder.backend", None),
        ("encoder.device", "cuda:x"),
        ("encoder.dtype", "float64"),
        ("encoder.threads", -2),
        ("chunk_index.engine", "fast"),
        ("chunk_index.device", None),
        ("chunk_index.dtype", "auto"),
        ("chunk_index.expansion", 1),
        ("chunk_index.path", 7),
        ("ranker.aggregation", "median"),
        ("verifier.enabled", "perhaps"),
        ("verifier.candidates", 0),
        ("verifier.candidates", 101),
        ("store.path", 7),
        ("store.max_bytes", 1000),
        ("limits.max_image_bytes", 0),
        ("http.keys_path", 7),
        ("http.allowed_hosts", "photos.example.org"),
        ("http.cors_origins", "https://gallery.example.org"),
        ("http.trusted_proxies", "10.0.0.0/8"),
        ("limits.max_request_bytes", "many"),
        ("limits.max_bodies_bytes", 0),
        ("limits.max_pixels", 10**9),
        ("limits.max_decoding_bytes", 2**20),
        ("limits.decoding_s_per_megapixel", 0),
        ("limits.timeout_s", 0),
        ("exif", "perhaps"),
        ("exif", None),
        ("exif", {"location": False}),
        ("exif", 1.5),
    ],
)
def test_a_wrong_value_is_named_with_its_key(path, value):
    section, _, name = path.rpartition(".")
    message = refusal({section: {name: value}} if section else {name: value})
    assert f"{path} = {value!r} is wrong: " in message


@pytest.mark.parametrize("scale", [1, 17, 2.5, "two", None, True])
def test_a_wrong_scale_of_tiles_is_named_with_its_place(scale):
    message = refusal({"segmenter": {"tiles": [3, scale]}})
    assert f"segmenter.tiles.1 = {scale!r} is wrong: " in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_hosts", "https://photos.example.org"),
        ("cors_origins", "gallery.example.org"),
        ("cors_origins", "https://gallery.example.org/"),
        ("cors_origins", "*"),
        ("trusted_proxies", "10.0.0.0/40"),
    ],
)
def test_what_is_no_name_origin_or_network(name, value):
    assert f"http.{name}.0 = {value!r} is wrong: " in refusal({"http": {name: [value]}})


def test_names_are_the_same_in_small_letters():
    args = {"http": {"allowed_hosts": ["Photos.Example.org", "[2001:DB8::1]"]}}
    found = Settings.parse(args, ROOT).http.allowed_hosts
    assert found == ("photos.example.org", "[2001:db8::1]")


def test_no_tiles_and_any_order():
    for tiles in ([], [3, 2], [8, 2, 5]):
        args = {"segmenter": {"tiles": tiles, "max_tiles": 1000}}
        assert Settings.parse(args, ROOT).segmenter.tiles == tuple(tiles)


def test_tiles_that_would_not_fit():
    message = refusal({"segmenter": {"tiles": [2, 3, 5]}})
    assert "segmenter: a photo has 74 tiles at these scales" in message
    assert "max_tiles must be at least that" in message


@pytest.mark.parametrize("section", ["segmenter", "encoder"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "int8"}, "dtype int8 needs backend openvino"),
        (
            {"backend": "openvino", "device": "cuda:1"},
            "backend openvino computes on the CPU: device must be auto or cpu, not cuda:1",
        ),
    ],
)
def test_a_backend_that_can_not(section, options, sentence):
    assert refusal({section: options}) == f"serve_config.yaml, args: {section}: {sentence}"
    with pytest.raises(ValueError, match=sentence):
        {"segmenter": SegmenterSettings, "encoder": EncoderSettings}[section](**options)


def test_a_backend_that_there_is_not():
    for section in (SegmenterSettings, EncoderSettings):
        with pytest.raises(ValueError, match=r"backend\n.*'torch' or 'openvino'"):
            section(backend="onnx")


@pytest.mark.parametrize("value", [None, "yolov5s", 3, []])
def test_a_section_that_is_none_is_named(value):
    assert f"segmenter = {value!r} is wrong" in refusal({"segmenter": value})


def test_every_mistake_is_named_at_once():
    message = refusal({"segmenter": {"conf": 1, "dtype": "x"}, "ranker": {"aggregation": 3}})
    for key in ("segmenter.conf", "segmenter.dtype", "ranker.aggregation"):
        assert key in message
    assert message.count(";") == 2


def test_every_option_has_a_value_that_is_refused():
    """So the cases above are complete: a new option needs one."""
    (mark,) = test_a_wrong_value_is_named_with_its_key.pytestmark
    assert {path for path, _ in mark.args[1]} == set(dict(options(Settings())))


def test_what_photos_are_asked():
    everything = ("date_taken", "camera", "lens", "latitude", "longitude")
    for exif, facts in ((True, everything), (False, ()), ("no-location", everything[:3])):
        assert Settings.parse({"exif": exif}, ROOT).facts == facts


# Paths


def test_relative_paths_are_relative_to_the_root(tmp_path):
    (tmp_path / "my" / "clip").mkdir(parents=True)
    (tmp_path / "my" / "detector.pt").touch()
    settings = Settings.parse(
        {
            "segmenter": {"model_name_or_path": "my/detector.pt"},
            "encoder": {"pretrained_model_name_or_path": "my/clip"},
            "store": {"path": "photos/here"},
        },
        tmp_path,
    )
    assert settings.segmenter.model_name_or_path == str(tmp_path / "my/detector.pt")
    assert settings.encoder.pretrained_model_name_or_path == str(tmp_path / "my/clip")
    assert settings.store.path == str(tmp_path / "photos/here")
    assert settings.http.keys_path == str(tmp_path / "photos/here/keys.json")


def test_names_stay_names(tmp_path):
    settings = Settings.parse({}, tmp_path)
    assert settings.segmenter.model_name_or_path == "yolov5s"
    assert settings.encoder.pretrained_model_name_or_path == "openai/clip-vit-base-patch32"


def test_what_must_last_does_not_lie_in_the_folder_of_rays_session(tmp_path):
    """There is graph.py if working_dir is set, and it goes with the session."""
    root = (
        tmp_path / "session_2026-11-28_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg"
    )
    safe = {"store": {"path": str(tmp_path / "store")}}
    for args, key in (
        ({}, "store.path"),
        ({"store": {"path": "some/where"}}, "store.path"),
        ({"store": {"path": str(root / "store")}}, "store.path"),
        (safe | {"http": {"keys_path": "keys.json"}}, "http.keys_path"),
    ):
        with pytest.raises(StartupError, match=rf"{key} = .*session.*absolute path"):
            Settings.parse(args, root)
    assert Settings.parse(safe, root).store.path == str(tmp_path / "store")


def test_absolute_paths_stay(tmp_path):
    model, store = tmp_path / "clip", tmp_path / "store"
    model.mkdir()
    args = {
        "encoder": {"pretrained_model_name_or_path": str(model)},
        "store": {"path": str(store)},
    }
    settings = Settings.parse(args, ROOT)
    assert settings.encoder.pretrained_model_name_or_path == str(model)
    assert settings.store.path == str(store)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    args = {"encoder": {"pretrained_model_name_or_path": "~/clip"}, "store": {"path": "~/store"}}
    settings = Settings.parse(args, ROOT)
    assert settings.encoder.pretrained_model_name_or_path == str(tmp_path / "clip")
    assert settings.store.path == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("yolov5s", "yolov5s"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("/home/somebody/models/compact", "models/compact"),
    ],
)
def test_people_see_a_name_not_a_path(model, name):
    assert display_name(model) == name
