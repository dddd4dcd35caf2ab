"""Which files a user means, and what they are called."""

import os

import fsspec
import pytest
from streamseq_pipelines.files import InputFile, find_files

from streamseq.etl import Skipped, SourceError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def ids(names, *args, **options):
    return [file.id for file in find_files([str(name) for name in names], *args, **options)]


def test_a_folder_is_taken_recursively_sorted_and_without_hidden_files(tmp_path):
    put(tmp_path, "b/y.txt", "a.txt", "b/.x", ".git/config", "b/x/z.txt")
    assert ids([tmp_path]) == ["a.txt", "b/x/z.txt", "b/y.txt"]


def test_ids_are_relative_to_the_folder_or_to_what_named_files_have_in_common(tmp_path):
    put(tmp_path, "a/x.txt", "b/x.txt", "b/c/y.txt")
    assert ids([tmp_path / "a"]) == ["x.txt"]
    assert ids([tmp_path / "a/x.txt"]) == ["x.txt"]
    assert ids([tmp_path / "b/x.txt", tmp_path / "a/x.txt"]) == ["b/x.txt", "a/x.txt"]
    assert ids([tmp_path / "b*/**/*.txt"]) == ["b/c/y.txt", "b/x.txt"]


def test_a_file_that_is_named_twice_is_taken_once(tmp_path):
    put(tmp_path, "a/x.txt", "a/y.txt")
    assert ids([tmp_path / "a", tmp_path / "a/y.txt", tmp_path / "a/*.txt"]) == ["x.txt", "y.txt"]


def test_two_files_with_one_id_are_refused(tmp_path):
    put(tmp_path, "a/x.txt", "b/x.txt")
    with pytest.raises(SourceError, match=r"a/x\.txt' and .*b/x\.txt' are both 'x\.txt'"):
        ids([tmp_path / "a", tmp_path / "b"])


def test_patterns_choose_files_of_folders_by_name_or_path(tmp_path):
    put(tmp_path, "a.py", "b/c.py", "b/d.md", "e.txt")
    assert ids([tmp_path], ["*.py"]) == ["a.py", "b/c.py"]
    assert ids([tmp_path], ["b/*", "e.*"]) == ["b/c.py", "b/d.md", "e.txt"]
    with pytest.raises(FileNotFoundError, match=r"has no files like \*\.rs"):
        ids([tmp_path], ["*.rs"])


def test_globs_leave_hidden_files_out_unless_they_ask(tmp_path):
    put(tmp_path, "a.txt", ".b.txt", ".c/d.txt")
    assert ids([tmp_path / "*.txt"]) == ["a.txt"]
    assert ids([tmp_path / ".c/*.txt"]) == ["d.txt"]
    assert ids([tmp_path / ".*.txt"]) == [".b.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    put(tmp_path, "a[1].txt", "a1.txt")
    assert ids([tmp_path / "a[1].txt"]) == ["a[1].txt"]


def test_sizes_are_those_of_the_files(tmp_path):
    put(tmp_path, "abc")
    [file] = find_files([str(tmp_path)])
    assert isinstance(file, InputFile)
    assert (file.address, file.size, file.modified) == (str(tmp_path / "abc"), 3, (tmp_path / "abc").stat().st_mtime_ns)


def test_links_to_folders_are_not_followed_and_links_to_nothing_are_told(tmp_path):
    put(tmp_path, "a/x.txt")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    assert ids([tmp_path / "a"]) == ["x.txt"]
    (tmp_path / "a/gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="a/gone' cannot be read: it is a symbolic link to nothing"):
        ids([tmp_path / "a"])
    found = find_files([str(tmp_path / "a")], skip=True)
    assert [type(item) for item in found] == [Skipped, InputFile]


def test_names_that_are_not_utf8_are_told(tmp_path):
    try:
        with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(SourceError, match="not UTF-8"):
        ids([tmp_path])


@pytest.mark.parametrize("name", ["nope", "nope/*.txt", "no[pe"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"nope|no.pe"):
        ids([tmp_path / name])


def test_unknown_urls_and_no_names_are_wrong_arguments():
    with pytest.raises(ValueError, match="'foo://x'"):
        find_files(["foo://x"])
    with pytest.raises(ValueError, match="at least one"):
        find_files([])
    with pytest.raises(TypeError, match="put it in a list"):
        find_files("abc")


def test_other_filesystems_are_named_and_sorted_alike():
    system = fsspec.filesystem("memory")
    for name in ("b/y.txt", "a.txt", ".hidden", "b/c.md"):
        system.pipe(f"/found/{name}", name.encode())
    try:
        assert ids(["memory://found"]) == ["a.txt", "b/c.md", "b/y.txt"]
        assert ids(["memory://found"], ["*.txt"]) == ["a.txt", "b/y.txt"]
        assert ids(["memory://found/*.txt"]) == ["a.txt"]
        assert ids(["memory://found/b/y.txt"]) == ["y.txt"]
        with pytest.raises(FileNotFoundError, match="memory://found/nope"):
            ids(["memory://found/nope"])
    finally:
        system.rm("/found", recursive=True)
