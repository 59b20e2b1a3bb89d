"""What building full-size engines costs: python scripts/bench_build.py CHECKPOINT|BUNDLE...

    python scripts/make_checkpoint.py CK --size 2b
    python scripts/bench_build.py CK --targets jetpack-6.2 jetpack-7.2

Every source (a checkpoint, or a bundle of flavor onnxruntime, quantized or not) is exported for
every target, and each of its engines is built for each GPU in a process of its own. Weights of a
checkpoint are linked, not copied; they are mapped into memory, so that peak RSS counts pages which
the kernel can take back: the anonymous memory is what a board must really have. Built by
TensorRT-RTX where there is no other: it chooses no kernels by measuring, so its seconds tell
nothing of TensorRT's, which measures thousands. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench_export import measure

from vlmedge.export.engines.adapter import open_tensorrt
from vlmedge.export.engines.build import find_gpu, make_request
from vlmedge.export.engines.engine_folder import write_engine
from vlmedge.export.engines.profiles import derive_extents, shape_profiles
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.export.engines.split import read_graph
from vlmedge.export.engines.steps import make_steps
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_file import read_manifest

MIB = 1 << 20


def make_settings(args: argparse.Namespace, capability: str | None) -> BuildSettings:
    """Of one GPU; what is not asked for is as `vlmedge build` has it."""
    return BuildSettings(
        max_pixels=args.max_pixels,
        split=args.split,
        separate_lm_head=args.split > 1,
        compute_capability=capability,
    )


def build_one(args: argparse.Namespace) -> None:
    """In a process of its own: one engine of a bundle, into the folder that is measured."""
    bundle, name = args.sources[0], args.worker
    settings = make_settings(args, args.capabilities[0])
    manifest = read_manifest(bundle)
    extents = derive_extents(manifest, settings)
    tensorrt = open_tensorrt(args.builder)
    gpu = find_gpu(tensorrt, settings)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        steps = make_steps(bundle, manifest, extents, settings, Path(folder) / "parts")
        (step,) = (step for step in steps if step.name == name)
        profiles = shape_profiles(step.inputs, extents[step.chain])
        built = tensorrt.build(make_request(step, profiles, settings, tensorrt, gpu, None))
        args.output.mkdir()
        write_engine(args.output / "engine", built.plan)


def list_engines(bundle: Path, args: argparse.Namespace) -> dict[str, float]:
    """Name of each engine -> MiB of the weights it is made of."""
    settings = make_settings(args, None)
    manifest = read_manifest(bundle)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        parts = Path(folder) / "parts"
        graphs = derive_extents(manifest, settings)
        steps = make_steps(bundle, manifest, graphs, settings, parts)
        return {step.name: count_weights(step.graph) / MIB for step in steps}


def count_weights(graph: Path) -> int:
    """Bytes of a graph's weights in files beside it."""
    return sum(
        int(entry.value)
        for tensor in read_graph(graph).graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )


def export_source(source: Path, target: str, args: argparse.Namespace) -> Path:
    """The bundle of a source for a target, in the scratch folder."""
    folder = args.scratch / f"{source.name}-{target}-{args.dtype}"
    is_checkpoint = not (source / MANIFEST_NAME).exists()
    links = is_checkpoint and args.dtype == "bf16"
    if not folder.exists():
        print(f"exporting {source.name} for {target}", file=sys.stderr)
        export_for_target(source, folder, LoweringOptions(target, args.dtype, link_weights=links))
    return folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, nargs="+", help="checkpoints and bundles")
    parser.add_argument("--targets", nargs="+", default=["jetpack-6.2", "jetpack-7.2"])
    parser.add_argument("--capabilities", nargs="+", default=["8.6", "12.0"])
    parser.add_argument("--builder", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt_rtx")
    parser.add_argument("--dtype", choices=("bf16", "fp16"), default="bf16")
    parser.add_argument("--max-pixels", type=int, default=1280 * 28 * 28)
    parser.add_argument("--split", type=int, default=1, help="over 1: the lm_head apart, too")
    parser.add_argument("--engines", nargs="+", help="only these, by name")
    parser.add_argument("--scratch", type=Path, help="default: beside the first source")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.scratch = args.scratch or args.sources[0].absolute().parent
    return args


def main() -> None:
    """Measure and print the table."""
    args = parse_args()
    if args.worker:
        build_one(args)
        return
    columns = ("source", "target", "engine", "GPU", "weights MiB")
    columns += ("s", "CPU s", "peak MiB", "anonymous MiB", "engine MiB")
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}", flush=True)
    for source in args.sources:
        for target in args.targets:
            bundle = export_source(source, target, args)
            for engine, weights in list_engines(bundle, args).items():
                for capability in args.capabilities:
                    if args.engines is None or engine in args.engines:
                        row = measure_row(bundle, engine, capability, args)
                        start = f"| {source.name} | {target} | {engine} | {capability} "
                        print(f"{start}| {weights:.0f} {row}", flush=True)


def measure_row(bundle: Path, engine: str, capability: str, args: argparse.Namespace) -> str:
    """Build one engine in a fresh Python; a build that fails is a row too."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        output = Path(folder) / "output"
        command = [sys.executable, __file__, str(bundle), "--worker", engine]
        command += ["--output", str(output), "--scratch", folder, "--builder", args.builder]
        command += ["--capabilities", capability, "--split", str(args.split)]
        command += ["--max-pixels", str(args.max_pixels)]
        try:
            cost = measure(command, output)
        except SystemExit:
            return "| refused | | | | |"
    return (
        f"| {cost.wall_seconds:.1f} | {cost.cpu_seconds:.1f} | {cost.peak_rss_mib:.0f} "
        f"| {cost.peak_anonymous_mib:.0f} | {cost.written_gb * 1e9 / MIB:.0f} |"
    )


if __name__ == "__main__":
    main()
