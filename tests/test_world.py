"""The captioned world and the detector that reads it back."""

import subprocess
import sys

import pytest
import torch

from dit_sparse import world

OFFERED = [(33, 128, 128), (17, 128, 128), (33, 96, 160), (17, 160, 96)]


def drawn(n, seed=0, unseen=None):
    return world.sample_ids(n, torch.Generator().manual_seed(seed), unseen=unseen)


def test_captions_round_trip():
    for scene in world.scenes(drawn(500)):
        assert world.parse(world.caption(scene)) == scene
        assert not world.unknown_words(world.caption(scene))


@pytest.mark.parametrize(
    "text", ["", "a cat on a skateboard", "a red circle moves right", "a red red circle"]
)
def test_other_text_is_no_scene(text):
    assert world.parse(text) is None


def test_caption_variants_are_read():
    want = world.Scene("large", "red", "star", "spins", "plain", "blue")
    assert world.parse("A large red star spinning on a plain blue background.") == want
    assert world.unknown_words("a teal star, spinning") == ["teal"]


def test_training_never_sees_held_out_combinations():
    seen, unseen = drawn(3000, unseen=False), drawn(300, unseen=True)
    assert not world.held_out(seen).any()
    assert world.held_out(unseen).all()
    assert not {tuple(row[1:]) for row in seen.tolist()} & {
        tuple(row[1:]) for row in unseen.tolist()
    }
    for column, names in enumerate(world.NAMES):
        assert set(unseen[:, column].tolist()) == set(range(len(names)))


def test_held_out_prompts_are_fixed():
    assert world.held_out_prompts(20, seed=3) == world.held_out_prompts(20, seed=3)
    assert world.held_out_prompts(20, seed=3) != world.held_out_prompts(20, seed=4)


def test_impossible_scenes_are_not_drawn():
    for scene in world.scenes(drawn(2000)):
        assert scene.colour != scene.background
        assert not (scene.motion == "spins" and scene.shape in ("circle", "ring"))


@pytest.mark.parametrize(("frames", "height", "width"), OFFERED)
def test_render_range_and_determinism(frames, height, width):
    ids = drawn(2)
    clips = [
        world.render(ids, frames, height, width, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert clips[0].shape == (2, frames, 3, height, width)
    assert clips[0].min() >= 0
    assert clips[0].max() <= 1
    assert torch.equal(*clips)


def test_length_does_not_change_the_motion():
    ids = drawn(6)
    long, short = (
        world.render(ids, f, 64, 64, generator=torch.Generator().manual_seed(1)) for f in (33, 17)
    )
    torch.testing.assert_close(long[:, :17], short, rtol=0, atol=1e-6)


def test_importing_the_world_imports_no_host_library():
    hosts = "('diffusers', 'triton', 'cv2')"
    code = f"import sys, dit_sparse.world; sys.exit(any(m in sys.modules for m in {hosts}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("frames", "height", "width"), OFFERED)
def test_detector_reads_ground_truth(frames, height, width):
    adherence = pytest.importorskip("dit_sparse.adherence")
    generator = torch.Generator().manual_seed(frames + width)
    ids = world.sample_ids(40 if frames == 17 else 12, generator, unseen=True)
    clips = world.render(ids, frames, height, width, generator=generator)
    clips = (255 * clips).round().byte().permute(0, 1, 3, 4, 2).numpy()
    rows = [adherence.score(c, s) for c, s in zip(clips, world.scenes(ids), strict=True)]
    assert all(cell["percent"] >= 97 for cell in adherence.table(rows).values())


def test_detector_survives_an_empty_clip():
    adherence = pytest.importorskip("dit_sparse.adherence")
    seen = adherence.detect(torch.zeros(9, 32, 32, 3).numpy())
    assert (seen.shape, seen.background, seen.pattern) == (None, "black", "plain")
