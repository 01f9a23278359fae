"""What requests and answers look like: parsed by these types, and described from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from deployments.ingress.problems import Problem
from deployments.metadata import (
    CONDITION_PATTERN,
    KEY_PATTERN,
    MAX_CONDITION,
    MAX_CONDITIONS,
    MAX_KEYS,
    MAX_TEXT,
)
from deployments.query import DEFAULT_CHUNKS, DEFAULT_LIMIT, MAX_DISTANCE, MAX_LIMIT
from deployments.records import ID_PATTERN, IndexedImage, Match, Record

# What JSON Schema can say of metadata and filters; `metadata` itself says what is wrong with one.
METADATA_SCHEMA = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {
        "type": "object",
        "maxProperties": MAX_KEYS,
        "propertyNames": {"pattern": f"^{KEY_PATTERN}$"},
        "additionalProperties": {"type": ["string", "number", "boolean"], "maxLength": MAX_TEXT},
    },
}
FILTER_SCHEMA = {
    "type": "array",
    "items": {"type": "string", "pattern": CONDITION_PATTERN, "maxLength": MAX_CONDITION},
    "maxItems": MAX_CONDITIONS,
}

Id = Annotated[str, Path(pattern=ID_PATTERN, description="id of a stored photo")]


class FailedImage(BaseModel):
    """One part of several that could not be indexed."""

    status: Literal["failed"] = "failed"
    filename: str | None
    error: Problem


class IndexAnswer(BaseModel):
    images: list[IndexedImage | FailedImage] = Field(description="in the order they were sent")


class SearchAnswer(BaseModel):
    matches: list[Match] = Field(description="nearest first, each photo once")


class Listing(BaseModel):
    """Records, and where the next ones are."""

    images: list[Record] = Field(description="in the order of their ids")
    next: str | None = Field(description="path of the next page; null on the last one")


class Health(BaseModel):
    status: Literal["ready"] = "ready"


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IndexParameters(Parameters):
    id: str | None = Field(
        None, pattern=ID_PATTERN, description="the photo's id; else the SHA-256 of its bytes"
    )
    filename: str | None = Field(
        None, max_length=1000, description="kept with a raw body; parts bring their own"
    )
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="for these photos instead of the configured one"
    )
    metadata: Annotated[str | None, WithJsonSchema(METADATA_SCHEMA)] = Field(
        None,
        description="what searches can filter these photos by: a flat JSON object of strings, "
        "numbers and booleans",
    )


class SearchParameters(Parameters):
    text: str | None = Field(None, min_length=1, max_length=1000, description="search by words")
    id: str | None = Field(None, pattern=ID_PATTERN, description="search by a stored photo")
    box: str | None = Field(
        None,
        pattern=r"^-?\d{1,6}(\.\d+)?(,-?\d{1,6}(\.\d+)?){3}$",
        description="x1,y1,x2,y2 in pixels: search by this part of the picture only",
    )
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="how many photos at most")
    max_distance: float = Field(
        MAX_DISTANCE,
        ge=0,
        le=MAX_DISTANCE,
        description="chunks beyond this cosine distance don't count",
    )
    max_chunks: int = Field(
        DEFAULT_CHUNKS,
        ge=1,
        le=MAX_LIMIT,
        description="how many chunks of each photo at most, the nearest",
    )
    min_sequence: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="the answer must know the store's changes up to this one (`sequence`)",
    )
    filter: Annotated[list[str], WithJsonSchema(FILTER_SCHEMA)] = Field(
        [],
        description="only photos with such metadata: `NAME OP VALUE` with `=`, `!=`, `<`, `<=`, "
        '`>` or `>=`, as `year>=2020`, `flash=true`, `camera=Canon EOS` or `lot="007"`. Of '
        "several, all must hold; none holds for a photo without that key, or with a value of "
        "another type",
    )


class ListParameters(Parameters):
    after: str | None = Field(
        None, pattern=ID_PATTERN, description="the last id of the page before"
    )
    limit: int = Field(100, ge=1, le=MAX_LIMIT, description="length of the page")


BINARY = {"type": "string", "format": "binary"}


def describe_body(parts: dict[str, Any], *, required: bool) -> dict[str, Any]:
    form = {"type": "object", "properties": parts, "required": ["file"]}
    return {
        "requestBody": {
            "required": required,
            "content": {
                "image/*": {"schema": BINARY},
                "multipart/form-data": {"schema": {**form, "additionalProperties": False}},
            },
        }
    }


def describe_errors_as_problems(description: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description with our errors in it.

    FastAPI says that a wrong parameter is a 422. Here it is a 400, and a problem like the others.
    """
    schemas = description["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    for path in description["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    return description
