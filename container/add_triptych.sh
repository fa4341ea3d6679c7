#!/bin/sh
# Adds Triptych and its user to an engine's image. Its environment sees the engine's packages and adds only what is
# missing: torch, transformers and CUDA stay the ones that the engine was built with.
set -eu
groupadd --gid 10001 triptych
useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin triptych
install --directory --owner=10001 --group=10001 /home/triptych/.cache
python3 -m venv --system-site-packages /opt/triptych
/pip.sh install .
