"""Dice of a model on labelled scans, which are segmented as the level ``participant`` segments them.

    python benchmarks/accuracy.py BIDS_DIR --labels PROTOCOL=DERIVATIVES_DIR ... [--also BIDS_DIR] --folds 5 --fold 0
    python benchmarks/accuracy.py BIDS_DIR --labels FASTlesion=DIR --model TISSUE --lesion-model LESION

With --folds, only the participants of that fold are used, which ``train`` held out with the same folds and labels. The
script prints, for each head, the mean over regions, then over the scans of each participant, then over participants
with a bootstrap 95 % interval, the share of wrong voxels inside the reference brain, and the regions with the lowest
Dice, or all regions if there are few. It says which participants are in the training of a model by its card. It writes
one row for each region to --table. With --lesion-model, the lesions of that model replace the tissues (FAST) of
the other model, as in the Multi-UNet baseline of ACE. With --card, the results replace those on the card of the model,
for models that ``train`` also evaluated with labels of another model, which are not the truth. With --final, they are
stored on the card of the model that continues the training on all participants. With --without CSF Chiasm Choroid, what
is printed is about the 31 structures of FreeSurfer of which others report the mean.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidsseg.execution.machine import cpu_precision

if TYPE_CHECKING:
    from bidsseg.models.card import Card

OF_FOLD = "participants held out from the model that this one continues; this one was trained on all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--labels", nargs="+", action="extend", required=True, metavar="PROTOCOL=DIR")
    parser.add_argument("--also", nargs="+", default=[], type=Path, metavar="BIDS_DIR")
    parser.add_argument("--model", default="wholebrain")
    parser.add_argument("--card", action="store_true", help="store the results on the card of the model, a folder")
    parser.add_argument("--final", type=Path, metavar="MODEL_FOLDER", help="store them on the card of the final model")
    parser.add_argument("--lesion-model", help="model whose lesions replace the tissues of --model")
    parser.add_argument("--images-only", action="store_true", help="skip label maps without an image")
    parser.add_argument("--folds", type=int, default=0, help="0: all participants")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--precision", default=cpu_precision(), choices=["bf16", "fp32"], help="[by machine]")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="print means without such regions")
    parser.add_argument("--table", type=Path, help="TSV with one row for each scan, head and region")
    options = parser.parse_args()
    if (options.card or options.final) and not options.folds:
        parser.error("--card, --final: give the --folds and the --fold that the model was trained with")

    from bidsseg.arguments import annotation_folders
    from bidsseg.learning.datasets import find_sources
    from bidsseg.learning.folds import held_out, person
    from bidsseg.learning.prepared import opened_cases
    from bidsseg.learning.training_outputs import figures, metrics
    from bidsseg.learning.validation import described, validate
    from bidsseg.models.card import read_card
    from bidsseg.models.library import load_model, save_card
    from bidsseg.settings import Report, Settings, Training

    labels = annotation_folders(options.labels, [], options.bids_dir)
    settings = Settings(options.bids_dir, Path("never-written"), labels=labels, training=Training(also=options.also))
    model = load_model(options.model)
    lesion_model = load_model(options.lesion_model) if options.lesion_model else None
    models = [model] if lesion_model is None else [model, lesion_model]
    inputs = max((each.card.inputs for each in models), key=len)
    sources = find_sources(settings, Report(), unlabelled=False, synthetic=not options.images_only)
    if options.folds:
        maps = {source.name: source.maps for source in sources}
        held = held_out(maps, options.folds, options.fold, kinds=maps)
        sources = [source for source in sources if person(source.name) in held]
    warn_of_known({person(source.name) for source in sources}, [each.card for each in models])
    cases = opened_cases(sources, inputs, Report())
    started = time.monotonic()
    table = validate(model, cases, print, precision=options.precision, lesion_model=lesion_model)
    print(f"{len(cases)} scans, {(time.monotonic() - started) / len(cases):.1f} s each\n")
    kept = table["region"].map(lambda region: not any(word in region for word in options.without))
    print("\n".join(described(table[kept])))
    if options.card:
        save_card(replace(model.card, metrics=metrics(table, cases)))
    if options.final:
        save_card(replace(read_card(options.final), metrics={"split": OF_FOLD, "heads": figures(table)}))
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, float_format="%.4f")


def warn_of_known(people: set[str], cards: Iterable[Card]) -> None:
    """Print which participants (dataset/sub-LABEL) the models were trained on."""
    from bidsseg.learning.folds import seen_by

    for card in cards:
        if known := seen_by(card, sorted(people))[0]:
            print(f"not held out: {card.name} was trained on {', '.join(known)}")


if __name__ == "__main__":
    main()
