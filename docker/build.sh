#!/usr/bin/env bash
# Build the image: docker/build.sh [TAG] [VARIANT]
#
# With docker where a daemon answers, else with buildah (Debian: apt-get install buildah), which needs no daemon. BASE
# names the base image; where it cannot be fetched from a registry it is made by debootstrap. pip's own settings
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT) count in the build too.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tag=${1:-bidsseg}
variant=${2:-cpu}
base=${BASE:-docker.io/library/debian:bookworm-slim}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' bidsseg/__init__.py)
arguments=(
    --tag "$tag"
    --build-arg "VARIANT=$variant"
    --build-arg "VERSION=$version"
    --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)"
    --build-arg "CREATED=$(date --utc +%Y-%m-%dT%H:%M:%SZ)"
)
[[ "$variant" == cpu ]] && arguments+=(--tag "bidsseg:$version") # which boutiques/ names
[[ "$variant" == cuda ]] && arguments+=(--build-arg PIP_EXTRA_INDEX_URL=)
# Wheels of one's own take the place of the index of builds for processors.
[[ -n "${PIP_FIND_LINKS:-}" ]] && export PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL:-}
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS; do
    [[ -v $name ]] && arguments+=(--build-arg "$name=${!name}")
done

if docker info > /dev/null 2>&1; then
    exec docker build --build-arg "BASE=$base" "${arguments[@]}" .
fi
command -v buildah > /dev/null || { echo "neither a docker daemon nor buildah: apt-get install buildah"; exit 1; }
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
if ! buildah pull --quiet "$base" > /dev/null 2>&1; then
    base=localhost/bidsseg-base
    if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
        echo "no registry can be reached: making the base with debootstrap"
        root=$(mktemp -d)
        trap 'rm -rf "$root"' EXIT
        debootstrap --variant=minbase bookworm "$root" > /dev/null
        rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$root" / > /dev/null
        buildah config --cmd bash "$container"
        buildah commit --quiet --rm "$container" "$base" > /dev/null
    fi
fi
for place in ${PIP_FIND_LINKS:-}; do
    [[ -d "$place" ]] && arguments+=(--volume "$place:$place:ro")
done
if [[ -n "${PIP_CERT:-}" ]]; then
    arguments+=(--build-arg PIP_CERT=/run/pip-cert.pem --volume "$PIP_CERT:/run/pip-cert.pem:ro")
fi
buildah build --build-arg "BASE=$base" "${arguments[@]}" .
