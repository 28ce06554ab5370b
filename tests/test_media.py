"""Files are playable, whole or absent, and what was drawn is what is read back."""

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from dit_sparse import media
from dit_sparse.errors import ArgumentError


def read(path):
    """Return the frames [F, H, W, 3] of a video, its frames per second, codec and pixel format."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while (got := video.read())[0]:
        frames.append(got[1][..., ::-1])
    names = (cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_CODEC_PIXEL_FORMAT)
    codec, pixels = (int(video.get(n)).to_bytes(4, "little").decode() for n in names)
    fps = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return np.stack(frames), fps, codec, pixels


def clip(frames=6, height=32, width=48):
    """A bright bar that moves right over a dark ground; [F, H, W, 3] in 0..1."""
    out = np.full((frames, height, width, 3), 0.1, np.float32)
    for i in range(frames):
        out[i, :, i * 4 : i * 4 + 8] = (0.9, 0.6, 0.2)
    return out


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (2, 2)])
@pytest.mark.parametrize("fps", [8, 23.976])
def test_mp4_is_read_back(tmp_path, size, fps):
    path = media.write(tmp_path / "a.mp4", iter(clip(6, *size)), fps)
    frames, rate, codec, pixels = read(path)
    even = tuple(n + n % 2 for n in size)
    assert frames.shape == (6, *even, 3)
    assert rate == pytest.approx(fps, abs=0.01)
    assert (codec, pixels) == ("h264", "I420")  # yuv420p
    if min(size) > 8:
        assert np.abs(frames[:, : size[0], : size[1]] / 255 - clip(6, *size)).mean() < 0.02


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animation_is_read_back(tmp_path, kind):
    path = media.write(tmp_path / f"a.{kind}", clip(5), 10)
    with Image.open(path) as picture:
        assert (picture.n_frames, picture.size, picture.info["loop"]) == (5, (48, 32), 0)
        picture.seek(3)
        picture.load()
        assert picture.info["duration"] == 100
        assert np.abs(np.asarray(picture.convert("RGB")) / 255 - clip(5)[3]).mean() < 0.03


def test_png_is_exact_and_holds_one_frame(tmp_path):
    path = media.write(tmp_path / "a.png", clip(1))
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], media.to_uint8(clip(1)[0]))
    with pytest.raises(ArgumentError, match="one frame"):
        media.write(tmp_path / "b.png", clip(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp", "png"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failed_write(tmp_path, kind, error):
    def frames():
        if kind != "png":
            yield from clip(3)
        raise error

    path = tmp_path / f"a.{kind}"
    path.write_text("old")
    with pytest.raises(error):
        media.write(path, frames())
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "old"


def test_a_video_that_ffmpeg_broke_is_none(tmp_path, monkeypatch):
    """It tells nobody that the disk was full: what is read back decides."""
    path = tmp_path / "a.mp4"
    path.write_text("old")
    count = imageio_ffmpeg.count_frames_and_secs
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda p: (count(p)[0] - 1, 0.0))
    with pytest.raises(OSError, match=r"2 of 3 frames can be read back; is the disk full\?"):
        media.write(path, clip(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "old"


def test_names_are_never_taken_twice(tmp_path):
    names = [media.write(tmp_path / "a.png", clip(1), overwrite=False).name for _ in range(3)]
    assert names == ["a.png", "a-2.png", "a-3.png"]
    assert media.write(tmp_path / "a.png", clip(1)).name == "a.png"
    assert len(list(tmp_path.iterdir())) == 3


def test_unknown_extension_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"\.mp4"):
        media.write(tmp_path / "a.avi", clip(1))


def test_side_by_side_shows_both_under_their_labels():
    left, right = clip(3), 1 - clip(3)
    frames = list(media.side_by_side(left, right, ("dense  8.1 s", "pisa keep=0.25  3.9 s")))
    scale = -(-media.READABLE // 48)
    height, width, _ = frames[0].shape
    assert len(frames) == 3 and width == 2 * 48 * scale + media.GAP and height > 32 * scale
    header, body = frames[1][: -32 * scale], frames[1][-32 * scale :]
    assert np.array_equal(body[::scale, : 48 * scale : scale], media.to_uint8(left[1]))
    assert np.array_equal(body[::scale, -48 * scale :: scale], media.to_uint8(right[1]))
    # ink above each panel
    assert all((half < 100).any() for half in np.array_split(header, 2, axis=1))


def test_side_by_side_needs_equal_lengths():
    with pytest.raises(ValueError):
        list(media.side_by_side(clip(3), clip(2), ("a", "b")))
