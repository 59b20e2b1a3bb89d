"""Compute the largest requests that the profiles of an engine set take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ...bundle.manifest import Manifest
from ...errors import BundleError
from .device_cache import read_layout
from .engine_set import EngineRecord, EngineSet, ProfileUse


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The largest requests that a set's engines were built for.

    Attributes:
        patches: least and most of a picture, by graph.
        images: pictures of one grid in one run, by graph; more take several runs.
        batch: sequences together.
        capacity: tokens of the cache, prompt and answer together.
        prefill: tokens of one call; more take several.
    """

    patches: dict[str, tuple[int, int]]
    images: dict[str, int]
    batch: int
    capacity: int
    prefill: int


def read_limits(engine_set: EngineSet, manifest: Manifest) -> EngineLimits:
    """How large a set's requests may be.

    Raises:
        BundleError: a graph has no profile for what it is needed for.
    """

    def find(graph: str, use: ProfileUse, name: str, axis: int) -> tuple[int, int]:
        limits = find_sides(engine_set.chains[graph], use, name, axis)
        if limits is None:
            raise BundleError(
                f"the engines of the {graph} graph have no {use} profile with {name}: build them "
                f"again with `{engine_set.command}`"
            )
        return limits

    past = read_layout(manifest.graphs["decoder"]).names[0]
    visions = [graph for graph in engine_set.chains if graph != "decoder"]
    return EngineLimits(
        patches={graph: find(graph, "vision", "pixel_values", 1) for graph in visions},
        images={graph: find(graph, "vision", "pixel_values", 0)[1] for graph in visions},
        batch=find("decoder", "prefill", "inputs_embeds", 0)[1],
        capacity=find("decoder", "prefill", past, 2)[1],
        prefill=find("decoder", "prefill", "inputs_embeds", 1)[1],
    )


def limit_manifest(manifest: Manifest, limits: EngineLimits) -> Manifest:
    """The manifest as the engines keep it: pictures are shrunk to what they take, not refused.

    Its budget is that of one picture or frame: what a clip may take is still the bundle's.

    Args:
        manifest: of the bundle, whose budget and context may be larger.
        limits: of the engines.
    """
    area = manifest.vision.patch_size**2
    max_pixels = min(manifest.pixels.max_pixels, limits.patches["vision"][1] * area)
    min_pixels = min(manifest.pixels.min_pixels, max_pixels)
    pixels = dataclasses.replace(manifest.pixels, min_pixels=min_pixels, max_pixels=max_pixels)
    if "vision_video" in limits.patches and manifest.pixels.clip_max_pixels is not None:
        low, high = manifest.pixels.frame_limits
        high = min(high, limits.patches["vision_video"][1] * area)
        pixels = dataclasses.replace(pixels, clip_min_pixels=min(low, high), clip_max_pixels=high)
    context = min(manifest.decoder.max_position_embeddings, limits.capacity)
    return dataclasses.replace(
        manifest,
        pixels=pixels,
        decoder=dataclasses.replace(manifest.decoder, max_position_embeddings=context),
    )


def find_sides(
    records: Sequence[EngineRecord], use: ProfileUse, name: str, axis: int
) -> tuple[int, int] | None:
    """Least and most of one side of an input, over the profiles of a use.

    Args:
        records: of a graph's engines.
        use: of the profiles.
        name: of the input, in the first engine that has it.
        axis: of its shape.

    Returns:
        None: no engine has the input, or no profile of the use.
    """
    for record in records:
        spec = next((tensor for tensor in record.inputs if tensor.name == name), None)
        if spec is None:
            continue
        profiles = [profile for profile in record.profiles if profile.use == use]
        size = spec.shape[axis]
        if isinstance(size, int) and profiles:
            return size, size
        ranges = [profile.shapes[name] for profile in profiles if name in profile.shapes]
        if ranges:
            return min(r.min[axis] for r in ranges), max(r.max[axis] for r in ranges)
    return None
