"""The options of `serve_config.yaml`, validated once at the start."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from deployments.decoding.facts import FACTS, LOCATION
from deployments.errors import StartupError
from deployments.limits import ImageLimits
from deployments.tiles import fewest_tiles

Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def _check_distinct(scales: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(scales)) < len(scales):
        raise ValueError("a scale is given twice")
    return scales


Scales = Annotated[
    tuple[Annotated[int, Field(ge=2, le=16)], ...],
    Field(max_length=4),
    AfterValidator(_check_distinct),
]

# How often Serve checks the health of each replica, seconds. This is how it notices dead ones.
HEALTH_CHECK_S = 2


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class NetworkSection(Section):
    """Options that the sections of both networks have."""

    backend: Literal["torch", "openvino"] = "torch"
    device: Device = "auto"
    dtype: Dtype = "auto"
    threads: int | None = Field(None, ge=1)
    batch_size: int = Field(1, ge=1, le=1024)
    batch_wait_ms: float = Field(0, ge=0, le=10_000)

    @model_validator(mode="after")
    def _check_backend(self) -> NetworkSection:
        if self.backend == "openvino" and self.device.startswith("cuda"):
            raise ValueError(
                "backend openvino computes on the CPU: device must be auto or cpu, not "
                f"{self.device}"
            )
        if self.backend == "torch" and self.dtype == "int8":
            raise ValueError("dtype int8 needs backend openvino")
        return self


class SegmenterSettings(NetworkSection):
    model_name_or_path: str = "yolov5s"
    confidence_threshold: float = Field(0.1, ge=0, le=1)
    iou_threshold: float = Field(0.45, ge=0, le=1)
    image_size: int = Field(416, ge=32, le=4096, multiple_of=32)
    tiles: Scales = (3,)
    tile_overlap: float = Field(0.3, ge=0, le=0.75)
    max_tiles: int = Field(64, ge=1, le=1024)
    min_tile_contrast: float = Field(0, ge=0, le=128)

    @model_validator(mode="after")
    def _check_max_tiles(self) -> SegmenterSettings:
        fewest = fewest_tiles(self.tiles, self.tile_overlap)
        if self.max_tiles < fewest:
            raise ValueError(
                f"a photo has {fewest} tiles at these scales with this overlap; max_tiles must be "
                "at least that"
            )
        return self


class EncoderSettings(NetworkSection):
    pretrained_model_name_or_path: str = "openai/clip-vit-base-patch32"
    batch_size: int = Field(32, ge=1, le=4096)


class ChunkIndexSettings(Section):
    engine: Literal["auto", "exact", "approximate"] = "auto"
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    expansion: int | None = Field(None, ge=16, le=4096)
    path: str | None = None


class RankerSettings(Section):
    aggregation: Literal["min", "mean", "max"] = "min"


class VerifierSettings(Section):
    enabled: bool = True
    candidates: int = Field(10, ge=1, le=100)


class StoreSettings(Section):
    path: str = "data"
    max_bytes: int | None = Field(None, ge=2**20)


def _check_network(text: str) -> str:
    ip_network(text, strict=False)  # its ValueError is a sentence
    return text


HostName = Annotated[
    str, StringConstraints(to_lower=True, pattern=r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])$")
]
Origin = Annotated[
    str, StringConstraints(to_lower=True, pattern=r"^https?://[A-Za-z0-9_.:\[\]-]+$")
]
Network = Annotated[str, AfterValidator(_check_network)]


class HttpSettings(Section):
    allowed_hosts: tuple[HostName, ...] = ()
    cors_origins: tuple[Origin, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    keys_path: str | None = None


class LimitSettings(Section):
    max_image_bytes: int = Field(ImageLimits().max_bytes, ge=1)
    max_request_bytes: int = Field(256 * 2**20, ge=1)
    max_bodies_bytes: int = Field(2**30, ge=1)
    # Pillow refuses larger images.
    max_pixels: int = Field(ImageLimits().max_pixels, ge=1, le=178_956_970)
    max_decoding_bytes: int = Field(ImageLimits().decoding_bytes, ge=64 * 2**20)
    decoding_s_per_megapixel: float = Field(ImageLimits().seconds_per_megapixel, gt=0, le=60)
    timeout_s: float = Field(60, gt=0)

    @property
    def image(self) -> ImageLimits:
        """The limits that the decoder enforces."""
        return ImageLimits(
            self.max_image_bytes,
            self.max_pixels,
            self.max_decoding_bytes,
            self.decoding_s_per_megapixel,
        )


class Settings(Section):
    """The `args` of the application. An unknown key or a wrong value is an error that names it."""

    segmenter: SegmenterSettings = SegmenterSettings()
    encoder: EncoderSettings = EncoderSettings()
    chunk_index: ChunkIndexSettings = ChunkIndexSettings()
    ranker: RankerSettings = RankerSettings()
    verifier: VerifierSettings = VerifierSettings()
    store: StoreSettings = StoreSettings()
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    exif: Literal[True, False, "no-location"] = True

    @property
    def facts(self) -> tuple[str, ...]:
        """What photos are asked about themselves: names of `facts.FACTS`."""
        if self.exif == "no-location":
            return tuple(name for name in FACTS if name not in LOCATION)
        return FACTS if self.exif else ()

    @classmethod
    def parse(cls, args: dict[str, Any], root: Path) -> Settings:
        """Validate the arguments of the application, and make its paths absolute.

        Args:
            args: as in `serve_config.yaml`.
            root: the folder that relative paths start from, whichever folder a replica runs in. A
                model that isn't a path there stays a name.

        Raises:
            StartupError: a key is unknown or wrong; the message has a sentence for each. Or the
                store, or the keys, would be lost with Ray's session.
        """
        try:
            settings = cls.model_validate(args)
        except ValidationError as error:
            raise StartupError(
                "serve_config.yaml, args: " + "; ".join(map(_sentence, error.errors()))
            ) from None
        detector = _locate(root, settings.segmenter.model_name_or_path)
        encoder = _locate(root, settings.encoder.pretrained_model_name_or_path)
        path = root / Path(settings.store.path).expanduser()
        snapshots = root / Path(settings.chunk_index.path or path / "index").expanduser()
        keys = root / Path(settings.http.keys_path or path / "keys.json").expanduser()
        _require_lasting("store.path", path)
        _require_lasting("http.keys_path", keys)
        return settings.model_copy(
            update={
                "segmenter": settings.segmenter.model_copy(update={"model_name_or_path": detector}),
                "encoder": settings.encoder.model_copy(
                    update={"pretrained_model_name_or_path": encoder}
                ),
                "chunk_index": settings.chunk_index.model_copy(update={"path": str(snapshots)}),
                "store": settings.store.model_copy(update={"path": str(path)}),
                "http": settings.http.model_copy(update={"keys_path": str(keys)}),
            }
        )


def display_name(model: str) -> str:
    """Return a model's name for display: the last two parts of a path, other names unchanged."""
    path = Path(model)
    return "/".join(path.parts[-2:]) if path.is_absolute() else model


def _require_lasting(key: str, path: Path) -> None:
    """Check that a path is not below the folder into which Ray copies a `working_dir`.

    Raises:
        StartupError
    """
    parts = path.resolve().parts
    if "runtime_resources" in parts and any(part.startswith("session_") for part in parts):
        raise StartupError(
            f"serve_config.yaml, args: {key} = {path} lies in the folder of Ray's session, and "
            "would be lost with it. Relative paths begin at graph.py, which is in there if "
            "working_dir is set: give an absolute path."
        )


def _locate(root: Path, name: str) -> str:
    path = root / Path(name).expanduser()
    return str(path) if path.exists() else name


def _sentence(error: ErrorDetails) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error" and len(error["loc"]) == 1:  # of a whole section
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "extra_forbidden":
        section = Settings
        for name in error["loc"][:-1]:
            section = type(section.model_fields[str(name)].default)
        return f"{where} is not an option (there are: {', '.join(section.model_fields)})"
    return f"{where} = {error['input']!r} is wrong: {error['msg']}"
