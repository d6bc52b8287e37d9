#!/bin/sh
# Install into /opt/bidsseg, from the source tree that holds this file. Used by Dockerfile and singularity.def.
#
#   install.sh python               Python, where there is none (Debian)
#   install.sh packages cpu|cuda    what bidsseg needs, pinned and with checksums
#   install.sh bidsseg              bidsseg itself, and templates if TemplateFlow's store can be reached; then what no
#                                   run needs is removed

set -eu
here=$(cd "$(dirname "$0")" && pwd)
pip="/opt/bidsseg/bin/python -m pip install --no-cache-dir --disable-pip-version-check"

case $1 in
    python)
        command -v python3 > /dev/null && python3 -c 'import ensurepip' 2> /dev/null && exit
        apt-get update
        apt-get install -y --no-install-recommends python3 ${2:-}
        rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
        ;;
    packages)
        python3 -m venv /opt/bidsseg
        $pip --require-hashes -r "$here/requirements-$2.txt"
        ;;
    bidsseg)
        $pip --no-deps --no-build-isolation "$here/.."
        cp "$here/../run.py" /opt/bidsseg/
        /opt/bidsseg/bin/python -c 'import bidsseg; print(bidsseg.__version__)' > /version
        export TEMPLATEFLOW_HOME=/opt/bidsseg/templateflow
        /opt/bidsseg/bin/python -c '
from bidsseg.registration.spaces import find_space
for resolution in (1, 2):
    find_space(f"MNI152NLin2009cAsym:res-{resolution}")
' 2> /tmp/templates || echo "no templates in the image: $(tail -n 1 /tmp/templates)"
        rm -f /tmp/templates
        find /opt/bidsseg/templateflow -mindepth 1 -maxdepth 1 -not -name tpl-MNI152NLin2009cAsym -exec rm -rf {} +
        find /opt/bidsseg/templateflow -type f -size 0 -delete
        find /opt/bidsseg/templateflow -depth -type d -empty -delete
        /opt/bidsseg/bin/python -m pip uninstall -y pip > /dev/null 2>&1
        cd /opt/bidsseg/lib/python3*/site-packages
        rm -rf torch/include torch/share torch/test
        find torch/bin -type f -not -name torch_shm_manager -delete
        find . -depth -type d \( -name tests -o -name test \) -not -path './torch/*' -exec rm -rf {} +
        chmod -R a+rX /opt/bidsseg /version
        ;;
esac
