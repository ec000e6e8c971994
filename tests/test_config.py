"""Settings: presets, ranges, names, flags and parameters cells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from gpt2_nb_utils.__main__ import build_parser
from gpt2_nb_utils.config import PRESETS, RunConfig, nearest_name, notebook_default, parameters_cell
from gpt2_nb_utils.errors import UserError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0*.ipynb"))


def parameters_source(path):
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


def test_a_setting_given_by_hand_wins_over_its_preset():
    config = RunConfig.resolve({"preset": "tiny", "steps": 7})
    assert config.steps == 7 and config.n_embd == PRESETS["tiny"]["n_embd"]
    assert config.given == {"preset": "tiny", "steps": 7}


def test_auto_is_sanity_when_the_cpu_is_asked_for():
    assert RunConfig.resolve({"device": "cpu"}).preset == "sanity"


def test_the_sanity_preset_is_the_course_run_of_gpt2_124m():
    config = RunConfig.resolve({"preset": "sanity"})
    assert (config.steps, config.batch_size, config.seq_len) == (30, 4, 128)
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (12, 12, 768, 1024)


def test_a_saved_config_takes_the_place_of_the_preset_and_hands_wins():
    saved = RunConfig.resolve({"preset": "tiny", "lr": 0.5, "steps": 3}).model_dump()
    resumed = RunConfig.resolve({"preset": "full", "steps": 9, "resume": "auto"}, saved=saved)
    assert (resumed.lr, resumed.steps, resumed.preset) == (0.5, 9, "tiny")


# Names of settings in other programs, some of which resemble ours closely enough to be found.
ELSEWHERE = {
    "input_file": "data data_path text_file dataset input",
    "out_dir": "output_dir output run_dir save_dir",
    "max_tokens": "limit_tokens",
    "seed": "random_seed random_state",
    "resume": "resume_from checkpoint ckpt continue",
    "overwrite": "force overwrite_output_dir",
    "block_size": "context_length n_positions n_ctx max_position_embeddings",
    "n_layer": "num_layers layers num_hidden_layers depth",
    "n_head": "num_heads heads num_attention_heads",
    "n_embd": "d_model hidden_size embed_dim embedding_dim width",
    "batch_size": "micro_batch_size bs per_device_train_batch_size",
    "seq_len": "sequence_length max_seq_len window seq_length",
    "grad_accum": "gradient_accumulation_steps accumulation_steps accum_steps",
    "randomize_batches": "shuffle shuffle_batches random_batches",
    "optimizer": "optim",
    "lr": "learning_rate max_lr peak_lr matrix_lr",
    "embedding_lr": "lr_embeddings embed_lr wte_lr",
    "position_lr": "wpe_lr",
    "vector_lr": "scalar_lr norm_lr bias_lr lr_rest",
    "lr_schedule": "scheduler schedule lr_scheduler lr_scheduler_type lr_decay",
    "warmup_steps": "warmup warmup_iters",
    "min_lr_ratio": "min_lr final_lr",
    "decay_share": "cooldown decay_fraction",
    "weight_decay": "wd l2",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "momentum": "muon_momentum",
    "clip_grad": "grad_clip max_grad_norm gradient_clip_val clip",
    "steps": "max_steps num_steps max_iters iterations iters",
    "target_loss": "target stop_loss loss_target threshold",
    "log_every": "log_interval logging_steps",
    "eval_every": "eval_interval eval_steps val_every",
    "eval_windows": "eval_iters eval_batches",
    "save_every": "save_interval save_steps checkpoint_every",
    "sample_every": "sample_interval",
    "prompt": "prompts start sample_prompt",
    "num_prompts": "num_samples n_prompts n_samples",
    "max_new_tokens": "sample_length max_length num_tokens length",
    "top_k": "topk k",
    "temperature": "temp",
    "device": "accelerator gpu",
    "amp": "dtype precision mixed_precision fp16 bf16",
    "compile": "torch_compile",
}


@pytest.mark.parametrize("setting", ELSEWHERE)
def test_the_names_of_other_programs_are_understood(setting):
    names = ELSEWHERE[setting].split()
    assert [nearest_name(name) for name in names] == [setting] * len(names)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("lerning_rate", "lr"),
        ("learning-rate", "lr"),
        ("batchsize", "batch_size"),
        ("n_layers", "n_layer"),
        ("max_iters", "steps"),
        ("gradient_accumulation_steps", "grad_accum"),
        ("stpes", "steps"),
        ("context_length", "block_size"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(name, meant):
    assert nearest_name(name) == meant
    with pytest.raises(UserError, match=f"{name!r}.*{meant!r}"):
        RunConfig.resolve({name: 1})


@pytest.mark.parametrize(
    "given, words",
    [
        (
            {"seq_len": 2048, "block_size": 1024},
            ["seq_len 2048", "block_size 1024", "lower seq_len or raise"],
        ),
        ({"n_embd": 100, "n_head": 12}, ["n_embd 100", "n_head 12", "96"]),
        ({"preset": "huge"}, ["preset", "huge", "tiny", "sanity", "full"]),
        ({"lr_schedule": "step"}, ["lr_schedule", "step", "constant", "linear", "cosine", "wsd"]),
        ({"optimizer": "sgd"}, ["optimizer", "sgd", "adamw"]),
        ({"batch_size": 0}, ["batch_size 0", "greater than 0"]),
        ({"lr": float("nan")}, ["lr nan"]),
        ({"steps": "many"}, ["steps", "many", "integer"]),
        ({"device": "tpu"}, ["device", "tpu", "cpu", "cuda"]),
        ({"max_tokens": 1}, ["max_tokens 1", "3 or more"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(given, words):
    with pytest.raises(UserError) as caught:
        RunConfig.resolve({"preset": "sanity", **given})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [7, 1e5, True, float("nan"), ["x"]])
@pytest.mark.parametrize("name", ["prompt", "out_dir", "input_file", "resume"])
def test_a_number_given_for_a_text_names_the_flag_that_keeps_it(name, value):
    with pytest.raises(UserError, match=f"{name} .* is not text: .*`-r {name} TEXT`"):
        RunConfig.resolve({name: value})


def test_a_path_with_a_tilde_is_one_rule_through_every_door(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    wanted = os.path.join(str(tmp_path), "x")
    given = dict.fromkeys(("input_file", "out_dir", "resume"), "~/x")
    config = RunConfig.resolve(given).model_dump(include={*given})
    assert set(config.values()) == {os.path.expanduser("~/x")} == {wanted}
    assert RunConfig.resolve({"prompt": "~/x"}).prompt == "~/x"
    commands = build_parser()._subparsers._group_actions[0].choices
    paths = [
        (name, action)
        for name, parser in commands.items()
        for action in parser._actions
        if action.metavar in ("DIR", "FILE", "RUN_DIR", "SPEC")
    ]
    assert len(paths) >= 12
    for name, action in paths:
        words = [f"{action.option_strings[0]}=~/x"] if action.option_strings else ["~/x"]
        if name == "sweep" and action.option_strings:
            words += ["spec.toml"]
        assert getattr(build_parser().parse_args([name, *words]), action.dest) == wanted, action


def test_every_setting_is_a_flag_with_the_same_type():
    values = {"str": "x", "int": 3, "float": 0.25, "bool": True}
    for name in RunConfig.model_fields:
        value = values.get(getattr(RunConfig.model_fields[name].annotation, "__name__", ""), "x")
        args = build_parser().parse_args(["train", f"--{name}", str(value).lower()])
        assert getattr(args, name) == value, name
    args = build_parser().parse_args(["train", "--compile", "--no_randomize_batches"])
    assert args.compile is True and args.randomize_batches is False
    assert not hasattr(
        build_parser().parse_args(["train"]), "lr"
    )  # a flag that was not given is not in the result


def test_the_courses_command_is_understood_unchanged():
    command = (
        "train --input_file data/input.txt --out_dir out_sanity --steps 200 --batch_size 4 --seq_len 128 --grad_accum 1 "
        "--lr 3e-4 --log_every 10 --save_every 100 --sample_every 100"
    )
    args = vars(build_parser().parse_args(command.split()))
    config = RunConfig.resolve(
        {name: args[name] for name in args if name in RunConfig.model_fields} | {"device": "cpu"}
    )
    assert (config.steps, config.lr, config.sample_every, config.out_dir, config.n_embd) == (
        200,
        3e-4,
        100,
        "out_sanity",
        768,
    )


def test_help_groups_the_flags_gives_defaults_and_needs_no_torch():
    code = "import sys; from gpt2_nb_utils.__main__ import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for part in (
        "data:",
        "model:",
        "optimisation:",
        "machine:",
        "--lr FLOAT",
        "(default: 1337)",
        "sanity 30",
    ):
        assert part in " ".join(shown.split()), part


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_parameters_cell_is_derived_from_the_config(path):
    source = parameters_source(path)
    names = [line.partition(":")[0] for line in source.splitlines() if not line.startswith("#")]
    assert source == parameters_cell(names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermills_inspector_lists_every_parameter_with_type_default_and_help(path):
    listed = papermill.inspect_notebook(str(path))
    names = [
        line.partition(":")[0]
        for line in parameters_source(path).splitlines()
        if not line.startswith("#")
    ]
    assert list(listed) == names
    for name, parameter in listed.items():
        assert parameter["help"].startswith(
            RunConfig.model_fields[name].description.partition(";")[0][:40]
        )
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool")
        value = eval(parameter["default"])
        assert value == notebook_default(name) and type(value) is type(notebook_default(name))


def test_notebook_03_has_every_setting_as_a_parameter():
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("03")]
    assert set(papermill.inspect_notebook(str(path))) == set(RunConfig.model_fields)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_source_notebook_holds_no_outputs_and_names_the_plain_kernel(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, ("muon", 0.02, 0.005)),
        ({"embedding_lr": 0.006}, ("muon", 0.02, 0.006)),
        ({"optimizer": "muon", "lr": 0.03}, ("muon", 0.03, 0.005)),
        ({"lr": 3e-4}, ("adamw", 3e-4, 0.0)),  # the course's own command, on a GPU
        ({"optimizer": "adamw"}, ("adamw", 3e-4, 0.0)),
    ],
)
def test_rates_that_were_found_for_one_optimizer_are_not_handed_to_another(given, expected):
    config = RunConfig.resolve({"preset": "full", **given})
    assert (config.optimizer, config.lr, config.embedding_lr) == expected
