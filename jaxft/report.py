"""What a run writes down as it goes: metrics.jsonl, TensorBoard events, Weights & Biases."""

import io
import json
import logging
import os
import struct
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from jaxft.errors import UserError
from jaxft.files import Appender, PathLike, dumps, join, locate, read_file, write_json
from jaxft.metrics import MOST_NAMED

EVENTS = ".jaxft"  # our TensorBoard files end so; other people's are left alone

_log = logging.getLogger(__name__)


class RunLog:
    """The log of one run, held by process 0; with `enabled` False it accepts all and writes
    nothing.

    On resume at step k all that was logged beyond k is cut away first. With `resume_step` None the
    run starts anew and so do its logs. Raises: UserError when the workdir cannot be written.
    """

    def __init__(
        self,
        workdir: PathLike,
        config: Mapping[str, Any],
        report_to: Sequence[str] = ("tensorboard",),
        resume_step: int | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        self._lines: Appender | None = None
        self._events: Any = None  # tensorboard's RecordWriter
        self._wandb: Any = None
        self._lost = False
        if not enabled:
            return
        keep = -1 if resume_step is None else resume_step
        try:
            rows = [row for row in read_metrics(workdir) if row["step"] <= keep]
            kept = "".join(dumps(row) + "\n" for row in rows)
            if "wandb" in report_to:
                self._wandb = _open_wandb(workdir, config, resumed=resume_step is not None)
            self._lines = Appender(join(workdir, "metrics.jsonl"), kept.encode())
            if "tensorboard" in report_to:
                self._events = _open_events(workdir, keep)
        except OSError as error:
            raise UserError(f"cannot write to the workdir {workdir}: {error}") from error
        pretty = dumps(config, indent=2)
        self.text(max(keep, 0), "config", "\n".join("    " + line for line in pretty.splitlines()))

    @property
    def shows_images(self) -> bool:
        """Whether a picture would be seen by anybody."""
        return bool(self._events or self._wandb)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, one event. values: flat name -> number of any kind."""
        if self._lines is None:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        line = dumps({"step": int(step), "time": round(time.time(), 3)} | numbers)
        with self._forgiving():
            self._lines.write(line.encode() + b"\n")
        self._event(step, [{"tag": n, "simple_value": float(v)} for n, v in numbers.items()])
        if self._wandb:
            self._wandb.log(numbers, step=int(step))

    def image(self, step: int, tag: str, png_bytes: bytes) -> None:
        """A picture for TensorBoard and Weights & Biases."""
        if not self.shows_images:
            return
        # width and height stand at the start of a PNG's first chunk
        width, height = struct.unpack(">II", png_bytes[16:24])
        image = {"width": width, "height": height, "colorspace": 4}
        image["encoded_image_string"] = png_bytes
        self._event(step, [{"tag": tag, "image": image}])
        if self._wandb:
            import wandb
            from PIL import Image

            picture = wandb.Image(Image.open(io.BytesIO(png_bytes)))
            self._wandb.log({tag: picture}, step=int(step))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text for TensorBoard."""
        tensor = {
            "dtype": "DT_STRING",
            "tensor_shape": {"dim": [{"size": 1}]},
            "string_val": [markdown.encode()],
        }
        metadata = {"plugin_data": {"plugin_name": "text"}}
        self._event(step, [{"tag": tag, "tensor": tensor, "metadata": metadata}])

    def flush(self) -> None:
        """Makes all that was logged readable by others."""
        for each in filter(None, (self._lines, self._events)):
            with self._forgiving():
                each.flush()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        for each in filter(None, (self._lines, self._events)):
            with self._forgiving():
                each.close()
        if self._wandb:
            self._wandb.finish()
        self._lines = self._events = self._wandb = None

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """A record that cannot be written (a full disk, say) is lost, and training is not."""
        try:
            yield
        except OSError as error:
            if not self._lost:
                _log.warning("WARNING: the log cannot be written, the run goes on. %s", error)
            self._lost = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _event(self, step: int, values: list[dict[str, Any]]) -> None:
        if not self._events:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=int(step), summary={"value": values})
        with self._forgiving():
            self._events.write(event.SerializeToString())


def read_metrics(workdir: PathLike) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, "NaN" as a float again; a torn line is left out, and logged."""
    rows: list[dict[str, Any]] = []
    lines = (read_file(join(workdir, "metrics.jsonl")) or b"").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row = {name: float(v) if isinstance(v, str) else v for name, v in row.items()}
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, KeyError, TypeError, AttributeError):
            # a kill in the middle of a write leaves half a line, always the last one
            last = "the last line" if number == len(lines) else f"line {number} of {len(lines)}"
            what = f"{workdir}/metrics.jsonl: {last} is torn and left out"
            _log.warning("%s: %r", what, line[:60])
    return rows


def confusion_png(matrix: Sequence[Sequence[int]] | np.ndarray, labels: Sequence[str]) -> bytes:
    """A confusion matrix as a PNG, each row shaded by its shares. matrix: int[C, C], rows true.

    Above `MOST_NAMED` classes the axes bear numbers and the picture has one size: names and places
    for each would cost seconds and gigabytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    size = len(labels)
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    cell = 0.62 if size <= 12 else 0.4 if size <= 30 else 0.2  # inches
    side = size * cell if size <= MOST_NAMED else 8
    font = 9 if size <= 30 else 6
    figure = Figure(figsize=(side + 3, side + 2.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: its global state leaks figures and needs a backend
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= MOST_NAMED:
        names = [label if len(label) <= 28 else label[:27] + "…" for label in labels]
        axes.set_xticks(range(size), names, rotation=45 if size <= 12 else 90)
        axes.set_yticks(range(size), names)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set(fontsize=font, parse_math=False)  # a $ in a class name is a dollar
    if size <= 12:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in np.argwhere(counts) if size <= 30 else ():
        ink = "white" if shares[row, column] > 0.5 else "black"
        count = str(counts[row, column])
        axes.text(column, row, count, ha="center", va="center", color=ink, fontsize=font - 1)
    out = io.BytesIO()
    with warnings.catch_warnings():  # a name in a script that the font lacks becomes boxes
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(out, format="png")
    return out.getvalue()


def _open_events(workdir: PathLike, keep: int) -> Any:
    """A record writer on a new event file that begins with the old file's events up to step `keep`.

    The newest file always holds the whole history, so that a kill between its birth and the removal
    of the older ones doubles nothing. It is a new file, not the old one rewritten, because a viewer
    that has that open would go astray.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    fs, where = locate(workdir)
    fs.invalidate_cache()
    old = sorted(fs.glob(f"{where.rstrip('/')}/events.out.tfevents.*{EVENTS}"))
    start = io.BytesIO()
    copy = RecordWriter(start)
    copy.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    for record in _records(fs.unstrip_protocol(old[-1])) if old else ():
        event = Event.FromString(record)
        if event.step <= keep and not event.file_version:
            copy.write(record)
    last = int(old[-1].split(".")[-2]) if old else 0
    name = f"events.out.tfevents.{max(int(time.time()), last + 1):010d}{EVENTS}"
    writer = RecordWriter(Appender(join(workdir, name), start.getvalue()))
    for path in old:
        fs.rm_file(path)
    return writer


def _records(url: str) -> Iterator[bytes]:
    """The whole records of an event file, with tensorboard's reader that needs no TensorFlow."""
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(url)
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return
        except errors.DataLossError:
            _log.warning("%s ends in a torn record, which is left out", url)
            return
        yield reader.record()


def check_reporters(report_to: Sequence[str]) -> None:
    """Raises UserError when a reporter's package is missing."""
    if "wandb" in report_to:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(
                'train.report_to has "wandb", but its package is not installed: '
                "`pip install wandb`, or leave it out of train.report_to"
            ) from error


def _open_wandb(workdir: PathLike, config: Mapping[str, Any], resumed: bool) -> Any:
    """A run of Weights & Biases that a resumed run continues.

    It refuses steps that it has seen; as a resumed run repeats those exactly, nothing has to be cut
    away there.
    """
    import wandb

    path = join(workdir, "wandb.json")
    known = read_file(path) if resumed else None
    identity = json.loads(known)["id"] if known else wandb.util.generate_id()
    write_json(path, {"id": identity})
    name = os.path.basename(os.fspath(workdir).rstrip("/"))
    return wandb.init(project="jaxft", name=name, id=identity, resume="allow", config=dict(config))


def _number(value: Any) -> int | float:
    return value if type(value) in (int, float) else np.asarray(value).item()
