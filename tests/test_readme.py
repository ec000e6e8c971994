"""The README's AUTO blocks show the run; not a byte outside them changes, whatever the run wrote."""

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from run_fixture import COMMAND, HOSTILE, make_run, reached, summary  # noqa: E402

from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.report.readme import fill_readme  # noqa: E402
from gpt2_nb_utils.run_directory import RunDirectory  # noqa: E402
from gpt2_nb_utils.training.events import samples_text  # noqa: E402
from gpt2_nb_utils.training.records import Sample  # noqa: E402

NAMES = ("SUMMARY", "PLOT", "LOGS", "METRICS", "SAMPLES", "REPRO")
BLOCK = re.compile(rb"(<!--AUTO:([A-Z]+):START-->)(.*?)(<!--AUTO:\2:END-->)", re.DOTALL)


def empty_readme(line_end="\n", names=NAMES):
    blocks = [
        f"## {name}{line_end}<!--AUTO:{name}:START-->old<!--AUTO:{name}:END-->  {line_end}"
        for name in names
    ]
    return f"# Title{line_end}{line_end.join(blocks)}the end"


def outside(content):
    return BLOCK.sub(rb"\1\4", content)


def filled(tmp_path, content=None, run=None):
    """The blocks of a README filled from a run, by name."""
    readme = tmp_path / "README.md"
    readme.write_text(empty_readme(), encoding="utf-8", newline="")
    assert fill_readme(run or make_run(tmp_path / "out" / "run", content), readme)
    return {
        match[2].decode(): match[3].decode("utf-8") for match in BLOCK.finditer(readme.read_bytes())
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


# Not a byte beside the blocks


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    beside=st.lists(st.binary(max_size=20), min_size=13, max_size=13),
    order=st.permutations(NAMES),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_no_byte_outside_changes_and_a_second_run_changes_nothing(
    run, tmp_path, beside, order, line_end
):
    pieces = [beside[0]]
    for name, inside, after in zip(order, beside[1:7], beside[7:]):
        pieces += [
            f"<!--AUTO:{name}:START-->".encode(),
            line_end + inside,
            f"<!--AUTO:{name}:END-->".encode(),
            after,
        ]
    old = b"".join(pieces)
    readme = tmp_path / "README.md"
    readme.write_bytes(old)
    assert fill_readme(run, readme)
    new = readme.read_bytes()
    assert outside(new) == outside(old) and new != old
    assert not fill_readme(run, readme)
    assert readme.read_bytes() == new


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_blocks_take_the_line_ends_of_the_file(run, tmp_path, line_end, mark):
    readme = tmp_path / "README.md"
    readme.write_bytes(mark + empty_readme(line_end).encode("utf-8"))
    fill_readme(run, readme)
    new = readme.read_bytes()
    assert new.startswith(mark) and new.count(b"\n") > 60
    assert new.count(b"\r\n") == (new.count(b"\n") if line_end == "\r\n" else 0)


def test_a_file_that_need_not_change_is_not_written(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(empty_readme(), encoding="utf-8")
    fill_readme(run, readme)
    os.chmod(readme, 0o640)
    before = readme.stat()
    assert not fill_readme(run, readme)
    assert readme.stat().st_mtime_ns == before.st_mtime_ns and readme.stat().st_ino == before.st_ino


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_stay_and_a_link_stays_a_link(run, tmp_path):
    (tmp_path / "docs").mkdir()
    real = tmp_path / "docs" / "README.md"
    real.write_text(empty_readme(), encoding="utf-8")
    os.chmod(real, 0o640)
    (tmp_path / "README.md").symlink_to(real)
    fill_readme(run, tmp_path / "README.md")
    assert (tmp_path / "README.md").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["README.md"]


# Wrong markers


def start(name):
    return f"<!--AUTO:{name}:START-->"


def end(name):
    return f"<!--AUTO:{name}:END-->"


def refused(name):
    """A pattern for the message about a block whose markers are not as they must be."""
    return f"README.md: have {start(name)} and after it {end(name)} exactly once each, and no other"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edge", [start, end])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text, marker: text.replace(marker, ""),
        lambda text, marker: text.replace(marker, marker.replace("<!--", "<!-- ")),
        lambda text, marker: text + marker,
    ],
)
def test_a_missing_or_doubled_marker_is_named_and_nothing_written(run, tmp_path, name, edge, spoil):
    readme = tmp_path / "README.md"
    readme.write_text(spoil(empty_readme(), edge(name)), encoding="utf-8")
    old = readme.read_bytes()
    with pytest.raises(UserError, match=refused(name)):
        fill_readme(run, readme)
    assert readme.read_bytes() == old


@pytest.mark.parametrize(
    "block",
    [
        f"{end('PLOT')} {start('PLOT')}",
        f"{start('PLOT')} {start('LOGS')} {end('LOGS')} {end('PLOT')}",
        f"{start('PLOT')} {start('LOGS')} {end('PLOT')} {end('LOGS')}",
        f"{start('PLOT')} {start('OTHER')} {end('PLOT')}",
    ],
)
def test_a_reversed_or_nested_marker_is_named_and_nothing_written(run, tmp_path, block):
    names = [name for name in NAMES if start(name) not in block]
    readme = tmp_path / "README.md"
    readme.write_text(empty_readme(names=names) + block, encoding="utf-8")
    old = readme.read_bytes()
    with pytest.raises(UserError, match=refused("PLOT")):
        fill_readme(run, readme)
    assert readme.read_bytes() == old


def test_a_missing_readme_or_run_is_named(run, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        fill_readme(run, tmp_path / "README.md")
    (tmp_path / "README.md").write_text(empty_readme(), encoding="utf-8")
    with pytest.raises(UserError, match="holds no run"):
        fill_readme(RunDirectory(tmp_path / "nowhere"), tmp_path / "README.md")


# What the blocks say


def test_the_blocks_hold_the_verdict_the_exact_command_seed_and_losses(tmp_path):
    blocks = filled(tmp_path)
    assert "**✗ Course target not reached.**" in blocks["SUMMARY"]
    assert "| Training loss | 6.4012 at step 30 (estimated on 16 windows) |" in blocks["SUMMARY"]
    assert "| Parameters | 124,439,808 " in blocks["SUMMARY"]
    assert f"```sh\n{COMMAND}\n```" in blocks["REPRO"]
    assert "| Seed | 1337 |" in blocks["REPRO"]
    assert "| Best training loss | 6.4012 at step 30 (estimated on 16 windows) |" in blocks["REPRO"]
    assert "| Best batch loss | 6.1007 at step 29 (one batch: proves nothing) |" in blocks["REPRO"]
    assert (
        "step 1/30" in blocks["LOGS"]
        and "step 30/30" in blocks["LOGS"]
        and "24 more lines" in blocks["LOGS"]
    )
    rows = [line for line in blocks["METRICS"].splitlines() if re.match(r"\| \d", line)]
    assert rows[0].startswith("| 0 |") and rows[-1].startswith("| 30 |") and len(rows) == 6
    assert (
        "Step 0, prompt `First Citizen:`" in blocks["SAMPLES"]
        and "Step 30, prompt" in blocks["SAMPLES"]
    )


def test_a_run_that_reached_the_target_is_said_to_have(tmp_path):
    assert "**✓ Course target reached.**" in filled(tmp_path, reached())["SUMMARY"]


def test_the_plot_is_found_from_the_folder_of_the_readme_and_has_an_alternative_text(tmp_path):
    run = make_run(tmp_path / "out" / "a (new) run")
    plot = filled(tmp_path, run=run)["PLOT"]
    match = re.fullmatch(r"\n!\[(Figure: Loss over the steps of training)\]\((\S+)\)\n", plot)
    assert match[2] == "out/a%20%28new%29%20run/figures/loss.png"


def test_a_run_that_has_just_started_fills_all_blocks(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_json(run.summary, {name: None for name in summary()} | {"status": "running"})
    blocks = filled(tmp_path, run=run)
    assert "still running" in blocks["SUMMARY"] and all(
        len(block.strip()) > 10 for block in blocks.values()
    )


# What a run wrote cannot leave its block

FORGED = f"{end('SAMPLES')} ``` ````` ~~~ | <b>\n```\n{start('PLOT')}\n{HOSTILE}"


def test_text_of_a_run_cannot_leave_its_block_its_fence_or_its_cell(tmp_path):
    run = make_run(tmp_path / "run", summary(command=FORGED, device=FORGED, torch=FORGED))
    run.write_json(run.environment, {"processor": FORGED, "platform": FORGED})
    run.log.write_text(FORGED * 3, encoding="utf-8")
    run.samples.write_text(samples_text([Sample(1, 1, FORGED, FORGED)]), encoding="utf-8")
    blocks = filled(tmp_path, run=run)
    assert list(blocks) == list(NAMES)
    assert not fill_readme(run, tmp_path / "README.md")
    for name, block in blocks.items():
        fence = None
        for line in block.splitlines():
            opens = re.match(r"`{3,}", line)
            if fence is not None:
                fence = None if line == fence else fence  # inside, any other line is text
            elif opens:
                fence = opens[0]
            elif line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) in (3, 8), line
                assert "<" not in line
        assert fence is None, name
    assert "<script>" not in re.sub(
        r"(?s)^(`{3,})\w*\n.*?\n\1$", "", blocks["REPRO"], flags=re.MULTILINE
    )


# The optional block


def test_runs_beside_each_other_are_shown_a_line_each(tmp_path):
    first = make_run(tmp_path / "out" / "first", summary(tokens_seen=1111))
    make_run(tmp_path / "out" / "sec|ond", summary(tokens_seen=2222))
    make_run(tmp_path / "out" / "third", summary(epoch="x"))  # damaged: left out
    demo = {**summary()["corpus"], "source": "demo", "sha256": "0" * 64, "is_course_input": False}
    make_run(
        tmp_path / "out" / "demo",
        summary(corpus=demo, target_reached=True, status="target_reached", tokens_seen=3333),
    )
    (tmp_path / "out" / "no run").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(empty_readme(names=(*NAMES, "RUNS")), encoding="utf-8")
    assert fill_readme(first, readme)
    block = (
        readme.read_text(encoding="utf-8")
        .split("<!--AUTO:RUNS:START-->")[1]
        .split("<!--AUTO:RUNS:END-->")[0]
    )
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 5 and "1,111" in lines[3] and "2,222" in lines[4]
    assert (
        "3,333" in lines[2]
        and "demonstration corpus" in lines[2]
        and lines[2].endswith("| not reached |")
    )
    assert lines[3].startswith("| first |") and lines[4].startswith("| sec\\|ond |")
    assert not fill_readme(first, readme)


def test_half_of_the_optional_block_is_an_error(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(empty_readme() + "<!--AUTO:RUNS:START-->", encoding="utf-8")
    with pytest.raises(UserError, match=refused("RUNS")):
        fill_readme(run, readme)
