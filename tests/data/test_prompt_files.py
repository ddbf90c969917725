"""Prompts in text files and tables: each different one once, what is left out counted, and a sentence for what will not do."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewstep.data.errors import DataError
from fewstep.data.prompt_files import LONGEST, read_prompts
from fewstep.data.prompts import PromptData


def test_lines_of_text_are_prompts_each_different_one_once(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa seven\r\n\n two,  thin \na seven\n\t\nein Haus mit Tür\u2028und Tor".encode())
    found = read_prompts(path)
    assert found.texts == ("a seven", "two, thin", "ein Haus mit Tür und Tor")  # no line ends at U+2028
    assert found.rows == (0, 1, 0, 2)
    assert found.lines == (1, 3, 4, 6)
    assert (found.blank, found.repeated) == (2, 1)
    assert [found.line_of(number) for number in range(3)] == [1, 3, 6]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_of_a_table(ending, tmp_path):
    columns = {"id": ["1", "2", "3"], "Caption": ["a cat", "a dog,\nasleep", None]}
    path = tmp_path / f"captions.{ending}"
    if ending == "csv":
        path.write_text('id,Caption\n1,a cat\n2,"a dog,\nasleep"\n3,\n')
    else:
        pq.write_table(pa.table(columns), path)
    found = read_prompts(path)
    assert (found.texts, found.blank) == (("a cat", "a dog, asleep"), 1)
    assert read_prompts(path, "id").texts == ("1", "2", "3")
    with pytest.raises(DataError, match=r"--column is 'title'; the columns of text in .* are id, Caption"):
        read_prompts(path, "title")


def test_line_ends_of_old_macs_and_marks_within_a_text(tmp_path):
    (tmp_path / "A.TXT").write_bytes("\ufeffa seven\rtwo\r\ufefftwo\r".encode())
    assert read_prompts(tmp_path / "A.TXT").texts == ("a seven", "two")


def test_words_keep_what_is_theirs(tmp_path):
    lines = ['"quoted"', "it's", ",a,", "日本語 🦊", "<lora:x:1> (a:1.3)", "\\n"]
    (tmp_path / "a.txt").write_text("\n".join(f"  {line} " for line in lines), encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt").texts == tuple(lines)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_text_of_every_kind_in_parquet(kind, tmp_path):
    pq.write_table(pa.table({"id": [1, 2, 3], "what": pa.array(["a cat", "a dog", "a cat"]).cast(kind)}), tmp_path / "a.parquet")
    found = read_prompts(tmp_path / "a.parquet")
    assert (found.texts, found.repeated, found.column) == (("a cat", "a dog"), 1, "what")


def test_a_table_whose_text_is_nested_names_what_it_holds(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": [["a", "b"], ["c"]], "id": [1, 2]}), path)
    with pytest.raises(
        DataError, match=r"has no column of text \(caption holds list<\w+: string>, id holds int64\); give one with a text a row"
    ):
        read_prompts(path)
    with pytest.raises(DataError, match=r"--column is 'caption', and that column of .* holds list<\w+: string>, and no text; give one"):
        read_prompts(path, "caption")


def test_the_only_column_needs_no_name_and_of_several_one_is_asked_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("words\na cat\n")
    assert read_prompts(path).texts == ("a cat",)
    path.write_text("words,more\na cat,2\n")
    with pytest.raises(DataError, match=r"has words, more, of which none is called a prompt; name one by --column"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no prompt; write one on each line"),
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"a cat\n\xff\xfe\n", r"line 2 of .* is no UTF-8 \(byte 6\); save the file as UTF-8"),
        ("a.txt", b"a cat\n" + b"x" * (LONGEST + 1), r"the prompt in line 2 of .* has 4,001 characters, where 4,000 are allowed \('xxx"),
        ("a.csv", b'prompt\n"a cat\n', "cannot be read as a .csv"),
        ("a.csv", b"", "has no column of text"),
        ("a.csv", b"prompt\na cat\ntwo, thin\n", "row 2 of .* has 2 fields, and its heading names 1: put what holds a comma into double"),
        ("a.csv", b"prompt,prompt\na,b\n", "has 2 columns called prompt; give each a name of its own"),
        ("a.csv", b"id;prompt\n1;a cat\n", "has columns that are divided by ';', and a .csv has commas; save it with commas"),
        ("a.csv", b"id\tprompt\n1\ta cat\n", r"has columns that are divided by '\\t'"),
        ("a.txt", "a cat\ntwo".encode("utf-16-le"), "line 1 of .* holds a zero byte, as UTF-16 has and text in UTF-8 has not"),
        ("a.csv", "prompt\ntwo".encode("utf-16"), "is no UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read as a parquet file"),
        ("a.json", b"[]", "is a .json; prompts are read from .txt, .csv and .parquet"),
    ],
)
def test_what_will_not_do_is_a_sentence(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there_and_a_column_of_a_text_file(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*a.txt; give a .txt with a prompt on each line"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(DataError, match="has no columns: each line is a prompt; leave --column out"):
        read_prompts(tmp_path / "a.txt", "prompt")


class Few:
    """So many samples of a model, a gigabyte each."""

    bytes_each, rows = 10**9, ()

    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num


@pytest.mark.parametrize(("num", "words"), [(2, "holds 2 samples of the model; at least 4"), (8, "has 1,000 MB, and 4 of them are more")])
def test_samples_that_cannot_be_measured_are_refused_for_the_right_reason(num, words):
    samples = Few(num)
    data = SimpleNamespace(samples=samples, images=None, table=SimpleNamespace(folder="F"), _samples=lambda: samples)
    with pytest.raises(DataError, match=words):
        PromptData.excerpt(data)
