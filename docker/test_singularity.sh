#!/usr/bin/env bash
# Follow singularity.def without Singularity: its %post and %test in a container from the base image of docker/build.sh.
# As root, with buildah.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

section() { docker/section.sh "$1"; }

container=$(buildah from "${1:-localhost/bidsseg-base}")
trap 'buildah rm "$container" > /dev/null' EXIT
section files | while read -r from to; do
    if [[ -n "$from" ]]; then buildah copy --quiet "$container" "$from" "$to" > /dev/null; fi
done
options=()
[[ -n "${PIP_FIND_LINKS:-}" ]] && options+=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro" --env "PIP_FIND_LINKS=$PIP_FIND_LINKS" --env PIP_EXTRA_INDEX_URL=)
[[ -n "${PIP_CERT:-}" ]] && options+=(--volume "$PIP_CERT:/run/pip-cert.pem:ro" --env PIP_CERT=/run/pip-cert.pem)
buildah run "${options[@]}" "$container" -- sh -euc "$(section post)" > /dev/null
buildah run "$container" -- sh -euc "$(section environment)
$(section test)"
echo "singularity.def works"
