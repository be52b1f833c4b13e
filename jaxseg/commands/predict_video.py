"""The videos of `jaxseg predict`: frames in, the same video with its overlay out, a batch at a time."""

import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from jaxseg import lazy
from jaxseg.commands.predict_files import blend, check_size
from jaxseg.errors import UserError, printable

Frame = UInt8[np.ndarray, "h w 3"]
_CODECS = ("libx264", "mpeg4")  # H.264 plays everywhere; a build of FFmpeg without it has MPEG-4


def segment_video(
  path: pathlib.Path,
  target: pathlib.Path,
  labels_of: Callable[[Sequence[Frame]], Sequence[Integer[np.ndarray, "h w"]]],
  *,
  palette: UInt8[np.ndarray, "k 3"],
  opacity: float,
  multi_label: bool = False,
  batch_size: int = 1,
  progress: Callable[[int, int], None] | None = None,
) -> int:
  """Writes `target`, an MP4 with the frames of `path` and their classes' colours; how many frames it has.

  Frames keep their times; sound is left out. No more than `batch_size` decoded frames are held. An odd side
  loses its last row or column, which H.264 cannot hold.

  Args:
    path: anything that FFmpeg reads.
    target: it is written beside its place and renamed.
    labels_of: the label maps of so many frames, all of one size.
    palette: of the classes.
    opacity: of the colours, 0 to 1.
    multi_label: whether a pixel may have no class, which shows the video itself.
    batch_size: frames that are given to `labels_of` at once.
    progress: called with the frames that are done, and of all as far as the file tells (else 0).

  Raises:
    UserError: it cannot be read, has no picture, or breaks off (what came before is written).
  """
  av = lazy.load("av")
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.with_name(target.name + ".part")
  done, broken = 0, None
  try:
    with av.open(str(path)) as source:
      if not source.streams.video:
        raise UserError(f"{printable(path)} has no picture, only other streams")
      stream = source.streams.video[0]
      stream.thread_type = "AUTO"
      total = stream.frames or 0
      with av.open(str(part), "w", format="mp4") as sink:
        written = None
        frames = _frames(av, source, stream)
        while True:
          try:
            batch = list(itertools.islice(frames, batch_size))
          except av.FFmpegError as error:
            batch, broken = [], error
          if not batch:
            break
          images = [image for image, _ in batch]
          if written is None:
            check_size(path, images[0].shape[:2])
            written = _open_stream(av, sink, stream, images[0].shape)
          for (image, time), labels in zip(batch, labels_of(images), strict=True):
            mixed = blend(image, labels, palette, opacity, multi_label=multi_label)
            mixed = mixed[: written.height, : written.width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(mixed), format="rgb24")
            if time is not None:
              frame.pts, frame.time_base = time, stream.time_base
            sink.mux(written.encode(frame))
          done += len(batch)
          if progress is not None:
            progress(done, total)
        if written is not None:
          sink.mux(written.encode(None))
  except av.FFmpegError as error:
    broken = error
  except OSError as error:
    raise UserError(f"{str(target)!r} cannot be written ({error.strerror or error})") from None
  finally:
    if done:
      part.replace(target)
    else:
      part.unlink(missing_ok=True)
  if not done:
    why = f" ({type(broken).__name__})" if broken else ""
    raise UserError(f"{printable(path)} holds no frame that can be decoded{why}: damaged, or no video")
  if broken is not None:
    raise UserError(f"{printable(path)} breaks off after {done} frames, which are in {printable(target)}")
  return done


def _frames(av, source, stream) -> Iterator[tuple[Frame, int | None]]:
  """(RGB, presentation time in the stream's units) of each frame, upright."""
  size = None
  for frame in source.decode(stream):
    image = frame.to_ndarray(format="rgb24")
    # Phones store a turned picture and the angle.
    image = np.rot90(image, round(frame.rotation / 90) % 4)
    if size is None:
      size = image.shape
    if image.shape == size:  # a stream that changes its size has no place in one file
      yield np.ascontiguousarray(image), frame.pts


def _open_stream(av, sink, source, shape: tuple[int, ...]):
  codec = next(name for name in _CODECS if name in av.codecs_available)
  rate = source.average_rate or source.base_rate or 25
  stream = sink.add_stream(codec, rate=rate)
  stream.height, stream.width = shape[0] // 2 * 2, shape[1] // 2 * 2
  stream.pix_fmt = "yuv420p"
  if codec == "libx264":
    stream.options = {"crf": "20", "preset": "veryfast"}
  else:
    stream.bit_rate = math.ceil(stream.height * stream.width * float(rate) * 0.2)
  if source.time_base is not None:
    stream.codec_context.time_base = source.time_base
  return stream
