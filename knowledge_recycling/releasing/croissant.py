"""Croissant metadata of the synthetic set (MLCommons Croissant 1.0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knowledge_recycling.reporting.result import Result
from knowledge_recycling.storage import file_digest, write_json

CROISSANT = "croissant.json"

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "recordSet": "cr:recordSet",
    "repeated": "cr:repeated",
    "sc": "https://schema.org/",
    "source": "cr:source",
    "transform": "cr:transform",
    "jsonPath": "cr:jsonPath",
}
FIELDS = {
    "image": ("sc:ImageObject", "PNG image"),
    "label": ("sc:Integer", "class the image was drawn for"),
    "soft_labels": ("sc:Float", "the calibrated probabilities of the teachers together"),
    "class_name": ("sc:Text", "name of the class"),
}


def write_croissant(bundle: Path, result: Result, parquet: str) -> None:
    """Writes the description of the bundle's Parquet file."""
    write_json(bundle / CROISSANT, describe(result, parquet, file_digest(bundle / parquet)))


def describe(result: Result, parquet: str, digest: str) -> dict[str, Any]:
    """Returns the JSON-LD of a Parquet file with that SHA-256."""
    name = "".join(c if c.isalnum() else "_" for c in f"synthetic_{result.dataset.name}")
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"Synthetic images of {len(result.dataset.classes)} classes, with hard "
        "labels and the soft labels of a classifier trained on the real ones.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": "see LICENSE.txt",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "parquet",
                "name": "parquet",
                "contentUrl": parquet,
                "encodingFormat": "application/x-parquet",
                "sha256": digest,
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "images",
                "name": "images",
                "field": [_field(key, *about) for key, about in FIELDS.items()],
            }
        ],
    }


def _field(name: str, data_type: str, description: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": "parquet"}, "extract": {"column": name}}
    if name == "image":  # a struct of the bytes and a path that is empty
        source["transform"] = {"jsonPath": "bytes"}
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"images/{name}",
        "name": name,
        "description": description,
        "dataType": data_type,
        "source": source,
    }
    return field | ({"repeated": True} if name == "soft_labels" else {})
