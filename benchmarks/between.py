"""Write the model whose weights lie on the line between those of two models.

    python benchmarks/between.py MODEL START SHARE OUT

Weights that MODEL and START share are moved by SHARE of the way from MODEL (0) to START (1), the model from which the
training of MODEL had started; the others, such as those of further heads, are those of MODEL. A second image that START
does not read has the weights 0 there. OUT receives weights and card, without the figures of MODEL and with ``moved`` in
the recipe. (Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903, section 3.)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bidsseg.learning.loop import copied, update
from bidsseg.learning.training import start_from
from bidsseg.models.library import load_model, save_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder")
    parser.add_argument("start", help="name or folder")
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    model, start = load_model(options.model), load_model(options.start)
    moved = copied(model.network.state_dict())
    count = start_from(model.network, start, model.card.inputs, heads=list(model.heads.values()))
    update(moved, model.network, 1 - options.share)
    options.out.mkdir(parents=True, exist_ok=True)
    towards = {"towards": start.card.name, "sha256": start.card.sha256, "share": options.share}
    card = replace(model.card, recipe={**model.card.recipe, "moved": towards}, metrics={})
    save_model(card, moved, options.out)
    print(f"{options.out}: {count} of {len(moved)} tensors moved")


if __name__ == "__main__":
    main()
