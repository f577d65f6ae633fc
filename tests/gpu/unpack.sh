#!/bin/sh
# Unpacks what was carried to a machine without network: unpack.sh PARTS DEST
#   PARTS/part.??   one tar in parts, each carried in a call of its own, of:
#     zstd, liblz4.so.1                this machine's zstd
#     root.zst                         a tar of / : root/.pyenv/versions/3.11.7 (Python 3.11 with
#                                      what the farm needs, tensorrt_bindings 8.6.1 and pycuda),
#                                      opt/syslibs (what that Python links), opt/site312 (what
#                                      the machine's own Python lacks)
#     resource.zst, libnvinfer.zst, plugin.zst
#                                      libraries of the tensorrt 8.6.0 wheel, unchanged: the
#                                      builder checks the digest of its resource
# Prints the Python that runs tests/gpu. `zstd -12 --long=30` packed the resource from 991 to
# 346 MB in 54 s of CPU; `xz -6` with a window of 96 MiB got no smaller, in twelve times that.
set -eu
parts=$1 dest=$2
checkout=$(cd "$(dirname "$0")/../.." && pwd)
home=/root/.pyenv/versions/3.11.7
site=$home/lib/python3.11/site-packages
mkdir -p "$dest"
cat "$parts"/part.?? | tar xf - -C "$dest"
unzstd() { LD_LIBRARY_PATH="$dest" "$dest/zstd" -q -dc --long=31 "$dest/$1.zst"; }
unzstd root | tar xf - -C / --no-same-owner
unzstd resource > "$site/tensorrt_libs/libnvinfer_builder_resource.so.8.6.0"
unzstd libnvinfer > "$site/tensorrt_libs/libnvinfer.so.8"
unzstd plugin > "$site/tensorrt_libs/libnvinfer_plugin.so.8"
printf '%s\n' "$checkout" "$checkout/tests/gpu" "$checkout/tests/gpu/site" > "$site/enginefarm.pth"
for library in /opt/syslibs/*; do
    name=$(basename "$library")
    ldconfig -p | grep -q "$name " || cp "$library" /usr/local/lib/
done
ldconfig
echo "$home/bin/python3.11"
