"""BADJA's files: layout, raster positions, first queries, areas; and the joints of a real one sit on the horse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinotrack.data.badja import SCORED_JOINTS, badja_queries, foreground_areas, read_badja
from dinotrack.errors import DinotrackError

HORSE = Path(__file__).parents[1].parent / "shared" / "data" / "horsejump-high"
real = pytest.mark.skipif(not (HORSE / "badja.json").is_file(), reason="needs ../shared/data/horsejump-high")


def entry(frame, joints, visibility):
    return {"image_path": f"any/folder/{frame:05d}.jpg", "joints": joints, "visibility": visibility}


def written(tmp_path, content):
    path = tmp_path / "badja.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def small(tmp_path):
    """Three joints, the last never visible, in frames 7 and 2 (in this order in the file)."""
    late = entry(7, [[540, 960], [27, 1920], [9, 9]], [True, True, False])
    early = entry(2, [[0, 0], [54, 192], [0, 0]], [True, True, False])
    return written(tmp_path, [late, early])


def test_positions_are_raster_at_the_videos_size(tmp_path):
    joints = read_badja(small(tmp_path), size=(960, 540), joints=range(3))
    assert joints.frames.tolist() == [2, 7]
    assert joints.visible.tolist() == [[False, True], [True, True], [False, False]]
    assert joints.xy[0, 1].tolist() == [480, 270]
    assert joints.xy[1].tolist() == [[96, 27], [960, 13.5]]
    shifted = read_badja(small(tmp_path), size=(960, 540), joints=[1], offset=0.5)
    assert shifted.xy[0, 0].tolist() == [96.25, 27.25]
    other = read_badja(small(tmp_path), size=(100, 100), source_size=(3840, 1080), joints=[1])
    assert other.xy[0, 0].tolist() == [5, 5]


@pytest.mark.parametrize("place", [[5000, 5], [5, -400.0], [float("nan"), 5]])
def test_visible_joints_off_the_frame_are_named_and_hidden_ones_may_be_anywhere(tmp_path, place):
    with pytest.raises(DinotrackError, match=r"badja\.json: joints has visible track 1 at"):
        read_badja(written(tmp_path, [entry(0, [[1, 1], place], [True, True])]), joints=range(2))
    read_badja(written(tmp_path, [entry(0, [[1, 1], place], [True, False])]), joints=range(2))
    near = read_badja(written(tmp_path, [entry(0, [[-17.0, 5]], [True])]), joints=[0])  # as in BADJA's impala0
    assert near.visible.all()


def test_queries_start_where_a_joint_is_first_visible(tmp_path):
    joints = read_badja(small(tmp_path), size=(960, 540), joints=[2, 0, 1])
    queries, index = badja_queries(joints)
    assert queries.tolist() == [[7, 480, 270], [2, 96, 27]]
    assert index.tolist() == [1, 2]
    none, index = badja_queries(read_badja(small(tmp_path), joints=[2]))
    assert none.shape == (0, 3)
    assert index.shape == (0,)
    assert read_badja(small(tmp_path), joints=[]).xy.shape == (0, 2, 2)


def test_areas_are_in_the_videos_pixels():
    masks = torch.zeros(4, 10, 20, dtype=torch.bool)
    masks[1, :5], masks[3, 0, 0] = True, True
    assert foreground_areas(masks, torch.tensor([1, 3, 0]), size=(40, 20)).tolist() == [400, 4, 0]
    assert foreground_areas(masks, torch.zeros(0, dtype=torch.long)).shape == (0,)
    with pytest.raises(DinotrackError, match="4 masks"):
        foreground_areas(masks, torch.tensor([1, 4]))
    with pytest.raises(DinotrackError, match="0 masks"):
        foreground_areas(masks[:0], torch.tensor([1]))


GOOD = entry(3, [[1, 2]], [True])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "cannot read"),
        ("[]", "no list"),
        ("{}", "no list"),
        ([7], "TypeError"),
        ([{**GOOD, "joints": [[1, 2, 3]]}], "ValueError"),
        ([{**GOOD, "joints": [["a", 2]]}], "ValueError"),
        ([{"image_path": "00001.jpg", "joints": []}], "visibility"),
        ([{**GOOD, "visibility": [True, False]}], "one visibility a joint"),
        ([{**GOOD, "image_path": "frame.jpg"}], "frame's number"),
        ([GOOD, GOOD], "each once"),
        ([GOOD, entry(4, [[1, 2], [3, 4]], [True, True])], "alike"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, message):
    with pytest.raises(DinotrackError, match=message) as raised:
        read_badja(written(tmp_path, content), joints=[0])
    assert "badja.json" in str(raised.value)


def test_missing_file_and_missing_joint(tmp_path):
    with pytest.raises(DinotrackError, match="no such joints"):
        read_badja(tmp_path / "none.json")
    with pytest.raises(DinotrackError, match="3 joints"):
        read_badja(small(tmp_path))


@real
def test_real_joints_sit_on_the_horse():
    joints = read_badja(HORSE / "badja.json")
    assert joints.frames.tolist() == [0, 2, 7, 8, 18, 26, 36, 39, 47, 49]
    assert joints.xy.shape == (len(SCORED_JOINTS), 10, 2)
    masks = [np.asarray(Image.open(HORSE / "masks" / f"{frame:05d}.png").convert("L")) > 127 for frame in range(50)]
    masks = torch.from_numpy(np.stack(masks))
    row, column = joints.visible.nonzero().unbind(1)
    x, y = joints.xy[row, column].long().unbind(1)
    assert masks[joints.frames[column], y, x].float().mean() > 0.9, "swapped axes or another scale would miss it"
    areas = foreground_areas(masks, joints.frames)
    assert areas[0] == masks[0].sum()
    assert 15 < float(0.2 * areas.sqrt().min()) < float(0.2 * areas.sqrt().max()) < 40


@real
def test_real_queries_are_the_first_visible_annotation():
    content = json.loads((HORSE / "badja.json").read_text())
    queries, index = badja_queries(read_badja(HORSE / "badja.json"))
    assert len(queries) == 20
    for query, row in zip(queries.tolist(), index.tolist(), strict=True):
        joint = SCORED_JOINTS[row]
        first = next(e for e in content if e["visibility"][joint])
        assert query[0] == int(Path(first["image_path"]).stem)
        y, x = first["joints"][joint]
        assert query[1:] == pytest.approx([x * 854 / 1920, y * 480 / 1080], abs=1e-3)
