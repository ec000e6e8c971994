"""Text is made harmless in one place, and numbers, losses and durations read the same everywhere."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_nb_utils import wording
from gpt2_nb_utils.text import markdown_table, markdown_text, one_line, visible

JOINERS = "\u200c\u200d"
any_text = st.text(st.characters())  # halves of surrogate pairs, too
ordinary = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]))
EVERY = [chr(code) for code in range(sys.maxunicode + 1)]


def acts(character: str) -> bool:
    """Whether Unicode calls it a control, a mark of direction or half a pair; signs around Arabic numbers are none."""
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in ("BN", "LRE", "RLE", "LRO", "RLO", "PDF")
        and unicodedata.category(character) == "Cf"
        or unicodedata.bidirectional(character) in ("LRI", "RLI", "FSI", "PDI")
        or character in "\u061c\u200e\u200f\ufff9\ufffa\ufffb\U000e0001"
    ) and character not in JOINERS


@given(any_text)
def test_nothing_that_acts_survives(text):
    assert not [
        character for character in visible(text) if acts(character) and character not in "\n\t"
    ]
    assert not [character for character in one_line(text) if acts(character)]
    assert one_line(text).splitlines() in ([], [one_line(text)])


def test_no_code_point_that_acts_survives():
    assert [c for c in EVERY if acts(c) and c not in "\n\t" and c in visible(c)] == []
    assert [c for c in EVERY if acts(c) and c in one_line(c)] == []


def test_all_that_either_earlier_table_caught_is_caught():
    earlier = [*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200B, 0x200E]
    earlier += [
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2060, 0x2070),
        0xFEFF,
        *range(0xFFF9, 0xFFFC),
    ]
    earlier += [*range(0xD800, 0xE000), *range(0xE0000, 0xE0080)]
    assert [hex(code) for code in earlier if visible(chr(code)) == chr(code)] == []


@given(any_text)
def test_made_harmless_twice_is_made_harmless_once(text):
    assert visible(visible(text)) == visible(text) and one_line(one_line(text)) == one_line(text)
    assert visible(one_line(text)) == one_line(text)


@given(ordinary)
def test_ordinary_text_of_any_language_stays(text):
    assert visible(text) == one_line(text) == text
    assert visible(f"{text}\n\t{text}") == f"{text}\n\t{text}"


@pytest.mark.parametrize(
    "text", ["می\u200cخواهم", "👩\u200d👩\u200d👧", "۝\u06dd١", "12\u00a0€", "日本\u3000語"]
)
def test_joiners_number_signs_and_wide_spaces_stay(text):
    assert visible(text) == one_line(text) == text


def test_what_was_there_can_be_told():
    assert visible("a\x1b[2J\r\x7f\u202e\x9b\ue000b\n") == "a␛[2J␍␡\\u202e\\x9b\\ue000b\n"
    assert one_line("a\n\t\x1b\u2028b") == "a\\n\\t\\x1b\\u2028b"


@given(any_text)
def test_markdown_gets_no_markup_of_a_text(text):
    line = markdown_text(text)
    assert "\n" not in line and "<" not in line and ">" not in line
    unescaped = line.replace("\\\\", "")
    for sign in "`*_[]|~$":
        assert unescaped.count(sign) == unescaped.count(f"\\{sign}")


def test_a_table_has_a_cell_for_each_text():
    assert markdown_table(("a", "b|"), [(1, "x\ny")]) == "| a | b\\| |\n| --- | --- |\n| 1 | x y |"


@pytest.mark.parametrize(
    "seconds, clock, words",
    [
        (0.4, "0:00", "0 s"),
        (7, "0:07", "7 s"),
        (109, "1:49", "1 min 49 s"),
        (7199.6, "2:00:00", "2 h 0 min"),
        (7900, "2:11:40", "2 h 12 min"),
        (-1, "0:00", "0 s"),
    ],
)
def test_a_duration_reads_as_a_clock_or_in_words(seconds, clock, words):
    assert (wording.duration(seconds), wording.duration_in_words(seconds)) == (clock, words)


@pytest.mark.parametrize(
    "loss, text",
    [
        (None, "not recorded"),
        (10.82491, "10.8249"),
        (0.0912, "0.091200"),
        (0.0999994, "0.09999940"),
    ],
)
def test_a_loss_has_the_digits_that_tell_it_from_the_target(loss, text):
    assert wording.loss_text(loss) == text


def test_counts_and_states_have_one_wording():
    assert (wording.count(None), wording.count(124_439_808)) == ("not recorded", "124,439,808")
    assert (wording.plural(1, "window"), wording.plural(2048, "window")) == (
        "1 window",
        "2,048 windows",
    )
    assert wording.status_text("steps_done") == "finished: all steps done"
    assert wording.status_text("steps_done", short=True) == "finished"
    assert (wording.status_text(None), wording.status_text("new")) == ("not recorded", "new")
