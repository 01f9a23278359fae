"""The types of requests and answers. They parse the requests and make the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field, WithJsonSchema

from deployments.ingress.filenames import MAX_FILENAME
from deployments.ingress.problems import Problem, describe_problems
from deployments.metadata import (
    CONDITION_PATTERN,
    KEY_PATTERN,
    MAX_CONDITION,
    MAX_CONDITIONS,
    MAX_KEYS,
    MAX_TEXT,
)
from deployments.query import (
    DEFAULT_CHUNKS,
    DEFAULT_LIMIT,
    DEFAULT_RECORDS,
    MAX_DISTANCE,
    MAX_LIMIT,
    Group,
    Verify,
)
from deployments.records import ID_PATTERN, IndexedImage, Record, Summary

# Metadata and filters as far as JSON Schema can describe them; `metadata.py` checks them fully.
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
    """A part of a multipart request that could not be indexed."""

    status: Literal["failed"] = "failed"
    filename: str | None
    error: Problem


class IndexAnswer(BaseModel):
    images: list[IndexedImage | FailedImage] = Field(description="in the order they were sent")


class Listing(BaseModel):
    """Records, and the path of the next ones."""

    images: list[Record] | list[Summary] = Field(description="in the order of their ids")
    next: str | None = Field(description="path of the next records; null if there are none")


class Health(BaseModel):
    status: Literal["ready"] = "ready"


class Life(BaseModel):
    status: Literal["alive"] = "alive"


class IndexParameters(BaseModel):
    id: str | None = Field(
        None,
        pattern=ID_PATTERN,
        description="the photo's id; by default the SHA-256 of its bytes. 64 hexadecimal digits "
        "are refused if they are anything else",
    )
    filename: str | None = Field(
        None,
        description="the photo's filename if the body is raw; parts have their own. It is cut "
        f"after {MAX_FILENAME:,} characters",
    )
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="for these photos instead of the configured one"
    )
    metadata: Annotated[str | None, WithJsonSchema(METADATA_SCHEMA)] = Field(
        None,
        description="what searches can filter these photos by: a flat JSON object with strings, "
        "numbers and booleans. What the photos say of themselves (`date_taken`, `camera`, `lens`, "
        "`latitude`, `longitude`) is added, as the service is configured; what is sent here wins",
    )


class SearchParameters(BaseModel):
    text: str | None = Field(None, min_length=1, max_length=1000, description="search by text")
    id: str | None = Field(None, pattern=ID_PATTERN, description="search by a stored photo")
    box: str | None = Field(
        None,
        pattern=r"^-?\d{1,6}(\.\d+)?(,-?\d{1,6}(\.\d+)?){3}$",
        description="x1,y1,x2,y2 in pixels: search by this part of the image only",
    )
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="most photos in the answer")
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
        description="most chunks of each photo in the answer; the nearest are returned",
    )
    min_sequence: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="the search must know the store's changes up to this `sequence`",
    )
    filter: Annotated[list[str], WithJsonSchema(FILTER_SCHEMA)] = Field(
        [],
        description="find only photos whose metadata satisfies this condition: `NAME OP VALUE` "
        "with `=`, `!=`, `<`, `<=`, `>` or `>=`, for example `year>=2020`, `date_taken<2024-06`, "
        "`flash=true`, "
        '`camera=Canon EOS` or `lot="007"`. Several conditions must all hold. A condition does '
        "not hold for a photo that lacks the key or has a value of another type",
    )
    verify: Verify = Field(
        "auto",
        description="which photos are looked at, to see whether the query is in them and where. "
        "`auto`: the nearest ones until one is verified, then those that are about as near; `all`: "
        "every photo of the answer; `none`: the answer is by distance alone",
    )
    verified: bool = Field(
        False,
        description="answer only photos that are verified: an empty answer means that the query is "
        "in none of those that were looked at",
    )
    group: Group | None = Field(
        None,
        description="`copies`: of photos that are copies of each other, answer one, and list the "
        "others under it",
    )


class ListParameters(BaseModel):
    after: str | None = Field(None, pattern=ID_PATTERN, description="list the ids after this one")
    limit: int = Field(
        DEFAULT_RECORDS, ge=1, le=MAX_LIMIT, description="most records in the answer"
    )
    chunks: bool = Field(True, description="false leaves out the chunks, nine tenths of a record")


BINARY = {"type": "string", "format": "binary"}
# A line of an answer that comes line by line: what `images` has, and which one it is.
LINE_SCHEMA = {
    "allOf": [
        {
            "anyOf": [
                {"$ref": f"#/components/schemas/{model.__name__}"}
                for model in (IndexedImage, FailedImage)
            ]
        },
        {
            "type": "object",
            "properties": {
                "part": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "place of the image among the parts, from 0",
                }
            },
            "required": ["part"],
        },
    ]
}


def describe_body(parts: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """Return the OpenAPI description of a body: an image, or these parts."""
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
    """Replace FastAPI's errors in an OpenAPI description by problems.

    FastAPI describes a wrong parameter as a 422. Here it is a 400, and a problem. And it doesn't
    say that whoever needs a key and has none gets a 401.
    """
    schemas = description["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    for path in description["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if "security" in operation:
                no_key = describe_problems(401)[401]
                operation["responses"] = {"401": no_key, **operation["responses"]}
    return description
