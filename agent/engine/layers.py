"""In which precision the layers of a TensorRT engine run: read from the JSON of its inspector.

Must not know how an engine was built; imports nothing of TensorRT.
"""

from __future__ import annotations

import json
from collections import Counter

MIN_SHARE = 0.8
"""Least share of the layers that must run in the precision asked for; fused small ones may tell fp32."""
_QUANTISED = ("int8", "fp8")
_TYPES = {"FP8": "fp8", "BF16": "bf16", "BFLOAT16": "bf16", "FP16": "fp16", "HALF": "fp16"}
_TYPES |= {"INT8": "int8", "FP32": "fp32", "FLOAT": "fp32"}
_MOVING = ("Reformat", "Shuffle", "NoOp", "Constant", "Cast", "Signal", "Wait", "Identity")
"""Layers that compute nothing."""


def layer_census(information: str) -> dict[str, int]:
    """Layers that compute, by the type of their first input, from an engine inspector's JSON.

    Raises RuntimeError when the engine tells no types: it was built without details.
    """
    census: Counter[str] = Counter()
    for layer in json.loads(information)["Layers"]:
        if not isinstance(layer, dict):
            raise RuntimeError("the engine does not tell the types of its layers")
        if layer.get("Inputs") and layer.get("LayerType") not in _MOVING:
            census[_type_of(str(layer["Inputs"][0].get("Format/Datatype", "")))] += 1
    return dict(census)


def check_census(census: dict[str, int], precision: str) -> None:
    """Raises RuntimeError unless the layers run in the precision asked for."""
    share = census.get(precision, 0) / max(1, sum(census.values()))
    # Quantisation is of convolutions and products only; all others stay in the precision around them.
    if share < (MIN_SHARE if precision not in _QUANTISED else MIN_SHARE / 2):
        raise RuntimeError(f"asked for {precision}, but the layers run in {census}")


def _type_of(text: str) -> str:
    words = text.upper().replace(",", " ").split()
    return next((_TYPES[word] for word in words if word in _TYPES), text or "unknown")
