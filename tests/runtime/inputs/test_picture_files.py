import random

from vlmedge.runtime.inputs.picture_files import by_number, list_pictures


def test_names_are_sorted_with_their_digits_as_numbers(tmp_path):
    names = ["1²2.png", "a1.png", "a2.png", "a10.png", "b.png"]
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=by_number) == names
    for name in (*names, "note.txt", "._a1.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == names
