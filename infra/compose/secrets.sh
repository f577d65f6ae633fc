#!/bin/sh
# Creates the secrets of infra/compose, and keeps those that exist.
# To rotate one: delete its file (s3_identities.json for all store keys), run this script,
# and then `docker compose up -d`.
set -eu
policies=$(cd "$(dirname "$0")/../s3-policies" && pwd)
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
cd "$folder"

random() { # letters and digits only, so that no file format needs quoting
    head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c "$1"
}

keep() { # name, contents
    [ -e "$1" ] || printf '%s' "$2" >"$1"
}

keep db_password "$(random 40)"
keep prefect_auth "farm:$(random 40)"
keep grafana_password "$(random 24)"
policy() { # of infra/s3-policies: as a JSON string, for the bucket of compose.yaml
    tr -d '\n' <"$policies/$1.json" | sed 's/  *//g; s/BUCKET/enginefarm/g; s/"/\\"/g'
}

if [ ! -e s3_identities.json ]; then
    identities='' documents=''
    identity() { # name, file of the key, what it may do as a field of JSON
        key=$(random 20) secret=$(random 40)
        printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
            "$key" "$secret" >"$2"
        identities="$identities${identities:+,
  }{\"name\": \"$1\", $3,
   \"credentials\": [{\"accessKey\": \"$key\", \"secretKey\": \"$secret\"}]}"
    }
    role() { # name, file of the key, name of the policy
        identity "$1" "$2" "\"policyNames\": [\"$3\"]"
        documents="$documents${documents:+,
  }{\"name\": \"$3\", \"content\": \"$(policy "$3")\"}"
    }
    identity admin store_admin_key '"actions": ["Admin"]'
    role farm store_key farm
    role hosts store_read_key pull
    role promoters store_promote_key promote
    role recipes store_recipes_key recipes
    role collector store_collect_key collect
    printf '{"identities": [\n  %s\n],\n"policies": [\n  %s\n]}\n' \
        "$identities" "$documents" >s3_identities.json
fi
# Compose mounts these files unchanged, so the images' user must be able to read them.
if [ "$(id -u)" = 0 ]; then
    chown 10001:10001 prefect_auth s3_identities.json store_*key
    chown 10001:999 db_password # 999: the PostgreSQL image's group
    chmod 0440 db_password
    chown 472 grafana_password
else
    chmod 0444 ./*
    chmod 0700 .
fi
