#!/bin/sh
# Sets NAME to the contents of the file NAME_FILE, for the few variables that are secrets, so
# that they are in no image, Compose file or `docker inspect`.
set -eu
for name in PREFECT_API_AUTH_STRING PREFECT_SERVER_API_AUTH_STRING PREFECT_SERVER_DATABASE_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        if [ ! -r "$file" ]; then
            echo "entrypoint: ${name}_FILE: cannot read $file" >&2
            exit 78
        fi
        export "$name=$(cat "$file")"
        unset "${name}_FILE"
    fi
done
exec "$@"
