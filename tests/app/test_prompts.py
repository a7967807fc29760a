"""Files of prompts: I2P's own columns and JSON lines, and what is refused without repeating a prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from app import prompts
from app.catalog import FAMILIES
from app.errors import Refused
from app.recipe import check_evaluation, policy_warnings

I2P = (  # the header of the published file
    "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,prompt_toxicity,"
    "lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
)


def test_i2p_s_own_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "i2p.csv"
    path.write_text(
        "\ufeff" + I2P + '"a street, at night",violence,0,1.0,0,1,0,0.1,https://x,2868457371,7.5,512,512,sd-v1-4\n'
        "tea  for\ttwo,hate,0,1.0,0,1,0,0.1,https://x,,7,512,512,sd-v1-4\n"
    )
    found = prompts.read(path)
    assert found == [
        {"prompt": "a street, at night", "seed": 2868457371, "guidance": 7.5},
        {"prompt": "tea for two", "guidance": 7.0},
    ]
    assert check_evaluation("text_to_image", {"prompts": prompts.named(f"@{path}")})["prompts"] == found
    assert prompts.named("[]") is None


def test_json_lines_and_the_columns_of_later_lists_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "seed": 3},
        {"prompt": "b", "evaluation_seed": 4.0, "evaluation_guidance": "6"},
        {"prompt": "c"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert prompts.read(tmp_path / "list.jsonl") == [
        {"prompt": "a", "seed": 3},
        {"prompt": "b", "seed": 4, "guidance": 6.0},
        {"prompt": "c"},
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "text\nAda Ash\n", "Row 1 has no prompt"),
        ("a.csv", "prompt\n", "holds no prompt"),
        ("a.csv", "prompt,sd_seed\nAda Ash,x\n", "Row 1 holds no number"),
        ("a.csv", "prompt,sd_seed\nAda Ash,1.5\n", "row 1 is no whole number"),
        ("a.csv", "prompt,sd_guidance_scale\nAda Ash,nan\n", "Row 1 holds no number"),
        ("a.csv", 'prompt\n"Ada Ash\n', "It is no CSV"),
        ("a.jsonl", '{"prompt": "Ada Ash"\n', "Line 1 is not JSON"),
        ("a.jsonl", '"Ada Ash"\n', "Row 1 has no prompt"),
        ("a.txt", "Ada Ash", "must end in .csv or .jsonl"),
        ("missing.csv", None, "no text file that can be read"),
    ],
)
def test_a_bad_file_is_refused_without_its_prompts(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(Refused, match=said) as caught:
        prompts.read(tmp_path / name)
    assert caught.value.field == name and caught.value.remedy and "Ada" not in str(vars(caught.value))


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ("Ada Ash", "wrong-type", ""),
        ([{"prompt": "Ada"}] * 10_001, "wrong-type", ""),
        (["Ada Ash"], "wrong-type", "[0]"),
        ([{"prompt": "x"}, {"seed": 1}], "wrong-type", "[1]"),
        ([{"prompt": "x", "Ada": 1}], "wrong-type", "[0]"),
        ([{"prompt": " "}], "wrong-type", "[0].prompt"),
        ([{"prompt": "Ada\0"}], "wrong-type", "[0].prompt"),
        ([{"prompt": "Ada\ud800"}], "wrong-type", "[0].prompt"),
        ([{"prompt": "a" * 1001}], "wrong-type", "[0].prompt"),
        ([{"prompt": "x", "seed": -1}], "out-of-bounds", "[0].seed"),
        ([{"prompt": "x", "seed": 2**32}], "out-of-bounds", "[0].seed"),
        ([{"prompt": "x", "seed": True}], "out-of-bounds", "[0].seed"),
        ([{"prompt": "x", "guidance": 50.5}], "out-of-bounds", "[0].guidance"),
        ([{"prompt": "x", "guidance": float("nan")}], "out-of-bounds", "[0].guidance"),
    ],
)
def test_a_list_out_of_bounds_is_refused_by_its_place(given: Any, code: str, field: str) -> None:
    with pytest.raises(Refused) as caught:
        check_evaluation("text_to_image", {"prompts": given})
    assert (caught.value.code, caught.value.field) == (code, f"evaluation.prompts{field}")
    assert "Ada" not in str(vars(caught.value))


def test_a_threshold_that_so_few_prompts_cannot_show_is_warned_of() -> None:
    policy = {
        "class_label": [
            {"metric": "unlearning_accuracy", "rule": "at_least", "value": 95.0},
            {"metric": "detected_prompts", "rule": "at_most", "value": 5.0},
        ]
    }
    settings = check_evaluation("text_to_image", {"prompts": [{"prompt": "x"}] * 20})
    (warned,) = policy_warnings("text_to_image", policy, settings)
    assert (warned["n"], warned["n_needed"]) == (20, 73) and warned[
        "remedy"
    ] == "Name at least 73 in evaluation.prompts."
    assert policy_warnings("text_to_image", policy, check_evaluation("text_to_image", {})) == []
    assert FAMILIES["text_to_image"].evaluation["prompts"].default == []
