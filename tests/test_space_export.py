"""The export to the Hugging Face format and back, the Space's folder, and everything that may be wrong with either."""

import errno
import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import HOSTILE_TEXT, PROJECT
from hypothesis import example, given
from hypothesis import strategies as st
from shaken_model import shaken
from space_fixture import APP
from test_disk import disk  # noqa: F401
from test_notebooks_out_of_order import session  # noqa: F401

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.space import card, hf_format
from gpt2_nb_utils.space.export import Export
from gpt2_nb_utils.space.folder import FILES, Space, build_space, how_to_publish, how_to_serve
from gpt2_nb_utils.space.hf_format import read_hf, write_hf
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.training.checkpoints import load_model, read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.records import Summary
from gpt2_nb_utils.training.train import train

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
huggingface_hub = pytest.importorskip("huggingface_hub")
safetensors_torch = pytest.importorskip("safetensors.torch")

CONNECT, LOOK_UP = socket.socket.connect, socket.getaddrinfo
SIZES = GPT2Config(block_size=48, n_layer=3, n_head=4, n_embd=32)
RUN = {
    "name": "a run",
    "train_loss": None,
    "target_loss": 0.1,
    "steps": 3,
    "n_params": 1,
    "seq_len": 40,
    "prompt": "All:",
    "corpus": {"name": "input.txt", "source": "input_file", "sha256": "0" * 64, "tokens": 9},
}
CONFIG = RunConfig.resolve(
    {
        "preset": "tiny",
        "block_size": 48,
        "seq_len": RUN["seq_len"],
        "temperature": 0.7,
        "top_k": 30,
        "max_new_tokens": 12,
    }
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever tries to reach another machine fails."""

    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", False
    )  # which would forbid it as well


@pytest.fixture(scope="module")
def model() -> GPT2:
    """A model with opinions: at its initial weights all tokens would be nearly equally likely."""
    return shaken(SIZES, seed=6, embedding=0.15)


@pytest.fixture(scope="module", params=["float32", "float16"])
def exported(request, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_hf(folder, model, request.param, RUN, CONFIG)
    return folder


def theirs(folder: Path):
    """What transformers makes of a folder, computing in fp32."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


# -- parity ----------------------------------------------------------------------------------------------------------------


def test_transformers_computes_our_logits_to_1e_4_and_writes_our_greedy_tokens(exported, model):
    ours, other = read_hf(exported).load_model(), theirs(exported)
    x = torch.randint(50257, (4, SIZES.block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, reference = ours(x), other(x).logits
        assert reference.std() > 0.5
        assert (logits - reference).abs().max() < 1e-4
        if "float32" in exported.name:
            assert (model(x) - reference).abs().max() < 1e-4 and torch.equal(model(x), logits)
    for prompt in x[:, :6]:
        continued = other.generate(
            prompt[None],
            attention_mask=torch.ones(1, 6, dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
        )[0]
        assert len(set(continued.tolist())) > 9
        assert generate(ours, [prompt], 40, temperature=0)[0].tolist() == continued.tolist()


def test_weights_in_float16_are_those_of_the_model_rounded_and_take_half_the_room(exported, model):
    stored = safetensors_torch.load_file(exported / "model.safetensors")
    dtype = hf_format.DTYPES[exported.name[:7]]
    assert stored.keys() == dict(model.named_parameters()).keys()  # the tied head once
    assert all(
        torch.equal(stored[name], parameter.to(dtype))
        for name, parameter in model.named_parameters()
    )
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    assert size < (exported / "model.safetensors").stat().st_size < size + 10_000


def test_transformers_reads_the_sizes_the_run_and_its_number_format_from_the_config(exported):
    config = transformers.AutoConfig.from_pretrained(exported)
    assert (config.n_positions, config.n_layer, config.n_head, config.n_embd) == (48, 3, 4, 32)
    assert config.n_ctx == 48  # llama.cpp's converter reads this one
    assert config.training_run == RUN and config.tie_word_embeddings
    assert str(config.dtype) == f"torch.{exported.name[:7]}"


def test_the_pipeline_of_transformers_writes_our_text_and_draws_as_the_run_did(exported):
    writer = transformers.pipeline("text-generation", model=str(exported), dtype=torch.float32)
    (said,) = writer("All:\nSpeak", do_sample=False, max_new_tokens=20)
    ids = torch.from_numpy(encode("All:\nSpeak"))
    assert said["generated_text"] == decode(
        generate(read_hf(exported).load_model(), [ids], 20, temperature=0)[0].numpy()
    )
    settings = writer.model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.max_new_tokens) == (
        True,
        0.7,
        30,
        12,
    )
    assert settings.eos_token_id is None  # the model knows no end of a text
    assert [len(both) for both in writer(["All:", "Speak, speak."], batch_size=2)] == [1, 1]


def test_a_batch_of_prompts_is_continued_as_each_of_them_alone(exported):
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(exported), theirs(exported)

    def continued(prompts):
        batch = tokenizer(prompts, padding=True, return_tensors="pt")
        rows = model.generate(**batch, do_sample=False, max_new_tokens=12)
        return tokenizer.batch_decode(rows[:, batch["input_ids"].shape[1] :])

    prompts = ["All:", "Speak, speak.", "First Citizen:\nBefore we proceed any further"]
    assert continued(prompts) == [continued([prompt])[0] for prompt in prompts]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_hf(folder, model, "float16", RUN, CONFIG)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_tokenizer_of_transformers_cuts_the_text_as_ours_does_and_knows_the_longest_context(
    tokenizer, text_file
):
    text = text_file.read_text(encoding="utf-8") + HOSTILE_TEXT
    alone = tokenizers.Tokenizer.from_file(str(Path(tokenizer.name_or_path) / "tokenizer.json"))
    assert (
        alone.encode(text).ids == encode(text).tolist()
        and alone.decode(encode(text).tolist()) == text
    )
    assert tokenizer(text)["input_ids"] == encode(text).tolist()
    assert tokenizer.decode(encode(text).tolist()) == text
    assert tokenizer.model_max_length == RUN["seq_len"]
    padded = tokenizer("All:", padding="max_length", max_length=4)["input_ids"]
    assert padded == [50256, 50256, 3237, 25]


@given(st.text() | st.text(" \n\t\r'aé♞\x00"))
@example("  a  b \n\n c's 'll 123 ½ 中文 🎭")
def test_the_tokenizer_of_transformers_cuts_any_text_as_ours_does(tokenizer, text):
    assert tokenizer(text)["input_ids"] == encode(text).tolist()


# -- what a run gives --------------------------------------------------------------------------------------------------------

NAME = "=1+1 <img src=x onerror=alert(6)> `|`.txt" if os.name != "nt" else "=1+1 `.txt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file) -> RunDirectory:
    """A run of two steps on a hostile text with a hostile name and prompt. Leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / NAME).write_text(
        HOSTILE_TEXT + text_file.read_text(encoding="utf-8"), encoding="utf-8", newline="\n"
    )
    train(
        RunConfig.resolve(
            {
                "preset": "tiny",
                "input_file": str(folder / NAME),
                "out_dir": str(folder / "run ---\n# <b>"),
                "device": "cpu",
                "n_embd": 8,
                "max_tokens": 512,
                "steps": 2,
                "eval_every": 2,
                "sample_every": 0,
                "seq_len": 32,
                "max_new_tokens": 8,
                "prompt": HOSTILE_TEXT,
            }
        )
    )
    return RunDirectory(folder / "run ---\n# <b>")


@pytest.fixture(scope="module")
def space(trained, tmp_path_factory) -> Space:
    """Its Space. Leave it as it is."""
    return build_space(trained.path, tmp_path_factory.mktemp("space") / "space")


@pytest.fixture
def run(trained, tmp_path) -> RunDirectory:
    """The run, to be changed."""
    shutil.copytree(trained.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def complaint(capsys, *words) -> str:
    """The one line in which a command refuses."""
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert (
        said.out == ""
        and said.err.count("\n") == 1
        and said.err.startswith("error: ")
        and said.err[:-1].isprintable()
    ), said.err
    return said.err


def test_the_folder_holds_the_app_the_text_the_model_and_nothing_else(space, trained):
    content = files(space.folder)
    assert set(content) == set(FILES) and space.n_bytes == sum(map(len, content.values()))
    app = Path(card.__file__).parent / "app"
    assert (
        content["app.py"] == (app / "app.py").read_bytes()
        and content["requirements.txt"] == (app / "requirements.txt").read_bytes()
    )
    settings = json.loads(content["model/config.json"])
    told, best = settings["training_run"], read_checkpoint(trained.best)
    assert told["corpus"] == {
        "name": NAME,
        "source": "input_file",
        "sha256": hashlib.sha256(content["corpus.txt"]).hexdigest(),
        "tokens": 512,
    }
    assert (
        encode(content["corpus.txt"].decode("utf-8")).tolist()[:510] == best_text_ids(trained)[:510]
    )  # an excerpt may end within a letter
    assert (told["name"], told["steps"], told["seq_len"], told["prompt"]) == (
        "run ---\\n# <b>",
        2,
        32,
        HOSTILE_TEXT,
    )
    assert (
        told["train_loss"] == best["state"]["best_train_loss"]
        and told["n_params"] == load_model(trained.best).n_params
    )
    assert settings["dtype"] == "float16" == space.dtype


def best_text_ids(run: RunDirectory) -> list[int]:
    text = Path(run.read_json(run.config)["input_file"]).read_text(encoding="utf-8")
    return encode(text)[:512].tolist()


def test_a_loss_that_was_estimated_only_is_no_training_loss_of_the_export(run, tmp_path):
    best = read_checkpoint(run.best)
    best["state"].update(train_loss_windows=16, best_train_loss_windows=16)
    save_checkpoint(run.best, best)
    space = build_space(run.path, tmp_path / "space")
    assert (
        json.loads((space.model / "config.json").read_text(encoding="utf-8"))["training_run"][
            "train_loss"
        ]
        is None
    )
    assert "estimated on 16 windows" in (space.model / "README.md").read_text(encoding="utf-8")


def test_the_header_of_the_space_is_what_hugging_face_asks_for_whatever_the_run_is_called(space):
    header = huggingface_hub.SpaceCard.load(space.folder / "README.md").data.to_dict()
    pins = dict(
        line.split("==")
        for line in (space.folder / "requirements.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    assert header["sdk"] == "gradio" and header["sdk_version"] == pins["gradio"]
    assert (space.folder / header["app_file"]).is_file() and re.fullmatch(
        r"3\.\d+", header["python_version"]
    )
    assert {header["colorFrom"], header["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert 0 < len(header["short_description"]) <= 60 and header["title"].startswith("GPT-2")
    assert set(header) == {
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk",
        "sdk_version",
        "python_version",
        "app_file",
        "suggested_hardware",
        "pinned",
        "short_description",
    }


def test_the_model_card_says_what_the_run_was_and_names_no_folder_of_its_machine(space, trained):
    text = (space.model / "README.md").read_text(encoding="utf-8")
    header = huggingface_hub.ModelCard(text).data.to_dict()
    assert (header["library_name"], header["pipeline_tag"]) == (
        "transformers",
        "text-generation",
    ) and "language" not in header
    loss = json.loads((space.model / "config.json").read_text(encoding="utf-8"))["training_run"][
        "train_loss"
    ]
    for said in (
        f"{loss:.4f} (measured on the whole excerpt of 512 tokens), at step 2; measured by the run, in fp32, before the weights were rounded to float16",
        "Epochs of the whole run",
        "which these weights are not known to have reached",
        "Course target not reached",
        "512 tokens",
        "trained to memorise",
        "licence is not recorded",
        hashlib.sha256((space.folder / "corpus.txt").read_bytes()).hexdigest(),
        "windows of 32",
    ):
        assert said in text, said
    for name in FILES:
        assert str(trained.path.parent).encode() not in (space.folder / name).read_bytes(), name


def test_hostile_names_and_prompts_stay_text_in_both_readmes(space):
    for path in (space.model / "README.md", space.folder / "README.md"):
        text = path.read_text(encoding="utf-8")
        outside = re.sub(r"^```python\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"<(?!\|)[a-z/!]", outside) and not (set(text) - {"\n"}) & set(
            map(chr, range(32))
        )
        assert text.count("\n---\n") == 1
    card_text = (space.model / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card_text, flags=re.DOTALL | re.MULTILINE)
    compile(code, "card", "exec")


def made_up(
    config: RunConfig, summary: dict, train_loss: float | None = None, source: str = ""
) -> str:
    """The model card of a run with these records."""
    run = Record(RunDirectory("run"), Summary.model_validate(summary), config)
    corpus = {**RUN["corpus"], "source": source}
    return card.model_card(
        Export(run, {**RUN, "train_loss": train_loss, "corpus": corpus}, "float32")
    )


def test_the_course_file_and_the_demonstration_text_have_their_licences():
    rendered = {
        kind: made_up(RunConfig.resolve({"preset": "tiny"}), {"corpus": corpus}, source=kind)
        for kind, corpus in {"input_file": {"is_course_input": True}, "demo": {}}.items()
    }
    for text in rendered.values():
        assert huggingface_hub.ModelCard(text).data.language == "en"
    assert "public domain" in rendered["input_file"]
    assert "Python Software Foundation" in rendered["demo"]


def test_the_model_card_says_all_that_repeating_the_run_takes_and_that_the_target_was_reached_only_where_it_was():
    full = RunConfig.resolve({"preset": "full"})
    adamw = RunConfig.resolve({"preset": "tiny", "optimizer": "adamw", "clip_grad": 0})
    summary = {"amp": "bf16", "best_train_loss": 0.09}
    cards = [made_up(full, summary, 0.09), made_up(adamw, summary)]
    assert (
        f"momentum {full.momentum:g}" in cards[0]
        and f"over the last {full.decay_share:.3g} of them" in cards[0]
        and "in bf16" in cards[0]
    )
    assert f"at most {full.steps:,} steps" in cards[0] and "were rounded to" not in cards[0]
    assert (
        "momentum" not in cards[1]
        and "betas 0.9 and 0.95" in cards[1]
        and "not clipped" in cards[1]
    )
    assert ["and these weights reached it" in text for text in cards] == [True, False]


# -- and back ----------------------------------------------------------------------------------------------------------------


def test_sample_from_hf_writes_what_sample_of_the_run_writes(trained, tmp_path, capsys):
    folder = tmp_path / "space"
    assert main(["space", str(trained), f"--to={folder}", "--dtype=float32"]) == 0
    told = capsys.readouterr().out
    assert str(folder) in told and "float32" in told and "hf upload" in told
    for flags in (
        ["--seed=3"],
        ["--seed=3", "--prompt=All:", "--temperature=0", "--max_new_tokens=60", "--num_prompts=2"],
    ):
        texts = []
        for source in ([str(trained)], [f"--from_hf={folder}"], [f"--from_hf={folder / 'model'}"]):
            assert main(["sample", *source, *flags]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] == texts[2] and len(texts[0]) > 10


def test_a_model_that_transformers_saved_again_comes_back_the_same(exported, tmp_path):
    theirs(exported).save_pretrained(tmp_path)
    ours, again = (
        read_hf(exported).load_model().state_dict(),
        read_hf(tmp_path).load_model().state_dict(),
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())


def test_two_models_at_once_are_refused(trained, space, capsys):
    assert "give one of them" in complaint(capsys, "sample", trained, f"--from_hf={space.folder}")


EXECUTED = Path(tempfile.gettempdir()) / f"executed-by-a-pickle-{os.getpid()}"


class Evil:
    def __reduce__(self):
        return open, (str(EXECUTED), "w")


def changed(path: Path, **values) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value != "gone"}),
        encoding="utf-8",
    )


def retensored(folder: Path, **tensors) -> None:
    path = folder / "model.safetensors"
    content = {
        **safetensors_torch.load_file(path),
        **{name.replace("__", "."): tensor for name, tensor in tensors.items()},
    }
    path.write_bytes(
        safetensors_torch.save(
            {name: tensor for name, tensor in content.items() if tensor is not None}
        )
    )


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def with_config(**values):
    return "config.json", lambda folder: changed(folder / "config.json", **values)


def with_bytes(content: bytes):
    return "config.json", lambda folder: (folder / "config.json").write_bytes(content)


def with_tensors(**tensors):
    return "model.safetensors", lambda folder: retensored(folder, **tensors)


def a_folder_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


BAD = {
    "no folder": ("config.json", shutil.rmtree),
    "empty": ("config.json", lambda folder: [path.unlink() for path in folder.iterdir()]),
    "another architecture": with_config(model_type="llama"),
    "no architecture": with_config(model_type="gone"),
    "another activation": with_config(activation_function="relu"),
    "scaled by layer": with_config(scale_attn_by_inverse_layer_idx=True),
    "another vocabulary": with_config(vocab_size=99),
    "heads": with_config(n_head=5),
    "a size that is text": with_config(n_embd="32"),
    "a billion layers": with_config(n_layer=10**9),
    "a context of text": with_config(training_run={"seq_len": "x"}),
    "a list": with_bytes(b"[1]"),
    "deep": with_bytes(b"[" * 200_000),
    "no text": with_bytes(b"\xff\xfe\x00"),
    "huge": with_bytes(b" " * 2_000_000),
    "infinite temperature": (
        "generation_config.json",
        lambda folder: changed(folder / "generation_config.json", temperature=float("inf")),
    ),
    "wider than its weights": (
        "model.safetensors",
        lambda folder: changed(folder / "config.json", n_embd=2**20),
    ),
    "a pickle": ("model.safetensors", as_pickle),
    "a pickle by another name": (
        "model.safetensors",
        lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Evil())),
    ),
    "no weights": (
        "model.safetensors",
        lambda folder: (folder / "model.safetensors").unlink(),
    ),
    "cut short": (
        "model.safetensors",
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
    ),
    "a folder for weights": ("model.safetensors", a_folder_for_weights),
    "a tensor less": with_tensors(transformer__ln_f__bias=None),
    "a tensor more": with_tensors(more=torch.zeros(2)),
    "another shape": with_tensors(transformer__wpe__weight=torch.zeros(32, 48)),
    "bare names": with_tensors(transformer__wte__weight=None, wte__weight=torch.zeros(50257, 32)),
    "not a number": with_tensors(
        transformer__ln_f__weight=torch.full((32,), float("nan"), dtype=torch.float16)
    ),
    "infinite": with_tensors(transformer__wpe__weight=torch.full((48, 32), float("-inf"))),
    "whole numbers": with_tensors(transformer__ln_f__bias=torch.zeros(32, dtype=torch.int32)),
}


@pytest.mark.parametrize("fault", BAD)
def test_whatever_is_wrong_with_a_folder_one_line_names_the_file(fault, model, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    write_hf(folder, model, "float16", RUN, CONFIG)
    file, spoil = BAD[fault]
    spoil(folder)
    said = complaint(
        capsys, "sample", f"--from_hf={folder}", "--max_new_tokens=2", "--temperature=0"
    )
    assert str(folder / file) in said and "name a folder that the command `space`" in said
    assert len(said) < len(str(folder)) + 600 and not EXECUTED.exists()


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "\0", ""])
def test_a_name_that_no_folder_can_have_is_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint(capsys, "sample", f"--from_hf={name}")


def test_code_that_a_config_names_is_not_run_and_a_pipe_is_not_waited_for(model, tmp_path, capsys):
    write_hf(tmp_path, model, "float16", RUN, CONFIG)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    changed(
        tmp_path / "config.json",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    assert (
        main(["sample", f"--from_hf={tmp_path}", "--max_new_tokens=2"]) == 0
        and not (tmp_path / "ran").exists()
    )
    capsys.readouterr()
    if hasattr(os, "mkfifo"):
        (tmp_path / "config.json").unlink()
        os.mkfifo(tmp_path / "config.json")
        assert "config.json cannot be used (there is no such file)" in complaint(
            capsys, "sample", f"--from_hf={tmp_path}"
        )


@given(
    config=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(
                [
                    "model_type",
                    "n_embd",
                    "n_layer",
                    "n_head",
                    "n_positions",
                    "vocab_size",
                    "training_run",
                    "seq_len",
                    "prompt",
                    "corpus",
                ]
            ),
            inner,
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    weights=st.binary(max_size=60),
)
@example(
    config=b'{"model_type": "gpt2"}', weights=b"\x10\x00\x00\x00\x00\x00\x00\x00{}              "
)
def test_any_bytes_in_a_folder_are_refused_in_a_line(tmp_path_factory, config, weights):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError):
        read_hf(folder).load_model()


@pytest.mark.parametrize(
    "value, dtype, words",
    [
        (
            70_000.0,
            "float16",
            "are not finite in float16, whose numbers end at 65504: use --dtype float32",
        ),
        (70_000.0, "float32", None),
        (float("nan"), "float16", "are not finite"),
        (float("inf"), "float32", "are not finite"),
    ],
)
def test_weights_that_a_number_format_cannot_hold_are_refused(
    run, tmp_path, capsys, value, dtype, words
):
    best = read_checkpoint(run.best)
    best["model"]["transformer.h.1.mlp.c_fc.bias"][3] = value
    save_checkpoint(run.best, best)
    given = ("space", run, f"--to={tmp_path / 'space'}", f"--dtype={dtype}")
    if words is None:
        assert main([str(word) for word in given]) == 0
    else:
        assert words in complaint(capsys, *given) and not (tmp_path / "space").exists()


# -- bad input of `space` ------------------------------------------------------------------------------------------------------


def forged(run: RunDirectory, **parts) -> None:
    save_checkpoint(run.best, {**read_checkpoint(run.best), **parts})


def without_its_text(run: RunDirectory) -> None:
    gone = str(run.path / "gone.txt")
    changed(run.config, input_file=gone)
    summary = run.read_summary()
    changed(run.summary, corpus={**summary["corpus"], "path": gone, "sha256": "1" * 64})
    forged(run, corpus_sha256="1" * 64)


BAD_RUNS = {
    "no run": (lambda run: shutil.rmtree(run.path), "holds no run (summary.json is missing)"),
    "no best model": (lambda run: run.best.unlink(), "has no checkpoints/best.pt"),
    "cut short": (lambda run: os.truncate(run.best, 20_000), "is damaged (cut short)"),
    "a pickle": (
        lambda run: run.best.write_bytes(pickle.dumps(Evil())),
        "is not a checkpoint of this program",
    ),
    "of another program": (
        lambda run: torch.save({"state_dict": {}}, run.best),
        "is not a checkpoint of this program",
    ),
    "newer": (
        lambda run: torch.save({**read_checkpoint(run.best), "format": 99}, run.best),
        "has format 99, newer than format 2",
    ),
    "other weights": (
        lambda run: forged(run, model={"a": torch.zeros(3)}),
        "holds what no run writes (the checkpoint's weights do not fit its model sizes",
    ),
    "other sizes": (
        lambda run: forged(run, config={**read_checkpoint(run.best)["config"], "n_head": 4}),
        "holds what no run writes (other sizes in its weights than in its settings)",
    ),
    "no settings": (
        lambda run: forged(run, config={"steps": -1}),
        "holds what no run writes (steps -1",
    ),
    "a forged state": (
        lambda run: forged(run, state={**read_checkpoint(run.best)["state"], "step": -5}),
        "holds what no run writes (a loss or a step that cannot be right)",
    ),
    "no state": (lambda run: forged(run, state=3), "holds what no run writes ("),
    "of another text": (
        lambda run: forged(run, corpus_sha256="1" * 64),
        "holds what no run writes (the sha256 of another text",
    ),
    "without its text": (without_its_text, "the Space needs it, to tell memory from composition"),
}


@pytest.mark.parametrize("fault", BAD_RUNS)
def test_a_run_without_a_sound_best_model_is_one_line_and_writes_nothing(fault, run, capsys):
    spoil, words = BAD_RUNS[fault]
    spoil(run)
    before = files(run.path) if run.path.exists() else {}
    assert words in complaint(capsys, "space", run)
    assert (files(run.path) if run.path.exists() else {}) == before and not EXECUTED.exists()


def another_export(folder: Path) -> None:
    (folder / "app.py").write_text("# my own", encoding="utf-8")


def a_stranger_in_it(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("mine", encoding="utf-8")


def somebodys_project(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "README.md").write_text("mine", encoding="utf-8")
    (folder / "app.py").write_text("mine", encoding="utf-8")


def an_empty_folder_in_it(folder: Path) -> None:
    (folder / "notes").mkdir()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine", encoding="utf-8")


@pytest.mark.parametrize(
    "state, words, overwritten",
    [
        (another_export, "holds another export (app.py", True),
        (a_stranger_in_it, "holds .git, which this command did not write", False),
        (an_empty_folder_in_it, "holds notes, which this command did not write", False),
        (somebodys_project, "no Space that this command wrote", False),
        (a_file, "is a file", False),
    ],
)
def test_a_folder_that_is_there_is_never_overwritten_but_another_export_where_that_is_asked_for(
    space, trained, tmp_path, capsys, state, words, overwritten
):
    folder = tmp_path / "space"
    shutil.copytree(space.folder, folder)
    state(folder)
    before = files(tmp_path)
    assert (
        words in complaint(capsys, "space", trained, f"--to={folder}") and files(tmp_path) == before
    )
    if overwritten:
        assert main(["space", str(trained), f"--to={folder}", "--overwrite"]) == 0 and files(
            folder
        ) == files(space.folder)
    else:
        assert (
            words in complaint(capsys, "space", trained, f"--to={folder}", "--overwrite")
            and files(tmp_path) == before
        )


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_in_the_folder_is_not_followed_and_one_to_it_is(space, trained, tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert main(["space", str(trained), f"--to={tmp_path / 'link'}"]) == 0
    assert (tmp_path / "link").is_symlink() and files(tmp_path / "kept") == files(space.folder)
    (tmp_path / "kept" / "corpus.txt").unlink()
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "kept" / "corpus.txt").symlink_to(tmp_path / "precious.txt")
    capsys.readouterr()
    assert "holds corpus.txt, which this command did not write" in complaint(
        capsys, "space", trained, f"--to={tmp_path / 'kept'}", "--overwrite"
    )
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "mine"


def test_a_place_inside_an_export_a_file_for_a_run_and_a_folder_that_nobody_may_make_are_one_line(
    space, run, tmp_path, capsys
):
    shutil.copytree(space.folder, run.path / "space")
    before = files(run.path)
    for inside in ("space/model/x", "space/x"):
        assert f"is inside the Space's folder {run.path.resolve() / 'space'}" in complaint(
            capsys, "space", run, f"--to={run.path / inside}"
        )
    assert files(run.path) == before
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert f"{tmp_path / 'file'} holds no run" in complaint(capsys, "space", tmp_path / "file")
    if Path("/proc/self").exists():
        said = complaint(capsys, "space", run, "--to=/proc/x")
        assert "/proc/x cannot be written" in said and "another process" not in said


def test_what_is_to_be_typed_takes_a_path_with_spaces_and_quotes_as_one_word():
    path = Path("out/it's my run")
    line = how_to_serve(path)
    if os.name != "nt":
        assert shlex.split(line) == ["python", "-m", "gpt2_nb_utils", "space", str(path), "--serve"]
        assert shlex.split(how_to_publish(path)[-1])[3] == str(path)
    assert how_to_serve(Path("run")) == "python -m gpt2_nb_utils space run --serve"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_to_itself_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert (
        "--to" in complaint(capsys, "space", trained, f"--to={tmp_path / 'loop'}")
        and (tmp_path / "loop").is_symlink()
    )


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    trained, tmp_path, capsys, monkeypatch
):
    def locked(path):  # not by chmod, for root may list whatever it wants
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    folder, scandir = tmp_path / "locked", os.scandir
    folder.mkdir()
    (folder / "README.md").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(os, "scandir", locked)
    said = complaint(capsys, "space", trained, f"--to={folder}", "--overwrite")
    monkeypatch.undo()
    assert "Permission denied" in said and files(folder) == {"README.md": b"mine"}


def test_the_space_installs_what_is_tested():
    def asked(path):
        return {
            line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()
        }

    pins = asked(APP / "requirements.txt")
    assert all("==" in pin for pin in pins) and pins <= asked(PROJECT / "requirements.txt")
    assert {pin.split("==")[0] for pin in pins} >= {
        "gradio",
        "torch",
        "transformers",
        "safetensors",
    }


def test_the_same_export_again_changes_nothing_and_its_default_place_is_in_the_run(run, capsys):
    assert main(["space", str(run)]) == 0
    stamps = {path: path.stat().st_mtime_ns for path in (run.path / "space").rglob("*")}
    assert len(stamps) == len(FILES) + 1
    assert main(["space", str(run)]) == 0 and "was there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run.path / "space").rglob("*")} == stamps
    assert not list(run.path.glob(".space.*"))


SLOW = """
import os, sys, time
from gpt2_nb_utils.__main__ import main
replace = os.replace
def hang(source, target):
    if int(sys.argv[1]) and os.path.basename(target) == "space":
        print("there", flush=True)
        time.sleep(600)
    replace(source, target)
os.replace = hang
write_bytes = type(__import__("pathlib").Path()).write_bytes
def half(path, content):
    if not int(sys.argv[1]) and path.name == "model.safetensors":
        write_bytes(path, content[:len(content) // 2])
        print("there", flush=True)
        time.sleep(600)
    return write_bytes(path, content)
type(__import__("pathlib").Path()).write_bytes = half
main(["space", *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [0, 1]
)  # in the midst of the weights; all written, the folder before out of the way, not renamed yet
def test_a_kill_leaves_no_folder_that_looks_whole_and_the_next_export_clears_up(
    trained, tmp_path, moment
):
    folder = tmp_path / "space"
    if moment:
        build_space(trained.path, folder, dtype="float32")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(moment), str(trained), f"--to={folder}", "--overwrite"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "there\n"
    with pytest.raises(UserError, match="another process is writing this folder"):
        build_space(trained.path, folder, overwrite=True)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait(timeout=60)
    process.stdout.close()
    assert not folder.exists() and (tmp_path / ".space.unfinished").is_dir()
    assert build_space(trained.path, folder).written and set(files(folder)) == set(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["space"]


def test_a_full_disk_is_one_line_and_the_export_before_stays(space, trained, disk, capsys):  # noqa: F811
    small = disk(f"{space.n_bytes + 1_000_000}")
    folder = small.path / "space"
    build_space(trained.path, folder)
    assert "No space left on device" in (
        said := complaint(
            capsys, "space", trained, f"--to={folder}", "--dtype=float32", "--overwrite"
        )
    )
    assert (
        "--to" in said
        and files(folder) == files(space.folder)
        and [path.name for path in small.path.iterdir()] == ["space"]
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--port=0", "--serve"], "'0' is not a port"),
        (["--port=x", "--serve"], "'x' is not a port"),
        (["--port=7860"], "add --serve"),
        (["--dtype=int8"], "invalid choice: 'int8'"),
        ([f"--to={'a' * 300}"], "cannot be written"),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line(run, capsys, flags, words):
    assert words in complaint(capsys, "space", run, *flags) and not (run.path / "space").exists()


def test_without_the_packages_of_hugging_face_the_commands_say_which_is_missing(
    run, exported, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert (
        "needs the package tokenizers, which is not installed: pip install tokenizers"
        in complaint(capsys, "space", run)
    )
    assert not (run.path / "space").exists()
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "needs the package safetensors" in complaint(capsys, "sample", f"--from_hf={exported}")
    assert main(["sample", str(run), "--max_new_tokens=2"]) == 0


# -- notebook 05 -------------------------------------------------------------------------------------------------------------


def code_cells(notebook) -> list[str]:
    return [id for id, cell in notebook.cells.items() if cell.cell_type == "code"]


def test_notebook_05_exports_agrees_with_transformers_and_starts_the_app_for_a_moment(
    session,  # noqa: F811
    run,
    monkeypatch,
):
    pytest.importorskip("gradio")
    monkeypatch.delenv("GPT2_NB_UTILS_NO_APP")
    monkeypatch.setattr(socket.socket, "connect", CONNECT)  # to the kernel and to the app
    monkeypatch.setattr(socket, "getaddrinfo", LOOK_UP)
    notebook = session("05_space", out_dir=str(run))
    assert notebook.errors(*code_cells(notebook)) == []
    assert not [
        output
        for cell in notebook.cells.values()
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    assert notebook.cells["parity"].outputs[0].text == "Both libraries agree.\n"
    assert re.search(
        r"answered at http://127\.0\.0\.1:\d+/? with status 200 and a page of [\d,]+ bytes, “A GPT-2 ",
        notebook.cells["app"].outputs[1].data["text/html"],
    )
    assert notebook.cells["app"].outputs[0].text == f"python -m gpt2_nb_utils space {run} --serve\n"
    assert (run.path / "space" / "app.py").is_file() and "hf upload" in notebook.run("publish")


def test_notebook_05_says_in_a_line_what_is_not_there_and_runs_to_its_end(
    session,  # noqa: F811
    run,
    monkeypatch,
):
    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    monkeypatch.setattr(socket, "getaddrinfo", LOOK_UP)
    monkeypatch.delenv("GPT2_NB_UTILS_NO_APP")
    notebook = session("05_space", out_dir=str(run))
    notebook.cells[
        "start"
    ].source += "\nimport sys\nsys.modules['transformers'] = sys.modules['gradio'] = None"
    assert notebook.errors(*code_cells(notebook)) == []
    assert (
        "needs the package transformers, which is not installed: pip install transformers"
        in notebook.cells["parity"].outputs[0].data["text/html"]
    )
    assert (
        "The app was not started: " in (said := notebook.cells["app"].outputs[-1].data["text/html"])
        and "gradio" in said
    )
    run.best.unlink()
    assert notebook.errors(*code_cells(notebook)[3:]) == []
    assert "has no checkpoints/best.pt" in notebook.cells["export"].outputs[0].data["text/html"]
