"""Open a bundle and answer questions about pictures: the public face of the runtime."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from .answer import Answer
from .backends.backend import Backend, Residency
from .backends.kv_cache import limit_clip
from .backends.open_backend import open_backend
from .bundle.embeddings import Embeddings
from .bundle.guard import BundleGuard, read_guarded
from .bundle.hash_check import OnBytes, check_hashes
from .bundle.manifest import Manifest, MropeRule
from .engine import Cancel, Engine, Job
from .inputs.file_like import is_file_like
from .inputs.request import RequestMaker
from .options import GenerationOptions
from .stream import AnswerStream
from .threads import check_num_threads

Messages = Sequence[Mapping[str, Any]]

_LOG = logging.getLogger(__name__)


class Model:
    """A loaded bundle.

    Threads may share a model: requests are prepared side by side and computed one after the other,
    a stream from its first piece to its last. A thread that asks for an answer while it reads a
    stream of the same model gets a RuntimeError, not a deadlock.
    """

    def __init__(
        self,
        manifest: Manifest,
        maker: RequestMaker,
        embeddings: Embeddings,
        backend: Backend,
        guard: BundleGuard | None = None,
    ) -> None:
        """Put a model together from its parts; `Model.load` is the usual way."""
        self.manifest = manifest
        self._maker = maker
        self._engine = Engine(manifest, maker.tokenizer, embeddings, backend, guard)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        providers: str | Sequence[str] | None = None,
        num_threads: int | None = None,
        residency: Residency = "all",
        mrope_rule: MropeRule | None = None,
        verify_hashes: bool = False,
        on_hashed: OnBytes | None = None,
    ) -> Model:
        """Open a bundle; graphs are loaded when the first request needs them.

        Args:
            bundle: the directory that `vlmedge export` wrote.
            providers: "tensorrt", or "cpu", "cuda" or names of ONNX Runtime, the preferred one
                first; None: the engines of a bundle for TensorRT, else CUDA where it is there, else
                the CPU.
            num_threads: None: all cores this process may use; see `threads` for the most.
            residency: "all" keeps the vision and the decoder graph in memory, "one" only the one in
                use: the lowest peak, for single questions.
            mrope_rule: of position ids; None: as the bundle says.
            verify_hashes: read every file first and compare its SHA-256 with the manifest's. Sizes
                are compared in any case.
            on_hashed: called while that is done, with bytes compared so far and bytes in all.

        Raises:
            BundleError: the bundle is missing, damaged or of another version, or was replaced
                while it was opened.
            BackendError: the engine is not installed, has not the provider, or the bundle has no
                engines for this machine.
            ValueError: an option that doesn't exist, or too many threads.
        """
        for name, value, kind in (
            ("residency", residency, Residency),
            ("mrope_rule", mrope_rule, MropeRule),
        ):
            if value is not None and value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}, needed one of {', '.join(get_args(kind))}")
        check_num_threads(num_threads)
        folder = Path(bundle)
        manifest, guard = read_guarded(folder)
        if verify_hashes:
            check_hashes(folder, manifest, on_hashed, read_again=True)
        backend = open_backend(
            folder,
            manifest,
            providers=providers,
            num_threads=num_threads,
            residency=residency,
            guard=guard,
        )
        clip_pixels = limit_clip(
            manifest.pixels.max_pixels,
            manifest.vision,
            manifest.context_length,
            backend.manifest.context_length,
        )
        manifest = backend.manifest
        maker = RequestMaker(folder, manifest, mrope_rule, clip_pixels=clip_pixels)
        embeddings = Embeddings(folder, manifest.embedding)
        guard.check_same()
        return cls(manifest, maker, embeddings, backend, guard)

    @property
    def providers(self) -> tuple[str, ...]:
        """Where graphs run, the preferred one first."""
        return self._engine.providers

    @property
    def notices(self) -> tuple[str, ...]:
        """What makes the engine slower than it could be, or that its bundle was replaced."""
        return self._engine.notices

    def answer(
        self,
        prompt: str,
        images: Sequence[Any] = (),
        options: GenerationOptions | None = None,
        *,
        videos: Sequence[Sequence[Any]] = (),
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        add_vision_id: bool = False,
        allowed_special_tokens: Sequence[str] = (),
        cancel: Cancel = None,
    ) -> Answer:
        """Answer a question about pictures, which come before it in the prompt.

        Args:
            prompt: the question.
            images: paths, bytes, files opened for reading (anything with `read()`), data URLs,
                Pillow images or arrays uint8[H, W, 3].
            options: None: the checkpoint's defaults.
            videos: clips, each a list of frames like `images`.
            min_pixels: pictures below this area are enlarged.
            max_pixels: pictures above it are shrunk; the bundle's budget is the upper limit.
            add_vision_id: let the template number the pictures ("Picture 1: ").
            allowed_special_tokens: special tokens that texts may contain as such, for example
                "<|object_ref_start|>"; all others are read as ordinary text. Tokens that mark
                turns, end answers or stand for pictures can't be allowed.
            cancel: an Event, or a function asked before each step whether to stop.

        Raises:
            PromptError: the prompt or a picture's kind is wrong.
            ImageError: a picture can't be read.
            ContextLengthError: prompt and answer don't fit the model's context.
        """
        if _is_one_picture(images):
            raise ValueError(f"images is {images!r:.80}, needed a list of pictures: [picture]")
        content = [{"type": "image", "image": image} for image in images]
        content += [{"type": "video", "video": frames} for frames in videos]
        content.append({"type": "text", "text": prompt})
        return self.chat(
            [{"role": "user", "content": content}],
            options,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            add_vision_id=add_vision_id,
            allowed_special_tokens=allowed_special_tokens,
            cancel=cancel,
        )

    def chat(
        self,
        messages: Messages,
        options: GenerationOptions | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        add_vision_id: bool = False,
        allowed_special_tokens: Sequence[str] = (),
        cancel: Cancel = None,
    ) -> Answer:
        """Answer a conversation.

        Args:
            messages: as `messages.read_messages` describes them.
            options: as for `answer`.
            min_pixels: as for `answer`; a picture's own limits count before it.
            max_pixels: as for `answer`; likewise.
            add_vision_id: as for `answer`.
            allowed_special_tokens: as for `answer`.
            cancel: as for `answer`.

        Raises:
            PromptError: the messages are malformed or the template refuses them.
            ImageError: a picture can't be read.
            ContextLengthError: prompt and answer don't fit the model's context.
        """
        stream = self.stream(
            messages,
            options,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            add_vision_id=add_vision_id,
            allowed_special_tokens=allowed_special_tokens,
            cancel=cancel,
        )
        return stream.read()

    def stream(
        self,
        messages: Messages,
        options: GenerationOptions | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        add_vision_id: bool = False,
        allowed_special_tokens: Sequence[str] = (),
        cancel: Cancel = None,
    ) -> AnswerStream:
        """Like `chat`, piece by piece; the pieces add up to the answer's text.

        The messages are checked at once, the model is taken with the first piece and given back
        with the last, or when the stream is closed.
        """
        chosen = _check_options(options)
        start = time.perf_counter()
        request = self._maker.make(
            messages,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            add_vision_id=add_vision_id,
            allowed_special_tokens=allowed_special_tokens,
        )
        job = Job([request], [chosen], time.perf_counter() - start)
        return AnswerStream(self._engine.start(job, cancel))

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        options: GenerationOptions | Sequence[GenerationOptions] | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        add_vision_id: bool = False,
        allowed_special_tokens: Sequence[str] = (),
        cancel: Cancel = None,
    ) -> list[Answer]:
        """Answer several conversations together; each answer is the one `chat` would give.

        Args:
            conversations: messages of each, of any length.
            options: for all, or one for each. With one seed for all, equal conversations get equal
                answers.
            min_pixels: as for `answer`.
            max_pixels: as for `answer`.
            add_vision_id: as for `answer`.
            allowed_special_tokens: as for `answer`.
            cancel: as for `answer`; it ends them all.
        """
        conversations = list(conversations)
        if options is None or isinstance(options, GenerationOptions):
            chosen = [_check_options(options)] * len(conversations)
        elif isinstance(options, Sequence):
            chosen = [_check_options(each) for each in options]
        else:
            chosen = [_check_options(options)]  # tells what is wrong with it
        if len(chosen) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations, but options for {len(chosen)}")
        start = time.perf_counter()
        requests = [
            self._maker.make(
                messages,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                add_vision_id=add_vision_id,
                allowed_special_tokens=allowed_special_tokens,
            )
            for messages in conversations
        ]
        if not requests:
            return []
        job = Job(requests, chosen, time.perf_counter() - start)
        return self._engine.start(job, cancel).finish()

    def close(self) -> None:
        """Free the graphs; the model answers no more.

        An answer that another thread waits for is computed first. A stream that is still open, in
        any thread, ends here: reading on raises a ValueError.

        Raises:
            RuntimeError: called from the `cancel` function of an answer.
        """
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            _LOG.exception("closing the model failed")  # the caller's own error goes on


def _check_options(options: object) -> GenerationOptions:
    if options is None:
        return GenerationOptions()
    if not isinstance(options, GenerationOptions):
        raise ValueError(
            f"options is a {type(options).__name__}, needed GenerationOptions(...) or None"
        )
    return options


def _is_one_picture(images: object) -> bool:
    """Whether it is a picture and no list of them; an array [N, H, W, 3] is a list."""
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)):
        return True
    num_axes = getattr(images, "ndim", None)
    is_pillow = num_axes is None and hasattr(images, "tobytes")
    return is_file_like(images) or num_axes in (2, 3) or is_pillow
