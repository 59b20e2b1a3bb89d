import io
import json

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.data import parquet as data_parquet
from vlmedge.quant.data.open_data import open_data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(level, size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path, rows, images=("image",), group=4):
    """As datasets writes it: pictures as structs of bytes and path."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    arrays = {
        name: pa.array(values, STRUCT) if name in images else pa.array(values)
        for name, values in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=group)
    return path


def docvqa(number):
    return {
        "questionId": f"q{number}",
        "question": f"Question {number}?",
        "answers": [f"answer {number}", "other"],
        "image": {"bytes": encode(number), "path": None},
        "docId": number,  # not read
    }


def level_of(example):
    data = example.messages[0]["content"][0]["image"]
    return np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0]


def test_rows_of_several_files_become_examples_with_encoded_pictures(tmp_path):
    write(tmp_path / "DocVQA/validation-00001-of-00002.parquet", [docvqa(i) for i in (5, 6)])
    write(tmp_path / "DocVQA/validation-00000-of-00002.parquet", [docvqa(i) for i in range(5)])
    write(tmp_path / "DocVQA/test-00000-of-00001.parquet", [docvqa(9)])
    data = open_data(f"docvqa:{tmp_path}")
    assert [example.id for example in data.examples] == [f"q{i}" for i in range(7)]
    assert [level_of(example) for example in data.examples] == list(range(7))
    assert data.examples[3].answers == ("answer 3", "other")
    assert {(example.task, example.metric) for example in data.examples} == {("docvqa", "anls")}


def test_a_choice_reads_only_the_pictures_it_needs(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", [docvqa(i) for i in range(40)])
    real, read = data_parquet._read_struct, []

    def spy(value, path, row, *rest):
        read.append(row)
        return real(value, path, row, *rest)

    monkeypatch.setattr(data_parquet, "_read_struct", spy)
    data = open_data(f"docvqa:{path}", limit=3)
    assert [f"q{row}" for row in read] == [example.id for example in data.examples]
    assert [f"q{level_of(e)}" for e in data.examples] == [e.id for e in data.examples]


def test_equal_pictures_are_kept_once(tmp_path):
    picture = {"bytes": encode(7), "path": None}
    rows = [docvqa(i) | {"image": picture} for i in range(3)]
    examples = open_data(f"docvqa:{write(tmp_path / 'a.parquet', rows)}").examples
    assert len({id(example.messages[0]["content"][0]["image"]) for example in examples}) == 1


def test_a_picture_without_bytes_is_beside_the_file(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode(3))
    row = docvqa(1) | {"image": {"bytes": None, "path": "pictures/a.png"}}
    (example,) = open_data(f"docvqa:{write(tmp_path / 'a.parquet', [row])}").examples
    assert example.messages[0]["content"][0]["image"] == str(tmp_path / "pictures" / "a.png")


def test_mmmu_s_pictures_stand_where_its_text_names_them(tmp_path):
    row = {
        "id": "v1",
        "question": "Is <image 2> like <image 1>?",
        "options": "['yes', 'no']",
        "question_type": "multiple-choice",
        "answer": "A",
        **{f"image_{i}": None for i in range(1, 8)},
    }
    row |= {f"image_{i}": {"bytes": encode(i), "path": None} for i in (1, 2)}
    images = tuple(f"image_{i}" for i in range(1, 8))
    path = write(tmp_path / "Art" / "validation-00000-of-00001.parquet", [row], images)
    (example,) = open_data(f"mmmu:{path.parents[1]}").examples
    kinds = [part["type"] for part in example.messages[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    pictures = [part["image"] for part in example.messages[0]["content"] if "image" in part]
    assert pictures == [encode(2), encode(1)]


def test_the_hash_is_that_of_the_same_examples_in_lines(tmp_path):
    path = write(tmp_path / "a.parquet", [docvqa(i) for i in range(3)])
    data = open_data(f"docvqa:{path}")
    lines = []
    for i, example in enumerate(data.examples):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
        content = [{"type": "image", "image": f"{i}.png"}, example.messages[0]["content"][1]]
        lines.append(
            {
                "id": example.id,
                "messages": [{"role": "user", "content": content}],
                "answers": list(example.answers),
                "task": "docvqa",
                "metric": "anls",
            }
        )
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert open_data(str(tmp_path / "data.jsonl")).sha256 == data.sha256


def test_a_bad_picture_names_its_row_and_may_be_skipped(tmp_path):
    bad = {"bytes": b"no picture", "path": None}
    rows = [docvqa(0), docvqa(1) | {"image": bad}, docvqa(2) | {"image": None}]
    path = write(tmp_path / "a.parquet", rows)
    with pytest.raises(ValueError, match=r"a\.parquet row 1: .*no picture of a known format"):
        open_data(f"docvqa:{path}")
    data = open_data(f"docvqa:{path}", skip_bad=True)
    assert len(data.examples) == 1
    assert set(data.skipped) == {"q1", "q2"}
    assert data.skipped["q2"] == "there is no picture"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, r"row 2: question is '', needed a text"),
        ({"answers": []}, None),
        ({"questionId": "q1"}, r"row 2 has the id 'q1' of .* row 1"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, change, message):
    path = write(tmp_path / "a.parquet", [docvqa(0), docvqa(1), docvqa(2) | change])
    if message is None:
        assert open_data(f"docvqa:{path}").examples[2].answers == ()
    else:
        with pytest.raises(ValueError, match=message):
            open_data(f"docvqa:{path}")


def test_textvqa_needs_its_ten_answers(tmp_path):
    row = {"question_id": 1, "question": "?", "answers": ["a"], "image": docvqa(0)["image"]}
    with pytest.raises(ValueError, match="row 0: it has 1 answers, textvqa_accuracy needs 4"):
        open_data(f"textvqa:{write(tmp_path / 'a.parquet', [row])}")


def test_columns_of_another_layout_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [docvqa(0)])
    with pytest.raises(ValueError, match=r"has the columns answers, docId.*needed question_id"):
        open_data(f"textvqa:{path}")
    rows = [{name: value for name, value in docvqa(0).items() if name != "image"}]
    with pytest.raises(ValueError, match=r"needed questionId, question, answers, image"):
        open_data(f"docvqa:{write(tmp_path / 'b.parquet', rows)}")


def test_pictures_that_are_no_structs_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [docvqa(0) | {"image": b"x"}], images=())
    with pytest.raises(ValueError, match="row 0: image is a bytes, needed a struct"):
        open_data(f"docvqa:{path}")


def test_a_damaged_file_is_an_error_of_one_line(tmp_path):
    path = write(tmp_path / "a.parquet", [docvqa(i) for i in range(8)])
    data = path.read_bytes()
    damaged = [data[:100], data[: len(data) // 2], b"", b"x" * 50]
    damaged += [data[:i] + bytes(20) + data[i + 20 :] for i in range(4, len(data) - 20, 200)]
    for content in damaged:
        path.write_bytes(content)
        try:
            open_data(f"docvqa:{path}", skip_bad=True)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_an_empty_file_has_no_examples(tmp_path):
    path = write(tmp_path / "a.parquet", [docvqa(0)])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="has no examples"):
        open_data(f"docvqa:{path}")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", [docvqa(0)])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match="needs pyarrow: pip install"):
        open_data(f"docvqa:{path}")
