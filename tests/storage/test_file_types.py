"""Every kind of file is recognised by its first bytes, whatever it is called and whatever its length happens to be."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import time
import zipfile

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sdpersonal.concepts.concept_file import concept_to_bytes, read_header
from sdpersonal.concepts.importers import read_any
from sdpersonal.concepts.importers.read_folders import read_path
from sdpersonal.errors import UserError
from sdpersonal.storage.file_types import recognise
from support.samples import concept


def with_header(length: int, payload: int = 3072) -> bytes:
    """A valid safetensors file of one (1, 768) tensor whose header has that many bytes."""
    entry = {"emb_params": {"dtype": "F32", "shape": [1, 768], "data_offsets": [0, 3072]}}
    raw = json.dumps(entry, separators=(",", ":")).encode()
    return struct.pack("<Q", max(length, len(raw))) + raw.ljust(length) + np.full(payload // 4, 0.01, "<f4").tobytes()


def test_safetensors_is_recognised_with_any_header_length():
    for length in range(8, 2001):
        text = '{"a":1}'.ljust(length).encode()  # any JSON object counts here; what is in it is asked later
        assert recognise(struct.pack("<Q", length) + text).group == "safetensors", length


@pytest.mark.parametrize("length", [*range(120, 2000, 8), 65_664, 66_176, 131_712, 640 + 2**20])
def test_vectors_are_read_with_any_header_length(length):
    embedding = read_any(with_header(length), "duck.safetensors")
    assert np.array_equal(embedding.vectors["clip_l"], np.full((1, 768), 0.01, np.float32))


@given(st.integers(8, 2_000_000), st.sampled_from(["{", '{"', "{ ", "{\n", "{}"]), st.integers(0, 100))
def test_a_truncated_safetensors_file_is_recognised(length, begins, left):
    cut = struct.pack("<Q", length) + begins.encode().ljust(left + 2)[: length or None]
    if cut[:1] == b"\x80" and cut[1] in (2, 3, 4, 5) and cut[3]:
        return  # then it could be either
    assert recognise(cut, size=8 + left).group == "safetensors"


@given(
    st.binary(max_size=400),
    st.sampled_from(["", "80 02", "50 4b 03 04", "52 49 46 46", "28", "7d 71 00 28", "50 35 0a 23"]),
)
def test_any_bytes_get_a_type_and_a_hint(data, begins):
    kind = recognise(bytes.fromhex(begins) + data)
    assert kind.what and kind.hint and str(kind.refusal("x")).count("\n") == 1


def test_recognition_of_large_data_is_fast():
    began = time.process_time()
    for data in (b"(" * 10**7, b"]q\0" * 10**6, b"P5 " + b"# " * 10**6, b"{" * 10**7, b"x" * 10**7, b"N0" * 10**6):
        recognise(data)
    assert time.process_time() - began < 2


# --- pickles ----------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=8) | st.tuples(inner, inner)
    ),
    max_leaves=40,
)


@given(OBJECTS, st.integers(0, 5))
def test_a_pickle_of_any_protocol_is_recognised(content, protocol):
    assert recognise(pickle.dumps(content, protocol)).group == "pickle"


@pytest.mark.parametrize("protocol", range(6))
def test_a_long_pickle_is_recognised_by_its_first_bytes(protocol):
    content = {f"layer {number}": [0.5] * 50 for number in range(3000)}
    data = pickle.dumps(content, protocol)
    assert recognise(data[:70_000], len(data)).group == "pickle"
    with pytest.raises(UserError, match=r"^x.pt ") as caught:
        read_any(pickle.dumps([1, 2, {"a": "b"}], protocol), "x.pt")
    assert caught.value.hint


@given(st.text(alphabet="abdeghijlnopqrstuIFSVKMNUXTRQ]}(). \n0123456789'", min_size=1, max_size=60))
def test_text_recognised_as_a_pickle_is_a_valid_pickle(text):
    """pickletools' own disassembler, which keeps account of the stack too, is the judge."""
    import pickletools

    if recognise(text.encode()).group == "pickle":
        pickletools.dis(text.encode(), io.StringIO())


def test_english_text_is_recognised_as_text():
    for text in ("Note.", "Not found", "date.", "Access denied", "Entry not found", "Invalid username or password."):
        assert recognise(text.encode()).name == "text", text


# --- zips and archives ------------------------------------------------------------------------------------------------

MEMBERS = st.dictionaries(st.text("abc/.é", min_size=1, max_size=12), st.binary(max_size=100), max_size=4)


@given(MEMBERS, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_any_zip_is_recognised(members, how):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert recognise(out.getvalue()).group == "zip"


def test_archives_are_refused_with_a_hint_to_unpack():
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.safetensors"), io.BytesIO())
    packed = {
        "tar": tar.getvalue(),
        "gzip": gzip.compress(b"x" * 100),
        "bzip2": bz2.compress(b"x" * 100),
        "xz": lzma.compress(b"x" * 100),
        "7z": b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(50),
        "RAR": b"Rar!\x1a\x07\x01\0" + bytes(50),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(50),
    }
    for name, data in packed.items():
        with pytest.raises(UserError, match=f"x.safetensors is refused: it is a {name} archive") as caught:
            read_any(data, "x.safetensors")
        assert "Unpack" in caught.value.hint
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("me-duck-a1111/embeddings/me-duck.safetensors", concept_to_bytes(concept()))
    with pytest.raises(UserError, match=r"x.zip is refused: it is a zip archive.*\n.*Unpack"):
        read_any(out.getvalue(), "x.zip")


# --- pictures ---------------------------------------------------------------------------------------------------------

PILLOW = {"PNG": "PNG", "JPEG": "JPEG", "GIF": "GIF", "WEBP": "WebP", "BMP": "BMP", "TIFF": "TIFF", "PPM": "PNM"}
PILLOW |= {"ICO": "icon", "DDS": "DDS", "ICNS": "ICNS", "QOI": "QOI", "AVIF": "AVIF", "JPEG2000": "JPEG 2000"}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(PILLOW)), st.sampled_from(["1", "L", "RGB"]), st.integers(16, 40), st.integers(16, 40))
def test_any_image_written_by_pillow_is_recognised(kind, mode, width, height):
    if kind == "AVIF" and not features.check("avif"):
        return
    picture, out = Image.new(mode, (width, height)), io.BytesIO()
    try:
        picture.save(out, kind)
    except (OSError, ValueError):  # not every mode and size goes into every format
        return
    kind_found = recognise(out.getvalue())
    assert (kind_found.group, kind_found.name) == ("image", PILLOW[kind])


def test_heic_is_recognised_and_images_without_an_embedding_are_refused():
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64))).save(out)
    assert recognise(out.getvalue()).name == "HEIC"
    for data, name in ((out.getvalue(), "HEIC"), (b"\xff\xd8\xff" + bytes(40), "JPEG"), (b"GIF89a" + bytes(9), "GIF")):
        with pytest.raises(UserError, match=f"x.png is a {name} image"):
            read_any(data, "x.png")


# --- what is not the file ---------------------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
NOT_THE_FILE = {
    "Git-LFS pointer": (LFS, "git lfs pull"),
    "old Git-LFS pointer": (LFS.replace(b"git-lfs.github", b"hawser.github"), "git lfs pull"),
    "LFS pointer with a mark": (b"\xef\xbb\xbf" + LFS, "git lfs pull"),
    "Xet pointer": (b"# xet version 0\nfilesize = 10\n", "not downloaded"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s123--abc.safetensors\n", "git annex get"),
    "git-annex link": (b"../.git/annex/objects/Xk/9f/SHA256E-s1--a/SHA256E-s1--a", "git annex get"),
    "DVC pointer": (b"outs:\n- md5: a304afb96060aad90176268345e10355\n  path: x\n", "dvc pull"),
    "web page": (b"\n <!DOCTYPE html><html><title>Sign in</title>", "a web page"),
    "web page of old": (b"<html><body>404", "a web page"),
    "S3's answer": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "a refusal in JSON": (b'{"error":"Access denied"}', "Access denied"),
    "a list in JSON": (b'[{"message": "no"}]', "JSON"),
    "a refusal in text": (b"Access to model x is restricted. You must log in.", "restricted"),
    "text in UTF-16": ("Entry not found".encode("utf-16"), "Entry not found"),
    "short": (b"no", "text"),
    "empty": (b"", "empty"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "few zeros": (bytes(3), "nothing but zeros"),
    "aria2": (b"\0\x01\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0", "aria2"),
    "a link": (b"[InternetShortcut]\r\nURL=https://example.org\r\n", "a link"),
    "torrent": (b"d8:announce20:http://tracker.examplee", "torrent"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(30), "GGUF"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(30), "HDF5"),
    "NumPy": (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "NumPy"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "AppleDouble": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "macOS"),
    "video": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video"),
    "sound": (b"RIFF\x24\0\0\0WAVEfmt ", "a sound"),
    "noise": (bytes(range(200, 256)) * 9, "no safetensors"),
}


@pytest.mark.parametrize("case", NOT_THE_FILE)
@pytest.mark.parametrize("end", ["safetensors", "pt"])
def test_files_of_other_types_are_refused_by_name(case, end, tmp_path):
    data, says = NOT_THE_FILE[case]
    path = tmp_path / f"duck.{end}"
    path.write_bytes(data)
    for read in (read_path, lambda path: read_any(path.read_bytes(), path.name), read_header):
        with pytest.raises(UserError) as caught:
            read(path)
        assert says in str(caught.value) and f"duck.{end} is " in str(caught.value), read
        assert caught.value.hint and str(caught.value).count("\n") == 1
