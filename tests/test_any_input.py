"""Whatever stands in a file, a flag or a record: it works, or ends in one line with status 2, and nothing that was there changes."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from run_fixture import make_run, summary  # noqa: E402

from gpt2_nb_utils.__main__ import build_parser, main  # noqa: E402
from gpt2_nb_utils.config import RunConfig  # noqa: E402
from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.report.readme import fill_readme  # noqa: E402
from gpt2_nb_utils.report.report import build_report  # noqa: E402
from gpt2_nb_utils.results.overview import facts  # noqa: E402
from gpt2_nb_utils.results.record import read_record  # noqa: E402
from gpt2_nb_utils.tokenization import decode, encode, load_corpus  # noqa: E402

OURS = dict(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, but for locks, which are empty and come and go."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def command(*words: str) -> tuple[int, str]:
    """The exit status and the standard error of a command, in this process: an exception would come through."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(list(words))
    return status, said.getvalue()


def one_harmless_line(text: str) -> bool:
    return text.endswith("\n") and text[:-1].isprintable() and len(text) > 10


# --- flags: any value ---------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=20)
ODD_NUMBERS = (
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "7",
    "1e-320",
    "1e308",
    "1e999",
    "nan",
    "-inf",
    "0x10",
    "1_0",
    " 3 ",
    "٣",
    "²",
    "1" + "0" * 11,
    "1" + "0" * 12,
    "9e31",
    "9" * 30,
    "1" + "0" * 400,
    "9" * 5000,
    "0.5",
    "-0.0",
    "true",
    "None",
    "",
)
ODD_TEXTS = (
    "",
    " ",
    ".",
    "..",
    "-",
    "--",
    "=1+1",
    "a" * 300,
    "a/" * 3000,
    "x\ny",
    "\x1b[2J",
    "\udcff",
    "a\0b",
    "\u202e",
    "/dev/null",
    "/dev/zero",
    "/dev/null/x",
    "~nobody/x",
    "cuda:99999999999999999999",
    "cuda:٠",
    "auto",
    "full",
    "%s%n",
    "{0}",
    "a" * 100_000,
)
VALUES = (
    st.sampled_from(ODD_NUMBERS)
    | st.sampled_from(ODD_TEXTS)
    | st.integers().map(str)
    | st.floats().map(str)
    | TEXT
)


@hypothesis_settings(**OURS)
@given(
    st.dictionaries(st.sampled_from(sorted(RunConfig.model_fields)), VALUES, min_size=1, max_size=4)
)
def test_any_value_of_any_flag_is_a_complete_config_or_one_line(flags):
    try:
        given = vars(
            build_parser().parse_args(
                ["train", "--device=cpu", *(f"--{name}={value}" for name, value in flags.items())]
            )
        )
        config = RunConfig.resolve(
            {name: given[name] for name in given if name in RunConfig.model_fields}
        )
    except UserError as error:
        assert str(error).isprintable() and error.exit_status == 2
    else:
        saved = json.loads(json.dumps(config.model_dump(), allow_nan=False))
        assert RunConfig.resolve({}, saved=saved).model_dump() == {
            **config.model_dump(),
            "resume": "",
            "overwrite": False,
        }


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, text_file):
    """A folder with a text and a file of somebody, where the training below works."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "t.txt").write_bytes(text_file.read_bytes()[:3000])
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


SMALL = dict(
    preset="tiny",
    input_file="t.txt",
    out_dir="run",
    device="cpu",
    n_embd=4,
    n_layer=1,
    n_head=1,
    block_size=8,
    seq_len=8,
    max_tokens=60,
    batch_size=2,
    steps=1,
    max_new_tokens=1,
    num_prompts=1,
    warmup_steps=0,
)
# Sizes that fit, and keep a machine busy for an hour all the same, are left to those who ask for them.
SIZES = (
    "n_layer",
    "n_embd",
    "n_head",
    "block_size",
    "seq_len",
    "batch_size",
    "grad_accum",
    "steps",
    "num_prompts",
    "max_new_tokens",
)
LAWFUL = st.sampled_from(
    ["0", "-1", "1", "2", "3", "1" + "0" * 12, str(10**12 - 1), "9" * 400, "1.5", "", "nan"]
)
ANY_FLAG = st.one_of(
    st.tuples(st.sampled_from(SIZES).filter(lambda name: name != "steps"), LAWFUL),
    st.tuples(
        st.sampled_from(
            [
                name
                for name in RunConfig.model_fields
                if name
                not in (
                    *SIZES,
                    "preset",
                    "device",
                    "compile",
                    "input_file",
                    "out_dir",
                    "prompt",
                    "resume",
                )
            ]
        ),
        st.sampled_from(ODD_NUMBERS),
    ),
    st.tuples(
        st.sampled_from(["input_file", "out_dir", "prompt", "resume", "device"]),
        st.sampled_from(ODD_TEXTS[:-1]),
    ),
)


@hypothesis_settings(max_examples=30, **OURS)
@given(ANY_FLAG)
@example(("out_dir", "taken"))
@example(("out_dir", "t.txt"))
@example(("input_file", "taken"))
@example(("n_layer", str(10**12 - 1)))
@example(("batch_size", str(10**12 - 1)))
@example(("max_new_tokens", str(10**12 - 1)))
@example(("lr", "99999999999"))
@example(("lr", "9e31"))
def test_training_with_any_value_of_a_flag_works_or_is_one_line_and_no_file_changes(
    workplace, flag
):
    before = files(workplace)
    status, said = command(
        "train", *(f"--{name}={value}" for name, value in {**SMALL, flag[0]: flag[1]}.items())
    )
    errors = [line for line in said.splitlines(keepends=True) if line.startswith("error: ")]
    assert (
        status == 0
        and not errors
        or status == 2
        and len(errors) == 1
        and one_harmless_line(errors[0])
        and said.endswith(errors[0])
    ), said
    after = files(workplace)
    assert {name: after.get(name) for name in before} == before
    for made in workplace.iterdir():
        if made.name not in ("t.txt", "taken"):
            shutil.rmtree(made)


def test_a_text_in_the_run_that_is_to_be_overwritten_is_not_lost(workplace):
    small = {**SMALL, "sample_every": 1}
    assert command("train", *(f"--{name}={value}" for name, value in small.items()))[0] == 0
    before = files(workplace)
    status, said = command(
        "train",
        *(
            f"--{name}={value}"
            for name, value in {**small, "input_file": "run/samples/samples.txt"}.items()
        ),
        "--overwrite",
    )
    assert status == 2 and "move the text elsewhere" in said and files(workplace) == before
    shutil.rmtree("run")


# --- the corpus: any bytes ----------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\x1a",
        b"\x85",
        b"\xc2\x85",
        "\u2028".encode(),
        "\ufeff".encode(),
        "\u202e".encode(),
        b"<|endoftext|>",
        b"<script>",
        b"=1+1",
        b"\x1b[2J",
        b" " * 6000,
        b"a" * 3000,
        b"First Citizen:\n",
        "naïve ♞".encode(),
        "naïve".encode("latin-1"),
        b"\xf0\x9f",
    ]
)


@hypothesis_settings(**OURS)
@given(
    st.lists(
        PIECES
        | st.binary(max_size=8)
        | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
        max_size=6,
    ).map(b"".join)
)
@example(b"")
@example(b"a")
@example(b"\xef\xbb\xbf")
@example(b"\xef\xbb\xbfFirst Citizen:\r\nBefore we proceed")
def test_any_bytes_are_a_text_or_one_line_and_stay_as_they_are(tmp_path, content):
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    try:
        corpus = load_corpus(str(path))
    except UserError as error:
        assert str(error).isprintable() and "input.txt" in str(error)
    else:
        plain = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert (
            corpus.text.encode("utf-8") == plain
            and corpus.sha256 == hashlib.sha256(plain).hexdigest()
        )
        assert bool(corpus.notes) == (plain != content)
        ids = encode(corpus.text)
        assert len(ids) >= 3 and ids.max() < 50256 and decode(ids) == corpus.text
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on Windows")
def test_what_is_no_file_is_said_at_once(tmp_path, workplace):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "pipe": "not a regular file",
        "loop": "cannot be read",
        "gone": "does not exist",
        "folder": "is a folder",
        "/dev/zero": "not a regular file",
        "t.txt/x": "does not exist",
    }.items():
        status, said = command(
            "train",
            f"--input_file={name if name in ('/dev/zero', 't.txt/x') else tmp_path / name}",
            "--out_dir=run",
            "--preset=tiny",
        )
        assert status == 2 and words in said and one_harmless_line(said), said
    assert not Path("run").exists()


def test_a_hundred_megabytes_are_read_and_more_than_memory_holds_is_refused(tmp_path):
    line = b"Speak, speak.\r\n"
    path = tmp_path / "long.txt"
    path.write_bytes(line * (10**8 // len(line)))
    assert load_corpus(str(path)).text.count("\n") == 10**8 // len(line)
    os.truncate(path, 10**12)  # sparse: it takes no room on the disk
    with pytest.raises(UserError, match="long.txt is 1,000 GB, too large"):
        load_corpus(str(path))


# --- a run directory and a README of somebody: any records, any bytes -----------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OF_THE_CORPUS = ("source", "path", "sha256", "chars", "tokens", "is_course_input")
OF_THE_CONFIG = ("steps", "max_tokens", "target_loss", "n_layer", "out_dir", "resume")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@hypothesis_settings(**OURS)
@given(
    st.dictionaries(st.sampled_from([*summary(), "resumed_with"]), JSON, max_size=3),
    st.dictionaries(st.sampled_from(OF_THE_CORPUS), JSON, max_size=2),
    st.dictionaries(st.sampled_from(OF_THE_CONFIG), JSON, max_size=2),
)
def test_any_value_in_a_summary_is_shown_or_named_in_one_line(
    run, tmp_path, changes, corpus, config
):
    usual = summary()
    content = {
        **usual,
        "corpus": {**usual["corpus"], **corpus},
        "config": {**usual["config"], **config},
        **changes,
    }
    run.summary.write_text(json.dumps(content), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY_README, encoding="utf-8")
    for shown in (
        lambda: fill_readme(run, readme),
        lambda: build_report(run),
        lambda: facts(read_record(run.path)),
    ):
        try:
            shown()
        except UserError as error:
            assert str(error).isprintable() and "\n" not in str(error)
            assert readme.read_text(encoding="utf-8") == EMPTY_README
        else:
            assert readme.read_text(encoding="utf-8").count("<!--AUTO:") == 12


NAMES = ("SUMMARY", "PLOT", "LOGS", "METRICS", "SAMPLES", "REPRO")
MARKERS = [f"<!--AUTO:{name}:{edge}-->" for name in NAMES for edge in ("START", "END")]
EMPTY_README = "\n".join(MARKERS)


@hypothesis_settings(**OURS)
@given(
    st.lists(
        st.sampled_from([marker.encode() for marker in MARKERS]) | st.binary(max_size=6), max_size=8
    ),
    st.integers(0, 12),
    st.booleans(),
)
def test_any_bytes_with_any_markers_are_filled_or_left_alone(run, tmp_path, strays, place, whole):
    run.summary.write_text(json.dumps(summary()), encoding="utf-8")
    pieces = [marker.encode() for marker in MARKERS]
    content = b"".join([*pieces[:place], *strays, *(pieces[place:] if whole else [])])
    readme = tmp_path / "README.md"
    readme.write_bytes(content)
    try:
        fill_readme(run, readme)
    except UserError as error:
        assert str(error).isprintable() and readme.read_bytes() == content
    else:
        assert BLOCK.sub(rb"\1\3", readme.read_bytes()) == BLOCK.sub(rb"\1\3", content)
    assert list(tmp_path.iterdir()) == [readme]


BLOCK = re.compile(rb"(<!--AUTO:([A-Z]+):START-->).*?(<!--AUTO:\2:END-->)", re.DOTALL)


@hypothesis_settings(**OURS)
@given(
    st.sampled_from(["log", "metrics", "samples", "environment", "audit"]),
    st.lists(
        st.binary(max_size=12)
        | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
        | st.sampled_from(
            [
                b"\n",
                b"\n\n",
                b"=== step 1 \xc2\xb7 prompt 1 ===\n",
                b'PROMPT: "p"\n',
                b"PROMPT: 5\n",
                b"SAMPLE:\n",
                b"| text\n",
                b"|= []\n",
                b'|= "x"\n',
                b"=== step " + b"9" * 5000 + b" \xc2\xb7 prompt 1 ===\n",
                b"step,epoch,tokens,loss,train_loss,lr,grad_norm,loss_scale,tok_per_s,elapsed_s\n",
                b"1,1,1,1,1,1,1,1,1,1\n",
                b"1,nan,1,inf,,,,,,\n",
                b"9e999,1,1,1,1,1,1,1,1,1\n",
                b'"' + b"x" * 200_000,
                b"[" * 3000,
                b"{}",
                b"[]",
                b'{"packages": 1}',
                b"<!--AUTO:PLOT:END-->",
                b"=cmd|'/c calc'!A1",
            ]
        ),
        max_size=8,
    ).map(b"".join),
)
def test_any_bytes_in_a_record_are_shown_or_named_in_one_line(run, tmp_path, record, content):
    run.summary.write_text(json.dumps(summary()), encoding="utf-8")
    path = getattr(run, record)
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY_README, encoding="utf-8")
    try:
        for shown in (
            lambda: fill_readme(run, readme),
            lambda: build_report(run),
            lambda: facts(read_record(run.path)),
        ):
            try:
                shown()
            except UserError as error:
                assert str(error).isprintable()
        assert (
            path.read_bytes() == content
            and readme.read_text(encoding="utf-8").count("<!--AUTO:") == 12
        )
    finally:
        path.unlink() if before is None else path.write_bytes(before)
