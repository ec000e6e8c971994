"""The app of a Space: over real HTTP, in a real browser, against our own sampling, and with visitors who mean no good."""

import contextlib
import html.parser
import importlib.util
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from importlib.resources import files
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from conftest import PROJECT, needs_browser
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from soak_space import QueueFull, Visitor, soak, written  # noqa: E402
from space_fixture import APP, SEQ_LEN, continued, make_space, small_model  # noqa: E402

from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.model.sampling import context_start, generate  # noqa: E402
from gpt2_nb_utils.space.screenshots import take_screenshots  # noqa: E402
from gpt2_nb_utils.space.serve import serving  # noqa: E402
from gpt2_nb_utils.tokenization.bpe import decode, encode  # noqa: E402

PROMPT = "First Citizen:\nBefore we"
HOSTILE = "<img src=x onerror=alert(1)> <script>alert(2)</script> ${alert(3)} {{ 7 * 7 }} `x` </p></div> \u202eabc \ud800"
GREEDY = [0, 0, 1]
"""Temperature, top-k and top-p that always take the likeliest token."""


@pytest.fixture(scope="module")
def app():
    """The app's module, loaded from its file as it stands: it is no part of the package."""
    spec = importlib.util.spec_from_file_location("space_app", APP / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["space_app"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["space_app"]


@pytest.fixture(scope="module")
def space(tmp_path_factory, text_file):
    """A Space whose text holds, besides another one, what its model writes after PROMPT."""
    text = text_file.read_text(encoding="utf-8")
    return make_space(
        tmp_path_factory.mktemp("spaces") / "a space",
        f"{text}\n\n{PROMPT}{continued(PROMPT, 24)}\n",
    )


@pytest.fixture(scope="module")
def served(space):
    with serving(space) as served:
        yield served


@pytest.fixture
def visitor(served):
    return Visitor(served.url)


# --- it writes what our own sampling writes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(app, space):
    return app.Model(space / "model")


def test_the_text_encoded_in_parts_has_the_tokens_of_the_whole(model):
    text = "".join(f"{n}. Speak, speak.\n\n\n  Word{n} \u3000\n" for n in range(12_000))
    assert len(text) > 300_000
    ids = model.encode_long(text)
    assert ids.tolist() == encode(text).tolist() and ids.dtype == torch.int32


@pytest.mark.parametrize("temperature, top_k", [(0, 0), (0.8, 40), (1.3, 0), (1e-9, 5), (2, 1000)])
def test_it_draws_the_tokens_that_our_own_sampling_draws_with_the_same_seed_also_where_the_context_slides(
    app, model, temperature, top_k
):
    ids = encode(PROMPT).tolist()
    settings = app.Settings(
        temperature=temperature, top_k=top_k, top_p=1.0, length=2 * SEQ_LEN, seed=7
    )
    (ours,) = generate(
        small_model(),
        [torch.tensor(ids)],
        settings.length,
        temperature,
        top_k,
        torch.Generator().manual_seed(7),
        context=SEQ_LEN,
    )
    assert list(model.continuation(ids, settings)) == ours[len(ids) :].tolist()


@pytest.mark.parametrize("top_k, top_p", [(0, 0.9), (40, 0.5), (5, 0.01), (3, 0.999), (0, 1)])
def test_top_p_keeps_the_tokens_that_transformers_keeps(app, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(500, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    ids, weights = app.candidates(logits, app.Settings(0.7, top_k, top_p, 1, 0))
    ours = torch.zeros(500, dtype=torch.double).index_put((ids,), weights / weights.sum())
    theirs = TemperatureLogitsWarper(0.7)(None, logits[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    theirs = TopPLogitsWarper(top_p)(None, theirs)
    torch.testing.assert_close(ours, theirs[0].softmax(dim=-1))


def test_its_context_slides_as_ours_and_is_no_longer_than_training_showed(app, model):
    assert model.context == SEQ_LEN
    assert all(
        app.context_start(n, longest) == context_start(n, longest)
        for longest in (1, 2, 7, 48)
        for n in range(1, 200)
    )


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        "<|endoftext|> x<|endoftext|>",
        " a  b\n\n c ",
        "Ünïcode ☃ 日本語",
        "half \ud800 a pair",
        "\u2028\x00\t",
    ],
)
def test_it_reads_a_text_as_our_own_tokenizer_does(model, text):
    assert model.encode(text) == encode(text).tolist()


# --- memory and composition ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(0, 4), max_size=30)
)
def test_the_verbatim_stretch_is_the_longest_end_of_the_text_that_stands_in_the_corpus(
    app, corpus, text
):
    verbatim = app.Verbatim(torch.tensor(corpus))

    def stands(part):
        return any(corpus[i : i + len(part)] == part for i in range(len(corpus)))

    for end in range(1, len(text) + 1):
        assert verbatim.add(text[end - 1]) == max(
            n for n in range(end + 1) if n == 0 or stands(text[end - n : end])
        )


def test_what_is_memorised_is_marked_and_nothing_else(app):
    answer = app.Answer("given", app.Settings(0, 0, 1, 9, 0))
    stretches = [1, 2, 3, *range(1, 21), 1, 1, 2, *range(1, app.MEMORISED), *9 * [1]]
    for n, stretch in enumerate(stretches):
        answer.add(answer.text + f"{n:>3}", stretch, 0.1 * n)
    (marked,) = [text for text, known in answer.parts() if known]
    assert (
        marked.split() == [str(n) for n in range(3, 23)]
        and "".join(text for text, _ in answer.parts()) == answer.text
    )
    shown = app.page_of(answer)
    assert (
        f"<mark>{marked}</mark>" in shown
        and "40% of 50 tokens" in shown
        and "<dd>20 tokens</dd>" in shown
        and "10.0 tokens/s" in shown
    )


@pytest.mark.parametrize(
    "heading", [".\n\nKING RICHARD III:\nWhere", ".\n\nHENRY BOLINGBROKE:\nMy"]
)  # the second is the longest of the course's text
def test_a_speakers_heading_with_a_word_after_it_stands_in_the_text_and_is_not_marked(app, heading):
    verbatim, ids = (
        app.Verbatim(torch.tensor(encode(f"So it is{heading} lord{heading} friends"))),
        encode(heading).tolist(),
    )
    stretches = [verbatim.add(token) for token in ids]
    assert stretches == list(range(1, len(ids) + 1))  # it does appear there
    answer = app.Answer("", app.Settings(0, 0, 1, 9, 0))
    for n, stretch in enumerate(stretches, start=1):
        answer.add(decode(ids[:n]), stretch, 0.1 * n)
    assert (
        list(answer.parts()) == [(heading, False)]
        and "0% of" in app.page_of(answer)
        and "<mark>" not in app.page_of(answer)
    )


def test_openings_are_places_where_a_window_of_the_training_began_with_a_passage(app, model, space):
    ids = model.encode((space / "corpus.txt").read_text(encoding="utf-8"))
    begins = [
        n
        for n in range(0, len(ids) - 8, SEQ_LEN)
        if n == 0 or model.decode(ids[:n]).endswith("\n\n")
    ]
    found = app.openings(model, torch.tensor(ids), n=2, tokens=8)
    assert 1 < len(begins) < len(ids) / SEQ_LEN / 2  # most windows begin elsewhere
    assert len(found) == 2 and set(found) <= {model.decode(ids[n : n + 8]).rstrip() for n in begins}
    assert found[0] == model.decode(ids[:8]).rstrip()


# --- whatever is sent -----------------------------------------------------------------------------------------------------------


class _Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert {name for name, _ in attributes} <= {"class", "role", "aria-label", "style"}

    def handle_data(self, data):
        self.text += data


def test_an_answer_over_http_is_the_one_that_our_sampling_gives_and_says_how_it_was_made(visitor):
    line, answer, _ = visitor.ask([PROMPT, *GREEDY, 24, 5])
    assert written(answer) == PROMPT + continued(PROMPT, 24)
    assert "Written: 24 tokens" in line
    assert (
        "100% of 24 tokens" in answer
        and "<dd>24 tokens</dd>" in answer
        and "<dd>5</dd>" in answer
        and "tokens/s" in answer
    )


def test_a_prompt_longer_than_the_context_is_cut_to_what_the_model_sees_and_that_is_said(visitor):
    prompt = "".join(f"word {n} " for n in range(100)) + PROMPT
    n = len(encode(prompt))
    line, answer, _ = visitor.ask([prompt, *GREEDY, 12, 0])
    assert (
        f"The prompt has {n} tokens, and the model sees the last {n - context_start(n, SEQ_LEN)} of them: it was trained on {SEQ_LEN}"
        in line
    )
    assert (
        written(answer).endswith(continued(prompt, 12))
        and written(answer).startswith("… ")
        and "word 1 " not in written(answer)
    )


def test_hostile_text_comes_back_as_text(visitor):
    _, answer, _ = visitor.ask([HOSTILE, *GREEDY, 3, 0])
    shown = _Tags(answer)
    assert shown.tags <= {"p", "span", "mark", "div", "dl", "dt", "dd"}
    assert HOSTILE.replace("\ud800", "\ufffd")[-30:] in shown.text


BAD = [
    ([None, *GREEDY, 5, 0], "The prompt is empty"),
    (["", *GREEDY, 5, 0], "The prompt is empty"),
    ([["x"], *GREEDY, 5, 0], "The prompt is empty"),
    ([PROMPT, math.nan, 0, 1, 5, 0], "Temperature nan: Input should be less than or equal to 2"),
    ([PROMPT, -1, 0, 1, 5, 0], "Temperature -1: Input should be greater than or equal to 0"),
    ([PROMPT, 10**400, 0, 1, 5, 0], "Temperature 1000"),
    ([PROMPT, "1", 0, 1, 5, 0], "Temperature &#x27;1&#x27;: Input should be a valid number"),
    ([PROMPT, True, 0, 1, 5, 0], "Temperature True"),
    ([PROMPT, {"a": [1]}, 0, 1, 5, 0], "Temperature {"),
    ([PROMPT, 0, 1.5, 1, 5, 0], "Top-k 1.5: Input should be a valid integer"),
    ([PROMPT, 0, 0, 0, 5, 0], "Top-p 0: Input should be greater than or equal to 0.01"),
    ([PROMPT, 0, 0, math.inf, 5, 0], "Top-p inf:"),
    ([PROMPT, *GREEDY, 0, 0], "Length 0: Input should be greater than or equal to 1"),
    ([PROMPT, *GREEDY, 401, 0], "Length 401: Input should be less than or equal to 400"),
    ([PROMPT, *GREEDY, None, 0], "Length None:"),
    ([PROMPT, *GREEDY, 5, -1], "Seed -1: Input should be greater than or equal to 0"),
    ([PROMPT, *GREEDY, 5, 2**31], "Seed 2147483648: Input should be less than or equal to 21474"),
    ([PROMPT, *GREEDY, 5, "<img src=x onerror=alert(1)>"], "Seed &#x27;&lt;img"),
    ([PROMPT, *GREEDY, 5, "\ud800"], "Seed &#x27;\\ud800&#x27;:"),
]


def test_a_value_that_cannot_be_used_is_one_line_that_names_it(visitor):
    for values, said in BAD:
        line, _, _ = visitor.ask(values)
        assert line.startswith(f'<p role="status" class="note wrong">{said}'), (values, line)
        assert "Traceback" not in line and "\n" not in line and len(line) < 300


@pytest.mark.parametrize(
    "sent",
    [
        b'{"data": [',
        b"[" * 5000,
        b'{"data": "x", "fn_index": 0}',
        b'{"data": [], "fn_index": 0, "session_hash": "s"}',
        b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 0, 0, 1, 5, 0], "fn_index": 0, "session_hash": "s"}',
        b'{"data": [], "fn_index": 999, "session_hash": "s"}',
        b'{"data": [' + b"1" * 5000 + b'], "fn_index": 0, "session_hash": "s"}',
        b"\xff\xfe",
        b"",
    ],
)
def test_whatever_is_no_question_fails_without_a_traceback_and_harms_nobody_else(
    visitor, served, sent
):
    answered = httpx.post(
        f"{served.url}/gradio_api/queue/join",
        content=sent,
        headers={"Content-Type": "application/json"},
        trust_env=False,
    )
    told = answered.text
    if answered.status_code == 200:
        told += json.dumps([message for message in visitor.listen("s")])
    assert "Traceback" not in told and 'File "' not in told and "root:" not in told
    assert written(visitor.ask([PROMPT, *GREEDY, 2, 0])[1]) == PROMPT + continued(PROMPT, 2)


def test_nothing_of_the_machine_is_served_and_nothing_can_be_left_on_it(served, space):
    secret = "Before we proceed"
    weights, corpus = space / "model" / "model.safetensors", space / "corpus.txt"
    paths = [
        f"/{place}{name}"
        for place in (
            "gradio_api/file=",
            "file=",
            "gradio_api/file/",
            "static/",
            "assets/",
            "svelte/",
            "gradio_api/proxy=",
            "",
        )
        for name in (
            corpus,
            weights,
            "corpus.txt",
            "model/model.safetensors",
            "app.py",
            "/etc/passwd",
            "../corpus.txt",
            "../../../../../../../etc/passwd",
            "..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
            "%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            "file:///etc/passwd",
        )
    ]
    paths += [
        "/gradio_api/runs",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/deep_link?session_hash=s",
        "/gradio_api/vibe-code",
        "/docs",
        "/openapi.json",
        "/gradio_api/stream/s/0/0/playlist-file",
        "/gradio_api/custom_component/0/client/component/x",
        "/gradio_api/upload_progress?upload_id=1",
    ]
    for path in paths:
        with socket.create_connection(
            ("127.0.0.1", served.port)
        ) as connection:  # no client that tidies the path up
            connection.sendall(
                f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 403")), path
        assert secret.encode() not in answer and b"root:" not in answer and len(answer) < 1000, path
    for path in (
        "gradio_api/upload",
        "gradio_api/component_server",
        "gradio_api/process_recording",
        "gradio_api/vibe-edit",
        "gradio_api/stream/x",
        "login",
    ):
        answer = httpx.post(
            f"{served.url}/{path}", files={"files": ("x.txt", b"left here")}, trust_env=False
        )
        assert (answer.status_code, answer.text) == (404, "There is nothing here."), path


def test_a_question_of_great_length_is_refused_unread(served):
    for content, status, said in (
        (b"x" * 270_000, 413, "The prompt is too long: send at most 262,144 bytes."),
        (
            iter([b"x" * 10]),
            411,
            "The request does not say how long it is: send Content-Length.",
        ),
    ):
        answer = httpx.post(f"{served.url}/gradio_api/queue/join", trust_env=False, content=content)
        assert (answer.status_code, answer.json()) == (status, {"detail": said})


def test_the_longest_prompt_that_the_page_takes_is_answered(served, visitor, app):
    (most,) = {
        each["props"]["max_length"]
        for each in httpx.get(f"{served.url}/config", trust_env=False).json()["components"]
        if each["props"].get("elem_id") == "prompt"
    }
    assert (
        most == app.MOST_TYPED and 3 * most + 1000 < app.MOST_SENT
    )  # bytes of a letter; of an escaped one two
    line, _, _ = visitor.ask([most // 2 * '"\n', *GREEDY, 2, 0])
    assert "Written: 2 tokens" in line


@pytest.mark.parametrize(
    "path, sent, status",
    [
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "s"}, 404),
        ("queue/join", {"data": [], "fn_index": None, "session_hash": "s"}, 400),
        ("queue/join", {"data": [], "fn_index": "x", "session_hash": "s"}, 422),
        ("call/unknown", {"data": []}, 404),
        ("run/unknown", {"data": []}, 404),
    ],
)
def test_a_function_that_is_not_there_is_no_error_of_the_server(served, path, sent, status):
    answer = httpx.post(f"{served.url}/gradio_api/{path}", json=sent, trust_env=False)
    assert answer.status_code == status and "detail" in answer.json()


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost@evil", ""])
def test_a_foreign_host_gets_nothing_and_no_credentials(served, name):
    headers = {"Host": name, "Origin": "http://evil.example"}
    for method in ("GET", "POST", "OPTIONS"):
        answer = httpx.request(
            method,
            f"{served.url}/config",
            headers={**headers, "Access-Control-Request-Method": "POST"},
            trust_env=False,
        )
        assert (answer.status_code, answer.text) == (400, "Invalid host header")
        assert not [header for header in answer.headers if header.startswith("access-control")]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1:80", "[::1]:7860"])
def test_this_machine_by_its_own_names_is_served(served, name):
    answer = httpx.get(f"{served.url}/config", headers={"Host": name}, trust_env=False)
    assert answer.status_code == 200


def test_served_on_all_addresses_the_app_takes_any_host(app, model):
    from starlette.testclient import TestClient

    blocks = app.page(model, torch.tensor(encode(PROMPT)))
    for host, status in (("0.0.0.0", 200), ("192.0.2.7", 400)):
        served = app.served(blocks, host)
        client = TestClient(served, base_url="http://someone-a-space.hf.space")
        assert client.get("/config").status_code == status


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n"
        b"Content-Type: application/json\r\n\r\n{",
    ],
)
def test_a_half_sent_request_is_given_up(served, app, half):
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(half)
        connection.settimeout(app.PATIENCE + 30)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert time.monotonic() - begun > app.PATIENCE - 1
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408") and b"send it again" in answer


@contextlib.contextmanager
def crowd(visitor, app, n):
    """So many long questions of as many visitors in the queue, or refused where it is full; what each was answered."""
    sessions = [uuid.uuid4().hex for _ in range(n)]
    answers = []
    for number, session in enumerate(sessions):
        visitor._http.headers["X-Forwarded-For"] = f"10.1.0.{number}"
        answers.append(visitor.join([PROMPT, *GREEDY, app.MOST_TOKENS, 0], session))
        if answers[-1].status_code == 200:
            threading.Thread(target=lambda session=session: list(visitor.listen(session))).start()
    del visitor._http.headers["X-Forwarded-For"]
    try:
        yield answers
    finally:
        for session, answer in zip(sessions, answers):
            if answer.status_code == 200:
                visitor._http.post(
                    "/gradio_api/cancel",
                    json={
                        "session_hash": session,
                        "fn_index": visitor._write,
                        "event_id": answer.json()["event_id"],
                    },
                ).raise_for_status()


def test_a_queue_that_is_full_says_so_and_continues(visitor, app):
    for _ in range(5):
        with crowd(visitor, app, app.MOST_WAITING + 6) as answers:
            refused = [answer for answer in answers if answer.status_code != 200]
            assert (
                app.MOST_WAITING <= len(answers) - len(refused) <= app.MOST_WAITING + 2
                and len(refused) >= 4
            )
            assert {answer.status_code for answer in refused} == {503}
            assert json.loads(refused[0].text)["detail"].startswith(
                f"Queue is full. Max size is {app.MOST_WAITING}"
            )
            with contextlib.suppress(QueueFull):
                visitor.ask([PROMPT, *GREEDY, 1, 0])
                continue  # a place had come free
            break
    else:
        pytest.fail("the queue was never full")
    assert written(visitor.ask([PROMPT, *GREEDY, 2, 0])[1]) == PROMPT + continued(PROMPT, 2)


def test_unread_requests_of_one_client_keep_nobody_waiting(served, visitor, app):
    asked = [PROMPT, *GREEDY, app.MOST_TOKENS, 0]
    answers = [visitor.join(asked, uuid.uuid4().hex) for _ in range(app.MOST_WAITING + 1)]
    taken = [answer for answer in answers if answer.status_code == 200]
    assert app.MOST_OF_ONE <= len(taken) <= app.MOST_OF_ONE + 2  # one or two may be running
    (refused,) = {answer.text for answer in answers if answer not in taken}
    assert f"{app.MOST_OF_ONE} of your requests are waiting" in refused
    begun = time.monotonic()
    line, _, _ = Visitor(served.url, "192.0.2.1").ask([PROMPT, *GREEDY, 1, 0])
    assert "Written: 1 token" in line and time.monotonic() - begun < app.UNREAD + 5
    visitor.ask([PROMPT, *GREEDY, 1, 0])  # and the client itself may ask again


def test_who_goes_away_keeps_nobody_waiting(visitor, app):
    begun = time.monotonic()
    visitor.ask([PROMPT, *GREEDY, app.MOST_TOKENS, 0])
    whole = time.monotonic() - begun
    visitor.ask([PROMPT, *GREEDY, app.MOST_TOKENS, 0], leave=True)
    _, _, waited = visitor.ask([PROMPT, *GREEDY, 1, 0])
    assert waited < whole / 2


def test_the_app_asks_nobody_for_anything_and_opens_no_tunnel_where_gradio_would(
    space, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as outside:  # what it asks of others, it asks here
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{outside.getsockname()[1]}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{outside.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        monkeypatch.setenv(
            "KAGGLE_KERNEL_RUN_TYPE", "Interactive"
        )  # there and on SageMaker it shares what is not told otherwise
        with serving(space) as served:
            visitor = Visitor(served.url)
            assert written(visitor.ask([PROMPT, *GREEDY, 2, 0])[1]) == PROMPT + continued(PROMPT, 2)
        outside.settimeout(0.5)
        with pytest.raises(TimeoutError):
            outside.accept()


def test_twenty_visitors_at_once_each_get_their_own_answer(space, served):
    assert re.match(
        r"20 clients for 4 s: [1-9]\d* answers, each its own, \d+ left early",
        soak(space, served, clients=20, seconds=4),
    )


# --- the page in a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture
def visit(browser, served):
    """Opens the page; what it asked others for, complained about and did is in `.did`."""
    contexts = []

    def open_page(width=1200, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 844}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.did = []
        page.on(
            "request",
            lambda request: (
                page.did.append(request.url)
                if not request.url.startswith((served.url, "data:", "blob:"))
                else None
            ),
        )
        page.on("dialog", lambda dialog: (page.did.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: page.did.append(message.text))
        page.on("pageerror", lambda error: page.did.append(str(error)))
        page.on("popup", lambda popup: page.did.append("popup"))
        page.goto(served.url)
        page.locator("#write").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def fill(page, prompt=PROMPT, **values):
    """Type a prompt, and settings by their labels."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Settings").click()
    fields = [
        (page.get_by_role("textbox" if label == "Seed" else "spinbutton", name=label), str(value))
        for label, value in {"Temperature": 0, "Seed": 1, **values}.items()
    ]
    for field, value in fields:
        # The fields come when Settings opens; what is typed within the next milliseconds, they put back before one's eyes.
        for _ in range(10):
            field.fill(value)
            field.press("Tab")
            page.wait_for_timeout(100)
            if field.input_value() == value:
                break
    assert [field.input_value() for field, _ in fields] == [value for _, value in fields]
    page.get_by_role("button", name="Settings").click()


def status(page, text):
    page.get_by_role("status").filter(has_text=text).wait_for()


def watch(page, place, value):
    """Collect in `seen`, from now on, what a JavaScript expression becomes with the changes in a place of the page."""
    page.evaluate(f"""window.seen = []; new MutationObserver(() => {{
        const value = {value}; if (value !== undefined && value !== seen.at(-1)) seen.push(value);
    }}).observe(document.querySelector('{place}'), {{ childList: true, subtree: true, characterData: true }})""")


def text_of(page):
    return page.evaluate("document.querySelector('.written')?.textContent ?? ''")


@needs_browser
def test_the_answer_to_a_typed_prompt_grows_on_the_page_and_ends_as_our_sampling_has_it(visit):
    page = visit()
    fill(page, Length=150)
    watch(page, "#answer", "document.querySelector('.written')?.textContent.length")
    page.locator("#write").click()
    status(page, "Written")
    lengths = page.evaluate("seen")
    assert len({n for n in lengths if n}) > 3 and lengths == sorted(lengths)
    assert text_of(page) == PROMPT + continued(PROMPT, 150)
    assert (
        page.locator("mark").last.inner_text()
        and "150 tokens" in page.locator(".figures").inner_text()
    )
    assert page.did == []


@needs_browser
def test_the_page_says_at_first_sight_what_it_is_which_run_it_shows_and_with_which_loss(visit):
    page = visit()
    page.set_viewport_size({"width": 1280, "height": 720})
    for words in (
        "GPT-2",
        "0.0912",
        "nats per token on the whole text; below 0.099999",
        "400 steps. Course target reached",
        "124,439,808 parameters",
        "input.txt",
        "small",
    ):
        place = page.get_by_text(words).first.bounding_box()
        assert place["y"] + place["height"] < 720, words
    for name in ("#prompt", "#write", "#stop"):
        assert page.locator(name).bounding_box()["y"] < 720
    assert page.did == []


@needs_browser
def test_stop_ends_the_answer_at_once_and_the_next_one_comes(visit):
    page = visit()
    fill(page, Length=400)
    page.locator("#write").click()
    page.wait_for_function("document.querySelector('.written')?.textContent.length > 40")
    page.locator("#stop").click()
    status(page, "Stopped.")
    stopped = text_of(page)
    page.wait_for_timeout(500)
    status(page, "Stopped.")
    assert text_of(page) == stopped and len(stopped) < len(PROMPT + continued(PROMPT, 400))
    assert (PROMPT + continued(PROMPT, 400)).startswith(stopped)
    fill(page, "All:", Length=5)
    page.locator("#write").click()
    status(page, "Written: 5 tokens")
    assert text_of(page) == "All:" + continued("All:", 5)


@needs_browser
def test_stop_where_nothing_is_written_changes_nothing(visit):
    page = visit()
    page.locator("#stop").click()
    page.wait_for_timeout(500)
    status(page, "The answer comes here.")


def ask(page):
    """Click, and wait until the question is in the queue or refused; the HTTP status tells which."""
    with page.expect_response(re.compile("/queue/join")) as asked:
        page.locator("#write").click()
    return asked.value.status


@needs_browser
def test_who_waits_is_told_so_may_stop_and_is_told_of_a_full_queue(visit, visitor, app):
    page = visit()
    fill(page, Length=5)
    with crowd(visitor, app, 10):
        assert ask(page) == 200
        status(page, "Waiting for its turn")
        page.locator("#write").click()  # once more
        page.locator("#stop").click()
        status(page, "Nothing was written.")
    for _ in range(5):
        with crowd(visitor, app, app.MOST_WAITING + 6):
            if ask(page) == 503:
                page.get_by_text("This application is currently busy").wait_for()
                status(page, "Nothing was written.")
                break
            page.locator("#stop").click()  # a place had come free
            status(page, "Nothing was written.")
    else:
        pytest.fail("the queue was never full")
    page.locator("#write").click()
    status(page, "Written: 5 tokens")


@needs_browser
def test_a_click_while_an_answer_is_written_changes_nothing(visit):
    page = visit()
    fill(page, Length=400)
    watch(page, "#note", "document.querySelector('#note [role=status]')?.textContent")
    page.locator("#write").click()
    page.wait_for_function("document.querySelector('.written')?.textContent.length > 40")
    page.locator("#write").click()
    status(page, "Written: 400 tokens")
    assert [line.partition(":")[0] for line in page.evaluate("seen")] == [
        "Waiting for its turn …",
        "Writing …",
        "Written",
    ]


@needs_browser
def test_hostile_text_is_shown_on_the_page_and_does_nothing(visit):
    page = visit()
    hostile = HOSTILE.replace("\ud800", "")
    fill(page, hostile, Length=3)
    page.locator("#write").click()
    status(page, "Written")
    assert hostile in text_of(page)
    assert page.locator("#answer img, #answer script").count() == 0
    assert page.did == []


@needs_browser
def test_a_bad_setting_is_one_line_in_the_page(visit):
    page = visit()
    fill(page, Seed="<b>one</b>")
    page.locator("#write").click()
    status(
        page,
        "Seed '<b>one</b>': Input should be a valid integer, unable to parse string as an integer.",
    )
    fill(page, "")
    page.locator("#write").click()
    status(page, "The prompt is empty: write one, or choose an example.")


@needs_browser
def test_the_keyboard_alone_writes_stops_and_chooses_an_example(visit):
    page = visit()
    fill(page, Length=400)
    page.mouse.click(1, 1)  # Tab begins at the top again
    reached = []
    while "Stop" not in reached:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.tagName === 'TEXTAREA' ? 'Prompt' : document.activeElement.textContent.trim()"
            )
        )
        assert len(reached) < 12, reached
    assert [name for name in reached if name in ("Prompt", "Continue the text", "Stop")] == [
        "Prompt",
        "Continue the text",
        "Stop",
    ]
    page.keyboard.press("Tab")
    example = page.evaluate("document.activeElement.textContent.trim()")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "text => document.querySelector('#prompt textarea').value.replaceAll('\\n', ' ⏎ ').startsWith(text)",
        arg=example[:20],
    )
    page.wait_for_function("document.querySelector('.written')?.textContent.length > 40")
    page.locator("#stop").press("Enter")  # the example is continued at once
    status(page, "Stopped.")
    page.get_by_label("Prompt").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("Speak")
    page.keyboard.press("Shift+Enter")
    page.wait_for_function("document.querySelector('.written')?.textContent.startsWith('Speak')")
    for _ in ("Recite", "Improvise", "Continue the text", "Stop"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    status(page, "Stopped.")


@needs_browser
@pytest.mark.parametrize("width", [320, 390])
def test_the_page_is_no_wider_than_a_phone_and_shows_the_answer_below_the_buttons(visit, width):
    page = visit(width, is_mobile=True, has_touch=True)
    fill(page, "W" * 300 + " ", Length=20)
    page.locator("#write").tap()
    status(page, "Written")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    below = [
        page.locator(name).first.bounding_box()["y"]
        for name in ("#prompt", "#write", ".examples", "#note", "#answer", ".later")
    ]
    assert below == sorted(below)
    assert page.locator("#answer").bounding_box()["width"] >= width - 64  # but for the margins


@needs_browser
def test_an_example_is_recited_as_soon_as_it_is_clicked(visit):
    page = visit()
    page.locator(".examples button").nth(1).click()
    status(page, "Written: 120 tokens")
    prompt = page.get_by_label("Prompt").input_value()
    assert text_of(page) == prompt + continued(prompt, 120)


@needs_browser
def test_improvise_draws_and_recite_does_not(visit):
    page = visit()
    assert page.get_by_label("Recite").is_checked()
    page.get_by_label("Improvise").check()
    fill(page, Temperature=0.8, Length=30)
    assert page.get_by_label("Improvise").is_checked()
    page.locator("#write").click()
    status(page, "Written: 30 tokens")
    drawn = torch.Generator().manual_seed(1)
    sampled = continued(PROMPT, 30, temperature=0.8, top_k=40, generator=drawn)
    assert text_of(page) == PROMPT + sampled
    page.get_by_label("Recite").check()
    page.locator("#write").click()
    page.wait_for_function(
        "text => document.querySelector('.written')?.textContent === text",
        arg=PROMPT + continued(PROMPT, 30),
    )


@needs_browser
@pytest.mark.parametrize("width, scheme", [(1200, "light"), (390, "dark")])
def test_axe_finds_no_barrier(visit, width, scheme):
    page = visit(width, color_scheme=scheme, bypass_csp=True)
    fill(page, Length=30)
    page.get_by_role("button", name="Settings").click()
    page.locator("#write").click()
    status(page, "Written")
    page.mouse.move(0, 0)  # what is pointed at has other colours
    page.wait_for_timeout(500)
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15  # it did look
    assert [
        (each["id"], node["html"]) for each in found["violations"] for node in each["nodes"]
    ] == []


@needs_browser
def test_pictures_of_the_page_are_taken_and_the_folder_stays_as_it_was(space, served, tmp_path):
    from PIL import Image

    before = sorted(path.relative_to(space).as_posix() for path in space.rglob("*"))
    pictures = take_screenshots(space, tmp_path / "pictures")
    assert sorted(path.relative_to(space).as_posix() for path in space.rglob("*")) == before
    assert not [
        child
        for child in psutil.Process().children(recursive=True)
        if "app.py" in " ".join(child.cmdline())
        and str(space) in " ".join(child.cmdline())
        and child.pid != served.process.pid
    ]
    assert [path.name for path in pictures] == ["page.png", "generation.png", "phone.png"]
    for path, width in zip(pictures, (1920, 1920, 780)):
        with Image.open(path) as picture:
            assert (
                picture.width == width
                and picture.height > 1200
                and len(picture.convert("RGB").getcolors(2**24)) > 100
            )


# --- started and stopped ------------------------------------------------------------------------------------------------------------

STUB = """
import http.server, os
print("a line that nobody asked for", flush=True)
if os.path.exists(os.path.join(os.path.dirname(__file__), "broken")):
    raise SystemExit("error: no luck")
http.server.HTTPServer((os.environ["GRADIO_SERVER_NAME"], int(os.environ["GRADIO_SERVER_PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
"""An app that starts in no time."""
SERVE = """
import sys
from pathlib import Path
from gpt2_nb_utils import __main__ as command
from gpt2_nb_utils.space.serve import serve
def _space(args):
    "Serve."
    serve(Path(args.run_dir), args.port)
command._space = _space
sys.exit(command.main(["space", *sys.argv[1:]]))
"""
"""What the command `space --serve` does once the folder is there."""


@pytest.fixture
def stub(tmp_path):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "app.py").write_text(STUB, encoding="utf-8")
    return tmp_path / "stub"


def test_an_occupied_port_a_folder_without_an_app_and_an_app_that_ends_are_one_line_each(
    stub, tmp_path
):
    with serving(stub) as other:
        with (
            pytest.raises(
                UserError,
                match=rf"^port {other.port} is not available \(.*in use\): end the program .* \(--port\)$",
            ),
            serving(stub, other.port),
        ):
            pass
    with (
        pytest.raises(UserError, match=r"holds no app\.py: write the folder with"),
        serving(tmp_path),
    ):
        pass
    (stub / "broken").touch()
    with pytest.raises(UserError, match=r"^the app of .*stub ended: no luck$"), serving(stub):
        pass


def test_an_app_whose_parts_are_missing_says_which_in_a_line(
    app, space, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(app, "HERE", tmp_path)
    for part in ("model", "corpus.txt"):
        assert app.main() == 2
        assert (
            capsys.readouterr().err
            == f"error: {tmp_path / part} is missing: write the folder again\n"
        )
        (tmp_path / part).mkdir()


@pytest.mark.parametrize("port", ["x", "", "0", "65536", "-1", "\u00b2", "1" * 5000])
def test_a_port_that_is_none_is_one_line(app, space, monkeypatch, capsys, port):
    monkeypatch.setattr(app, "HERE", space)
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    assert app.main() == 2
    said = capsys.readouterr().err
    assert (
        re.fullmatch(
            r"error: GRADIO_SERVER_PORT '.*' is no port: set a whole number from 1 to 65,535\n",
            said,
        )
        and len(said) < 150
    )


def test_a_seed_with_spaces_around_it_is_that_seed_and_an_empty_one_is_drawn(app, visitor):
    assert app.Settings(0, 0, 1, 1, " 7 ").seed == 7
    seeds = [
        re.search(r"<dt>Seed</dt><dd>(\d+)</dd>", visitor.ask([PROMPT, *GREEDY, 1, seed])[1])[1]
        for seed in ("", " ", None)
    ]
    assert len(set(seeds)) == 3


def started(stub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(stub), "--port", str(port)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (
        command.stdout.readline()
        == f"http://127.0.0.1:{port} shows the app of {stub}; Ctrl-C ends it\n"
    )
    return command


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_app_and_the_exit_status_tells_it(stub, number):
    command = started(stub)
    (app,) = psutil.Process(command.pid).children()
    command.send_signal(number)
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (128 + number, "interrupted\n")
    assert not app.is_running()


@pytest.mark.slow
def test_while_it_is_served_an_app_that_ends_is_one_line(stub):
    command = started(stub)
    psutil.Process(command.pid).children()[0].kill()
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2 and re.fullmatch(
        rf"error: the app of {re.escape(str(stub))} ended: .+\n", said
    )
