#!/usr/bin/env bash
# Train every shipped model from the data, stage by stage.
#
#   benchmarks/models.sh DATA OUT [MINUTES]
#
# DATA has the folders oasis, heads, ds000011, ds002748 and ms; OUT receives the models. Repeat the command to resume:
# finished stages are skipped, an interrupted stage is resumed. After MINUTES the script stops cleanly, with code 75.
# The locator and wholebrain start from the weights in the package: ship new weights only when all stages are finished.
# SCALE (1) multiplies the time budgets of wholebrain and locator, which are for two CPU cores; on a GPU, .04 is enough.
# DEVICE (auto) is passed to run.py; PYTHON is the interpreter. `benchmarks/ship.py` copies a model into the package:
# OUT/final/models/wholebrainfinal is shipped as wholebrain.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
data=$(realpath "${1:?DATA}") out=$(realpath -m "${2:?OUT}") end=$((SECONDS + 60 * ${3:-1000000}))
python=${PYTHON:-python} scale=${SCALE:-1} device=(--device "${DEVICE:-auto}")
oasis=$data/oasis auto=$out/automatic
manual=BrainCOLOR=$oasis/derivatives/manual fast=FAST=$oasis/derivatives/fast heads=head=$data/heads
mkdir -p "$out/done"

# stage NAME COMMAND...: run the command within the remaining time, unless the stage is finished
stage() {
    local name=$1 status=0
    shift
    [[ ! -e $out/done/$name ]] || return 0
    ((end - SECONDS > 60)) || { echo "time is up before $name: run the same command again"; exit 75; }
    echo "== $name"
    timeout --kill-after=300 $((end - SECONDS - 30)) "$@" &
    trap "kill -TERM $! 2> /dev/null || true; wait $! || true; exit 75" INT TERM
    wait $! || status=$?
    trap - INT TERM
    case $status in
        0) ;;
        75 | 124 | 137) echo "time is up in $name: run the same command again"; exit 75 ;;
        *) echo "$name failed with code $status"; exit "$status" ;;
    esac
    touch "$out/done/$name"
}

minutes() { awk "BEGIN { print $scale * $1 }"; }
run() { stage "$1" "$python" "$here/../run.py" "${@:2}" "${device[@]}"; }
script() { stage "$1" "$python" "$here/$2.py" "${@:3}"; }
# train NAME MINUTES WORDS...: train the recipe of that name, with one fold held out
train() { run "$1" "$oasis" "$out" train --recipe "$1" --folds 5 --time-budget "$(minutes "$2")" --resume "${@:3}"; }
# validate NAME WORDS...: train all folds, then the final model
validate() { run "$1" "$oasis" "$out/$1" train --cross-validate 3 --small --resume "${@:2}"; }

# The locator, wholebrain, and the second run of wholebrain, which is also trained on scans that the first run has
# labelled. Participant 01 of each of these datasets is excluded from training, so that it can be inspected.
train locator 45 --init locator --labels "$manual" "$fast" "$heads"
train wholebrain 80 --init wholebrain --labels "$manual" "$fast" "$heads"
automatic=()
for name in ds002748 ds000011; do
    mkdir -p "$auto/$name/derivatives"
    cp "$data/$name/dataset_description.json" "$auto/$name/"
    ln -sfn "$data/$name"/sub-* "$auto/$name/"
    rm -f "$auto/$name/sub-01"
    run "automatic-$name" "$auto/$name" "$auto/$name/derivatives/bidsseg" participant --skip-bids-validator \
        --model "$out/models/wholebrain"
    for protocol in BrainCOLOR FAST FreeSurfer; do automatic+=("$protocol=$auto/$name/derivatives/bidsseg"); done
done
train wholebrain-finetune 240 --init "$out/models/wholebrain" --also "$auto/ds002748" "$auto/ds000011" "$data/heads" \
    --labels "$manual" "$fast" "$heads" "${automatic[@]}"
cat > "$out/final.toml" << TOML
base = "wholebrain-finetune"
name = "wholebrainfinal"

[optimiser]
rate = 5e-4
kernel_rate = 5e-3
TOML
run wholebrain-final "$oasis" "$out/final" train --recipe "$out/final.toml" --folds 1 --time-budget "$(minutes 85)" \
    --resume --init "$out/models/wholebrainfinetune" --also "$auto/ds002748" "$auto/ds000011" "$data/heads" \
    --labels "$manual" "$fast" "$heads" "${automatic[@]}"
script wholebrain-figures accuracy "$oasis" --labels "$manual" "$fast" "$heads" --folds 5 --fold 0 \
    --model "$out/models/wholebrainfinetune" --final "$out/final/models/wholebrainfinal"

# The model for any use and its locator, from label maps of heads alone.
run openlocator "$data/heads" "$out" train --recipe openlocator --folds 5 --time-budget "$(minutes 150)" --resume --labels "$heads"
run open "$data/heads" "$out" train --recipe open --folds 5 --time-budget "$(minutes 240)" --resume --labels "$heads"

# The five published systems, each evaluated by cross-validation: see docs/results.md.
validate eneuronet --recipe eneuronet --also "$data/heads" --labels "$manual" "$fast" "$heads"

# neuronet is trained on labels of eneuronet: each fold on labels of the same fold.
# on_labels_of WHAT OUTPUT SPLIT...: one training run of neuronet
on_labels_of() {
    run "structures-$1" "$data/ds002748" "$out/structures/$1" participant --skip-bids-validator \
        --model "$out/eneuronet/$2/models/eneuronet"
    run "neuronet-$1" "$oasis" "$out/neuronet/$2" train --recipe neuronet --small --resume --also "$data/ds002748" \
        --labels "FreeSurfer=$out/structures/$1" "$manual" "$fast" "${@:3}"
}
for fold in 0 1 2; do on_labels_of "fold-$fold" "folds/fold-$fold" --folds 3 --fold "$fold"; done
on_labels_of final . --folds 1
script neuronet-figures fold_figures "$out/neuronet" --cases 'oasis/*' --card "$out/neuronet/models/neuronet"

for name in oasis ds002748; do script "atropos-$name" tool_labels "$data/$name" "$out/atropos_$name"; done
cat > "$out/joint.toml" << TOML
base = "partial-joint"
name = "partialjoint"
heads = { BrainCOLOR = 1.0, Atropos = 1.0 }
fading = ["Atropos"]
TOML
validate joint --recipe "$out/joint.toml" --also "$data/ds002748" \
    --labels "$manual" "Atropos=$out/atropos_oasis" "Atropos=$out/atropos_ds002748"
validate partial --recipe partial-joint-finetune --labels "$manual" --init "$out/joint"

# ace: each fold has its own datasets.
for fold in 0 1 2; do
    set=$out/lesions/set$fold
    script "lesions-$fold" lesion_datasets "$data" "$set" "$fold"
    run "ace-$fold" "$set/both" "$out/ace/folds/fold-$fold" train --recipe ace --small --resume --hold-out 'both*' \
        --also "$set/anatomy" "$set/lesions" --labels "FASTlesion=$set/both/derivatives/truth" \
        "FAST=$set/anatomy/derivatives/fast" "lesion=$set/lesions/derivatives/manual"
done
script ace-figures fold_figures "$out/ace" --card "$out/ace/folds/fold-0/models/ace"

# lesions: from the weights of open; those of the folds are trained without the patient that they are evaluated on.
script lesion-patients lesion_patients "$data" "$out/lesions/patients"
made() { echo "$out/lesions/patients/$1/made${2:-}"; }
for set in without-19 without-26 all; do
    patients=$out/lesions/patients/$set/patients
    run "lesions-$set" "$(made $set)" "$out/lesions/$set" train --recipe lesions --init "$out/models/open" --resume \
        --time-budget "$(minutes 200)" --hold-out '[12]?x13' --also "$patients" "$out/lesions/set0/lesions" "$out/lesions/set0/anatomy" \
        --labels "FASTlesion=$(made $set /derivatives/made)" "FreeSurfer=$(made $set /derivatives/made)" \
        "FreeSurfer=$patients/derivatives/made" "FAST=$patients/derivatives/made" "lesion=$patients/derivatives/made" \
        "lesion=$out/lesions/set0/lesions/derivatives/manual" "FAST=$out/lesions/set0/anatomy/derivatives/fast"
done
script lesions-rule lesion_rule "$data/ms" "$data/ms/derivatives/manual" \
    --fold "$out/lesions/without-19/models/lesions" 19 --fold "$out/lesions/without-26/models/lesions" 26

validate segnet --recipe segnet --labels "$manual"
echo "all models are trained, in $out"
