"""Paraphrases: is what was forgotten under one wording still known under another?

    Input   theta_u, the labels of D_f, TEMPLATES
    1.  with each template T but the one that the model is asked with: every label's prompt becomes T(name)
    2.  which samples of D_f are recognised, and under which template most of them are

A method that worked on the text side of a network is trained on one wording and may leave the next one alone. The base
beside it shows which wordings it understands in the first place. Nothing is searched for: a prompt made by an attacker
who has the weights can do more.

The first templates are among those of Radford et al., arXiv 2103.00020; the others are ours.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from worker.attacks import CannotAttack, Found, Progress, Recognised, at_most, count_of, counted

if TYPE_CHECKING:
    from worker.families import Family, Samples

TEMPLATES = (
    "a photo of {}",
    "a photo of the {}",
    "a close-up photo of {}",
    "a blurry photo of {}",
    "a drawing of {}",
    "a picture showing {}",
    "an image in which {} can be seen",
    "{}",
    "this is {}",
    "{}, as everybody knows it",
)


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    templates: int = 10,
    measured: int = 200,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    if "captions" not in network.__dict__:
        raise CannotAttack("The network reads no words.")
    module: Any = family
    asked = network.__dict__["captions"]
    forget = at_most(forget, measured, generator)
    forget = forget._replace(y=module.labels_of(network, forget.y))  # of each sample its label's own prompt
    wordings = [asked.prompt, *(template for template in TEMPLATES if template != asked.prompt)][: templates + 1]
    rows: list[dict[str, Any]] = []
    for template in wordings:
        # 1.
        reader = copy.copy(network)  # the same weights, told other texts
        texts = tuple(template.replace("{}", name) for name in asked.names)
        module.caption(reader, asked._replace(texts=texts, labels=tuple(range(len(texts))), prompt=template))
        # 2.
        rows.append({"template": template, **counted(recognised(reader, forget))})
        progress(len(rows), len(wordings))
    worst = max(rows[1:], key=lambda row: row["success"])
    return {
        "before": count_of(rows[0]),
        "after": count_of(worst),
        "rows": rows,
        "budget": {"templates": len(wordings) - 1},
    }
