"""Choose the shapes that engines are built for, from a bundle's budget and context.

TensorRT chooses kernels for one shape of each profile. Pictures differ a hundredfold in size, so
the vision graphs get several profiles that follow one another without a gap; the decoder gets one
for prompts and one for single tokens.

Every dimension of a graph has a name in the manifest; a profile says how far each name goes, and
the shapes of any graph with these names follow, the parts of a split decoder's too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...runtime.backends.trt.engine_set import Profile, ProfileUse, ShapeRange
from ...runtime.bundle.manifest import Manifest, TargetRecord, TensorSpec
from ...runtime.inputs.patches import limit_frame
from .settings import DEFAULT_MAX_PIXELS, BuildSettings

DEFAULT_CONTEXT = 4096  # tokens, where the graph fixes none
TOKENS = "batch * sequence"  # dimension of what crosses between parts of a decoder
BUCKET_WIDTH = 4  # most patches over fewest, of one profile: twice the side of a picture


@dataclass(frozen=True, slots=True)
class Extent:
    """How far one dimension goes in a profile, and the size its kernels are chosen for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True)
class ProfileExtents:
    """One profile, by the names of dimensions."""

    use: ProfileUse
    extents: Mapping[str, Extent]


def derive_profiles(manifest: Manifest, settings: BuildSettings) -> dict[str, tuple[Profile, ...]]:
    """The profiles of every graph that is built, in the order of the engine's profiles.

    Raises:
        ValueError: the settings ask for more than the bundle has, or for what it has not.
    """
    return {
        graph: shape_profiles(manifest.graphs[graph].inputs, extents)
        for graph, extents in derive_extents(manifest, settings).items()
    }


def derive_extents(
    manifest: Manifest, settings: BuildSettings
) -> dict[str, tuple[ProfileExtents, ...]]:
    """As `derive_profiles`, by dimension instead of by input.

    Raises:
        ValueError: see there.
    """
    target = check_target(manifest)
    fewest, most = find_patch_limits(manifest, settings)
    step = manifest.vision.spatial_merge_size**2
    extents = {"vision": _vision(fewest, most, step, settings.max_images)}
    if settings.video:
        if "vision_video" not in manifest.graphs:
            raise ValueError(
                f"the bundle has no graph of clips, only {', '.join(manifest.graphs)}: "
                "build without --video"
            )
        least = _count_patches(manifest, manifest.pixels.frame_limits[0])
        most_of_frame = min(most, _count_patches(manifest, limit_frame(manifest.pixels)))
        extents["vision_video"] = _vision(
            least, max(least, most_of_frame), step, settings.max_images
        )
    extents["decoder"] = _decoder(find_context(manifest, target, settings), settings)
    return extents


def shape_profiles(
    inputs: Iterable[TensorSpec], profiles: Iterable[ProfileExtents]
) -> tuple[Profile, ...]:
    """Extents of named dimensions -> shapes of the inputs that have any.

    Raises:
        ValueError: an input has a dimension that no profile knows.
    """
    dynamic = [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]
    return tuple(
        Profile(profile.use, {spec.name: _shape_range(spec, profile.extents) for spec in dynamic})
        for profile in profiles
    )


def check_target(manifest: Manifest) -> TargetRecord:
    """What the bundle's graphs were written for.

    Raises:
        ValueError: they were not written for TensorRT.
    """
    if manifest.target is None:
        raise ValueError(
            f"the bundle's graphs are of flavor {manifest.flavor}, TensorRT can't read them: "
            "export it with --target first, as in vlmedge export BUNDLE OUT --target jetpack-6.2"
        )
    return manifest.target


def find_context(manifest: Manifest, target: TargetRecord, settings: BuildSettings) -> int:
    """Tokens that the cache may hold.

    Raises:
        ValueError: more than the model can, or other than what the graph fixes.
    """
    longest = manifest.decoder.max_position_embeddings
    if target.capacity is not None:
        if settings.context not in (None, target.capacity):
            raise ValueError(
                f"context is {settings.context}, the bundle's graph fixes {target.capacity}: "
                f"export it with --context {settings.context}, or leave it out"
            )
        return target.capacity
    if settings.context is None:
        return min(DEFAULT_CONTEXT, longest)
    if settings.context > longest:
        raise ValueError(f"context is {settings.context}, the model's positions end at {longest}")
    return settings.context


def find_patch_limits(manifest: Manifest, settings: BuildSettings) -> tuple[int, int]:
    """Fewest and most patches of a picture, by the budget and the settings.

    Raises:
        ValueError: max_pixels is outside the bundle's budget.
    """
    pixels = manifest.pixels
    usual = max(pixels.min_pixels, min(pixels.max_pixels, DEFAULT_MAX_PIXELS))
    asked = usual if settings.max_pixels is None else settings.max_pixels
    if not pixels.min_pixels <= asked <= pixels.max_pixels:
        raise ValueError(
            f"max_pixels is {asked}, the bundle's budget is {pixels.min_pixels} to "
            f"{pixels.max_pixels} pixels"
        )
    fewest = _count_patches(manifest, pixels.min_pixels)
    return fewest, max(fewest, _count_patches(manifest, asked))


def _count_patches(manifest: Manifest, pixels: int) -> int:
    """Patches of the whole visual tokens that fit, of one at least."""
    vision = manifest.vision
    merged = vision.spatial_merge_size**2
    return max(1, pixels // (vision.patch_size**2 * merged)) * merged


def _vision(fewest: int, most: int, step: int, max_images: int) -> tuple[ProfileExtents, ...]:
    """Profiles from the largest picture down, smallest first, each at most `BUCKET_WIDTH` wide.

    The first begins at one visual token: a picture that was shrunk may end up below the budget.
    """
    images = Extent(1, max_images, max_images)
    patches = [most]
    while patches[0] > BUCKET_WIDTH * fewest:
        patches.insert(0, -(-patches[0] // (BUCKET_WIDTH * step)) * step)
    low, buckets = step, []
    for high in patches:
        # A camera's pictures are all shrunk to the budget: the last profile is for that size.
        middle = high if high == most else max(low, high // 2 // step * step)
        extents = {"num_images": images, "num_patches": Extent(low, middle, high)}
        buckets.append(ProfileExtents("vision", extents))
        low = high + step
    return tuple(buckets)


def _decoder(context: int, settings: BuildSettings) -> tuple[ProfileExtents, ...]:
    """Prompts in chunks, then one token at a time."""
    chunk = min(settings.prefill_tokens, context)
    # The cache of a prompt's second chunk; a half full one.
    prefill = _decoder_extents(Extent(1, chunk, context), Extent(1, chunk, chunk), settings, 1)
    half = max(1, context // 2)
    decode = _decoder_extents(
        Extent(1, half, context), Extent(1, 1, 1), settings, settings.max_batch
    )
    return ProfileExtents("prefill", prefill), ProfileExtents("decode", decode)


def _decoder_extents(
    capacity: Extent, sequence: Extent, settings: BuildSettings, usual_batch: int
) -> dict[str, Extent]:
    """Capacity and total are only in graphs that append; the graph itself fixes them elsewhere."""
    batch = Extent(1, usual_batch, settings.max_batch)
    return {
        "batch": batch,
        "sequence": sequence,
        TOKENS: Extent(
            batch.min * sequence.min, batch.opt * sequence.opt, batch.max * sequence.max
        ),
        "capacity": capacity,
        "total": Extent(
            capacity.min + sequence.min, capacity.opt + sequence.opt, capacity.max + sequence.max
        ),
    }


def _shape_range(spec: TensorSpec, extents: Mapping[str, Extent]) -> ShapeRange:
    sides = []
    for dim in spec.shape:
        if isinstance(dim, int):
            sides.append(Extent(dim, dim, dim))
        elif dim in extents:
            sides.append(extents[dim])
        else:
            raise ValueError(
                f"input {spec.name} has a dimension {dim!r}, profiles know "
                f"{', '.join(sorted(extents))}"
            )
    return ShapeRange(
        tuple(side.min for side in sides),
        tuple(side.opt for side in sides),
        tuple(side.max for side in sides),
    )
