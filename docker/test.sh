#!/usr/bin/env bash
# Run the image on scans as a cluster would: docker/test.sh BIDS_DIR PARTICIPANT... (TAG names another image)
#
# Root file system and input read-only, no network, no home, a user that no one knows, only input and output mounted.
# With docker where a daemon answers, else by mounting what docker/build.sh has built with buildah (as root).

set -euo pipefail

bids=$(realpath "$1")
labels=("${@:2}")
tag=${TAG:-bidsseg}
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
out=$(mktemp -d)
user=4242
chown "$user:$user" "$out"

if docker info > /dev/null 2>&1; then
    mapfile -t entrypoint < <(docker inspect --format '{{range .Config.Entrypoint}}{{println .}}{{end}}' "$tag" | sed '/^$/d')
    inside() {
        docker run --rm --read-only --network none --user "$user:$user" --env HOME= --entrypoint "$1" \
            --volume "$bids:/bids:ro" --volume "$out:/out" "$tag" "${@:2}"
    }
    stop() { rm -rf "$out"; }
else
    export STORAGE_DRIVER=vfs
    container=$(buildah from "$tag")
    root=$(buildah mount "$container")
    mkdir -p "$root"/{bids,out}
    mapfile -t settings < <(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | sed '/^$/d')
    mapfile -t entrypoint < <(buildah inspect --format '{{range .OCIv1.Config.Entrypoint}}{{println .}}{{end}}' "$container" | sed '/^$/d')
    inside() {
        bids=$bids out=$out root=$root user=$user unshare --mount --net --pid --ipc --fork bash -euc '
            ip link set lo up 2> /dev/null || true # docker leaves a container without network that much
            mount --bind "$root" "$root"
            mount --bind "$bids" "$root/bids"
            mount -o remount,bind,ro "$root/bids"
            mount --bind "$out" "$root/out"
            mount -t proc proc "$root/proc"
            mount --rbind /dev "$root/dev"
            mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/dev/shm"
            mount -o remount,bind,ro "$root"
            exec chroot --userspec="$user:$user" --groups= "$root" env -i "$@"
        ' bash "${settings[@]}" "$@"
    }
    stop() {
        buildah umount "$container" > /dev/null
        buildah rm "$container" > /dev/null
        rm -rf "$out"
    }
fi
trap stop EXIT
run() { inside "${entrypoint[@]}" "$@"; }
section() { "$here/section.sh" "$1"; }

run --version
inside sh -euc "$(section environment)
$(section test)"
inside sh -euc "$(section environment)
$(section runscript)" runscript --version
run --list-models
run /bids /out participant --participant-label "${labels[@]}" --n-cpus 2 --omp-nthreads 1 # a process for each of two
run /bids /out participant group --participant-label "${labels[0]}"
run --bids-exec-spec > /dev/null

made=$(find "$out" -name "sub-${labels[0]}*_dseg.nii.gz" | head -n 1)
[[ -s "$made" ]] || { echo "no label map"; exit 1; }
[[ $(stat -c %u "$made") == "$user" ]] || { echo "the label map belongs to another user"; exit 1; }
[[ -s "$out/group.html" ]] || { echo "no page of the cohort"; exit 1; }
if run /bids /bids participant 2> /dev/null; then
    echo "an output inside the input was accepted"
    exit 1
fi
du -sh --apparent-size "$out" | cut -f 1
echo "the image works"
