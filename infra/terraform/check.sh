#!/bin/sh
# Checks the format, policies (checkov), and every argument against the Google provider's list.
# It is not in `make check`, because it downloads 70 MB of bindings. If you have the provider, also
# run `terraform init -backend=false && terraform validate`.
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
