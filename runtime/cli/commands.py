"""`vlmedge run`, `inspect` and `bench`: options in, results on stdout.

The work is in model.py, inspection.py and bench.py, imported when a command needs them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..options import GenerationOptions
from ..terminal import status_line
from ..terminal.completion import PROVIDERS, complete_words
from ..terminal.interruption import NOTHING_WRITTEN, interruptible
from ..terminal.size_text import parse_size
from ..terminal.wrong_option import check_word, wrong_options_exit_with_2
from .generation_flags import (
    AllowToken,
    KeepSpecialTokens,
    MaxNewTokens,
    MinNewTokens,
    MinP,
    NoRepeatNgramSize,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)

Bundle = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="Folder made by vlmedge export.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def check_threads(threads: int | None) -> int | None:
    """For an option --threads: refuse more than this machine can bear."""
    from ..threads import check_num_threads

    try:
        check_num_threads(threads)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return threads


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="CPU threads.", show_default="all cores", callback=check_threads
    ),
]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Where graphs run: cpu, cuda or a provider of ONNX Runtime, the preferred first; or "
        "tensorrt, for the engines of vlmedge build.",
        autocompletion=complete_words(lambda: PROVIDERS),
        show_default="engines for a bundle for TensorRT, else CUDA if there, else CPU",
    ),
]


def run(
    bundle: Bundle,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="The question; - reads it from stdin.", show_default=False
        ),
    ],
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="PATH",
            help="A picture: a path, a file:// or data: address, - for stdin; repeatable, in "
            "the order of the prompt.",
            show_default="none",
        ),
    ] = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(
            "--frames",
            metavar="PATH",
            help="The frames of a clip: a folder, or one file; repeatable.",
            show_default="none",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    min_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Enlarge pictures below this area, in pixels.",
            show_default="the bundle's",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Shrink pictures above this area, in pixels, within the bundle's budget.",
            show_default="the bundle's",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="TEXT",
            help="System message of the conversation.",
            show_default="the chat template's own",
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    seed: Seed = None,
    stop: Stop = None,
    keep_special_tokens: KeepSpecialTokens = False,
    allow_token: AllowToken = None,
    mrope_rule: Annotated[
        Literal["paper", "transformers>=5.3"] | None,
        typer.Option(
            help="How position ids go on after a clip: as the Qwen2-VL paper has it, or "
            "transformers since 5.3.",
            show_default="the bundle's",
        ),
    ] = None,
    provider: Providers = None,
    threads: Threads = None,
    verify_hashes: Annotated[
        bool,
        typer.Option(
            "--verify-hashes", help="First compare every file's SHA-256 with the manifest's."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer a question about pictures or a clip.

    The answer goes to stdout as it is generated, notices to stderr.
    """
    with wrong_options_exit_with_2():
        options = GenerationOptions(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=tuple(stop) if stop else None,
            min_new_tokens=min_new_tokens,
            min_p=min_p,
            no_repeat_ngram_size=no_repeat_ngram_size,
            skip_special_tokens=not keep_special_tokens,
        )
        if min_pixels and max_pixels and min_pixels > max_pixels:
            raise ValueError(f"--min-pixels {min_pixels} is above --max-pixels {max_pixels}")
        check_providers(provider)
    from ..inputs.messages import MAX_TEXT_CHARS
    from ..model import Model
    from ..terminal.console import (
        make_progress,
        print_json_text,
        print_line,
        print_notice,
        print_piece,
    )
    from ..terminal.standard_streams import read_text
    from .question import list_frames, make_messages, read_pictures

    if prompt == "-":
        status_line.clear()  # whoever types needs the screen
    text = read_text(MAX_TEXT_CHARS) if prompt == "-" else prompt
    pictures = read_pictures(image or [], is_stdin_taken=prompt == "-")
    messages = make_messages(text, pictures, list_frames(frames or []), system)
    with interruptible(lambda: NOTHING_WRITTEN), make_progress(of_bytes=False) as bar:
        step = bar.add_task("loading", total=None)

        def tell_hashed(done: int, total: int) -> None:
            text = f"comparing hashes, {done >> 20} of {total >> 20} MiB"
            bar.update(step, description=text)

        # one question needs the vision graph once: "one" frees it before the decoder is loaded
        with Model.load(
            bundle,
            providers=provider or None,
            num_threads=threads,
            residency="one",
            mrope_rule=mrope_rule,
            verify_hashes=verify_hashes,
            on_hashed=tell_hashed,
        ) as model:
            bar.update(step, description="reading the question")
            stream = model.stream(
                messages,
                options,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                allowed_special_tokens=allow_token or (),
            )
            if as_json:
                answer = stream.read()
                bar.stop()
                print_json_text(answer.to_json(indent=1))
            else:
                for piece in stream:
                    bar.stop()
                    print_piece(piece)
                bar.stop()
                print_line()
                answer = stream.read()
            notices = model.notices if as_json else (*answer.notices, *model.notices)
    for notice in notices:
        print_notice(f"vlmedge run: {notice}")
    if answer.finish_reason == "length" and not as_json:
        print_notice("vlmedge run: cut off at the maximum number of new tokens")


def check_providers(names: list[str] | None) -> None:
    """Refuse names that no installation has; what this one has, ONNX Runtime says later.

    Raises:
        ValueError: a name of neither ours nor ONNX Runtime's, or tensorrt beside others.
    """
    for name in names or ():
        if not name.endswith("ExecutionProvider"):
            check_word("--provider", name.lower(), PROVIDERS)
    if names and len(names) > 1 and "tensorrt" in [name.lower() for name in names]:
        raise ValueError("--provider tensorrt goes alone: engines have no fallback provider")


def inspect(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|CHECKPOINT",
            help="Folder made by vlmedge export; or a checkpoint, a folder or hub id.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Don't read the files to compare their SHA-256.")
    ] = False,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage", help="Print the precision of every layer and its reason instead."
        ),
    ] = False,
    seal: Annotated[
        bool,
        typer.Option(
            "--seal",
            help="First write the checksum of manifest.json anew, after you have edited it.",
        ),
    ] = False,
) -> None:
    """Print what a bundle holds and check its files.

    Of a checkpoint: what would be exported, from which file each setting comes,
    what is unusual, and what is in the way.

    Exits with 1 if a file is missing or is not what the exporter wrote, or if the
    checkpoint can't be exported.
    """
    from ..backends.trt.engine_inspection import check_engine_sets
    from ..bundle.inspection import check_file, list_unlisted
    from ..bundle.manifest_file import read_manifest, reseal_manifest
    from ..errors import BundleError
    from ..files.path_kind import may_be_checkpoint
    from ..terminal.console import make_progress, print_json
    from .inspection_report import make_json, print_coverage, print_engines, print_report

    if may_be_checkpoint(bundle):
        for name, is_given in (("--no-hash", no_hash), ("--coverage", coverage), ("--seal", seal)):
            if is_given:
                raise ValueError(f"{name} is for bundles, {bundle} is none")
        _inspect_checkpoint(bundle, as_json=as_json)
        return
    if seal:
        reseal_manifest(bundle)
    manifest = read_manifest(bundle, check_files=False)
    with interruptible(lambda: NOTHING_WRITTEN), make_progress(of_bytes=True) as progress:
        total = sum(record.bytes for record in manifest.files.values())
        task = progress.add_task("hashing", total=total)
        checks = [
            check_file(
                bundle,
                name,
                record,
                with_hash=not no_hash,
                on_bytes=lambda count: progress.advance(task, count),
            )
            for name, record in manifest.files.items()
        ]
        engines = check_engine_sets(bundle, manifest, with_hash=not no_hash)
    unlisted = list_unlisted(bundle, manifest)
    if as_json:
        print_json(make_json(manifest, checks, unlisted, engines))
    elif coverage:
        print_coverage(bundle, manifest, checks)
    else:
        print_report(bundle, manifest, checks, unlisted)
        print_engines(engines)
    if bad := [f"{check.name} ({check.state})" for check in checks if check.is_bad]:
        raise BundleError(
            f"{bundle} is damaged: {', '.join(bad)}; copy it again, or export it again"
        )
    if bad := [check.key for check in engines if check.is_bad]:
        raise BundleError(f"{bundle} has engines that can't be used: {', '.join(bad)}")


def _inspect_checkpoint(checkpoint: Path, *, as_json: bool) -> None:
    """By the layer of checkpoints, which stands above this one and offers itself."""
    from importlib.metadata import entry_points

    from ..errors import BackendError

    for entry in entry_points(group="vlmedge.checkpoints", name="inspect"):
        entry.load()(checkpoint, as_json=as_json)
        return
    raise BackendError(f"{checkpoint} is a checkpoint: reading it needs vlmedge[export]")


def bench(
    bundle: Bundle,
    image_size: Annotated[
        list[str] | None,
        typer.Option(
            "--image-size",
            metavar="WxH",
            help="Size of a picture to encode; repeatable.",
            show_default="448x448 and 1092x924",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Repetitions of each measurement.")] = 5,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Tokens in the cache when decoding starts; repeatable.",
            show_default="128 and 2048",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens decoded in one measurement.")] = 32,
    provider: Providers = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure load time, vision, prefill, decode and peak memory.

    Medians over the runs; peak memory from a fresh process.
    """
    with wrong_options_exit_with_2():
        sizes = tuple(parse_size(size) for size in image_size or ("448x448", "1092x924"))
        check_providers(provider)
    from ..terminal.console import make_progress, print_json, print_notice
    from .bench import BenchPlan, measure
    from .bench_report import print_report

    plan = BenchPlan(
        image_sizes=sizes,
        contexts=tuple(context or (128, 2048)),
        num_new_tokens=new_tokens,
        num_runs=runs,
        providers=tuple(provider) if provider else None,
        num_threads=threads,
    )
    with interruptible(lambda: NOTHING_WRITTEN), make_progress(of_bytes=False) as progress:
        task = progress.add_task("starting", total=plan.num_steps)
        result = measure(
            bundle, plan, lambda step: progress.update(task, description=step, advance=1)
        )
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        print_report(result)
    for notice in result.notices:
        print_notice(f"vlmedge bench: {notice}")
