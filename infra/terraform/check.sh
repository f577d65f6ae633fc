#!/bin/sh
# Format, a policy scan (checkov), and every argument against the Google provider's own list.
# Not in `make check`: it fetches 70 MB of bindings. With the provider at hand, run
# `terraform init -backend=false && terraform validate` as well.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
terraform -chdir="$here" fmt -check
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q checkov
"$work/venv/bin/pip" download -q --no-deps -d "$work" cdktn-provider-google==21.1.0
unzip -q "$work"/cdktn_provider_google-*.whl 'cdktn_provider_google/*/__init__.py' -d "$work"
"$work/venv/bin/python" "$here/check_arguments.py" "$here" "$work/cdktn_provider_google"
"$work/venv/bin/checkov" -d "$here" --framework terraform --quiet --compact 2>/dev/null
