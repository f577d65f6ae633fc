#!/bin/sh
# Builds the three images: enginefarm/control, enginefarm/worker:…-trt10 and …-trt11.
#
#   infra/images/build.sh             all
#   infra/images/build.sh control     one of: control, trt10, trt11
#   REGISTRY=registry.example/team infra/images/build.sh
set -eu
cd "$(dirname "$0")/../.."
set -a
. infra/versions.env
set +a
prefix=${REGISTRY:+$REGISTRY/}enginefarm

control() {
    docker build -f infra/images/control.Dockerfile \
        --build-arg "CONTROL_BASE=$CONTROL_BASE" \
        -t "$prefix/control:$ENGINEFARM_VERSION" .
}

worker() { # major, wheel, build image, base image
    docker build -f infra/images/worker.Dockerfile \
        --build-arg "TENSORRT=$2" \
        --build-arg "WORKER_BUILD=$3" \
        --build-arg "WORKER_BASE=$4" \
        -t "$prefix/worker:$ENGINEFARM_VERSION-trt$1" .
}

[ $# -gt 0 ] || set -- control trt10 trt11
for image in "$@"; do
    case $image in
        control) control ;;
        trt10) worker 10 "$TENSORRT_10" "$TENSORRT_10_BUILD" "$TENSORRT_10_BASE" ;;
        trt11) worker 11 "$TENSORRT_11" "$TENSORRT_11_BUILD" "$TENSORRT_11_BASE" ;;
        *) echo "build.sh: no image is called $image: control, trt10 or trt11" >&2; exit 2 ;;
    esac
done
