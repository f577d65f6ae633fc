#!/bin/sh
# Undoes pack.sh on a machine with a GPU and no network: unpack.sh PARTS SCRATCH
#   PARTS/part.??   the parts of the packed tar, each carried in a call of its own
# Python 3.11 and the farm go to where they were built, /opt/ort, /opt/site312 and /opt/cuda11
# beside them. Prints the Python that runs tests/gpu.
set -eu
parts=$1 scratch=$2
checkout=$(cd "$(dirname "$0")/../.." && pwd)
home=/root/.pyenv/versions/3.11.7
site=$home/lib/python3.11/site-packages
mkdir -p "$scratch" /opt/cuda11
cat "$parts"/part.* | tar xf - -C "$scratch"
unzstd() { LD_LIBRARY_PATH="$scratch" "$scratch/zstd" -q -dc --long=31 "$1"; }
unzstd "$scratch/root.zst" | tar xf - -C / --no-same-owner
for packed in "$scratch"/*.so*.zst; do
    name=$(basename "$packed" .zst)
    case $name in
        libnv*) into=$site/tensorrt_libs ;;
        libonnxruntime*) into=/opt/ort/onnxruntime/capi ;;
        *) into=/opt/cuda11 ;;
    esac
    unzstd "$packed" >"$into/$name" &
done
wait
rm -rf "$scratch"
printf '%s\n' "$checkout" "$checkout/tests/gpu" "$checkout/tests/gpu/site" >"$site/enginefarm.pth"
for library in /opt/syslibs/*; do
    name=$(basename "$library")
    ldconfig -p | grep -q "$name " || cp "$library" /usr/local/lib/
done
# ONNX Runtime's providers name TensorRT and CUDA 11 by their sonames alone.
printf '%s\n' "$site/tensorrt_libs" /opt/cuda11 >/etc/ld.so.conf.d/enginefarm.conf
ldconfig
echo "$home/bin/python3.11"
