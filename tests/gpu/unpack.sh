#!/bin/sh
# Unpacks what was carried to a machine without network: unpack.sh PACKED DEST
#   PACKED/*/part.??      a tar in parts, of what follows
#   libnvinfer*.xz        of the tensorrt 8.6.0 wheel, unchanged: the builder checks its digest
#   PACKED/*/*.tar.xz     py310 (Python 3.10), trt86 (its tensorrt), lean-VERSION, efficientnet
#   PACKED/*/*.whl        for this machine's Python
set -eu
packed=$1 dest=$2
mkdir -p "$dest/site" "$dest/all"
cat "$packed"/*/part.?? | tar xf - -C "$dest/all"
packed=$dest
for archive in "$packed"/all/*.tar.xz; do
    case $archive in
        */eff.tar.xz) tar xJf "$archive" -C "$dest/site" ;;
        *) tar xJf "$archive" -C "$dest" ;;
    esac
done
xz -dc "$packed"/all/libnvinfer.so.8.xz > "$dest/trt86/tensorrt/libnvinfer.so.8" &
xz -dc "$packed"/all/libnvinfer_builder_resource.so.8.6.0.xz > "$dest/trt86/tensorrt/libnvinfer_builder_resource.so.8.6.0"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$dest/site" "$packed"/all/*.whl
wait
