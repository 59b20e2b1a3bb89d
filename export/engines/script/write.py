"""Write a shell script that builds a bundle's engines where TensorRT is.

For the machine that exports has no TensorRT, as a rule, and the board has no exporter. The script
needs bash, the coreutils of any Ubuntu, and trtexec or TensorRT's Python module; beside it goes a
tar with itself and the bundle:

    vlmedge build orin.bundle --emit-script build-orin.sh      -> build-orin.sh, build-orin.tar
    tar -xf build-orin.tar && bash build-orin.sh               (on the board)

It is the fixed body.sh between what is made here for one bundle: names and sizes, hashes to
compare, the record that becomes engines.json, and one call for each engine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ....quant.files.atomic import replaced_file
from ....quant.files.own_output import check_output, sign_text
from ....quant.files.source_stamp import stamp_files
from ....runtime import __version__
from ....runtime.backends.trt.engine_set import (
    SCHEMA_VERSION,
    EngineRecord,
    EngineSet,
    Gpu,
    record_weights,
)
from ....runtime.bundle.hash_check import check_hashes
from ....runtime.bundle.manifest import MANIFEST_NAME, Manifest, TargetRecord
from ..compatibility import INSTEAD, LEAST_CAPABILITY, RTX_PREFIX
from ..messages import HARMLESS, REFUSALS
from ..profiles import check_target
from ..settings import BuildSettings
from .archive import write_archive
from .options import VERSIONS, make_options
from .parts import ScriptPart, make_parts

DISK_MARGIN_BYTES = 64 << 20  # timing cache, logs, engines.json, the file system's own
_END = "END_OF_TEXT"  # of here-documents


@dataclass(frozen=True, slots=True)
class WrittenScript:
    """What is there for the device."""

    script: Path
    archive: Path


def write_script(
    bundle: Path,
    manifest: Manifest,
    settings: BuildSettings,
    script: Path,
    *,
    force: bool = False,
) -> WrittenScript:
    """Write the script, and beside it a tar with it and the bundle for the device.

    Args:
        bundle: the folder.
        manifest: its manifest.
        settings: of the build.
        script: the file; older ones that were not edited are replaced.
        force: replace what else has the script's or the tar's name.

    Raises:
        BundleError: the bundle is damaged.
        ValueError: the settings ask for what a script can't do, or for more than the bundle has;
            something else has the script's name, or the bundle changed meanwhile.
        OSError: the disk is full.
    """
    target = check_settings(manifest, settings)
    archive = script.with_suffix(".tar")
    if archive == script:
        raise ValueError(f"{script.name!r} can't be the script's name: the tar takes .tar")
    for name in (script.name, bundle.absolute().name):
        if not name.isprintable() or name.startswith("-"):
            raise ValueError(
                f"{name!a:.200} can't be carried to a device: name the script and the bundle "
                "without control characters, and with no - in front"
            )
    check_output(script, "script", force=force, apart_from=(bundle,))
    check_output(archive, "archive", force=force, apart_from=(bundle,))
    stamp = stamp_files(bundle / name for name in (MANIFEST_NAME, *manifest.files))
    check_hashes(bundle, manifest)  # parts of a decoder get hashes of their own
    parts = make_parts(bundle, manifest, settings)
    text = make_script(bundle.absolute().name, script.name, manifest, target, settings, parts)
    content = sign_text(text).encode()
    made = _list_made(parts, script.name)
    with replaced_file(script) as temporary:  # both, or neither
        temporary.write_bytes(content)
        write_archive(
            *(archive, bundle, manifest, (script.name, content), made),
            before_publishing=stamp.check,
        )
    mode = script.stat().st_mode
    script.chmod(mode | (mode & 0o444) >> 2)  # who may read it may run it
    return WrittenScript(script, archive)


def check_settings(manifest: Manifest, settings: BuildSettings) -> TargetRecord:
    """Refuse what no script can do.

    Raises:
        ValueError: says what to do instead.
    """
    target = check_target(manifest)
    if target.tensorrt.startswith(RTX_PREFIX):
        raise ValueError(
            f"target {target.name} has no trtexec, and its wheel installs on any machine: "
            "pip install tensorrt-rtx-cu13 there, and vlmedge build"
        )
    if settings.compute_capability is not None:
        raise ValueError(
            f"compute_capability is {settings.compute_capability}, a script builds for the GPU "
            "of the device it runs on: leave it out"
        )
    return target


def make_script(
    bundle_name: str,
    script_name: str,
    manifest: Manifest,
    target: TargetRecord,
    settings: BuildSettings,
    parts: Sequence[ScriptPart],
) -> str:
    """The script's text.

    Args:
        bundle_name: the folder beside the script that it builds in, unless told another.
        script_name: its file name, for the command that builds the engines again.
        manifest: of the bundle.
        target: the manifest's.
        settings: of the build.
        parts: what to build.
    """
    command = f"bash {shlex.quote(script_name)}"
    record = make_record(manifest, target, settings, parts, command)
    weights = [part.num_weight_bytes for part in parts]
    facts = {
        "bundle_name": bundle_name,
        "parts_name": _name_parts(script_name),
        "target": target.name,
        "needed": target.tensorrt,
        "newest": VERSIONS[-1],
        "dtype": target.dtype,
        "disk_kib": str((sum(weights) + DISK_MARGIN_BYTES) >> 10),
        "weights_kib": str(max(weights) >> 10),
        "timing_cache": str(settings.timing_cache or ""),
    }
    sections = [
        "#!/usr/bin/env bash\n"
        + _comment(
            f"Builds the engines of a vlmedge bundle on the device: {target.name}, "
            f"TensorRT {target.tensorrt} or newer."
        )
        + _comment(f"usage: {command} [BUNDLE]")
        + "# VLMEDGE_BUILDER=trtexec|python chooses what builds, TRTEXEC=FILE where trtexec is.\n"
        "set -euo pipefail\n",
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in facts.items()),
        _print_function("list_hashes", _list_hashes(manifest, parts)),
        _print_function("list_part_hashes", _list_part_hashes(parts)),
        _print_function("list_part_data", _list_part_data(parts)),
        _print_function("list_precisions", _list_precisions(manifest, target, parts)),
        _print_function("list_refusals", "".join(f"{each.pattern}\n" for each in REFUSALS)),
        _print_function("list_harmless", "".join(f"{each.pattern}\n" for each in HARMLESS)),
        _print_function("print_record", record),
        _print_function("print_builder", _read("builder.py")),
        _read("body.sh"),
        'prepare "$@"\n',
        *(_call(part, settings, target) for part in parts),
        "close_folder\n",
    ]
    return "\n".join(sections)


def make_record(
    manifest: Manifest,
    target: TargetRecord,
    settings: BuildSettings,
    parts: Sequence[ScriptPart],
    command: str,
) -> str:
    """engines.json with places like @sha256:vision@ for what is known when an engine is built."""
    chains: dict[str, tuple[EngineRecord, ...]] = {}
    for part in parts:
        engine = EngineRecord(
            name=part.name,
            file=f"{part.name}.engine",
            bytes=0,
            sha256=f"@sha256:{part.name}@",
            inputs=part.inputs,
            outputs=part.outputs,
            profiles=part.profiles,
        )
        chains[part.chain] = (*chains.get(part.chain, ()), engine)
    engine_set = EngineSet(
        schema_version=SCHEMA_VERSION,
        created_by=f"vlmedge {__version__}",
        builder="tensorrt",
        version="@version@",
        gpu=Gpu("@gpu@", "@sm@"),
        dtype=target.dtype,
        command=command,
        settings=settings.to_record(),
        graph_sha256={
            chain: manifest.files[manifest.graphs[chain].file].sha256 for chain in chains
        },
        chains=chains,
        weights_sha256=record_weights(manifest),
    )
    tree = dataclasses.asdict(engine_set)
    for chain in tree["chains"].values():
        for engine in chain:
            engine["bytes"] = f"@bytes:{engine['name']}@"
    text = json.dumps(tree, indent=1, ensure_ascii=True) + "\n"
    for part in parts:
        text = text.replace(f'"@bytes:{part.name}@"', f"@bytes:{part.name}@")
    return text


def _name_parts(script_name: str) -> str:
    """The folder beside the script with graphs that were made for it."""
    return f"{Path(script_name).stem}.parts"


def _list_made(parts: Sequence[ScriptPart], script_name: str) -> dict[str, bytes]:
    """Files that the tar holds beside the bundle."""
    folder = _name_parts(script_name)
    return {f"{folder}/{part.graph}": part.content for part in parts if part.content is not None}


def _list_hashes(manifest: Manifest, parts: Sequence[ScriptPart]) -> str:
    """What sha256sum --check reads: the graphs and the files of their weights."""
    names = {part.graph for part in parts if part.content is None}
    names |= {name for part in parts for name in part.data_files}
    return "".join(f"{manifest.files[name].sha256}  {name}\n" for name in sorted(names))


def _list_part_hashes(parts: Sequence[ScriptPart]) -> str:
    """The same of graphs that were made for the script."""
    return "".join(
        f"{hashlib.sha256(part.content).hexdigest()}  {part.graph}\n"
        for part in parts
        if part.content is not None
    )


def _list_part_data(parts: Sequence[ScriptPart]) -> str:
    """The bundle's files of weights that must lie beside them."""
    made = [part for part in parts if part.content is not None]
    return "".join(f"{name}\n" for name in sorted({n for part in made for n in part.data_files}))


def _list_precisions(manifest: Manifest, target: TargetRecord, parts: Sequence[ScriptPart]) -> str:
    """Lines of least capability|precision|what to do instead, of what not every GPU computes."""
    graphs = {part.chain for part in parts}
    used = {each.precision.split()[0] for each in manifest.coverage if each.graph in graphs}
    used.add(target.dtype)
    return "".join(
        f"{least[0]}.{least[1]}|{precision}|{INSTEAD[precision]}\n"
        for precision, least in LEAST_CAPABILITY.items()
        if precision in used
    )


def _call(part: ScriptPart, settings: BuildSettings, target: TargetRecord) -> str:
    options = make_options(part.profiles, settings, target.tensorrt)
    place = "$bundle" if part.content is None else "$parts"
    lines = [f'build_engine {shlex.quote(part.name)} "{place}"/{shlex.quote(part.graph)}']
    lines += [f"  {shlex.quote(option)}" for option in options]
    return " \\\n".join(lines) + "\n"


def _read(name: str) -> str:
    return files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def _comment(text: str) -> str:
    """One line that the shell doesn't read.

    Raises:
        ValueError: it would be more than one line.
    """
    if not text.isprintable():
        raise ValueError(f"{text!a:.200} can't stand in a script's comment: it is not one line")
    return f"# {text}\n"


def _print_function(name: str, text: str) -> str:
    return f"{name}() {{\n  cat <<'{_END}'\n{_check_text(text)}{_END}\n}}\n"


def _check_text(text: str) -> str:
    """A here-document's text, whole lines that don't end it.

    Raises:
        ValueError: it holds the line that would.
    """
    if _END in text.splitlines():
        raise ValueError(f"a line of the bundle's manifest is {_END}: a script can't hold it")
    return text if text.endswith("\n") or not text else f"{text}\n"
