import pytest

from vlmedge.quant.data import easy_vqa as data_easy_vqa
from vlmedge.quant.data.open_data import open_data


@pytest.fixture
def package():
    return pytest.importorskip("easy_vqa")


@pytest.mark.parametrize(
    ("spec", "get"), [("easy-vqa", "get_test_questions"), ("easy-vqa:train", "get_train_questions")]
)
def test_the_questions_and_pictures_are_the_package_s(package, spec, get):
    texts, answers, pictures = getattr(package, get)()
    split = spec.partition(":")[2] or "test"
    paths = getattr(package, f"get_{split}_image_paths")()
    for example in open_data(spec, limit=40).examples:
        name, _, number = example.id.partition("/")
        place = int(number)
        assert name == split
        picture, text = example.messages[0]["content"]
        assert picture["image"] == str(paths[pictures[place]])
        assert text["text"].splitlines()[0] == texts[place]
        assert (example.answers, example.metric) == ((answers[place],), "word_match")


def test_another_split_is_refused(package):
    with pytest.raises(ValueError, match="no split 'val', it has test, train"):
        open_data("easy-vqa:val")


def test_a_missing_package_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(data_easy_vqa.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install easy-vqa"):
        open_data("easy-vqa")


def test_another_version_s_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "questions.json").write_text('[["what?", 3, "x"]]')
    monkeypatch.setattr(
        data_easy_vqa.importlib.util,
        "find_spec",
        lambda name: type("Spec", (), {"origin": str(tmp_path / "__init__.py")}),
    )
    with pytest.raises(ValueError, match=r"is not what easy-vqa 1\.0 has"):
        open_data("easy-vqa")
