#!/bin/sh
# pip as the build was told to use it: settings and certificates come as secrets, so that no layer and no build
# argument keeps them, and wheels from container/wheels go before the index.
set -eu
export PIP_CONFIG_FILE=/run/secrets/pip_conf
export PIP_FIND_LINKS=/wheels
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -s /run/secrets/ca ]; then
  export PIP_CERT=/run/secrets/ca
fi
exec /opt/triptych/bin/pip "$@"
