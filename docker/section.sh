#!/usr/bin/env bash
# Print a section of singularity.def: docker/section.sh test
set -euo pipefail
awk -v name="%$1" '/^%/ { inside = ($1 == name); next } inside' "$(dirname "${BASH_SOURCE[0]}")/../singularity.def"
